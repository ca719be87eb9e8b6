//! Sealing and opening of datagrams: AES-128-GCM over the payload, the head as associated data. The crate's only place with a cipher.
//!
//! The counter in the head is the nonce. It goes on through all generations, each of which has its own key, so that no pair of key
//! and nonce comes twice and one replay window serves all. Make before break: a receiver opens the next generation as soon as it has
//! its keys, a sender seals under it when the receiver has said so, and the old one opens for [`OLD_KEYS_LIVE`] more.
//!
//! A datagram tells its generation by one bit, so a receiver has the newest two. Who was not told that the next one opens, since what
//! tells it is lost, seals under it all the same when the one after that comes: both ends step together, over a way that loses nothing,
//! so the receiver has it since the step before. A sealer is never more than one generation behind.

use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use pop_schemas::Time;

use crate::{
    RelayDrop,
    frame::{HEAD_LEN, Head, OVERHEAD, TAG_LEN},
    keys::KEYS_LEN,
};

/// How many datagrams one key seals. Far below what AES-GCM bears (RFC 9001 appendix B.1.1): 2^23, as for QUIC.
pub const DATAGRAMS_PER_KEY_MAX: u64 = 1 << 23;
/// From so many on the link asks for the next generation: the last eighth is what a fast link sends until it comes.
const KEYS_ALMOST_USED: u64 = DATAGRAMS_PER_KEY_MAX / 8 * 7;
/// How long a generation still opens after the next one is there.
pub const OLD_KEYS_LIVE: Duration = Duration::from_secs(180);

/// Echoes are numbered from here on, the link's own datagrams below it: no pair of key and nonce comes twice, and what is lost of echoes is no
/// loss of the link.
pub(crate) const ECHO_COUNTERS: u64 = 1 << 61;
/// And up to here.
pub(crate) const ECHO_COUNTERS_END: u64 = TRANSIT_COUNTERS;
/// What the link carries for others is numbered from here on: it goes over this link's own path, while the link's own may go another way.
pub(crate) const TRANSIT_COUNTERS: u64 = 1 << 62;

/// Key and salt of one generation and direction.
struct Key {
    cipher: LessSafeKey,
    salt: [u8; 12],
    generation: u32,
}

