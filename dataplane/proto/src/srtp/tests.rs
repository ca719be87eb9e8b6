//! Rules of RFC 3711 and RFC 7714, and attacks on them, for every profile.

use super::*;

const PROFILES: [SrtpProfile; 3] = [SrtpProfile::Aes128CmSha1_80, SrtpProfile::AeadAes128Gcm, SrtpProfile::AeadAes256Gcm];
const SSRC: u32 = 0x1122_3344;

fn master(seed: u8) -> MasterKey {
    let byte = |at: usize| (at as u8).wrapping_mul(37).wrapping_add(seed);
    MasterKey { key: std::array::from_fn(byte), salt: std::array::from_fn(|at| byte(at + 100)) }
}

fn pair(profile: SrtpProfile) -> (SrtpSender, SrtpReceiver) {
    (SrtpSender::new(profile, &master(1)), SrtpReceiver::new(profile, &master(1)))
}

fn header(ssrc: u32, sequence: u16) -> [u8; 12] {
    let mut header = [0x80, 96, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&sequence.to_be_bytes());
    header[8..].copy_from_slice(&ssrc.to_be_bytes());
    header
}

fn protect(sender: &SrtpSender, ssrc: u32, index: u64) -> Vec<u8> {
    let mut out = vec![0; 200];
    let len = sender.protect_rtp(index, &header(ssrc, index as u16), b"a payload of some bytes", &mut out).expect("it fits");
    out.truncate(len);
    out
}

fn open(receiver: &mut SrtpReceiver, packet: &[u8]) -> Result<u64, DropReason> {
    let mut packet = packet.to_vec();
    let opened = receiver.unprotect_rtp(&mut packet, 12)?;
    assert_eq!(&packet[12..opened.len], b"a payload of some bytes");
    Ok(opened.index)
}

fn receiver_report(ssrc: u32) -> Vec<u8> {
    let mut packet = vec![0x80, 201, 0, 1];
    packet.extend(ssrc.to_be_bytes());
    packet.extend([0x81, 202, 0, 2, 1, 2, 3, 4, 1, 1, b'x', 0]);
    packet
}

fn protect_rtcp(sender: &mut SrtpSender, ssrc: u32) -> Vec<u8> {
    let mut packet = receiver_report(ssrc);
    let len = packet.len();
    packet.resize(len + OVERHEAD_MAX, 0);
    let protected_len = sender.protect_rtcp(&mut packet, len).expect("it fits");
    packet.truncate(protected_len);
    packet
}

fn open_rtcp(receiver: &mut SrtpReceiver, packet: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut packet = packet.to_vec();
    let len = receiver.unprotect_rtcp(&mut packet)?;
    packet.truncate(len);
    Ok(packet)
}

#[test]
fn the_rollover_is_followed() {
    for profile in PROFILES {
        let (sender, mut receiver) = pair(profile);
        for index in 65_530..65_550 {
            assert_eq!(open(&mut receiver, &protect(&sender, SSRC, index)), Ok(index), "{profile:?}");
        }
    }
}

#[test]
fn reordering_around_the_rollover_is_followed() {
    for profile in PROFILES {
        let (sender, mut receiver) = pair(profile);
        for index in [65_534, 65_537, 65_535, 65_536, 65_533, 65_539, 65_538, 97_539, 130_000, 131_071, 131_073, 131_070, 131_072] {
            assert_eq!(open(&mut receiver, &protect(&sender, SSRC, index)), Ok(index), "{profile:?}");
        }
    }
}

#[test]
fn a_replay_is_refused() {
    for profile in PROFILES {
        let (sender, mut receiver) = pair(profile);
        let packet = protect(&sender, SSRC, 7);
        assert_eq!(open(&mut receiver, &packet), Ok(7));
        assert_eq!(open(&mut receiver, &packet), Err(DropReason::SrtpReplay));
        assert_eq!(open(&mut receiver, &protect(&sender, SSRC, 8)), Ok(8));
        assert_eq!(open(&mut receiver, &packet), Err(DropReason::SrtpReplay));
    }
}

#[test]
fn a_late_packet_is_taken_within_the_window_and_refused_beyond() {
    for profile in PROFILES {
        let (sender, mut receiver) = pair(profile);
        let newest = 5_000;
        let late = newest - RTP_WINDOW_LEN as u64;
        assert_eq!(open(&mut receiver, &protect(&sender, SSRC, newest)), Ok(newest));
        assert_eq!(open(&mut receiver, &protect(&sender, SSRC, late + 1)), Ok(late + 1));
        assert_eq!(open(&mut receiver, &protect(&sender, SSRC, late)), Err(DropReason::SrtpReplay));
    }
}

#[test]
fn a_packet_from_before_the_stream_began_is_refused() {
    let (sender, mut receiver) = pair(SrtpProfile::AeadAes128Gcm);
    assert_eq!(open(&mut receiver, &protect(&sender, SSRC, 3)), Ok(3));
    let before = protect(&sender, SSRC, 65_535);
    assert_eq!(open(&mut receiver, &before), Err(DropReason::SrtpReplay));
}

