//! `pop sessions`, `pop status`, `pop mesh`, `pop version`: what the running node says, for people or as it came.

use std::io::{IsTerminal, Write};

use serde_json::{Value, json};

use super::client::Client;
use super::{Failure, JsonArgs, WatchArgs};

/// Between two answers of a watch on a terminal: the screen is cleared and the cursor goes to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

pub(super) async fn sessions(args: &WatchArgs) -> Result<(), Failure> {
    show(args, "/api/v1/sessions", session_table).await
}

pub(super) async fn status(args: &WatchArgs) -> Result<(), Failure> {
    show(args, "/api/v1/status", status_table).await
}

/// A part of the status: the same answer with `--json`.
pub(super) async fn mesh(args: &WatchArgs) -> Result<(), Failure> {
    show(args, "/api/v1/status", mesh_table).await
}

/// Once, or until nobody reads any longer: as it came, a line each, or as a table.
async fn show(args: &WatchArgs, path: &str, table: impl Fn(&Value) -> String) -> Result<(), Failure> {
    let client = Client::find(args.ask.socket.as_deref()).await?;
    let clear = if args.watch.is_some() && std::io::stdout().is_terminal() { CLEAR } else { "" };
    loop {
        let answer = client.ask("GET", path, None).await?;
        let text = if args.ask.json { format!("{answer}\n") } else { format!("{clear}{}", table(&answer)) };
        let mut stdout = std::io::stdout();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        let (Some(interval), Ok(())) = (args.watch, written) else { return Ok(()) };
        tokio::time::sleep(interval).await;
    }
}

pub(super) fn version(args: &JsonArgs) -> Result<(), Failure> {
    if args.json {
        println!("{}", json!({ "version": crate::VERSION, "commit": crate::COMMIT }));
    } else {
        println!("pop {} ({})", crate::VERSION, crate::COMMIT);
    }
    Ok(())
}

/// A missing value is a dash, so that columns stay columns.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn session_table(answer: &Value) -> String {
    let sessions = list(&answer["sessions"]);
    if sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let mut rows = vec![["ROOM", "IDENTITY", "NODE", "KIND", "STATE", "SRTP", "TRACKS", "WATCHES"].map(str::to_owned).to_vec()];
    for session in sessions {
        for person in list(&session["participants"]) {
            let tracks: Vec<String> = list(&person["tracks"]).iter().map(|track| track_cell(track, person["local"] == true)).collect();
            let tracks = if tracks.is_empty() { "-".to_owned() } else { tracks.join(",") };
            let watches = list(&person["subscriptions"]).len().to_string();
            rows.push(vec![
                text(&session["id"]),
                text(&person["identity"]),
                text(&person["node"]),
                text(&person["kind"]),
                text(&person["state"]),
                text(&person["srtp"]),
                tracks,
                watches,
            ]);
        }
    }
    align(&rows)
}

/// `video:VP8`, and the links that it crosses: `>b+c` leaves, `<a` comes.
fn track_cell(track: &Value, is_local: bool) -> String {
    let mut cell = format!("{}:{}", text(&track["kind"]), text(&track["codec"]));
    let links: Vec<String> = list(&track["links"]).iter().map(text).collect();
    if !links.is_empty() {
        cell.push(if is_local { '>' } else { '<' });
        cell.push_str(&links.join("+"));
    }
    cell
}

fn status_table(answer: &Value) -> String {
    let mut lines = format!(
        "node {} of {} release {} incarnation {}/{}\nup {} s, {}, {} sessions, {} participants\n",
        text(&answer["node"]),
        text(&answer["pop"]),
        text(&answer["version"]),
        text(&answer["incarnation"]["start"]),
        text(&answer["incarnation"]["nonce"]),
        answer["uptime_ms"].as_u64().unwrap_or_default() / 1_000,
        if answer["draining"] == true {
            "draining"
        } else if answer["gray"] == true {
            "gray: media does not come back"
        } else if answer["ready"] == true {
            "ready"
        } else {
            "not ready"
        },
        text(&answer["sessions"]),
        text(&answer["participants"]),
    );
    let mut rows = vec![["WORKER", "CORE", "BACKEND", "CLIENTS", "RTP IN", "RTP OUT", "DROPPED"].map(str::to_owned).to_vec()];
    let keys = ["core", "backend", "transports", "rtp_packets_in", "rtp_packets_out", "dropped_packets"];
    rows.extend(list(&answer["workers"]).iter().map(|worker| {
        let index = text(&worker["worker"]) + if worker["gray"] == true { " (gray)" } else { "" };
        std::iter::once(index).chain(keys.iter().map(|key| text(&worker[*key]))).collect()
    }));
    lines.push_str(&align(&rows));
    if !list(&answer["nodes"]).is_empty() {
        lines.push('\n');
        lines.push_str(&mesh_table(answer));
    }
    lines
}