impl Key {
    fn new(keys: &[u8; KEYS_LEN], generation: u32) -> Key {
        let (key, salt) = keys.split_at(16);
        let key = UnboundKey::new(&AES_128_GCM, key).expect("an AES-128 key has 16 bytes");
        Key { cipher: LessSafeKey::new(key), salt: salt.try_into().expect("28 less 16 bytes"), generation }
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = self.salt;
        for (byte, counter) in nonce[4..].iter_mut().zip(counter.to_be_bytes()) {
            *byte ^= counter;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    fn phase(&self) -> bool {
        self.generation & 1 == 1
    }
}

/// Seals what one end of a link sends.
pub struct Sealer {
    key: Key,
    /// Waits until the other end can open it, or there is no other choice.
    next_key: Option<Key>,
    counter: u64,
    /// The counters of the next echo, and of the next datagram of others.
    echo: u64,
    transit: u64,
    /// Sealed under `key`.
    sealed: u64,
    told: bool,
}

impl Sealer {
    /// Seals under `keys` of `generation`, from counter 0 on.
    pub fn new(keys: &[u8; KEYS_LEN], generation: u32) -> Sealer {
        let (echo, transit) = (ECHO_COUNTERS, TRANSIT_COUNTERS);
        Sealer { key: Key::new(keys, generation), next_key: None, counter: 0, echo, transit, sealed: 0, told: false }
    }

    /// Has the keys of a later generation ready. The one that waits, if any, is sealed under from now on: the other end opens it, and
    /// no longer the one before. One that is not later is ignored: a key never comes back.
    pub fn rekey(&mut self, keys: &[u8; KEYS_LEN], generation: u32) {
        if generation > self.next_key.as_ref().unwrap_or(&self.key).generation
            && let Some(key) = self.next_key.replace(Key::new(keys, generation))
        {
            self.step(key);
        }
    }

    /// The other end can open `generation`: what is sealed from now on is sealed under it, when its keys are here.
    pub fn confirm(&mut self, generation: u32) {
        if let Some(key) = self.next_key.take_if(|key| key.generation == generation) {
            self.step(key);
        }
    }

    /// To a key that has sealed nothing.
    fn step(&mut self, key: Key) {
        self.key = key;
        (self.sealed, self.told) = (0, false);
    }

    /// The generation that is sealed under.
    pub fn generation(&self) -> u32 {
        self.key.generation
    }

    /// The counter of the next datagram.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Whether the present key is almost used up; true once per generation.
    pub fn keys_used(&mut self) -> bool {
        self.sealed >= KEYS_ALMOST_USED && !std::mem::replace(&mut self.told, true)
    }

    /// Writes head, `payload ++ rest` sealed, and tag to the start of `out`; returns the datagram's length. `head`'s phase and counter
    /// are set here. Fails with [`RelayDrop::TooLarge`] when `out` is too short, [`RelayDrop::KeysUsed`] when the key is used up; then
    /// no counter was taken.
    pub fn seal(&mut self, head: Head, payload: &[u8], rest: &[u8], out: &mut [u8]) -> Result<usize, RelayDrop> {
        let len = self.seal_as(self.counter, head, payload, rest, out)?;
        self.counter += 1;
        Ok(len)
    }

    /// The same of an echo.
    pub fn seal_echo(&mut self, head: Head, payload: &[u8], out: &mut [u8]) -> Result<usize, RelayDrop> {
        let len = self.seal_as(self.echo, head, payload, &[], out)?;
        self.echo += 1;
        Ok(len)
    }

    /// The same of a datagram of others.
    pub fn seal_transit(&mut self, head: Head, payload: &[u8], rest: &[u8], out: &mut [u8]) -> Result<usize, RelayDrop> {
        let len = self.seal_as(self.transit, head, payload, rest, out)?;
        self.transit += 1;
        Ok(len)
    }

    fn seal_as(&mut self, counter: u64, mut head: Head, payload: &[u8], rest: &[u8], out: &mut [u8]) -> Result<usize, RelayDrop> {
        let len = OVERHEAD + payload.len() + rest.len();
        let out = out.get_mut(..len).ok_or(RelayDrop::TooLarge)?;
        if self.sealed >= DATAGRAMS_PER_KEY_MAX {
            // If the other end cannot open it yet, it soon can.
            let key = self.next_key.take().ok_or(RelayDrop::KeysUsed)?;
            self.step(key);
        }
        (head.phase, head.counter) = (self.key.phase(), counter);
        let head = head.bytes();
        let (out_head, out_sealed) = out.split_at_mut(HEAD_LEN);
        out_head.copy_from_slice(&head);
        let (out_payload, out_rest) = out_sealed.split_at_mut(payload.len());
        self.key
            .cipher
            .seal_out_of_place_scatter(self.key.nonce(counter), Aad::from(&head), payload, out_payload, rest, out_rest)
            // The lengths are right by construction, so only a payload beyond GCM's 64 GiB is left.
            .map_err(|_| RelayDrop::TooLarge)?;
        self.sealed += 1;
        Ok(len)
    }

    #[cfg(test)]
    pub(crate) fn pretend_sealed(&mut self, sealed: u64) {
        self.sealed = sealed;
    }
}

/// Opens what the other end sends.
pub struct Opener {
    /// By phase: the newest generation and the one before it.
    keys: [Option<Key>; 2],
    newest: u32,
    /// When the one before the newest dies.
    old_until: Time,
}

impl Opener {
    /// Opens `generation`.
    pub fn new(keys: &[u8; KEYS_LEN], generation: u32) -> Opener {
        let mut opener = Opener { keys: [None, None], newest: generation, old_until: Time::ZERO };
        opener.keys[(generation & 1) as usize] = Some(Key::new(keys, generation));
        opener
    }

    /// Opens a later generation too, and the one before for [`OLD_KEYS_LIVE`] more. One that is not later is ignored.
    pub fn rekey(&mut self, now: Time, keys: &[u8; KEYS_LEN], generation: u32) {
        if generation > self.newest {
            // Two generations of one phase never live together.
            self.keys[(generation & 1) as usize] = Some(Key::new(keys, generation));
            (self.newest, self.old_until) = (generation, now + OLD_KEYS_LIVE);
        }
    }

    /// The newest generation that is opened.
    pub fn generation(&self) -> u32 {
        self.newest
    }

    /// When [`Self::handle_timeout`] is due; `None` while there is no old key.
    pub fn timeout(&self) -> Option<Time> {
        self.keys[(self.newest & 1 ^ 1) as usize].as_ref().map(|_| self.old_until)
    }

    /// Lets the old key die when its time is over.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.timeout().is_some_and(|at| at <= now) {
            self.keys[(self.newest & 1 ^ 1) as usize] = None;
        }
    }

