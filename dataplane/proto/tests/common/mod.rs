//! What the tests of this crate share: a seeded generator, mutations, and the committed corpora.
// Each test binary takes what it needs.
#![allow(dead_code, unreachable_pub)]
// The crate is sans-IO, its tests read their corpus.
#![allow(clippy::disallowed_methods)]

pub mod svc;

use std::{fs, path::Path};

/// SplitMix64: tiny, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`; print the seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is above 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }

    /// `len` random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// Changes `bytes` in one to three places: bits, bytes at their limits, lengths, copies and cuts.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.below(3) {
        let len = bytes.len();
        if len == 0 {
            bytes.extend(rng.bytes(8));
            continue;
        }
        let at = rng.below(len);
        match rng.below(10) {
            0..=2 => bytes[at] ^= 1 << rng.below(8),
            3..=4 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][rng.below(6)],
            5 => bytes[at] = rng.next_u64() as u8,
            6 => bytes[at] = bytes[at].wrapping_add([1, 4, 252, 255][rng.below(4)]),
            7 => bytes.truncate(at),
            8 => {
                let end = (at + 1 + rng.below(16)).min(len);
                let copy = bytes[at..end].to_vec();
                let to = rng.below(len);
                bytes.splice(to..to, copy);
            }
            _ => {
                let end = (at + 1 + rng.below(16)).min(len);
                bytes.drain(at..end);
            }
        }
    }
}

/// A length field's favourite lies: 16 bits at an even offset, too large by a little, by a lot, or nothing at all.
fn attack_length(rng: &mut Rng, bytes: &mut [u8]) {
    let words = bytes.as_chunks_mut::<2>().0;
    if words.is_empty() {
        return;
    }
    let at = rng.below(words.len());
    let value = u16::from_be_bytes(words[at]);
    words[at] = [0, 1, value.wrapping_add(1), value.wrapping_sub(1), value << 1, 0x7fff, 0x8000, 0xffff][rng.below(8)].to_be_bytes();
}

/// Runs `check` on a million and more mutations of `seeds` and prints how many it let past, which must be 30 % or more: a test
/// whose inputs all die at the first byte tests that byte only.
///
/// An input is a seed, often spliced with another, then changed by [`mutate`] and by lies about lengths. `check` gets it in a
/// buffer of exactly its length and returns whether it passed the parser's first check. `POP_MUTATION_SEED` and
/// `POP_MUTATION_COUNT` choose another run.
pub fn run_mutations(name: &str, seeds: &[Vec<u8>], mut check: impl FnMut(&mut Rng, &[u8]) -> bool) {
    let from_environment = |key| std::env::var(key).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{key} is no number")));
    let seed = from_environment("POP_MUTATION_SEED").unwrap_or(0x0070_6f70);
    let count = from_environment("POP_MUTATION_COUNT").map_or(mutation_count(), |count| count as usize);
    let mut rng = Rng::new(seed);
    let mut input = Vec::new();
    let mut passed = 0;
    for _ in 0..count {
        input.clear();
        input.extend_from_slice(&seeds[rng.below(seeds.len())]);
        match rng.below(8) {
            0 => {
                let other = &seeds[rng.below(seeds.len())];
                input.truncate(rng.below(input.len() + 1));
                input.extend_from_slice(&other[rng.below(other.len() + 1)..]);
            }
            1 => attack_length(&mut rng, &mut input),
            _ => {}
        }
        mutate(&mut rng, &mut input);
        passed += usize::from(check(&mut rng, &input));
    }
    let share = 100.0 * passed as f64 / count as f64;
    println!("{name}: {count} inputs, {share:.1} % past the first check, seed {seed}");
    assert!(share >= 30.0, "{name}: only {share:.1} % of the inputs get past the first check");
}

/// How many inputs a mutation test takes: the full million and more in release, a quick share of it in debug, and
/// `POP_MUTATION_FACTOR` times as many when `scripts/test --long mutations` sets it.
pub fn mutation_count() -> usize {
    let factor = std::env::var("POP_MUTATION_FACTOR").map_or(1, |factor| factor.parse().expect("POP_MUTATION_FACTOR is a number"));
    factor * if cfg!(debug_assertions) { 100_000 } else { 1_200_000 }
}

/// The inputs of `tests/corpus/NAME/*.hex`, sorted by file name; white space and `#` comments mean nothing.
pub fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("the corpus is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "hex"))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("the corpus is text");
            (path.file_stem().expect("a .hex file has a stem").to_string_lossy().into_owned(), unhex(&text))
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs
}

/// Every line of `tests/corpus/NAME/FILE.hex` that is not a comment: one captured packet each, in order of time.
pub fn captured(name: &str, file: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name).join(file).with_extension("hex");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let packets: Vec<_> = text.lines().map(unhex).filter(|packet| !packet.is_empty()).collect();
    assert!(!packets.is_empty(), "{} is empty", path.display());
    packets
}

/// The bytes of hexadecimal text; white space and `#` comments mean nothing.
pub fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(str::chars)
        .filter(|character| !character.is_whitespace())
        .map(|character| character.to_digit(16).unwrap_or_else(|| panic!("{character:?} is no hexadecimal digit")))
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte at the end");
    digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// The CRC-32 of STUN's FINGERPRINT, bit by bit and apart from the code under test.
pub fn stun_fingerprint(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    (!crc ^ 0x5354_554e).to_be_bytes()
}