fn mesh_table(answer: &Value) -> String {
    let (nodes, links) = (list(&answer["nodes"]), list(&answer["links"]));
    if nodes.is_empty() && links.is_empty() && list(&answer["overlay"]["pops"]).is_empty() {
        return format!("node {} is alone: [bus] and [mesh] of its config name no others\n", text(&answer["node"]));
    }
    let mut rows = vec![["NODE", "POP", "STATE", "START", "CLIENTS", "LOAD", "MESH"].map(str::to_owned).to_vec()];
    for node in nodes {
        let state = if node["draining"] == true { "draining".to_owned() } else { text(&node["state"]) };
        let start = text(&node["incarnation"]["start"]);
        let clients = format!("{}/{}", text(&node["participants"]), text(&node["capacity"]));
        let load = format!("{:.1} %", node["load"].as_f64().unwrap_or_default() / 10.0);
        rows.push(vec![text(&node["node"]), text(&node["pop"]), state, start, clients, load, text(&node["mesh"])]);
    }
    let mut lines = if nodes.is_empty() { String::new() } else { align(&rows) + "\n" };
    let titles = [
        "LINK",
        "STATE",
        "AGE",
        "KEYS",
        "SCHEMA",
        "RTT ms",
        "JITTER ms",
        "MTU",
        "TRACKS",
        "DATAGRAMS",
        "MB",
        "TRANSIT MB",
        "LOST",
        "REPAIRED",
        "RECOVERED",
        "PARITY %",
        "DROPPED",
        "LIMIT kb/s",
        "API KEYS",
    ];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for link in links {
        let both = |what: &str| format!("{}/{}", text(&link[format!("{what}_in")]), text(&link[format!("{what}_out")]));
        let milliseconds = |key: &str| link[key].as_f64().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"));
        let megabytes = |key: &str| link[key].as_f64().unwrap_or_default() / 1e6;
        let is_foreign = link["pop"] != answer["pop"];
        rows.push(vec![
            if is_foreign { format!("{}.{}", text(&link["node"]), text(&link["pop"])) } else { text(&link["node"]) },
            text(&link["state"]),
            format!("{} s", link["age_ms"].as_u64().unwrap_or_default() / 1_000),
            text(&link["generation"]),
            text(&link["schema"]),
            milliseconds("rtt_ms"),
            milliseconds("jitter_ms"),
            text(&link["mtu"]),
            both("tracks"),
            both("datagrams"),
            format!("{:.1}/{:.1}", megabytes("bytes_in"), megabytes("bytes_out")),
            format!("{:.1}/{:.1}", megabytes("transit_bytes_in"), megabytes("transit_bytes_out")),
            text(&link["lost"]),
            text(&link["repaired"]),
            text(&link["recovered"]),
            parity_cell(link),
            text(&link["dropped"]),
            text(&link["limit_kbps"]),
            api_keys_cell(link),
        ]);
    }
    lines.push_str("(in/out)\n");
    lines.push_str(&align(&rows));
    if !list(&answer["overlay"]["pops"]).is_empty() {
        lines.push_str(&overlay_tables(&answer["overlay"]));
    }
    lines
}

/// How much longer parity makes what is sent; a node of before has none.
fn parity_cell(link: &Value) -> String {
    let bytes = |key: &str| link[key].as_f64().unwrap_or_default();
    let parity = bytes("parity_bytes_out");
    format!("{:.1}", 100.0 * parity / (bytes("bytes_out") - parity).max(1.0))
}

/// The first of what the other node's certificate lets its PoP use.
fn api_keys_cell(link: &Value) -> String {
    let keys: Vec<String> = list(&link["api_keys"]).iter().map(text).collect();
    match keys.len() {
        0 => "-".to_owned(),
        count @ 1..=3 => keys[..count].join(","),
        count => format!("{},+{}", keys[..3].join(","), count - 3),
    }
}

