//! Forged, foreign and outdated access tokens on every route that asks for one (Wycheproof's json_web_signature, RFC 8725).

use std::path::Path;

use aws_lc_rs::hmac::{self, HMAC_SHA256, HMAC_SHA512};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use pop::config::Config;
use pop::keys::ApiKeys;
use pop::node::Node;
use pop::signal::routes;
use pop::token::{TokenRequest, unix_now_s};
use serde_json::{Value, json};

const SECRET: &str = "a secret of this test alone, 0123456789";
const WHIP: [&str; 2] = ["/whip/stage", "/stage/whip"];
const WHEP: [&str; 2] = ["/whep/stage", "/stage/whep"];

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn forge(header: &Value, payload: &Value, algorithm: hmac::Algorithm, secret: &[u8]) -> String {
    let signed = format!("{}.{}", encode(header.to_string()), encode(payload.to_string()));
    let signature = hmac::sign(&hmac::Key::new(algorithm, secret), signed.as_bytes());
    format!("{signed}.{}", encode(signature))
}

fn payload() -> Value {
    json!({ "iss": "key", "sub": "ann", "exp": unix_now_s() + 600, "video": { "room": "stage", "roomJoin": true } })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut payload = payload();
    change(&mut payload);
    payload
}

fn start() -> TowerToHyperService<axum::Router> {
    let text = format!(
        "[media]\nport = 0\n[dataplane]\ncores = \"0\"\nbackend = \"mmsg\"\ntransports_max = 16\ntracks_max = 16\nsubscriptions_max = 32\n\
         packet_pool = 1024\nrecv_buffers = 16\ntrains = 4\ngro = false\n[auth.keys]\nkey = \"{SECRET}\"\nother = \"{SECRET}-of-another\"\n"
    );
    let config = Config::parse(&text, Path::new("test.toml")).unwrap();
    let node = Node::start(&config, ApiKeys::from_config(&config.auth).unwrap()).unwrap();
    TowerToHyperService::new(routes(node, &config))
}

