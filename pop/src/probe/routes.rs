//! `/probe`, its page, and `/.well-known/pop.json`: for any origin, without a token, and never from a cache.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pop_proto::probe::ReflectorKind;

use super::{Candidate, Description, IceDescription, Probe};
use crate::node::Node;

const TIMING_ALLOW_ORIGIN: HeaderName = HeaderName::from_static("timing-allow-origin");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The page may ask every PoP, which are other origins, and loads nothing but its own files.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src http: https:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/app.js");
const MEASURE: &str = include_str!("page/measure.js");

/// Everything that measures over HTTP; nothing when the config says so.
pub fn routes(node: Node) -> Router {
    if !node.probe().serves_http {
        return Router::new();
    }
    let file = |body: &'static str, content_type: &'static str| get(move || async move { asset(body, content_type) });
    Router::new()
        .route("/probe", get(probe))
        .route("/probe/style.css", file(STYLE, "text/css; charset=utf-8"))
        .route("/probe/app.js", file(SCRIPT, "text/javascript; charset=utf-8"))
        .route("/probe/measure.js", file(MEASURE, "text/javascript; charset=utf-8"))
        .route("/.well-known/pop.json", get(describe))
        .with_state(node)
}

/// Who opens the address in a browser gets the page; who measures gets 204 and nothing else. HEAD is GET without a body.
async fn probe(State(node): State<Node>, headers: HeaderMap) -> Response {
    let started = Instant::now();
    let wants_page = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("text/html"));
    if wants_page {
        let mut page = asset(PAGE, "text/html; charset=utf-8");
        page.headers_mut().insert(VARY, ACCEPT.into());
        return page;
    }
    node.probe().http_answered.fetch_add(1, Ordering::Relaxed);
    // The time inside the node: what a client takes off its round trip. The name needs no escape: the config allows none that would.
    let timing = format!("node;desc=\"{}\";dur={:.3}", node.name(), started.elapsed().as_secs_f64() * 1_000.0);
    let headers: [(HeaderName, &str); 6] = [
        (CACHE_CONTROL, "no-store"),
        (ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (ACCESS_CONTROL_EXPOSE_HEADERS, "server-timing"),
        (TIMING_ALLOW_ORIGIN, "*"),
        (SERVER_TIMING, &timing),
        (VARY, "accept"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

fn asset(body: &'static str, content_type: &'static str) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, content_type),
        // The next release has other files under the same names.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, body).into_response()
}

async fn describe(State(node): State<Node>) -> Response {
    let headers = [(ACCESS_CONTROL_ALLOW_ORIGIN, "*"), (CACHE_CONTROL, "no-store")];
    (headers, axum::Json(description(&node, node.probe()))).into_response()
}

fn description(node: &Node, probe: &Probe) -> Description {
    let reflectors = |wanted: ReflectorKind| {
        let of_kind = probe.places.iter().filter(|(kind, _)| *kind == wanted);
        reachable(of_kind.map(|(_, place)| *place).collect())
    };
    let ice = probe.credentials.as_ref().map(|credentials| {
        let candidates = node.candidates();
        let worker = probe.next_worker.fetch_add(1, Ordering::Relaxed) % candidates.len().max(1);
        let candidate = |address: &SocketAddr| Candidate { address: address.ip(), port: address.port() };
        IceDescription {
            ufrag: credentials.ufrag.to_string(),
            pwd: credentials.pwd.to_string(),
            candidates: reachable(candidates.get(worker).cloned().unwrap_or_default()).iter().map(candidate).collect(),
        }
    });
    Description {
        name: node.name().to_owned(),
        region: probe.region.clone(),
        version: crate::VERSION.to_owned(),
        ice,
        stun: reflectors(ReflectorKind::Stun),
        stamp: reflectors(ReflectorKind::Stamp),
        http: probe.public_url.as_ref().map_or_else(|| "/probe".to_owned(), |url| format!("{}/probe", url.as_str())),
        pops: probe.pops.read().unwrap_or_else(PoisonError::into_inner).iter().map(|url| url.as_str().to_owned()).collect(),
    }
}

/// The addresses that a stranger may reach: no wildcard, and loopback only where there is nothing else.
fn reachable(mut places: Vec<SocketAddr>) -> Vec<SocketAddr> {
    places.retain(|place| !place.ip().is_unspecified());
    if places.iter().any(|place| !place.ip().is_loopback()) {
        places.retain(|place| !place.ip().is_loopback());
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_not_sent_to_their_own_loopback() {
        let places = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<SocketAddr>>();
        assert_eq!(reachable(places(&["127.0.0.1:1", "192.0.2.1:1", "0.0.0.0:1", "[::1]:1"])), places(&["192.0.2.1:1"]));
        assert_eq!(reachable(places(&["127.0.0.1:1", "[::]:1", "[::1]:1"])), places(&["127.0.0.1:1", "[::1]:1"]));
    }
}
