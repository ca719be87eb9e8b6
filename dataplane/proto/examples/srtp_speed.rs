//! Nanoseconds per packet of our SRTP and of webrtc-srtp, in turn, on one thread:
//! `cargo run --release -p pop-proto --example srtp_speed [PASSES]`.
//!
//! Each figure is the fastest of the passes over the same packets, since other work on the machine only ever slows a pass
//! down; the checksum shows that both did the same work.
// The crate has no clock, but a measurement needs one.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

use std::{env, hint::black_box, process::ExitCode, time::Instant};

use pop_proto::{
    control::{MasterKey, SrtpProfile},
    srtp::{OVERHEAD_MAX, SrtpReceiver, SrtpSender},
};
use webrtc_srtp::{
    context::Context,
    option::{srtcp_replay_protection, srtp_replay_protection},
    protection_profile::ProtectionProfile,
};

const PROFILES: [(SrtpProfile, ProtectionProfile); 3] = [
    (SrtpProfile::AeadAes128Gcm, ProtectionProfile::AeadAes128Gcm),
    (SrtpProfile::AeadAes256Gcm, ProtectionProfile::AeadAes256Gcm),
    (SrtpProfile::Aes128CmSha1_80, ProtectionProfile::Aes128CmHmacSha1_80),
];

/// Packets per pass: enough that the packets of a pass do not stay in the first-level cache, as in a fan-out.
const PACKETS: u64 = 2_048;

/// The header that most packets of a browser have: 12 bytes and one extension element.
const HEADER: [u8; 20] = [0x90, 96, 0, 0, 0, 0, 0, 9, 0x5e, 0xed, 0, 1, 0xbe, 0xde, 0, 1, 0x32, 1, 2, 0];

/// The times of one variant, one per pass, and what it made.
#[derive(Default)]
struct Variant {
    ns: Vec<f64>,
    checksum: u64,
}

impl Variant {
    fn pass(&mut self, mut run: impl FnMut(u64) -> u64) {
        let start = Instant::now();
        self.checksum = (0..PACKETS).fold(0, |sum: u64, at| sum.rotate_left(1) ^ run(at));
        self.ns.push(start.elapsed().as_nanos() as f64 / PACKETS as f64);
    }

    fn best_ns(&self) -> f64 {
        self.ns.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// Words of the packet's end: its tag, or its last payload bytes.
fn digest(packet: &[u8]) -> u64 {
    let tail = packet.last_chunk::<8>().expect("a packet has eight bytes");
    u64::from_le_bytes(*tail) ^ packet.len() as u64
}

fn packet(index: u64, len: usize) -> Vec<u8> {
    let mut packet = HEADER.to_vec();
    packet[2..4].copy_from_slice(&(index as u16).to_be_bytes());
    packet.extend((0..len - HEADER.len()).map(|at| (at as u64 * 31 + index) as u8));
    packet
}

fn oracle(profile: (SrtpProfile, ProtectionProfile), master: &MasterKey) -> Context {
    let (key, salt) = (&master.key[..profile.0.key_len()], &master.salt[..profile.0.salt_len()]);
    Context::new(key, salt, profile.1, Some(srtp_replay_protection(1_024)), Some(srtcp_replay_protection(128)))
        .expect("the lengths are right")
}

fn measure(profile: (SrtpProfile, ProtectionProfile), len: usize, passes: usize) {
    let master = MasterKey { key: [7; 32], salt: [9; 14] };
    let [mut protect, mut unprotect, mut their_protect, mut their_unprotect]: [Variant; 4] = std::array::from_fn(|_| Variant::default());
    let plain: Vec<_> = (0..PACKETS).map(|index| packet(index, len)).collect();
    let sender = SrtpSender::new(profile.0, &master);
    let mut protected = vec![vec![0; len + OVERHEAD_MAX]; PACKETS as usize];
    for _ in 0..passes {
        protect.pass(|at| {
            let (header, payload) = plain[at as usize].split_at(HEADER.len());
            let out = &mut protected[at as usize];
            let len = sender.protect_rtp(at, header, payload, black_box(out)).expect("it fits");
            digest(&out[..len])
        });
        let mut theirs = oracle(profile, &master);
        their_protect.pass(|at| digest(&black_box(theirs.encrypt_rtp(&plain[at as usize]).expect("it is an RTP packet"))));

        let sealed: Vec<_> = protected.iter().map(|out| out[..len + sender.overhead()].to_vec()).collect();
        let mut in_place = sealed.clone();
        let mut receiver = SrtpReceiver::new(profile.0, &master);
        unprotect.pass(|at| {
            let packet = &mut in_place[at as usize];
            let opened = receiver.unprotect_rtp(black_box(packet), HEADER.len()).expect("it is authentic");
            digest(&packet[..opened.len])
        });
        let mut theirs = oracle(profile, &master);
        their_unprotect.pass(|at| digest(&black_box(theirs.decrypt_rtp(&sealed[at as usize]).expect("it is authentic"))));
    }
    assert_eq!((protect.checksum, unprotect.checksum), (their_protect.checksum, their_unprotect.checksum), "not the same work");
    println!(
        "{:<24} {len:>5} B  protect {:>6.0} ns (webrtc-srtp {:>6.0})  unprotect {:>6.0} ns (webrtc-srtp {:>6.0})  checksum {:016x}",
        profile.0.name(),
        protect.best_ns(),
        their_protect.best_ns(),
        unprotect.best_ns(),
        their_unprotect.best_ns(),
        protect.checksum ^ unprotect.checksum,
    );
}

fn main() -> ExitCode {
    let passes = match env::args().nth(1).map(|text| text.parse()) {
        None => 21,
        Some(Ok(passes @ 1..)) => passes,
        Some(_) => {
            eprintln!("usage: srtp_speed [PASSES], a number from 1");
            return ExitCode::from(2);
        }
    };
    for profile in PROFILES {
        for len in [160, 1_100] {
            measure(profile, len, passes);
        }
    }
    ExitCode::SUCCESS
}