async fn post(router: &TowerToHyperService<axum::Router>, path: &str, authorization: &str) -> StatusCode {
    let name = if path.contains("whip") { "chromium-whip" } else { "firefox-whep" };
    let offer = std::fs::read(format!("{}/tests/corpus/sdp/{name}.sdp", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let request = Request::post(path).header("content-type", "application/sdp").header("authorization", authorization);
    router.call(request.body(Body::from(offer)).unwrap()).await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_believes_a_token_that_this_node_did_not_have_signed() {
    let router = start();
    let hs256 = json!({ "alg": "HS256", "typ": "JWT" });
    let secret = SECRET.as_bytes();
    let good = forge(&hs256, &payload(), HMAC_SHA256, secret);
    let (head, signature) = good.rsplit_once('.').unwrap();
    let (_, body) = head.split_once('.').unwrap();
    let unsigned = |alg: &str| format!("{}.{}.", encode(json!({ "alg": alg, "typ": "JWT" }).to_string()), encode(payload().to_string()));
    let public_key = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n";
    let jwk = json!({ "kty": "oct", "k": encode("mine") });
    let mut rows: Vec<(String, String)> = ["none", "None", "NONE", "nOnE", ""].map(|alg| (format!("alg {alg:?}"), unsigned(alg))).to_vec();
    rows.extend([
        ("no signature".into(), format!("{head}.")),
        ("no third part".into(), head.to_owned()),
        ("a fourth part".into(), format!("{good}.{signature}")),
        ("alg none with a good signature".into(), format!("{}.{body}.{signature}", encode("{\"alg\":\"none\"}"))),
        ("two algs".into(), format!("{}.{body}.", encode("{\"alg\":\"HS256\",\"alg\":\"none\"}"))),
        ("HS512 under the right secret".into(), forge(&json!({ "alg": "HS512" }), &payload(), HMAC_SHA512, secret)),
        ("RS256 signed as HS256".into(), forge(&json!({ "alg": "RS256" }), &payload(), HMAC_SHA256, secret)),
        ("HS256 under a public key".into(), forge(&hs256, &payload(), HMAC_SHA256, public_key.as_bytes())),
        ("HS256 under nothing".into(), forge(&hs256, &payload(), HMAC_SHA256, b"")),
        ("kid of a file".into(), forge(&json!({ "alg": "HS256", "kid": "../../../dev/null" }), &payload(), HMAC_SHA256, b"")),
        ("kid of a query".into(), forge(&json!({ "alg": "HS256", "kid": "x' UNION SELECT 'k" }), &payload(), HMAC_SHA256, b"k")),
        ("its own key".into(), forge(&json!({ "alg": "HS256", "jwk": jwk }), &payload(), HMAC_SHA256, b"mine")),
        ("a key elsewhere".into(), forge(&json!({ "alg": "HS256", "jku": "http://127.0.0.1:1/" }), &payload(), HMAC_SHA256, b"mine")),
        ("another key's secret".into(), forge(&hs256, &with(|p| p["iss"] = json!("other")), HMAC_SHA256, secret)),
        ("an unknown key".into(), forge(&hs256, &with(|p| p["iss"] = json!("../key")), HMAC_SHA256, secret)),
        ("expired".into(), forge(&hs256, &with(|p| p["exp"] = json!(unix_now_s() - 1)), HMAC_SHA256, secret)),
        ("no expiry".into(), forge(&hs256, &with(|p| drop(p.as_object_mut().unwrap().remove("exp"))), HMAC_SHA256, secret)),
        ("an expiry in words".into(), forge(&hs256, &with(|p| p["exp"] = json!("tomorrow")), HMAC_SHA256, secret)),
        ("not yet".into(), forge(&hs256, &with(|p| p["nbf"] = json!(unix_now_s() + 300)), HMAC_SHA256, secret)),
        ("longer than 8 KiB".into(), forge(&hs256, &with(|p| p["metadata"] = json!("x".repeat(9_000))), HMAC_SHA256, secret)),
    ]);
    for path in WHIP.into_iter().chain(WHEP) {
        for (name, token) in &rows {
            assert_eq!(post(&router, path, &format!("Bearer {token}")).await, StatusCode::UNAUTHORIZED, "{path}: {name}");
        }
        for authorization in [good.clone(), format!("Basic {good}"), format!("Bearer: {good}"), "Bearer ".to_owned()] {
            assert_eq!(post(&router, path, &authorization).await, StatusCode::UNAUTHORIZED, "{path}: {authorization}");
        }
        // The twin: the same token unforged.
        assert_eq!(post(&router, path, &format!("Bearer {good}")).await, StatusCode::CREATED, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_token_opens_its_own_room_for_its_own_purpose_alone() {
    let router = start();
    let sign = |grant: Value| forge(&json!({ "alg": "HS256" }), &with(|p| p["video"] = grant), HMAC_SHA256, SECRET.as_bytes());
    let publisher = sign(json!({ "room": "stage", "roomJoin": true, "canSubscribe": false }));
    let viewer = sign(json!({ "room": "stage", "roomJoin": true, "canPublish": false }));
    for (path, right, wrong) in [(WHIP, &publisher, &viewer), (WHEP, &viewer, &publisher)] {
        for path in path {
            assert_eq!(post(&router, path, &format!("Bearer {wrong}")).await, StatusCode::FORBIDDEN, "{path}");
            assert_eq!(post(&router, path, &format!("Bearer {right}")).await, StatusCode::CREATED, "{path}");
        }
    }
    for (name, grant) in [
        ("another room", json!({ "room": "other", "roomJoin": true })),
        ("another case", json!({ "room": "Stage", "roomJoin": true })),
        ("no room", json!({ "roomJoin": true })),
        ("no joining", json!({ "room": "stage" })),
        ("an administrator's", json!({ "room": "stage", "roomAdmin": true })),
    ] {
        let token = sign(grant);
        for path in WHIP.into_iter().chain(WHEP) {
            assert_eq!(post(&router, path, &format!("Bearer {token}")).await, StatusCode::FORBIDDEN, "{path}: {name}");
        }
    }
    let elsewhere = TokenRequest::new("stage", "ann").sign(&ApiKeys::draw(), unix_now_s()).unwrap();
    assert_eq!(post(&router, "/whip/stage", &format!("Bearer {elsewhere}")).await, StatusCode::UNAUTHORIZED);
}
