//! `pop rtp capture`: the node writes, this waits.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::Client;
use super::{CaptureArgs, Failure, Kind};
use crate::captures::CaptureBody;

/// How often the node is asked whether the capture has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long the file may take to be complete after its duration.
const END_GRACE: Duration = Duration::from_secs(10);

pub(super) async fn capture(args: &CaptureArgs) -> Result<(), Failure> {
    let path = std::path::absolute(&args.file).map_err(|error| Failure::Usage(format!("{}: {error}", args.file.display())))?;
    let kind = args.kind.map(|kind| match kind {
        Kind::Audio => "audio".to_owned(),
        Kind::Video => "video".to_owned(),
    });
    let duration = format!("{}ms", args.duration.as_millis());
    let body = CaptureBody { room: args.room.clone(), kind, path, duration };
    let client = Client::find(args.socket.as_deref()).await?;
    let started = client.ask("POST", "/api/v1/captures", Some(serde_json::to_value(&body).expect("plain fields"))).await?;
    let resource = format!("/api/v1/captures/{}", started["id"]);
    let (room, path) = (&body.room, body.path.display());
    eprintln!("capturing room {room} ({} tracks now) for {:?} into {path}; Ctrl-C stops", started["tracks"], args.duration);

    let ended = tokio::select! {
        ended = wait_for_end(&client, &resource, args.duration + END_GRACE) => ended?,
        _ = tokio::signal::ctrl_c() => client.ask("DELETE", &resource, None).await?,
    };
    if ended["state"] == "failed" {
        return Err(Failure::Other(format!("the capture failed: {}", ended["error"].as_str().unwrap_or("the node does not say why"))));
    }
    if args.json {
        println!("{ended}");
    } else {
        let dropped = match ended["dropped"].as_u64() {
            None | Some(0) => String::new(),
            Some(dropped) => format!(", {dropped} packets came faster than the disk took them"),
        };
        println!("{path}: {} packets, {} bytes{dropped}", ended["packets"], ended["bytes"]);
    }
    Ok(())
}

async fn wait_for_end(client: &Client, resource: &str, patience: Duration) -> Result<Value, Failure> {
    let started = Instant::now();
    while started.elapsed() < patience {
        tokio::time::sleep(POLL_INTERVAL).await;
        let status = client.ask("GET", resource, None).await?;
        if status["state"] != "running" {
            return Ok(status);
        }
    }
    client.ask("DELETE", resource, None).await
}
