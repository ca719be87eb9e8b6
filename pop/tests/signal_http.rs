//! WHIP and WHEP over HTTP against a running node: what a client is told, and that a refused one leaves nothing behind.

use std::path::Path;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use pop::config::Config;
use pop::keys::ApiKeys;
use pop::node::Node;
use pop::signal::{routes, sdp};
use pop::token::{TokenRequest, unix_now_s};

struct Host {
    node: Node,
    router: Router,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Host {
    /// A node on loopback with room for `transports` clients.
    fn start(transports: usize) -> Host {
        Host::with(transports, "")
    }

    /// The same with lines of `[http]`.
    fn with(transports: usize, http: &str) -> Host {
        let text = format!(
            "[http]\n{http}\n[media]\nport = 0\n[dataplane]\ncores = \"0\"\nbackend = \"mmsg\"\ntransports_max = {transports}\ntracks_max = 16\n\
             subscriptions_max = 16\npacket_pool = 1024\nrecv_buffers = 16\ntrains = 4\ngro = false\n"
        );
        let config = Config::parse(&text, Path::new("test.toml")).unwrap();
        let node = Node::start(&config, ApiKeys::draw()).unwrap();
        Host { router: routes(node.clone(), &config), node }
    }

    fn token(&self, change: impl FnOnce(&mut TokenRequest)) -> String {
        let mut request = TokenRequest::new("stage", "ann");
        change(&mut request);
        request.sign(&self.node.keys(), unix_now_s()).unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = TowerToHyperService::new(self.router.clone()).call(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    async fn post(&self, path: &str, token: Option<&str>, content_type: &str, offer: impl Into<Body>) -> Answer {
        let mut request = Request::post(path).header("content-type", content_type);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(offer.into()).unwrap()).await
    }

    async fn simple(&self, method: &str, path: &str, authorization: Option<&str>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    /// A PATCH of the resource at `path` by a body of `content_type`.
    async fn patch(&self, path: &str, if_match: Option<&str>, content_type: &str, body: impl Into<Body>) -> Answer {
        let mut request = Request::patch(path).header("content-type", content_type);
        if let Some(if_match) = if_match {
            request = request.header("if-match", if_match);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    async fn publish(&self, token: &str) -> Answer {
        self.post("/whip/stage", Some(token), "application/sdp", corpus("chromium-whip")).await
    }

    async fn watch(&self, token: &str) -> Answer {
        self.post("/whep/stage", Some(token), "application/sdp", corpus("firefox-whep")).await
    }

    async fn participants(&self) -> usize {
        self.node.sessions().await.iter().map(|session| session.participants.len()).sum()
    }
}

fn corpus(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/corpus/sdp/{name}.sdp", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_and_a_viewer_come_and_go() {
    let host = Host::start(8);
    let token = host.token(|_| {});
    let watch = host.watch(&token).await;
    let publish = host.publish(&token).await;
    for (answer, path) in [(&publish, "/whip/stage/"), (&watch, "/whep/stage/")] {
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::CREATED, "application/sdp"), "{}", answer.body);
        let resource = answer.header("location").strip_prefix(path).expect("a location below the endpoint");
        assert!(resource.len() == 40 && resource.bytes().all(|b| b.is_ascii_hexdigit()), "{resource}");
        assert!(answer.header("etag").starts_with('"') && answer.header("etag").len() > 8);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert!(answer.header("access-control-expose-headers").contains("Location"));
        assert!(answer.body.contains(&host.node.fingerprint().attribute()) && answer.body.contains("a=candidate:1 1 udp"));
        sdp::parse(answer.body.as_bytes()).expect("an answer is SDP");
    }
    let view = serde_json::to_value(host.node.sessions().await).unwrap();
    let participants = view[0]["participants"].as_array().unwrap();
    assert_eq!(participants.len(), 2);
    let kinds: Vec<_> = participants.iter().map(|p| (p["kind"].as_str().unwrap(), p["state"].as_str().unwrap())).collect();
    assert_eq!(kinds, [("watch", "connecting"), ("publish", "connecting")]);
    let video = &participants[0]["subscriptions"][1];
    assert_eq!(video["source"], participants[1]["tracks"][1]["id"], "who came before the publisher is fed by it");

    // The resource's name is the right to end it: a token that expired during the call keeps nobody from leaving.
    let (whip, whep) = (publish.header("location"), watch.header("location"));
    let expired = TokenRequest { ttl_s: 1, ..TokenRequest::new("stage", "ann") }.sign(&host.node.keys(), 1_000).unwrap();
    assert_eq!(host.simple("DELETE", whip, Some(&format!("Bearer {expired}"))).await.status, StatusCode::OK);
    assert_eq!(host.simple("DELETE", whip, None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(host.simple("DELETE", whep, Some(&format!("bearer {token}"))).await.status, StatusCode::OK);
    assert_eq!(host.simple("DELETE", "/whip/nowhere/x", None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(host.participants().await, 0);
}

/// Path, token, content type and body of a request; status and words of its answer.
type Refused<'a> = (&'a str, Option<&'a str>, &'a str, Vec<u8>, u16, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_one_sentence_and_leaves_nothing() {
    let host = Host::start(8);
    let good = host.token(|_| {});
    let offer = corpus("chromium-whip");
    let text = String::from_utf8(offer.clone()).unwrap();
    let sdp = "application/sdp";
    let watch_only = host.token(|request| request.publish = false);
    let publish_only = host.token(|request| request.subscribe = false);
    let foreign = TokenRequest::new("stage", "ann").sign(&ApiKeys::draw(), unix_now_s()).unwrap();
    let expired = TokenRequest { ttl_s: 1, ..TokenRequest::new("stage", "ann") }.sign(&host.node.keys(), 1_000).unwrap();
    let weak = text.replace("a=fingerprint:sha-256", "a=fingerprint:md5");
    #[rustfmt::skip]
    let rows: Vec<Refused<'_>> = vec![
        ("/whip/stage", None, sdp, offer.clone(), 401, "an access token is needed"),
        ("/whip/stage", Some("garbage"), sdp, offer.clone(), 401, "not a well-formed JWT"),
        ("/whip/stage", Some(&foreign), sdp, offer.clone(), 401, "the token's signature is wrong"),
        ("/whip/stage", Some(&expired), sdp, offer.clone(), 401, "the token has expired"),
        ("/whip/stage", Some(&watch_only), sdp, offer.clone(), 403, "canPublish"),
        ("/whep/stage", Some(&publish_only), sdp, corpus("firefox-whep"), 403, "canSubscribe"),
        ("/whip/other", Some(&good), sdp, offer.clone(), 403, "not for this room"),
        ("/whip/a%2Fb", Some(&good), sdp, offer.clone(), 400, "the room's name holds '/'"),
        ("/whip/%FF", Some(&good), sdp, offer.clone(), 400, "not percent-encoded UTF-8"),
        ("/whip/stage", Some(&good), "application/json", offer.clone(), 415, "application/sdp"),
        ("/whip/stage", Some(&good), "", offer.clone(), 415, "application/sdp"),
        ("/whip/stage", Some(&good), sdp, vec![b'x'; 70_000], 413, "longer than 65536 bytes"),
        ("/whip/stage", Some(&good), sdp, b"hello".to_vec(), 400, "SDP line 1"),
        ("/whip/stage", Some(&good), sdp, Vec::new(), 400, "the offer is empty"),
        ("/whip/stage", Some(&good), sdp, weak.into_bytes(), 400, "a=fingerprint is not sha-256"),
        ("/whip/stage", Some(&good), sdp, corpus("firefox-whep"), 422, "a publisher must send"),
        ("/whep/stage", Some(&good), sdp, offer.clone(), 422, "a viewer must receive"),
        ("/whip/stage", Some(&good), sdp, text.replace("a=group:BUNDLE", "a=x:").into_bytes(), 422, "a=group:BUNDLE is missing"),
        ("/whip/stage", Some(&good), sdp, text.replace("rtpmap:", "x:").into_bytes(), 422, "has no codec that passes here"),
    ];
    for (path, token, content_type, body, status, sentence) in rows {
        let answer = host.post(path, token, content_type, body).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {sentence}: {}", answer.body);
        assert!(answer.body.contains(sentence) && answer.body.lines().count() == 1, "{:?} does not say {sentence:?}", answer.body);
        assert_eq!(answer.header("www-authenticate").starts_with("Bearer"), status == 401 || status == 403);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert!(answer.header("content-type").starts_with("text/plain"));
    }
    assert_eq!(host.node.sessions().await.len(), 0, "nothing is half-created");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_says_503_and_takes_the_next_when_one_leaves() {
    let host = Host::start(2);
    let token = host.token(|_| {});
    let first = host.watch(&token).await;
    host.watch(&token).await;
    let full = host.watch(&token).await;
    assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(full.header("retry-after").parse::<u32>().is_ok() && full.body.contains("full"), "{}", full.body);
    assert_eq!(host.participants().await, 2);
    assert_eq!(host.simple("DELETE", first.header("location"), None).await.status, StatusCode::OK);
    // The place comes free once DTLS has said goodbye, which DELETE does not wait for.
    while host.watch(&token).await.status != StatusCode::CREATED {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_offer_keeps_no_slot() {
    let host = Host::start(1);
    let token = host.token(|_| {});
    for _ in 0..20 {
        assert_eq!(host.post("/whip/stage", Some(&token), "application/sdp", "v=0\r\n").await.status, StatusCode::BAD_REQUEST);
        let unusable = host.post("/whip/stage", Some(&token), "application/sdp", corpus("firefox-whep")).await;
        assert_eq!(unusable.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    assert_eq!(host.publish(&token).await.status, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_publisher_takes_the_place_of_its_ghost() {
    let host = Host::start(8);
    let token = host.token(|_| {});
    let ghost = host.publish(&token).await;
    let again = host.publish(&token).await;
    assert_eq!((again.status, host.participants().await), (StatusCode::CREATED, 1));
    assert_eq!(host.simple("DELETE", ghost.header("location"), None).await.status, StatusCode::NOT_FOUND);
    let other = host.token(|request| request.identity = "bob".into());
    host.publish(&other).await;
    assert_eq!(host.participants().await, 2, "other identities publish beside it");
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_may_ask_first_and_other_methods_are_told_what_is_allowed() {
    let host = Host::start(8);
    let (endpoint, resource) = ("GET, HEAD, POST, OPTIONS", "GET, HEAD, PATCH, DELETE, OPTIONS");
    for (path, methods) in
        [("/whip/stage", endpoint), ("/stage/whep", endpoint), ("/whip/stage/abc", resource), ("/whep/stage/abc", resource)]
    {
        let answer = host.simple("OPTIONS", path, None).await;
        assert_eq!((answer.status, answer.header("accept-post")), (StatusCode::OK, "application/sdp"));
        assert_eq!(answer.header("accept-patch"), FRAGMENT);
        assert_eq!((answer.header("access-control-allow-origin"), answer.header("access-control-allow-methods")), ("*", methods));
        assert_eq!(answer.header("access-control-allow-headers"), "Authorization, Content-Type, If-Match");
    }
    for (method, path) in [
        ("PUT", "/whip/stage"),
        ("PATCH", "/whep/stage"),
        ("DELETE", "/stage/whip"),
        ("PUT", "/whip/stage/abc"),
        ("POST", "/whep/stage/abc"),
    ] {
        let answer = host.simple(method, path, None).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert!(answer.header("allow").contains("OPTIONS"), "{method} {path}: {:?}", answer.headers);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
    }
}

/// "MUST return a 2XX successful response with no content when a GET request is received" (RFC 9725 section 4.1).
#[tokio::test(flavor = "multi_thread")]
async fn get_and_head_find_endpoints_and_living_resources_without_content() {
    let host = Host::start(8);
    let watch = host.watch(&host.token(|_| {})).await;
    for method in ["GET", "HEAD"] {
        for (path, status, content_type) in [
            ("/whip/stage", 204, ""),
            ("/stage/whip", 204, ""),
            ("/whep/stage", 200, "application/sdp"),
            ("/stage/whep", 200, "application/sdp"),
            (watch.header("location"), 204, ""),
        ] {
            let answer = host.simple(method, path, None).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("content-type"), &*answer.body),
                (status, content_type, ""),
                "{method} {path}"
            );
        }
        assert_eq!(host.simple(method, "/whep/stage/0123", None).await.status, StatusCode::NOT_FOUND);
    }
}

const FRAGMENT: &str = "application/trickle-ice-sdpfrag";
const CANDIDATES: &str =
    "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:1 1 udp 2122260223 192.0.2.1 61764 typ host\r\na=end-of-candidates\r\n";

fn credentials(ufrag: &str) -> String {
    format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:vw5LmwG4y/e6dPP/zAP9Gp5k\r\n")
}

/// The `a=ice-ufrag` that the node's text gives.
fn ufrag(text: &str) -> &str {
    text.lines().find_map(|line| line.strip_prefix("a=ice-ufrag:")).expect("a fragment")
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_trickle_in_and_a_new_fragment_restarts_ice() {
    let host = Host::start(8);
    let token = host.token(|_| {});
    for (created, corpus_name) in [(host.publish(&token).await, "chromium-whip"), (host.watch(&token).await, "firefox-whep")] {
        let (resource, first) = (created.header("location"), created.header("etag"));
        assert_eq!(created.header("accept-patch"), FRAGMENT);
        assert_eq!(first, format!("\"{}\"", ufrag(&created.body)));
        let offer = String::from_utf8(corpus(corpus_name)).unwrap();

        for body in [CANDIDATES.to_owned(), credentials(ufrag(&offer)) + CANDIDATES, "a=end-of-candidates\r\n".to_owned()] {
            let trickled = host.patch(resource, Some(first), FRAGMENT, body).await;
            assert_eq!((trickled.status, trickled.header("etag"), &*trickled.body), (StatusCode::NO_CONTENT, "", ""));
        }

        let restarted = host.patch(resource, Some("*"), FRAGMENT, credentials("fresh1") + CANDIDATES).await;
        assert_eq!((restarted.status, restarted.header("content-type")), (StatusCode::OK, FRAGMENT), "{}", restarted.body);
        let second = restarted.header("etag");
        assert_eq!(second, format!("\"{}\"", ufrag(&restarted.body)));
        assert!(second != first && restarted.body.contains("a=ice-pwd:") && restarted.body.contains("a=ice-lite\r\n"));
        let candidates = |text: &str| text.lines().filter(|line| line.starts_with("a=candidate:")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(candidates(&restarted.body), candidates(&created.body), "the same sockets");

        // The answer was lost: asked again, the same; asked with the old tag, no; quoted as in the RFC's example, too.
        let again = host.patch(resource, Some("\"*\""), FRAGMENT, credentials("fresh1")).await;
        assert_eq!((again.status, again.header("etag"), ufrag(&again.body)), (StatusCode::OK, second, ufrag(&restarted.body)));
        let stale = host.patch(resource, Some(first), FRAGMENT, CANDIDATES).await;
        assert_eq!((stale.status, stale.header("etag")), (StatusCode::PRECONDITION_FAILED, ""));
        assert_eq!(host.patch(resource, Some(second), FRAGMENT, CANDIDATES).await.status, StatusCode::NO_CONTENT);
        assert_eq!(host.patch(resource, Some("\"x\", *"), FRAGMENT, credentials("fresh2")).await.status, StatusCode::OK);
        // "WHIP sessions MUST ignore any entity-tag value sent by the WHIP client when ICE session matching is not required".
        let delete = Request::delete(resource).header("if-match", "\"old\"").body(Body::empty()).unwrap();
        assert_eq!(host.send(delete).await.status, StatusCode::OK);
        assert_eq!(host.patch(resource, Some("*"), FRAGMENT, credentials("fresh3")).await.status, StatusCode::NOT_FOUND);
    }
}

/// Path, `If-Match`, content type and body of a PATCH; status and words of its answer.
type RefusedPatch<'a> = (&'a str, Option<&'a str>, &'a str, &'a str, u16, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_that_cannot_be_taken_says_why_and_changes_nothing() {
    let host = Host::start(8);
    let created = host.watch(&host.token(|_| {})).await;
    let (resource, etag) = (created.header("location"), created.header("etag"));
    let elsewhere = resource.replace("/stage/", "/other/");
    let weak = format!("W/{etag}");
    let fresh = credentials("fresh");
    let huge = CANDIDATES.repeat(400);
    let unpaired = "a=ice-ufrag:abcd\r\n".to_owned();
    let rows: Vec<RefusedPatch<'_>> = vec![
        (resource, None, FRAGMENT, &fresh, 428, "If-Match"),
        (resource, None, FRAGMENT, CANDIDATES, 428, "If-Match"),
        (resource, Some("\"stale\""), FRAGMENT, CANDIDATES, 412, "over"),
        (resource, Some("\"stale\""), FRAGMENT, &fresh, 412, "over"),
        (resource, Some(&weak), FRAGMENT, CANDIDATES, 412, "over"),
        (resource, Some(""), FRAGMENT, CANDIDATES, 412, "over"),
        (resource, Some("*"), "application/sdp", &fresh, 415, FRAGMENT),
        (resource, Some("*"), "", &fresh, 415, FRAGMENT),
        (resource, Some("*"), FRAGMENT, "", 400, "has neither"),
        (resource, Some("*"), FRAGMENT, "hello", 400, "SDP line 1"),
        (resource, Some("*"), FRAGMENT, &unpaired, 400, "come together"),
        (resource, Some("*"), FRAGMENT, "a=candidate:nonsense\r\n", 400, "a=candidate is not"),
        (resource, Some("*"), FRAGMENT, &huge, 413, "longer than 32768 bytes"),
        (&elsewhere, Some("*"), FRAGMENT, &fresh, 404, "no such resource"),
        ("/whip/stage/0123", None, FRAGMENT, &fresh, 404, "no such resource"),
    ];
    for (path, if_match, content_type, body, status, sentence) in rows {
        let answer = host.patch(path, if_match, content_type, body.to_owned()).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {if_match:?} {sentence}: {}", answer.body);
        assert!(answer.body.contains(sentence) && answer.body.lines().count() == 1, "{:?} does not say {sentence:?}", answer.body);
        assert_eq!(answer.header("accept-patch") == FRAGMENT, status == 415);
        assert_eq!((answer.header("access-control-allow-origin"), answer.header("etag")), ("*", ""));
    }
    let kept = host.patch(resource, Some(etag), FRAGMENT, CANDIDATES).await;
    assert_eq!(kept.status, StatusCode::NO_CONTENT, "the ICE session is the one that it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_aliases_are_the_same_endpoints() {
    let host = Host::start(8);
    let token = host.token(|_| {});
    let publish = host.post("/stage/whip", Some(&token), "application/sdp", corpus("chromium-whip")).await;
    let watch = host.post("/stage/whep", Some(&token), "application/sdp", corpus("firefox-whep")).await;
    for (answer, path) in [(publish, "/whip/stage/"), (watch, "/whep/stage/")] {
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        assert!(answer.header("location").starts_with(path));
        assert_eq!(host.simple("DELETE", answer.header("location"), None).await.status, StatusCode::OK);
    }
    // A room may have the name of an endpoint.
    let token = host.token(|request| request.room = "whip".into());
    let named = host.post("/whip/whip", Some(&token), "application/sdp", corpus("chromium-whip")).await;
    assert_eq!(host.simple("DELETE", named.header("location"), None).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_location_is_absolute_where_the_node_has_a_public_url() {
    let host = Host::with(8, "public_url = \"https://fra1.pop.example\"");
    let answer = host.watch(&host.token(|_| {})).await;
    // Redirected by 307 from another node, a client finds its resource here, whatever it resolves the reference against.
    let location = answer.header("location").strip_prefix("https://fra1.pop.example").expect("absolute");
    assert_eq!(host.simple("DELETE", location, None).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn ice_servers_are_links_and_their_passwords_for_holders_of_a_token() {
    let host = Host::with(
        8,
        "ice_servers = [{ url = \"stun:stun.example\" }, { url = \"turn:turn.example\", username = \"u\", credential = \"secret\" }]",
    );
    let token = host.token(|_| {});
    let links = |answer: &Answer| {
        let links = answer.headers.get_all("link").iter().map(|value| value.to_str().unwrap().to_owned());
        links.collect::<Vec<_>>()
    };
    let stun = "<stun:stun.example>; rel=\"ice-server\"";
    let turn = "<turn:turn.example>; rel=\"ice-server\"; username=\"u\"; credential=\"secret\"; credential-type=\"password\"";
    let created = host.watch(&token).await;
    assert_eq!(links(&created), [stun, turn]);
    assert!(created.header("access-control-expose-headers").contains("Link"));
    let bearer = format!("Bearer {token}");
    assert_eq!(links(&host.simple("OPTIONS", "/whep/stage", Some(&bearer)).await), [stun, turn]);
    for authorization in [None, Some("Bearer x")] {
        assert_eq!(links(&host.simple("OPTIONS", "/whep/stage", authorization).await), [stun]);
    }
    assert_eq!(links(&host.simple("OPTIONS", "/whep/other", Some(&bearer)).await), [stun], "a token for another room");
    let preflight = Request::options("/whep/stage").header("access-control-request-method", "POST").header("authorization", bearer);
    assert_eq!(links(&host.send(preflight.body(Body::empty()).unwrap()).await), Vec::<String>::new());
    assert_eq!(links(&host.post("/whep/stage", None, "application/sdp", corpus("firefox-whep")).await), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_with_a_space_and_an_umlaut_comes_back_encoded() {
    let host = Host::start(8);
    let token = host.token(|request| request.room = "Straße 7".into());
    let answer = host.post("/whip/Stra%C3%9Fe%207", Some(&token), "Application/SDP; charset=utf-8", corpus("aiortc-whip")).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    let location = answer.header("location");
    assert!(location.starts_with("/whip/Stra%C3%9Fe%207/"), "{location}");
    assert_eq!(host.simple("DELETE", location, None).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_is_drawn_its_own_secrets() {
    let host = Host::start(16);
    let token = host.token(|_| {});
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let answer = host.watch(&token).await;
        let wanted = ["a=ice-ufrag:", "a=ice-pwd:", "a=ssrc:", "a=msid:", "o=- "];
        for prefix in wanted {
            let line = answer.body.split("\r\n").find(|line| line.starts_with(prefix)).unwrap();
            assert!(seen.insert(line.to_owned()), "{line} came twice");
        }
        assert!(seen.insert(answer.header("location").to_owned()));
    }
}
