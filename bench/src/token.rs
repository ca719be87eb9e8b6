//! Room tokens for the server that this program starts with a key of its own: LiveKit's grants in an HS256 JWT.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

/// A token is good for this long, in seconds: longer than any run.
const LIFETIME_S: u64 = 6 * 3_600;

/// What a token allows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grant {
    /// To publish alone.
    Publish,
    /// To watch alone.
    Watch,
    /// Both, and to change its own texts.
    Member,
    /// To watch, without the others hearing of it.
    Hidden,
}

/// Signs a token that lets `identity` into `room`. `now_s` is Unix time.
pub(crate) fn sign_token(key: (&str, &str), room: &str, identity: &str, grant: Grant, now_s: u64) -> String {
    let (publishes, watches) = (matches!(grant, Grant::Publish | Grant::Member), !matches!(grant, Grant::Publish));
    let claims = json!({
        "iss": key.0, "sub": identity, "nbf": now_s - 10, "iat": now_s, "exp": now_s + LIFETIME_S,
        "video": {"room": room, "roomJoin": true, "canPublish": publishes, "canSubscribe": watches,
            "canUpdateOwnMetadata": matches!(grant, Grant::Member), "hidden": matches!(grant, Grant::Hidden)},
    });
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.1.as_bytes()), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}
