//! Byte equality with webrtc-srtp 0.17.2, which shares no code with ours, over seeded packets.

mod common;

use common::Rng;
use pop_proto::{
    control::{MasterKey, SrtpProfile},
    srtp::{OVERHEAD_MAX, SrtpReceiver, SrtpSender},
};
use webrtc_srtp::{context::Context, protection_profile::ProtectionProfile};

const SEED: u64 = 20_260_731;

const PROFILES: [(SrtpProfile, ProtectionProfile); 3] = [
    (SrtpProfile::Aes128CmSha1_80, ProtectionProfile::Aes128CmHmacSha1_80),
    (SrtpProfile::AeadAes128Gcm, ProtectionProfile::AeadAes128Gcm),
    (SrtpProfile::AeadAes256Gcm, ProtectionProfile::AeadAes256Gcm),
];

fn master_key(rng: &mut Rng) -> MasterKey {
    let mut master = MasterKey { key: [0; 32], salt: [0; 14] };
    rng.fill(&mut master.key);
    rng.fill(&mut master.salt);
    master
}

fn oracle(profile: (SrtpProfile, ProtectionProfile), master: &MasterKey) -> Context {
    let (key, salt) = (&master.key[..profile.0.key_len()], &master.salt[..profile.0.salt_len()]);
    Context::new(key, salt, profile.1, None, None).expect("the lengths are right")
}

/// A header with CSRCs and a one-byte or two-byte extension block now and then, and its whole packet.
fn rtp_packet(rng: &mut Rng, ssrc: u32, sequence: u16) -> (usize, Vec<u8>) {
    let csrcs = if rng.one_in(8) { rng.below(16) } else { 0 };
    let has_extension = !rng.one_in(3);
    let marker = (rng.below(2) as u8) << 7;
    let mut packet = vec![0x80 | u8::from(has_extension) << 4 | csrcs as u8, marker | 96];
    packet.extend(sequence.to_be_bytes());
    packet.extend(rng.bytes(4));
    packet.extend(ssrc.to_be_bytes());
    packet.extend(rng.bytes(4 * csrcs));
    if has_extension {
        // webrtc-srtp takes the header's length from a header that it writes again, so it has to read what is in the block.
        let value = rng.bytes(3);
        if rng.one_in(2) {
            packet.extend([0xbe, 0xde, 0, 1, 0x32]);
            packet.extend(value);
        } else {
            packet.extend([0x10, 0, 0, 2, 5, 3]);
            packet.extend(value);
            packet.extend([0; 3]);
        }
    }
    let header_len = packet.len();
    let payload_len = if rng.one_in(20) { 0 } else { rng.below(1_401) };
    packet.extend(rng.bytes(payload_len));
    (header_len, packet)
}

fn rtcp_packet(rng: &mut Rng) -> Vec<u8> {
    let words = 1 + rng.below(60);
    let mut packet = vec![0x80, 200 + rng.below(7) as u8, 0, words as u8];
    packet.extend(rng.bytes(4 * words));
    packet
}

#[test]
fn rtp_is_byte_equal_in_both_directions() {
    println!("seed {SEED}");
    let packets = if cfg!(debug_assertions) { 2_000 } else { 20_000 };
    for profile in PROFILES {
        let mut rng = Rng::new(SEED);
        let master = master_key(&mut rng);
        let sender = SrtpSender::new(profile.0, &master);
        let mut receiver = SrtpReceiver::new(profile.0, &master);
        let (mut their_sender, mut their_receiver) = (oracle(profile, &master), oracle(profile, &master));
        let first = rng.below(1 << 15) as u64;
        // Steps of up to 500 pass several rollovers.
        let mut index = first;
        for _ in 0..packets {
            index += 1 + if rng.one_in(5) { rng.below(500) as u64 } else { 0 };
            let (header_len, packet) = rtp_packet(&mut rng, 0x5eed_0001, index as u16);
            let mut ours = vec![0; packet.len() + OVERHEAD_MAX];
            let (header, payload) = packet.split_at(header_len);
            let len = sender.protect_rtp(index, header, payload, &mut ours).expect("it fits");
            ours.truncate(len);
            let theirs = their_sender.encrypt_rtp(&packet).expect("the oracle protects it");
            assert!(ours[..] == theirs[..], "{:?}, index {index}: {packet:x?}", profile.0);
            assert_eq!(len, packet.len() + sender.overhead());

            let opened_by_them = their_receiver.decrypt_rtp(&ours).expect("the oracle opens ours");
            assert!(opened_by_them[..] == packet[..]);
            let opened = receiver.unprotect_rtp(&mut ours, header_len).expect("we open it");
            assert_eq!(opened.index, index);
            assert!(ours[..opened.len] == packet[..]);
        }
        assert!(index >> 16 >= 1, "the run passed no rollover");
    }
}

#[test]
fn padding_is_encrypted_as_a_part_of_the_payload() {
    println!("seed {SEED}");
    for profile in PROFILES {
        let mut rng = Rng::new(SEED);
        let master = master_key(&mut rng);
        let sender = SrtpSender::new(profile.0, &master);
        let mut their_sender = oracle(profile, &master);
        let mut receiver = SrtpReceiver::new(profile.0, &master);
        for padding in 1..=u8::MAX {
            let index = u64::from(padding);
            let (header_len, mut packet) = rtp_packet(&mut rng, 0x5eed_0001, index as u16);
            packet[0] |= 0x20;
            let mut ours = vec![0; packet.len() + usize::from(padding) + OVERHEAD_MAX];
            let (header, payload) = packet.split_at(header_len);
            let len = sender.protect_padded_rtp(index, header, payload, padding, &mut ours).expect("it fits");
            ours.truncate(len);

            // RFC 3550 section 5.1: "The last octet of the padding contains a count of how many padding octets should be ignored, including itself."
            packet.resize(packet.len() + usize::from(padding), 0);
            *packet.last_mut().expect("the count") = padding;
            let theirs = their_sender.encrypt_rtp(&packet).expect("the oracle protects it");
            assert!(ours[..] == theirs[..], "{:?}, {padding} bytes: {packet:x?}", profile.0);
            let opened = receiver.unprotect_rtp(&mut ours, header_len).expect("we open it");
            assert!(ours[..opened.len] == packet[..]);
        }
    }
}

#[test]
fn rtcp_is_byte_equal_in_both_directions() {
    println!("seed {SEED}");
    for profile in PROFILES {
        let mut rng = Rng::new(SEED);
        let master = master_key(&mut rng);
        let mut sender = SrtpSender::new(profile.0, &master);
        let mut receiver = SrtpReceiver::new(profile.0, &master);
        let (mut their_sender, mut their_receiver) = (oracle(profile, &master), oracle(profile, &master));
        for _ in 0..2_000 {
            let mut packet = rtcp_packet(&mut rng);
            packet[4..8].copy_from_slice(&0x5eed_0002_u32.to_be_bytes());
            let mut ours = packet.clone();
            ours.resize(packet.len() + OVERHEAD_MAX, 0);
            let len = sender.protect_rtcp(&mut ours, packet.len()).expect("it fits");
            ours.truncate(len);
            let theirs = their_sender.encrypt_rtcp(&packet).expect("the oracle protects it");
            assert!(ours[..] == theirs[..], "{:?}: {packet:x?}", profile.0);

            let opened_by_them = their_receiver.decrypt_rtcp(&ours).expect("the oracle opens ours");
            assert!(opened_by_them[..] == packet[..]);
            let opened_len = receiver.unprotect_rtcp(&mut ours).expect("we open it");
            assert!(ours[..opened_len] == packet[..]);
        }
    }
}