#[test]
fn a_wrong_tag_leaves_no_state() {
    for profile in PROFILES {
        let (sender, mut receiver) = pair(profile);
        let good = protect(&sender, SSRC, 40);
        for at in [0, 1, 2, 3, 7, 8, 11, 12, 20, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(open(&mut receiver, &bad), Err(DropReason::SrtpAuth), "{profile:?}, byte {at}");
        }
        assert!(receiver.rtp_streams.is_empty());
        assert_eq!(receiver.rtp_streams.capacity(), 0);
        assert_eq!(open(&mut receiver, &good), Ok(40));
        // A forged packet far ahead must not move the window over a good one.
        let mut ahead = protect(&sender, SSRC, 20_000);
        *ahead.last_mut().expect("it is not empty") ^= 0x80;
        assert_eq!(open(&mut receiver, &ahead), Err(DropReason::SrtpAuth));
        assert_eq!(open(&mut receiver, &protect(&sender, SSRC, 39)), Ok(39));
    }
}

#[test]
fn a_million_forged_streams_cost_no_memory() {
    for profile in PROFILES {
        let (sender, mut receiver) = pair(profile);
        assert_eq!(open(&mut receiver, &protect(&sender, SSRC, 1)), Ok(1));
        let mut packet = protect(&sender, SSRC, 2);
        let mut rtcp = protect_rtcp(&mut SrtpSender::new(profile, &master(2)), SSRC);
        for ssrc in 0..if cfg!(debug_assertions) { 20_000 } else { 1_000_000_u32 } {
            packet[8..12].copy_from_slice(&ssrc.to_be_bytes());
            assert_eq!(receiver.unprotect_rtp(&mut packet, 12), Err(DropReason::SrtpAuth));
            rtcp[4..8].copy_from_slice(&ssrc.to_be_bytes());
            assert!(receiver.unprotect_rtcp(&mut rtcp).is_err());
        }
        assert_eq!((receiver.rtp_streams.len(), receiver.rtp_streams.capacity()), (1, 1));
        assert_eq!((receiver.rtcp_streams.len(), receiver.rtcp_streams.capacity()), (0, 0));
    }
}

#[test]
fn streams_are_bounded_and_forgotten_ones_make_room() {
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        for ssrc in 0..STREAMS_MAX as u32 {
            assert_eq!(open(&mut receiver, &protect(&sender, ssrc, 1)), Ok(1));
            assert_eq!(open_rtcp(&mut receiver, &protect_rtcp(&mut sender, ssrc)), Ok(receiver_report(ssrc)));
        }
        assert_eq!(open(&mut receiver, &protect(&sender, 99, 1)), Err(DropReason::StreamLimit));
        assert_eq!(open_rtcp(&mut receiver, &protect_rtcp(&mut sender, 99)), Err(DropReason::StreamLimit));
        receiver.forget(3);
        assert_eq!(open(&mut receiver, &protect(&sender, 99, 1)), Ok(1));
        assert_eq!(open_rtcp(&mut receiver, &protect_rtcp(&mut sender, 99)), Ok(receiver_report(99)));
        assert_eq!(open(&mut receiver, &protect(&sender, 4, 2)), Ok(2));
    }
}

#[test]
fn one_index_makes_one_ciphertext() {
    for profile in PROFILES {
        let (sender, _) = pair(profile);
        let first = protect(&sender, SSRC, 70_000);
        protect(&sender, SSRC, 70_001);
        assert_eq!(protect(&sender, SSRC, 70_000), first, "a retransmission is the same bytes");
        assert_ne!(protect(&sender, SSRC, 70_000 + 65_536)[12..], first[12..], "the rollover counter is part of the index");
        assert_ne!(protect(&sender, SSRC + 1, 70_000)[12..], first[12..], "the SSRC is part of the nonce");
    }
}

#[test]
fn an_exhausted_key_is_an_error_and_not_a_wrap() {
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        let mut out = [0; 200];
        let last = RTP_INDEX_END - 1;
        assert!(sender.protect_rtp(last, &header(SSRC, 65_535), b"x", &mut out).is_ok());
        assert_eq!(sender.protect_rtp(last + 1, &header(SSRC, 0), b"x", &mut out), Err(DropReason::SrtpKeyExhausted));

        receiver.rtp_streams.push(Stream { ssrc: SSRC, window: ReplayWindow::starting_at(last - 2) });
        assert_eq!(open(&mut receiver, &protect(&sender, SSRC, last)), Ok(last));
        let wrapped = protect(&sender, SSRC, 0);
        assert_eq!(open(&mut receiver, &wrapped), Err(DropReason::SrtpKeyExhausted));

        sender.rtcp_index = RTCP_INDEX_END - 1;
        let packet = protect_rtcp(&mut sender, SSRC);
        assert_eq!(open_rtcp(&mut receiver, &packet), Ok(receiver_report(SSRC)));
        assert_eq!(sender.protect_rtcp(&mut [0; 64], 8), Err(DropReason::SrtpKeyExhausted));
        assert_eq!(sender.protect_rtcp(&mut [0; 64], 8), Err(DropReason::SrtpKeyExhausted));
    }
}

