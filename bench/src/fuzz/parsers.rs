//! Bytes into a parser, and everything that can be read of what it took.

use std::hint::black_box;
use std::path::Path;

use pop::config::Config;
use pop::signal::livekit::{Digest, digest_message, digest_offer};
use pop::signal::sdp;
use pop_proto::codec;
use pop_proto::control::Codec;
use pop_proto::wire::dtls::DtlsSummary;
use pop_proto::wire::rtcp::RtcpReader;
use pop_proto::wire::rtp::{self, RtpView};
use pop_proto::wire::stun::Message;

use super::Outcome;

pub(super) fn rtp(data: &[u8]) -> Outcome {
    let Ok(view) = RtpView::parse(data) else { return Outcome::Refused };
    assert!((12..=data.len()).contains(&view.header_len()));
    for (id, value) in view.extensions() {
        // The two-byte form has 255 bytes at most (RFC 8285 section 4.3).
        assert!(id > 0 && value.len() <= 255);
    }
    if let Ok(payload) = rtp::payload(data, view.header_len()) {
        for codec in [Codec::Vp8, Codec::Vp9, Codec::H264, Codec::H265, Codec::Av1, Codec::Opus] {
            black_box(codec::is_keyframe_start(codec, payload));
        }
    }
    Outcome::Passed
}

pub(super) fn rtcp(data: &[u8]) -> Outcome {
    let Ok(packets) = RtcpReader::new(data) else { return Outcome::Refused };
    // Every packet is at least its header of 4 bytes.
    assert!(packets.inspect(|packet| drop(black_box(format!("{packet:?}")))).count() <= data.len() / 4);
    Outcome::Passed
}

/// The length and a FINGERPRINT at the end are mended first: no fuzzer would hit a CRC.
pub(super) fn stun(data: &[u8]) -> Outcome {
    let mut data = data.to_vec();
    data.truncate(data.len() & !3);
    if let [_, _, high, low, attributes @ ..] = data.as_mut_slice()
        && let Some(len) = attributes.len().checked_sub(16)
    {
        [*high, *low] = (len as u16).to_be_bytes();
        if let Some((before, [0x80, 0x28, 0, 4, ..])) = data.split_last_chunk_mut::<8>() {
            let sum = (!crc32(before) ^ 0x5354_554e).to_be_bytes();
            let at = data.len() - 4;
            data[at..].copy_from_slice(&sum);
        }
    }
    let Ok(message) = Message::parse(&data) else { return Outcome::Refused };
    black_box((message.fragments(), message.priority(), message.role(), message.mapped_address(), message.error_code()));
    // Nobody here knows a password that the input could have been made with.
    assert!(!message.is_authentic(b"a password of nobody at all"));
    Outcome::Passed
}

pub(super) fn dtls(data: &[u8]) -> Outcome {
    let Ok(summary) = DtlsSummary::parse(data) else { return Outcome::Refused };
    black_box((summary.has_plaintext(), summary.is_client_hello(), summary.repeats_last_flight()));
    Outcome::Passed
}

pub(super) fn sdp(data: &[u8]) -> Outcome {
    Outcome::passed(sdp::parse(data).is_ok())
}

/// As a message, and as the offer in one: bytes of a whole message break a length more often than not.
pub(super) fn signal(data: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(data);
    let answered = digest_offer(&text);
    if let Digest::Answered(answer) = &answered {
        assert!(answer.starts_with("v=0\r\n") && answer.matches("a=end-of-candidates").count() == 1);
    }
    Outcome::passed(digest_message(data) != Digest::Refused || matches!(answered, Digest::Answered(_)))
}

pub(super) fn config(data: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::Refused };
    match Config::parse(text, Path::new("fuzzed")) {
        Ok(_) => Outcome::Passed,
        Err(error) => {
            let (line, column) = error.place().expect("a fault in the text has a place");
            assert!(line >= 1 && column >= 1 && line <= text.lines().count() + 1);
            // Past the syntax: the fault is in a value or a name.
            Outcome::passed(error.to_string().contains("must be") || error.to_string().contains("there is no key"))
        }
    }
}

/// Of ITU V.42, before the last complement (RFC 8489 section 14.7).
fn crc32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())))
}
