//! Making tokens: the same request serves `pop token create` and `POST /api/v1/tokens`.

use std::time::{Duration, SystemTime};

use pop_schemas::{Identity, SessionId};
use pop_session::token::{self, Claims, VideoGrant};
use serde::{Deserialize, Serialize};

use crate::keys::ApiKeys;

/// Longest life of a token. A longer one is a password.
pub const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);

/// What a token is to allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The room.
    pub room: String,
    /// Who the holder is.
    pub identity: String,
    /// May publish.
    #[serde(default = "yes")]
    pub publish: bool,
    /// May watch.
    #[serde(default = "yes")]
    pub subscribe: bool,
    /// Is not shown to the others.
    #[serde(default)]
    pub hidden: bool,
    /// Brings guests: whoever opens the page with it gets an identity of their own.
    #[serde(default)]
    pub guests: bool,
    /// Life in seconds; 0 is no life at all and refused.
    #[serde(default = "ttl_default_s")]
    pub ttl_s: u64,
}

fn yes() -> bool {
    true
}

fn ttl_default_s() -> u64 {
    token::TTL_DEFAULT.as_secs()
}

impl TokenRequest {
    /// A token for publishing and watching with the usual life.
    pub fn new(room: &str, identity: &str) -> Self {
        let (room, identity) = (room.to_owned(), identity.to_owned());
        Self { room, identity, publish: true, subscribe: true, hidden: false, guests: false, ttl_s: ttl_default_s() }
    }

    /// Checks the request and signs it with the node's signing key; the error says which field is wrong.
    pub fn sign(&self, keys: &ApiKeys, now_s: u64) -> Result<String, String> {
        let room = SessionId::new(&self.room).map_err(|error| format!("room {error}"))?;
        let identity = Identity::new(&self.identity).map_err(|error| format!("identity {error}"))?;
        if !(1..=TTL_MAX.as_secs()).contains(&self.ttl_s) {
            return Err(format!("ttl must be 1 s to {} days, not {} s", TTL_MAX.as_secs() / 86_400, self.ttl_s));
        }
        let (key, secret) = keys.signing();
        let claims = Claims {
            iss: key.to_owned(),
            sub: identity.to_string(),
            nbf: Some(now_s),
            exp: now_s.saturating_add(self.ttl_s),
            video: VideoGrant {
                room: Some(room.to_string()),
                room_join: true,
                can_publish: Some(self.publish),
                can_subscribe: Some(self.subscribe),
                can_publish_data: Some(self.publish),
                hidden: self.hidden,
                ..VideoGrant::default()
            },
            guests: self.guests,
            ..Claims::default()
        };
        token::sign(&claims, secret.expose().as_bytes()).map_err(|error| error.to_string())
    }
}

/// Unix time in whole seconds, for tokens; 0 before 1970, when none is valid.
pub fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The same in milliseconds, for what is shown and compared over nodes.
pub fn unix_now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_allows_what_was_asked_and_no_more() {
        let keys = ApiKeys::draw();
        let request = TokenRequest { publish: false, hidden: true, ttl_s: 60, ..TokenRequest::new("stage", "ann") };
        let token = request.sign(&keys, 1_000).expect("the request is right");
        let verify = |now_s| token::verify(&token, now_s, |name| keys.secret(name));
        let access = verify(1_059).expect("it is in time");
        let stage = SessionId::new("stage").expect("a name");
        assert!(access.may_watch(&stage).is_ok() && access.may_publish(&stage).is_err() && access.is_hidden());
        assert!(access.may_watch(&SessionId::new("other").expect("a name")).is_err());
        assert_eq!(verify(1_060), Err(token::TokenError::Expired));
    }

    #[test]
    fn a_wrong_request_names_its_field() {
        let keys = ApiKeys::draw();
        let refused = |request: TokenRequest| request.sign(&keys, 0).expect_err("it is wrong");
        assert!(refused(TokenRequest::new("", "ann")).starts_with("room is empty"));
        assert!(refused(TokenRequest::new("a/b", "ann")).starts_with("room holds '/'"));
        assert!(refused(TokenRequest::new("stage", &"x".repeat(129))).starts_with("identity is longer"));
        for ttl_s in [0, u64::MAX] {
            assert!(refused(TokenRequest { ttl_s, ..TokenRequest::new("stage", "ann") }).starts_with("ttl must be"));
        }
    }
}