    /// Opens `datagram` in place; its payload then lies at `HEAD_LEN..` for the length returned. `head` is [`Head::read`] of it.
    pub fn open(&mut self, now: Time, head: &Head, datagram: &mut [u8]) -> Result<usize, RelayDrop> {
        self.handle_timeout(now);
        let key = self.keys[usize::from(head.phase)].as_ref().ok_or(RelayDrop::KeyUnknown)?;
        let (clear, sealed) = datagram.split_at_mut_checked(HEAD_LEN).ok_or(RelayDrop::Malformed)?;
        if sealed.len() < TAG_LEN {
            return Err(RelayDrop::Malformed);
        }
        let opened = key.cipher.open_in_place(key.nonce(head.counter), Aad::from(&*clear), sealed);
        opened.map(|payload| payload.len()).map_err(|_| RelayDrop::NotAuthentic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::VERSION, frame::FrameKind};

    const HEAD: Head =
        Head { version: VERSION, kind: FrameKind::Media, phase: false, association: 258, alias: 7, layer: 1, epoch: 2, counter: 0 };

    fn open(opener: &mut Opener, now: Time, datagram: &[u8]) -> Result<Vec<u8>, RelayDrop> {
        let mut datagram = datagram.to_vec();
        let head = Head::read(&datagram)?;
        let len = opener.open(now, &head, &mut datagram)?;
        Ok(datagram[HEAD_LEN..HEAD_LEN + len].to_vec())
    }

    #[test]
    fn what_was_sealed_opens_and_nothing_else_does() {
        let (mut sealer, mut opener) = (Sealer::new(&[1; KEYS_LEN], 0), Opener::new(&[1; KEYS_LEN], 0));
        let mut out = [0; 64];
        let len = sealer.seal(HEAD, b"hello ", b"there", &mut out).expect("it fits");
        assert_eq!(len, OVERHEAD + 11);
        assert_eq!(open(&mut opener, Time::ZERO, &out[..len]).as_deref(), Ok(b"hello there".as_slice()));
        for at in 2..len {
            let mut bad = out[..len].to_vec();
            bad[at] ^= 1;
            assert_eq!(open(&mut opener, Time::ZERO, &bad), Err(RelayDrop::NotAuthentic), "byte {at}");
        }
        assert_eq!(sealer.seal(HEAD, &[0; 33], &[], &mut out), Err(RelayDrop::TooLarge));
        assert_eq!(sealer.counter(), 1, "what was not sealed takes no counter");
    }

    #[test]
    fn the_next_generation_is_opened_before_it_is_sent_and_the_old_one_dies() {
        let (mut sealer, mut opener) = (Sealer::new(&[1; KEYS_LEN], 0), Opener::new(&[1; KEYS_LEN], 0));
        let mut out = [0; 64];
        let start = Time::from_millis(1_000);
        sealer.rekey(&[2; KEYS_LEN], 1);
        let old_len = sealer.seal(HEAD, b"old", &[], &mut out).expect("it fits");
        let old = out[..old_len].to_vec();
        opener.rekey(start, &[2; KEYS_LEN], 1);
        sealer.confirm(1);
        let len = sealer.seal(HEAD, b"new", &[], &mut out).expect("it fits");
        assert_eq!(open(&mut opener, start, &out[..len]).as_deref(), Ok(b"new".as_slice()));
        assert_eq!(Head::read(&out).map(|head| (head.phase, head.counter)), Ok((true, 1)));
        let almost = start + OLD_KEYS_LIVE - Duration::from_nanos(1);
        assert_eq!(open(&mut opener, almost, &old).as_deref(), Ok(b"old".as_slice()));
        assert_eq!(open(&mut opener, start + OLD_KEYS_LIVE, &old), Err(RelayDrop::KeyUnknown));
        // An earlier generation changes nothing.
        sealer.rekey(&[1; KEYS_LEN], 0);
        sealer.confirm(0);
        assert_eq!(sealer.generation(), 1);
    }

    #[test]
    fn a_used_up_key_seals_no_more_until_the_next_one() {
        let mut sealer = Sealer::new(&[1; KEYS_LEN], 0);
        let mut out = [0; 64];
        sealer.pretend_sealed(KEYS_ALMOST_USED - 1);
        assert!(!sealer.keys_used());
        sealer.seal(HEAD, &[], &[], &mut out).expect("one more");
        assert!(sealer.keys_used() && !sealer.keys_used(), "it is told once");
        sealer.pretend_sealed(DATAGRAMS_PER_KEY_MAX);
        assert_eq!(sealer.seal(HEAD, &[], &[], &mut out), Err(RelayDrop::KeysUsed));
        sealer.rekey(&[2; KEYS_LEN], 1);
        // Nothing but the next key can be sealed under, whether the other end has said that it opens it or not.
        assert!(sealer.seal(HEAD, &[], &[], &mut out).is_ok());
        assert_eq!((sealer.generation(), sealer.counter()), (1, 2));
        sealer.confirm(1);
        sealer.pretend_sealed(DATAGRAMS_PER_KEY_MAX);
        assert_eq!(sealer.seal(HEAD, &[], &[], &mut out), Err(RelayDrop::KeysUsed), "a key is used once");
    }

    #[test]
    fn a_sealer_that_nobody_answers_is_one_generation_behind_and_no_nonce_comes_twice() {
        let (mut sealer, mut opener) = (Sealer::new(&[0; KEYS_LEN], 0), Opener::new(&[0; KEYS_LEN], 0));
        let mut out = [0; 64];
        for generation in 1..=5 {
            let now = Time::from_millis(120_000 * u64::from(generation));
            sealer.pretend_sealed(1_000);
            // Whichever end steps first.
            for end in [generation % 2, 1 - generation % 2] {
                match end {
                    0 => sealer.rekey(&[generation as u8; KEYS_LEN], generation),
                    _ => opener.rekey(now, &[generation as u8; KEYS_LEN], generation),
                }
            }
            assert_eq!(sealer.generation(), generation - 1);
            let len = sealer.seal(HEAD, b"unheard", &[], &mut out).expect("a key that has sealed little");
            assert_eq!(sealer.counter(), u64::from(generation), "counters go on");
            assert_eq!(open(&mut opener, now, &out[..len]).as_deref(), Ok(b"unheard".as_slice()), "generation {generation}");
        }
    }
}
