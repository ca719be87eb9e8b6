//! PATCH: trickled candidates and ICE restarts (RFC 9725 section 4.3, and the same words of the WHEP draft).
//!
//! ```text
//! If-Match missing -> 428     of another ICE session -> 412     (* and the current ETag pass)
//! fragment: the known ufrag, or none -> 204, nothing to do for an ICE-lite node
//!           a new ufrag              -> 200, our new credentials and candidates, a new ETag
//! ```
//! As for DELETE, the resource's name is the right: a token that expired during the call must not keep its client from moving.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use pop_proto::control::IceCredentials;
use pop_schemas::SessionId;
use pop_session::{IceCondition, IceUpdate};

use super::answer::{ICE_OPTIONS, write_candidates};
use super::endpoint::{Problem, ResourcePath, check_content_type, draw, entity_tag};
use super::sdp::fragment::{self, FRAGMENT_LEN_MAX, Fragment};
use crate::node::{IceUpdated, Node};

/// The type of a fragment (RFC 8840 section 9.1).
pub(super) const SDP_FRAGMENT: &str = "application/trickle-ice-sdpfrag";

/// Most entity-tags of one `If-Match`: a client knows one, perhaps two.
const TAGS_MAX: usize = 16;

pub(super) async fn update(State(node): State<Node>, path: ResourcePath, request: Request) -> Result<Response, Problem> {
    let axum::extract::Path((room, resource)) = path.map_err(|_| Problem::Path)?;
    let room = SessionId::new(&room)?;
    // "If the HTTP PATCH to the WHIP session has a content type different than "application/trickle-ice-sdpfrag" or the SDP fragment
    // is malformed, the WHIP session MUST reject the HTTP PATCH with an appropriate 4XX error response."
    check_content_type(request.headers(), SDP_FRAGMENT).map_err(|()| Problem::PatchType)?;
    let condition = read_condition(request.headers());
    let body = Bytes::from_request(request, &()).await.map_err(|rejection| Problem::of_body(&rejection, FRAGMENT_LEN_MAX))?;
    if body.len() > FRAGMENT_LEN_MAX {
        return Err(Problem::TooLarge(FRAGMENT_LEN_MAX));
    }
    let fragment = fragment::parse(&body).map_err(Problem::Malformed)?;
    let credentials = fragment.ufrag.map(|remote_ufrag| draw_credentials(&node, remote_ufrag));
    let update = IceUpdate { resource: resource.into(), condition, credentials };
    match node.update_ice(&room, update).await? {
        // "a "204 No Content" response without a body and MUST NOT include an ETag header in the response"
        IceUpdated::Kept => Ok(StatusCode::NO_CONTENT.into_response()),
        IceUpdated::Restarted { credentials, candidates } => {
            let tcp_candidates = if node.serves_tcp() { &*candidates } else { &[] };
            let etag = entity_tag(&credentials.local_ufrag);
            let headers = [(CONTENT_TYPE, SDP_FRAGMENT.to_owned()), (ETAG, etag), (CACHE_CONTROL, "no-store".to_owned())];
            Ok((StatusCode::OK, headers, write_restart(&credentials, &fragment, &candidates, tcp_candidates)).into_response())
        }
    }
}

/// New credentials of ours, for a client with this fragment. The standard alphabet of base64 is exactly ice-char. 72 bits are
/// unique on any worker; RFC 8839 asks for 24 of the fragment and 128 of the password.
pub(super) fn draw_credentials(node: &Node, remote_ufrag: &str) -> IceCredentials {
    IceCredentials {
        local_ufrag: STANDARD_NO_PAD.encode(draw::<9>(node)).into(),
        local_pwd: STANDARD_NO_PAD.encode(draw::<24>(node)).into(),
        remote_ufrag: remote_ufrag.into(),
    }
}

/// RFC 9110 section 13.1.1. The RFC's own example writes the asterisk in quotes, and so do clients: no tag of ours is one.
fn read_condition(headers: &HeaderMap) -> IceCondition {
    let mut values = headers.get_all(IF_MATCH).iter().peekable();
    if values.peek().is_none() {
        return IceCondition::Missing;
    }
    let mut tags = Vec::new();
    // No tag of ours holds a comma. What is not a strong tag matches nothing: "using the strong comparison function".
    for tag in values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).take(TAGS_MAX).map(str::trim) {
        if tag == "*" || tag == "\"*\"" {
            return IceCondition::Any;
        }
        tags.extend(tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).map(Box::from));
    }
    IceCondition::OneOf(tags)
}

/// The answer to a restart. "Both the WHIP client and the WHIP session MUST ensure that the HTTP PATCH request and response bodies
/// include the same "ice-options", "ice-pacing", and "ice-lite" attributes as those used in the SDP offer or answer."
fn write_restart(
    credentials: &IceCredentials,
    fragment: &Fragment<'_>,
    candidates: &[SocketAddr],
    tcp_candidates: &[SocketAddr],
) -> String {
    // Clients without a section apply the lines to the one transport that they have; 0 is the first mid of every one seen.
    let (media, mid) = fragment.section.unwrap_or(("audio", "0"));
    let IceCredentials { local_ufrag, local_pwd, .. } = credentials;
    // RFC 8840 section 9.2: port, protocol and format of a fragment's m-line mean nothing.
    let mut text = format!(
        "a=ice-lite\r\n{ICE_OPTIONS}m={media} 9 RTP/AVP 0\r\na=mid:{mid}\r\na=ice-ufrag:{local_ufrag}\r\na=ice-pwd:{local_pwd}\r\n"
    );
    write_candidates(&mut text, candidates, tcp_candidates).expect("a String takes every write");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(values: &[&str]) -> IceCondition {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IF_MATCH, value.parse().expect("a header value"));
        }
        read_condition(&headers)
    }

    #[test]
    fn if_match_is_read_by_the_letter() {
        let tags = |tags: &[&str]| IceCondition::OneOf(tags.iter().copied().map(Box::from).collect());
        assert_eq!(condition(&[]), IceCondition::Missing);
        assert_eq!(condition(&["*"]), IceCondition::Any);
        assert_eq!(condition(&["\"*\""]), IceCondition::Any);
        assert_eq!(condition(&["\"a+/b\""]), tags(&["a+/b"]));
        assert_eq!(condition(&["\"a\", \"b\"", "\"c\""]), tags(&["a", "b", "c"]));
        assert_eq!(condition(&["W/\"a\""]), tags(&[]), "a weak tag never matches");
        assert_eq!(condition(&["a"]), tags(&[]), "a bare word is no tag");
        assert_eq!(condition(&[&"\"x\",".repeat(500)]), tags(&["x"; TAGS_MAX]));
    }

    #[test]
    fn an_answer_is_a_fragment() {
        let credentials =
            IceCredentials { local_ufrag: "abcd".into(), local_pwd: "0123456789012345678901".into(), remote_ufrag: "x".into() };
        let asked = Fragment { section: Some(("video", "v0")), ..Fragment::default() };
        let candidates = ["192.0.2.1:10000".parse().expect("an address"), "[2001:db8::1]:10000".parse().expect("an address")];
        let text = write_restart(&credentials, &asked, &candidates, &candidates[..1]);
        let expected = Fragment { ufrag: Some("abcd"), section: Some(("video", "v0")), candidates: 3, complete: true };
        assert_eq!(fragment::parse(text.as_bytes()), Ok(expected));
        assert!(text.starts_with("a=ice-lite\r\n"), "as in the answer to the offer: {text}");
    }
}
