//! `pop token create`: from the running node, or from a file of keys.

use serde_json::json;

use super::client::Client;
use super::{Failure, TokenArgs};
use crate::keys::ApiKeys;
use crate::token::{TokenRequest, unix_now_s};

pub(super) async fn create(args: &TokenArgs) -> Result<(), Failure> {
    let request = TokenRequest {
        room: args.room.clone(),
        identity: args.identity.clone(),
        publish: !args.no_publish,
        subscribe: !args.no_subscribe,
        hidden: args.hidden,
        ttl_s: args.ttl.as_secs(),
    };
    let made = match &args.keys {
        Some(file) => {
            let token = request.sign(&ApiKeys::load(file)?, unix_now_s()).map_err(Failure::Usage)?;
            json!({ "token": token, "url": args.url.trim_end_matches('/') })
        }
        None => {
            let body = serde_json::to_value(&request).expect("plain fields");
            Client::find(args.socket.as_deref()).await?.ask("POST", "/api/v1/tokens", Some(body)).await?
        }
    };
    let field = |name: &str| made[name].as_str().unwrap_or_default();
    if args.json {
        println!("{}", json!({ "token": field("token"), "url": field("url") }));
    } else {
        println!("{}", field("token"));
        let room = encode_component(&args.room);
        eprintln!("use it as a Bearer token at {}/whip/{room} and /whep/{room}", field("url"));
    }
    Ok(())
}

/// Percent-encodes what may not stand in one segment of a URL (RFC 3986 section 2.3).
pub(crate) fn encode_component(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_becomes_one_segment() {
        assert_eq!(encode_component("Straße 7"), "Stra%C3%9Fe%207");
        assert_eq!(encode_component("a-b._~"), "a-b._~");
    }
}
