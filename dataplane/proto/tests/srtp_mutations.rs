//! Mutated SRTP and SRTCP: no panic, no state before authentication, and nothing opens twice.

mod common;

use std::collections::HashSet;

use common::{Rng, mutate, mutation_count};
use pop_proto::{
    DropReason,
    control::{MasterKey, SrtpProfile},
    srtp::{OVERHEAD_MAX, SrtpReceiver, SrtpSender},
};

const SEED: u64 = 77;

const PROFILES: [SrtpProfile; 3] = [SrtpProfile::Aes128CmSha1_80, SrtpProfile::AeadAes128Gcm, SrtpProfile::AeadAes256Gcm];

/// Counts of one run. The first check is that of lengths; what passes it meets the window, the limits and the cipher.
#[derive(Default)]
struct Tally {
    inputs: u64,
    malformed: u64,
    opened: u64,
}

impl Tally {
    fn count<T>(&mut self, result: &Result<T, DropReason>) {
        self.inputs += 1;
        match result {
            Ok(_) => self.opened += 1,
            Err(DropReason::RtpMalformed | DropReason::RtcpMalformed) => self.malformed += 1,
            Err(_) => {}
        }
    }

    fn print(&self, what: &str) {
        let share = 100.0 * (self.inputs - self.malformed) as f64 / self.inputs as f64;
        println!("{what}: seed {SEED}, {} inputs, {share:.1} % past the first check, {} opened", self.inputs, self.opened);
        assert!(share >= 30.0);
        assert!(self.opened > 0, "nothing authentic got through, so the state was never exercised");
    }
}

/// Where the header of a packet would end if the packet says so; hostile packets say anything.
fn claimed_header_len(packet: &[u8]) -> usize {
    let Some(first) = packet.first() else { return 12 };
    let csrcs_end = 12 + 4 * usize::from(first & 15);
    match packet.get(csrcs_end + 2..csrcs_end + 4) {
        Some(words) if first & 0x10 != 0 => csrcs_end + 4 + 4 * usize::from(u16::from_be_bytes([words[0], words[1]])),
        _ => csrcs_end,
    }
}

#[test]
fn mutated_rtp_never_panics_and_opens_only_once() {
    let mut rng = Rng::new(SEED);
    let mut tally = Tally::default();
    let master = MasterKey { key: [7; 32], salt: [9; 14] };
    for profile in PROFILES {
        let sender = SrtpSender::new(profile, &master);
        let mut receiver = SrtpReceiver::new(profile, &master);
        let mut opened = HashSet::new();
        let mut index = 60_000_u64;
        for _ in 0..mutation_count() / 3 {
            index += rng.below(3) as u64;
            let late_by = if rng.one_in(4) { rng.below(1_100) as u64 } else { 0 };
            let at = index - late_by;
            let mut packet = vec![0x90, 96];
            packet.extend((at as u16).to_be_bytes());
            packet.extend(rng.bytes(4));
            packet.extend((rng.below(20) as u32).to_be_bytes());
            packet.extend([0xbe, 0xde, 0, 1, 0x32, 1, 2, 3]);
            let payload = rng.bytes(rng.clone().below(60));
            let mut protected = vec![0; packet.len() + payload.len() + OVERHEAD_MAX];
            let len = sender.protect_rtp(at, &packet, &payload, &mut protected).expect("it fits");
            protected.truncate(len);
            if !rng.one_in(8) {
                mutate(&mut rng, &mut protected);
            }
            let header_len = if rng.one_in(10) { rng.below(90) } else { claimed_header_len(&protected) };
            let ssrc = protected.get(8..12).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes")));
            let result = receiver.unprotect_rtp(&mut protected, header_len);
            tally.count(&result);
            if let Ok(packet) = result {
                assert!(packet.len + sender.overhead() == protected.len() && packet.len >= header_len);
                assert!(opened.insert((ssrc, packet.index)), "opened twice: {ssrc:?} {packet:?}");
            }
        }
    }
    tally.print("srtp");
}

#[test]
fn mutated_rtcp_never_panics_and_opens_only_once() {
    let mut rng = Rng::new(SEED);
    let mut tally = Tally::default();
    let master = MasterKey { key: [7; 32], salt: [9; 14] };
    for profile in PROFILES {
        let mut sender = SrtpSender::new(profile, &master);
        let mut receiver = SrtpReceiver::new(profile, &master);
        let mut opened = HashSet::new();
        let mut earlier = Vec::new();
        for _ in 0..mutation_count() / 3 {
            let words = 1 + rng.below(12);
            let mut packet = vec![0x80, 201, 0, words as u8];
            packet.extend((rng.below(20) as u32).to_be_bytes());
            packet.extend(rng.bytes(4 * (words - 1)));
            let len = packet.len();
            packet.resize(len + OVERHEAD_MAX, 0);
            let protected_len = sender.protect_rtcp(&mut packet, len).expect("it fits");
            packet.truncate(protected_len);
            match rng.below(8) {
                0 => earlier = packet.clone(),
                1 => packet.clone_from(&earlier),
                2 => {}
                _ => mutate(&mut rng, &mut packet),
            }
            let as_received = packet.clone();
            let result = receiver.unprotect_rtcp(&mut packet);
            tally.count(&result);
            if result.is_ok() {
                assert!(opened.insert(as_received), "opened twice");
            }
        }
    }
    tally.print("srtcp");
}
