//! Small machines under arbitrary sequences of calls.

use std::net::SocketAddr;
use std::time::Duration;

use pop_proto::control::{IceCredentials, MasterKey, Path, SrtpProfile};
use pop_proto::ice::IceLite;
use pop_proto::srtp::{SrtpReceiver, SrtpSender};
use pop_proto::twcc::TwccRecorder;
use pop_proto::wire::rtcp::RtcpReader;
use pop_proto::wire::rtp;
use pop_proto::wire::stun::{self, BindingRequest, Message, Role, TransactionId};
use pop_schemas::Time;

use super::{Outcome, Steps};

/// A recorder tells what it was told, in packets that our own reader takes.
pub(super) fn twcc(data: &[u8]) -> Outcome {
    let mut steps = Steps::new(data);
    let mut recorder = TwccRecorder::new();
    let (mut now, mut sequence, mut recorded) = (Time::from_millis(1), steps.word(), 0);
    while !steps.is_over() {
        match steps.byte() % 4 {
            0 => sequence = steps.word(),
            1 => now = now + Duration::from_micros(u64::from(steps.word()) * 50),
            2 => {
                let mut out = [0; 4 * 255];
                let out = &mut out[..usize::from(steps.byte()) * 4];
                // Each report is about one packet or more that came since; without an end this would not end.
                let mut reports = 0;
                while let Some(len) = recorder.poll_feedback(now, 1, 2, out) {
                    assert!(RtcpReader::new(&out[..len]).is_ok_and(|packets| packets.count() == 1), "{:?}", &out[..len]);
                    reports += 1;
                    assert!(reports <= 70_000, "a recorder reports without end");
                }
            }
            _ => {
                sequence = sequence.wrapping_add(u16::from(steps.byte() % 5));
                recorder.record(sequence, now);
                assert!(recorder.poll_timeout().is_some() || recorded > 0);
                recorded += 1;
            }
        }
    }
    Outcome::passed(recorded > 0)
}

const PASSWORD: &[u8] = b"a-password-of-22-chars";

/// Checks of many addresses, right, wrong and broken: only right ones open a path, and the paths are few.
pub(super) fn ice(data: &[u8]) -> Outcome {
    let mut steps = Steps::new(data);
    let credentials =
        IceCredentials { local_ufrag: "here".into(), local_pwd: "a-password-of-22-chars".into(), remote_ufrag: "there".into() };
    let mut now = Time::from_millis(1);
    let mut agent = IceLite::new(now, credentials, Duration::from_secs(15));
    let mut answered = false;
    while !steps.is_over() {
        let kind = steps.byte();
        now = now + Duration::from_millis(u64::from(kind) * 10);
        let path = Path { socket: u16::from(kind & 3), remote: SocketAddr::from(([127, 0, 0, 1], u16::from(steps.byte()) + 1)) };
        let request = BindingRequest {
            transaction: TransactionId([kind; 12]),
            username: if kind & 4 == 0 { "here:there" } else { "here:nobody" },
            priority: (kind & 8 == 0).then_some(1),
            role: Some(if kind & 16 == 0 { Role::Controlling(1) } else { Role::Controlled(1) }),
            use_candidate: kind & 32 == 0,
        };
        let password = if kind & 64 == 0 { PASSWORD } else { b"another" };
        let mut bytes = [0; 256];
        let len = stun::write_request(&request, password, &mut bytes).expect("a check fits");
        if kind & 128 != 0 {
            let at = usize::from(steps.byte()) % len;
            bytes[at] ^= steps.byte();
        }
        let Ok(check) = Message::parse(&bytes[..len]) else { continue };
        let known = agent.is_validated(path);
        if kind & 2 == 0 {
            agent.note_handshake(now, path);
        } else {
            agent.note_authentic_packet(now, path);
        }
        let outcome = agent.handle_check(now, path, &check, &mut [0; stun::RESPONSE_LEN_MAX]);
        let right = outcome.as_ref().is_ok_and(|outcome| !outcome.refused);
        answered |= outcome.is_ok();
        assert!(right || agent.is_validated(path) == known, "a refused check changed the paths");
        assert!(!right || (kind & 64 == 0 && agent.is_validated(path)));
        assert!(agent.paths().count() <= 8 && agent.selected().is_none_or(|selected| agent.is_validated(selected)));
        assert!(agent.deadline() > now || agent.expired(now).is_some());
    }
    Outcome::passed(answered)
}

/// What nobody protected does not open, and nothing opens twice.
pub(super) fn srtp(data: &[u8]) -> Outcome {
    let mut steps = Steps::new(data);
    let profiles = [SrtpProfile::AeadAes128Gcm, SrtpProfile::AeadAes256Gcm, SrtpProfile::Aes128CmSha1_80];
    let profile = profiles[usize::from(steps.byte()) % profiles.len()];
    let key = MasterKey { key: std::array::from_fn(|i| i as u8), salt: std::array::from_fn(|i| !(i as u8)) };
    let (sender, mut receiver) = (SrtpSender::new(profile, &key), SrtpReceiver::new(profile, &key));
    let (mut index, mut opened) = (u64::from(steps.word()), std::collections::HashSet::new());
    while !steps.is_over() {
        let kind = steps.byte();
        index = (index + u64::from(kind >> 4)).saturating_sub(u64::from(kind & 7));
        let mut header = [0; 12];
        rtp::write_header(&mut header, kind & 1 == 0, 96, index as u16, 1, 7);
        let mut packet = [0; 128];
        let payload = steps.take(usize::from(kind & 63));
        let len = sender.protect_rtp(index, &header, payload, &mut packet).expect("it fits");
        let broken = kind & 128 != 0;
        if broken {
            let at = usize::from(steps.byte()) % len;
            packet[at] ^= 1 << (steps.byte() % 8);
        }
        let Ok(view) = rtp::RtpView::parse(&packet[..len]) else { continue };
        let header_len = view.header_len();
        if let Ok(found) = receiver.unprotect_rtp(&mut packet[..len], header_len) {
            assert!(!broken, "a broken packet opened");
            assert_eq!(&packet[header_len..found.len], payload);
            assert!(opened.insert(found.index), "index {} opened twice", found.index);
        }
        let mut noise = steps.take(3).to_vec();
        assert!(receiver.unprotect_rtcp(&mut noise).is_err());
    }
    Outcome::passed(!opened.is_empty())
}
