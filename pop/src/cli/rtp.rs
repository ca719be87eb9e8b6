//! `pop rtp list`, `add`, `remove`: the routes of the running node.

use serde_json::{Map, Value};

use super::client::Client;
use super::show::{align, list, text};
use super::{AskArgs, Failure, RouteAddArgs, RouteRemoveArgs};
use crate::http::encode_component;

const ROUTES: &str = "/api/v1/rtp/routes";

pub(super) async fn show(args: &AskArgs) -> Result<(), Failure> {
    let answer = Client::find(args.socket.as_deref()).await?.ask("GET", ROUTES, None).await?;
    if args.json {
        println!("{answer}");
    } else {
        print!("{}", table(list(&answer["routes"])));
    }
    Ok(())
}

pub(super) async fn add(args: &RouteAddArgs) -> Result<(), Failure> {
    let body = body(&args.keys).map_err(Failure::Usage)?;
    let route = Client::find(args.socket.as_deref()).await?.ask("POST", ROUTES, Some(body)).await?;
    if args.json {
        println!("{route}");
        return Ok(());
    }
    print!("{}", table(std::slice::from_ref(&route)));
    for (key, what) in
        [("sdp", if route["direction"] == "out" { "a receiver opens" } else { "a sender does" }), ("to_sdp", "a receiver opens")]
    {
        if let Some(sdp) = route[key].as_str() {
            // Scripts take it from --json; this is for eyes.
            println!("\n# what {what}:\n{}", sdp.replace('\r', "").trim_end());
        }
    }
    Ok(())
}

pub(super) async fn remove(args: &RouteRemoveArgs) -> Result<(), Failure> {
    let path = format!("{ROUTES}/{}", encode_component(&args.name));
    let route = Client::find(args.socket.as_deref()).await?.ask("DELETE", &path, None).await?;
    if args.json {
        println!("{route}");
    } else {
        println!("{} removed: {} packets came, {} left", text(&route["name"]), text(&route["packets"]), text(&route["sent_packets"]));
    }
    Ok(())
}

/// `key=value` words as the API's body: numbers where the config has numbers.
fn body(words: &[String]) -> Result<Value, String> {
    let mut body = Map::new();
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not key=value, such as codec=VP8"))?;
        let is_number = ["payload_type", "clock_rate", "port", "ssrc"].contains(&key);
        let number = value.parse::<u64>().ok().filter(|_| is_number);
        if body.insert(key.to_owned(), number.map_or_else(|| Value::from(value), Value::from)).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    Ok(Value::Object(body))
}

fn table(routes: &[Value]) -> String {
    if routes.is_empty() {
        return "no RTP routes\n".to_owned();
    }
    let head = ["NAME", "WAY", "STATE", "CODEC", "ROOM", "ADDRESS", "PEER", "TO", "IN", "LOST", "OUT", "FOREIGN", "REFUSED"];
    let keys =
        ["name", "direction", "state", "codec", "room", "address", "peer", "to", "packets", "lost", "sent_packets", "foreign", "refused"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(routes.iter().map(|route| keys.map(|key| text(&route[key])).to_vec()));
    align(&rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_become_the_body_of_the_api() {
        let words = ["direction=in", "codec=VP8", "payload_type=97", "name=7", "fmtp=a=1;b=2"].map(str::to_owned);
        let expected = json!({ "direction": "in", "codec": "VP8", "payload_type": 97, "name": "7", "fmtp": "a=1;b=2" });
        assert_eq!(body(&words), Ok(expected));
        assert!(body(&["codec".to_owned()]).is_err_and(|error| error.contains("not key=value")));
        assert!(body(&["port=1".to_owned(), "port=2".to_owned()]).is_err_and(|error| error.contains("twice")));
    }

    #[test]
    fn a_route_is_a_line() {
        let route = json!({ "name": "cam", "direction": "in", "state": "waiting", "codec": "VP8", "room": "stage", "address": "127.0.0.1:5004",
            "peer": null, "packets": 3, "lost": 0, "sent_packets": 0, "foreign": 1, "refused": 2 });
        let expected = "NAME  WAY  STATE    CODEC  ROOM   ADDRESS         PEER  TO  IN  LOST  OUT  FOREIGN  REFUSED\n\
                        cam   in   waiting  VP8    stage  127.0.0.1:5004  -     -   3   0     0    1        2\n";
        assert_eq!(table(&[route]), expected);
    }
}
