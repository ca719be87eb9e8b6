//! How far bytes of a client come without a room: what mutation tests and fuzzers run.

use super::join::unwrap;
use super::request::{self, Said};
use super::socket::read_binary;
use crate::config::DtlsRole;
use crate::signal::answer::{Agreed, FeedText, LocalSource, LocalTransport, negotiate_member};
use crate::signal::sdp::{self, Bounds};

/// How far an input came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    /// The bounds or the parser refused it.
    Refused,
    /// It says something that the session would hear, or nothing.
    Read,
    /// It holds an offer, and this is the answer that takes and feeds all that it can.
    Answered(String),
}

/// A message of a socket.
pub fn digest_message(bytes: &[u8]) -> Digest {
    let Some(message) = read_binary(bytes).and_then(|request| request.message) else { return Digest::Refused };
    match request::read(message) {
        Said::Offer(offer) => digest_offer(&offer.sdp),
        _ => Digest::Read,
    }
}

/// The `join_request` of a URL.
pub fn digest_join_request(text: &str) -> Digest {
    let Ok(request) = unwrap(text) else { return Digest::Refused };
    request.add_track_requests.into_iter().for_each(|add| drop(request::add_track(add)));
    if let Some(state) = &request.sync_state {
        request::sync(state);
    }
    request.publisher_offer.map_or(Digest::Read, |offer| digest_offer(&offer.sdp))
}

/// The text of an offer.
pub fn digest_offer(text: &str) -> Digest {
    let Ok(offer) = sdp::parse_within(Bounds::MEMBER, text.as_bytes()) else { return Digest::Read };
    let Ok(negotiation) = negotiate_member(&offer, DtlsRole::Auto, Agreed::default()) else { return Digest::Read };
    let candidates = [([192, 0, 2, 1], 10_000).into()];
    let local = LocalTransport {
        session_id: 1,
        session_version: 1,
        ufrag: "abcdefgh",
        pwd: "0123456789abcdef0123456789abcdef",
        fingerprint: "sha-256 00",
        candidates: &candidates,
        tcp_candidates: &candidates,
    };
    let feed =
        |mid: &str| FeedText { stream: format!("PA|{mid}"), track: "TR".to_owned(), source: LocalSource { ssrc: 1, rtx_ssrc: Some(2) } };
    Digest::Answered(negotiation.write(&local, "cname", |mid| (true, Some(feed(mid)))))
}
