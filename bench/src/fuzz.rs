//! What fuzzers run: one function per kind of hostile input, the same for the seeded runs of `scripts/test` and for libFuzzer.
//!
//! A body takes any bytes, asserts what must hold whatever they are, and says whether they came past the first check: a fuzzer
//! whose inputs all end there tests only that. [`BODIES`] lists them with the inputs to start from.

mod core;
mod machines;
mod parsers;

use std::path::Path;

use crate::seeded::SplitMix64;

/// How far an input came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The first check refused it.
    Refused,
    /// It got further.
    Passed,
}

impl Outcome {
    fn passed(passed: bool) -> Self {
        if passed { Outcome::Passed } else { Outcome::Refused }
    }
}

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Of the target, and of its folder of inputs.
    pub name: &'static str,
    /// Panics when something does not hold.
    pub run: fn(&[u8]) -> Outcome,
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const BODIES: &[Body] = &[
    Body { name: "rtp", run: parsers::rtp, seeds: || hex_files("rtp") },
    Body { name: "rtcp", run: parsers::rtcp, seeds: || hex_files("rtcp") },
    Body { name: "stun", run: parsers::stun, seeds: || hex_files("stun").into_iter().filter(|packet| packet.len() >= 28).collect() },
    Body { name: "dtls", run: parsers::dtls, seeds: || hex_files("dtls") },
    Body { name: "sdp", run: parsers::sdp, seeds: offers },
    Body { name: "signal", run: parsers::signal, seeds: signal_messages },
    Body { name: "config", run: parsers::config, seeds: documented_config },
    Body { name: "twcc", run: machines::twcc, seeds: programs },
    Body { name: "ice", run: machines::ice, seeds: programs },
    Body { name: "srtp", run: machines::srtp, seeds: programs },
    Body { name: "core", run: core::core, seeds: calls },
];

/// The body called `name`, for a libFuzzer target.
pub fn body(name: &str) -> Body {
    *BODIES.iter().find(|body| body.name == name).unwrap_or_else(|| panic!("no body is called {name}"))
}

/// What a seeded run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Inputs.
    pub inputs: usize,
    /// Of them past the first check.
    pub passed: usize,
}

/// Runs `body` on `count` mutations of its seeds. Equal seeds make equal inputs.
pub fn run_seeded(body: &Body, seed: u64, count: usize) -> Tally {
    let seeds = (body.seeds)();
    assert!(!seeds.is_empty(), "{} has nothing to start from", body.name);
    let mut random = SplitMix64::new(seed);
    let mut tally = Tally { inputs: count, passed: 0 };
    for _ in 0..count {
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..random.below(4) {
            mutate(&mut random, &mut input);
        }
        tally.passed += usize::from((body.run)(&input) == Outcome::Passed);
    }
    tally
}

/// One change: a bit, a byte at a limit, a cut, a copy.
fn mutate(random: &mut SplitMix64, input: &mut Vec<u8>) {
    if input.is_empty() {
        input.extend(random.next_u64().to_le_bytes());
        return;
    }
    let at = random.below(input.len());
    let end = (at + 1 + random.below(16)).min(input.len());
    match random.below(8) {
        0..=2 => input[at] ^= 1 << random.below(8),
        3 => input[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][random.below(6)],
        4 => input[at] = random.next_u64() as u8,
        5 => input.truncate(at),
        6 => drop(input.drain(at..end)),
        _ => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
    }
}

/// Packets of the packet plane's own corpus: a file is one packet when it has no line per packet.
fn hex_files(kind: &str) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for text in files(&format!("dataplane/proto/tests/corpus/{kind}")) {
        let text = String::from_utf8(text).expect("the corpus is text");
        let lines: Vec<Vec<u8>> = text.lines().map(|line| unhex(line.split('#').next().unwrap_or_default())).collect();
        packets.extend(lines.iter().filter(|packet| packet.len() > 8).cloned());
        packets.push(lines.concat());
    }
    packets
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|digit| Some(digit.to_digit(16)? as u8)).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn offers() -> Vec<Vec<u8>> {
    files("pop/tests/corpus/sdp").into_iter().filter(|text| text.starts_with(b"v=0")).collect()
}

/// What a client of a room says: each offer in a `SignalRequest`, and a message of each small kind.
fn signal_messages() -> Vec<Vec<u8>> {
    let field = |number: u8, bytes: &[u8]| {
        let mut field = vec![number << 3 | 2];
        let mut len = bytes.len();
        while len > 0x7f {
            field.push(len as u8 | 0x80);
            len >>= 7;
        }
        field.push(len as u8);
        field.extend_from_slice(bytes);
        field
    };
    let track = b"TR_00000000000000ab";
    let small = [
        field(4, &[field(1, b"cid"), vec![0x18, 1], field(9, &field(7, b"q"))].concat()),
        field(5, &[field(1, track), vec![0x10, 1]].concat()),
        field(6, &field(1, track)),
        field(7, &[field(1, track), vec![0x28, 64]].concat()),
        field(12, &field(2, &field(1, track))),
        field(15, &field(2, b"ann")),
    ];
    let offers = offers().into_iter().map(|offer| field(1, &[field(1, b"offer"), field(2, &offer), vec![0x18, 1]].concat()));
    offers.chain(small).chain(self::offers()).collect()
}

fn documented_config() -> Vec<Vec<u8>> {
    let text = files("config").into_iter().find(|text| text.windows(8).any(|word| word == b"[media]\n"));
    // Without comments: a mutation there tests nothing.
    let text = String::from_utf8(text.expect("config/pop.toml is there")).expect("TOML is text");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("# ") && !line.is_empty()).collect();
    vec![lines.join("\n").into_bytes()]
}

/// Bytes that a body reads as steps: nothing of the field looks like them.
fn programs() -> Vec<Vec<u8>> {
    let mut random = SplitMix64::new(0x0070_6f70);
    let mut bytes = |len: usize| (0..len).map(|_| random.next_u64() as u8).collect();
    [16, 64, 256, 1_024].into_iter().cycle().take(16).map(&mut bytes).collect()
}

/// Programs that begin with a call: its packets, reports and changes follow.
fn calls() -> Vec<Vec<u8>> {
    programs().into_iter().map(|program| [&[15, 0], program.as_slice()].concat()).collect()
}

/// The contents of every file of a folder of the repository, in the order of their names.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("bench lies in the repository");
    let entries = std::fs::read_dir(root.join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("the folder is readable").path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).collect()
}

/// Takes steps and their arguments from a fuzzer's bytes; zeros when they are used up.
struct Steps<'a> {
    bytes: &'a [u8],
}

impl<'a> Steps<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(len.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }
}