/// The other PoPs with the ways to them, and how each path between two PoPs is.
fn overlay_tables(overlay: &Value) -> String {
    let milliseconds = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    let titles = ["POP", "STATE", "LINKS", "RELEASE", "LOAD", "WAY", "NOW", "COST ms", "DIRECT ms", "BACKUP", "REASON", "FOR"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for pop in list(&overlay["pops"]) {
        let route = list(&overlay["routes"]).iter().find(|route| route["to"] == pop["pop"]).unwrap_or(&Value::Null);
        let releases: Vec<String> = list(&pop["releases"]).iter().map(text).collect();
        rows.push(vec![
            text(&pop["pop"]),
            if pop["draining"] == true { "draining".to_owned() } else { text(&pop["state"]) },
            text(&pop["links"]),
            if releases.is_empty() { "-".to_owned() } else { releases.join("+") },
            format!("{:.1} %", pop["load"].as_f64().unwrap_or_default() / 10.0),
            text(&route["way"]),
            text(&route["in_use"]),
            milliseconds(&route["cost_ms"]),
            milliseconds(&route["direct_ms"]),
            text(&route["backup"]),
            text(&route["reason"]),
            route["age_ms"].as_u64().map_or_else(|| "-".to_owned(), |ms| format!("{} s", ms / 1_000)),
        ]);
    }
    let mut lines = format!("\n{}", align(&rows));
    let paths = list(&overlay["paths"]);
    let mut names: Vec<String> = paths.iter().flat_map(|path| [text(&path["from"]), text(&path["to"])]).collect();
    names.sort();
    names.dedup();
    let mut rows = vec![std::iter::once("FROM/TO".to_owned()).chain(names.iter().cloned()).collect::<Vec<_>>()];
    for from in &names {
        let cell = |to: &String| {
            let path = paths.iter().find(|path| text(&path["from"]) == *from && text(&path["to"]) == *to);
            let loss = |path: &Value| 100.0 * path["loss_out"].as_f64().unwrap_or_default();
            path.map_or_else(|| "-".to_owned(), |path| format!("{}/{:.1}", milliseconds(&path["rtt_ms"]), loss(path)))
        };
        rows.push(std::iter::once(from.clone()).chain(names.iter().map(cell)).collect());
    }
    lines.push_str("\n(round trip in ms/% lost on the way there)\n");
    lines.push_str(&align(&rows));
    lines
}

/// Columns as wide as their widest cell, two spaces between.
pub(super) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut lines = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        lines.push_str(cells.join("  ").trim_end());
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_a_table_of_its_people() {
        let answer = json!({ "sessions": [{ "id": "stage", "participants": [
            { "identity": "ann", "node": "fra1", "local": true, "kind": "publish", "state": "connected", "srtp": "AEAD_AES_128_GCM",
              "tracks": [{ "kind": "video", "codec": "VP8", "links": ["fra2", "fra3"] }], "subscriptions": [] },
            { "identity": "bo", "node": "fra2", "local": false, "kind": "member", "state": "away",
              "tracks": [{ "kind": "audio", "codec": "opus", "links": ["fra2"] }], "subscriptions": [{}, {}] },
        ] }] });
        assert_eq!(
            session_table(&answer),
            "ROOM   IDENTITY  NODE  KIND     STATE      SRTP              TRACKS               WATCHES\n\
             stage  ann       fra1  publish  connected  AEAD_AES_128_GCM  video:VP8>fra2+fra3  0\n\
             stage  bo        fra2  member   away       -                 audio:opus<fra2      2\n"
        );
        assert_eq!(session_table(&json!({ "sessions": [] })), "no sessions\n");
    }

    #[test]
    fn a_node_is_two_lines_and_its_workers() {
        let answer = json!({ "node": "fra1", "pop": "fra", "version": "1", "incarnation": { "start": 2, "nonce": "ab" }, "uptime_ms": 61_500,
            "ready": true, "draining": false, "sessions": 3, "participants": 9, "workers": [{ "worker": 0, "core": null,
            "backend": "mmsg", "transports": 9, "rtp_packets_in": 1, "rtp_packets_out": 2, "dropped_packets": 0 }] });
        let table = status_table(&answer);
        assert!(table.starts_with("node fra1 of fra release 1 incarnation 2/ab\nup 61 s, ready, 3 sessions, 9 participants\n"), "{table}");
        assert!(table.ends_with("0       -     mmsg     9        1       2        0\n"), "{table}");
    }

    #[test]
    fn a_node_through_which_no_media_comes_back_is_gray() {
        let answer = json!({ "ready": true, "draining": false, "gray": true, "workers": [{ "worker": 0, "gray": false }, { "worker": 1, "gray": true }] });
        let table = status_table(&answer);
        assert!(table.contains(", gray: media does not come back, "), "{table}");
        assert!(table.contains("\n0 ") && table.contains("\n1 (gray) "), "{table}");
    }

    #[test]
    fn the_mesh_is_its_nodes_and_the_links_to_them() {
        let answer = json!({ "node": "fra1", "pop": "fra", "nodes": [{ "node": "fra2", "pop": "fra", "state": "up", "incarnation": { "start": 7 },
            "participants": 2, "load": 125, "capacity": 400, "draining": true, "mesh": "10.0.0.2:7890" }], "links": [{ "node": "fra2", "pop": "fra", "state": "up", "age_ms": 2_500,
            "generation": 0, "schema": 1, "rtt_ms": 0.25, "jitter_ms": 0.5, "mtu": null, "tracks_in": 1, "tracks_out": 2, "datagrams_in": 3, "datagrams_out": 4,
            "bytes_in": 1_000_000, "bytes_out": 250_000, "transit_bytes_in": 0, "transit_bytes_out": 500_000, "lost": 5, "repaired": 4, "recovered": 1, "parity_bytes_out": 50_000, "dropped": 0, "limit_kbps": 2_500, "api_keys": ["a", "b c", "d", "e", "f"] }] });
        assert_eq!(
            mesh_table(&answer),
            "NODE  POP  STATE     START  CLIENTS  LOAD    MESH\n\
             fra2  fra  draining  7      2/400    12.5 %  10.0.0.2:7890\n\
             \n\
             (in/out)\n\
             LINK  STATE  AGE  KEYS  SCHEMA  RTT ms  JITTER ms  MTU  TRACKS  DATAGRAMS  MB       TRANSIT MB  LOST  REPAIRED  RECOVERED  PARITY %  DROPPED  LIMIT kb/s  API KEYS\n\
             fra2  up     2 s  0     1       0.25    0.50       -    1/2     3/4        1.0/0.2  0.0/0.5     5     4         1          25.0      0        2500        a,b c,d,+2\n"
        );
        assert_eq!(
            ["[]", "[\"*\"]", "[1, 2, 3]"]
                .map(|keys| api_keys_cell(&json!({ "api_keys": serde_json::from_str::<Value>(keys).expect("JSON") }))),
            ["-", "*", "1,2,3"]
        );
        assert!(mesh_table(&json!({ "node": "fra1", "nodes": [], "links": [] })).starts_with("node fra1 is alone"));
    }

    #[test]
    fn the_overlay_is_the_ways_to_other_pops_and_a_matrix_of_paths() {
        let overlay = json!({
            "pops": [{ "pop": "ams", "state": "up", "links": 1, "releases": ["0.1.0"], "load": 12, "draining": false },
                { "pop": "sin", "state": "away", "links": 0, "releases": [], "load": 0, "draining": false }],
            "routes": [{ "to": "ams", "way": "direct", "in_use": "direct+via sin", "backup": "via sin", "cost_ms": 5.04, "direct_ms": 5.04, "reason": "best", "age_ms": 61_000 }],
            "paths": [{ "from": "ams", "to": "fra", "rtt_ms": 10.1, "loss_out": 0.012 }, { "from": "fra", "to": "ams", "rtt_ms": 10.0, "loss_out": 0.0 }],
        });
        assert_eq!(
            overlay_tables(&overlay),
            "\n\
             POP  STATE  LINKS  RELEASE  LOAD   WAY     NOW             COST ms  DIRECT ms  BACKUP   REASON  FOR\n\
             ams  up     1      0.1.0    1.2 %  direct  direct+via sin  5.0      5.0        via sin  best    61 s\n\
             sin  away   0      -        0.0 %  -       -               -        -          -        -       -\n\
             \n\
             (round trip in ms/% lost on the way there)\n\
             FROM/TO  ams       fra\n\
             ams      -         10.1/1.2\n\
             fra      10.0/0.0  -\n"
        );
    }
}
