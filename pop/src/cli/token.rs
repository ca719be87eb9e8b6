//! `pop token create`: from the running node, or from a file of keys.

use serde_json::json;

use super::client::Client;
use super::{Failure, TokenArgs};
use crate::demo;
use crate::http::encode_component;
use crate::keys::ApiKeys;
use crate::token::{TokenRequest, unix_now_s};

pub(super) async fn create(args: &TokenArgs) -> Result<(), Failure> {
    let request = TokenRequest {
        room: args.room.clone(),
        identity: args.identity.clone(),
        publish: !args.no_publish,
        subscribe: !args.no_subscribe,
        hidden: args.hidden,
        guests: args.guests,
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
    let (token, url) = (field("token"), field("url"));
    let page = demo::url(url, &args.room, token);
    if args.json {
        println!("{}", json!({ "token": token, "url": url, "demo": page }));
    } else {
        // The token alone on stdout, so that $(pop token create ..) is one.
        println!("{token}");
        let room = encode_component(&args.room);
        eprintln!("open the room in a browser: {page}");
        eprintln!("LiveKit SDKs: {url} with this token; WHIP and WHEP: a Bearer token at {url}/whip/{room} and /whep/{room}");
    }
    Ok(())
}