#[test]
fn rtcp_is_opened_once_and_in_any_order() {
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        let packets: Vec<_> = (0..RTCP_WINDOW_LEN + 2).map(|_| protect_rtcp(&mut sender, SSRC)).collect();
        for at in [5, 3, 4, 0, 100] {
            assert_eq!(open_rtcp(&mut receiver, &packets[at]), Ok(receiver_report(SSRC)));
            assert_eq!(open_rtcp(&mut receiver, &packets[at]), Err(DropReason::SrtpReplay));
        }
        assert_eq!(open_rtcp(&mut receiver, &packets[RTCP_WINDOW_LEN + 1]), Ok(receiver_report(SSRC)));
        assert_eq!(open_rtcp(&mut receiver, &packets[1]), Err(DropReason::SrtpReplay), "too old");
        assert_eq!(open_rtcp(&mut receiver, &packets[2]), Ok(receiver_report(SSRC)), "the last within the window");
    }
}

#[test]
fn rtcp_that_is_not_encrypted_is_refused() {
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        let mut packet = protect_rtcp(&mut sender, SSRC);
        let word_at = if profile == SrtpProfile::Aes128CmSha1_80 { packet.len() - 14 } else { packet.len() - 4 };
        packet[word_at] &= 0x7f;
        assert_eq!(open_rtcp(&mut receiver, &packet), Err(DropReason::SrtcpUnencrypted));
        packet[word_at] |= 0x80;
        assert_eq!(open_rtcp(&mut receiver, &packet), Ok(receiver_report(SSRC)));
    }
}

#[test]
fn forged_rtcp_leaves_no_state() {
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        let good = protect_rtcp(&mut sender, SSRC);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(open_rtcp(&mut receiver, &bad), Err(DropReason::SrtpAuth), "{profile:?}, byte {at}");
        }
        assert_eq!(receiver.rtcp_streams.capacity(), 0);
    }
}

#[test]
fn every_truncation_is_refused() {
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        let rtp = protect(&sender, SSRC, 1);
        for len in 0..rtp.len() {
            for header_len in [0, 12, 16, len, len + 1, usize::MAX / 2] {
                let result = receiver.unprotect_rtp(&mut rtp.clone()[..len], header_len);
                assert!(matches!(result, Err(DropReason::RtpMalformed | DropReason::SrtpAuth)), "{result:?}");
            }
        }
        let rtcp = protect_rtcp(&mut sender, SSRC);
        for len in 0..rtcp.len() {
            let result = receiver.unprotect_rtcp(&mut rtcp.clone()[..len]);
            assert!(matches!(result, Err(DropReason::RtcpMalformed | DropReason::SrtpAuth | DropReason::SrtcpUnencrypted)), "{result:?}");
        }
        assert!(receiver.rtp_streams.is_empty() && receiver.rtcp_streams.is_empty());
    }
}

#[test]
fn buffers_that_are_too_short_are_errors() {
    for profile in PROFILES {
        let (mut sender, _) = pair(profile);
        let needed = 12 + 5 + sender.overhead();
        assert_eq!(sender.protect_rtp(1, &header(SSRC, 1), b"12345", &mut vec![0; needed - 1]), Err(DropReason::TooLarge));
        assert_eq!(sender.protect_rtp(1, &header(SSRC, 1), b"12345", &mut vec![0; needed]), Ok(needed));
        assert_eq!(sender.protect_rtp(1, &header(SSRC, 1)[..11], b"", &mut vec![0; needed]), Err(DropReason::RtpMalformed));
        let needed = 8 + sender.rtcp_overhead();
        assert_eq!(sender.protect_rtcp(&mut vec![0; needed - 1], 8), Err(DropReason::TooLarge));
        assert_eq!(sender.protect_rtcp(&mut vec![0; needed], 7), Err(DropReason::RtcpMalformed));
        assert_eq!(sender.protect_rtcp(&mut vec![0; needed], 8), Ok(needed));
    }
}

#[test]
fn keys_of_the_other_direction_open_nothing() {
    for profile in PROFILES {
        let mut sender = SrtpSender::new(profile, &master(1));
        let mut receiver = SrtpReceiver::new(profile, &master(2));
        assert_eq!(open(&mut receiver, &protect(&sender, SSRC, 1)), Err(DropReason::SrtpAuth));
        assert_eq!(open_rtcp(&mut receiver, &protect_rtcp(&mut sender, SSRC)), Err(DropReason::SrtpAuth));
    }
}

#[test]
fn sizes_are_what_the_memory_plan_says() {
    assert_eq!(size_of::<SrtpSender>(), SENDER_LEN);
    assert_eq!(size_of::<SrtpReceiver>(), RECEIVER_LEN);
    assert_eq!(size_of::<Stream<{ RTP_WINDOW_LEN / 64 }>>() + size_of::<Stream<{ RTCP_WINDOW_LEN / 64 }>>(), STREAM_LEN);
    assert!(size_of::<key::CmSha1>() <= KEY_OBJECT_LEN_MAX);
}
