//! Questions to the running node over its unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::Failure;
use crate::config;

/// How long the node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Largest answer that is read, in bytes: a full node's sessions are about 20 MB.
const ANSWER_LEN_MAX: usize = 256 << 20;

/// A running node.
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    /// Finds the node: at `socket`, or at the first usual place where one is alive.
    pub(super) async fn find(socket: Option<&Path>) -> Result<Self, Failure> {
        let places = socket.map_or_else(config::socket_places, |place| vec![place.to_owned()]);
        let mut refused = None;
        for place in &places {
            match connect(place).await {
                Ok(_) => return Ok(Self { socket: place.clone() }),
                // Not our socket is worth saying more than nothing there.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some(place),
                Err(_) => {}
            }
        }
        if let Some(place) = refused {
            let place = place.display();
            return Err(Failure::Other(format!("{place} belongs to another user: run this as root or as the user that runs `pop run`")));
        }
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        let hint = if socket.is_some() { "" } else { ", or name its admin.socket with --socket" };
        Err(Failure::Other(format!("no node answers at {}: start one with `pop run`{hint}", places.join(" or "))))
    }

    /// The answer's JSON; a refusal becomes the node's own sentence.
    pub(super) async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Other(format!("the node at {} did not answer within 20 s", self.socket.display()))),
        }
    }

    async fn exchange(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        let lost = |error: &dyn std::fmt::Display| Failure::Other(format!("the node at {} was lost: {error}", self.socket.display()));
        let stream = connect(&self.socket).await.map_err(|error| lost(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
        // Ends with the sender; what goes wrong there is seen by the request as well.
        let connection = tokio::spawn(connection);
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "pop")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("method and path are ours");
        let answer = sender.send_request(request).await.map_err(|error| lost(&error))?;
        let code = answer.status();
        let text = Limited::new(answer.into_body(), ANSWER_LEN_MAX).collect().await.map_err(|error| lost(&error))?.to_bytes();
        connection.abort();
        let value: Value = serde_json::from_slice(&text).map_err(|error| lost(&error))?;
        if code.is_success() {
            return Ok(value);
        }
        let sentence = value["error"].as_str().map_or_else(|| code.to_string(), str::to_owned);
        // What the node refuses as malformed came from our arguments.
        if code.as_u16() == 400 || code.as_u16() == 422 { Err(Failure::Usage(sentence)) } else { Err(Failure::Other(sentence)) }
    }
}

/// Connects to a node that may be told something: what another user put there is nobody to ask for tokens.
async fn connect(place: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(place).await?;
    match is_trusted(stream.peer_cred()?.uid(), config::user_id(), place) {
        true => Ok(stream),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another user's")),
    }
}

/// The user `peer` is root or ourselves. Root also asks a node of a service's user, but not where anybody may make a socket.
fn is_trusted(peer: u32, user: u32, place: &Path) -> bool {
    peer == 0 || peer == user || (user == 0 && !place.starts_with(std::env::temp_dir()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_node_and_roots_are_asked() {
        let system = Path::new("/run/pop/pop.sock");
        let temporary = config::private_folder().join("pop.sock");
        for place in [system, &temporary] {
            assert!(is_trusted(1_000, 1_000, place) && is_trusted(0, 1_000, place));
            assert!(!is_trusted(1_001, 1_000, place));
        }
        assert!(is_trusted(1_001, 0, system) && !is_trusted(1_001, 0, &temporary));
    }
}
