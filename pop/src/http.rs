//! The public listener: signalling, the page, and nothing that an operator would hide.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use crate::demo::{self, Asset};
use crate::metrics::Metrics;
use crate::serve;

/// Open connections of the public listener. A request takes milliseconds, a member of a room keeps one for as long as it stays; media
/// does not come here.
pub const CONNECTIONS_MAX: usize = 8_192;

/// `signal` with the page around it, bounded and counted.
pub fn router(signal: Router, metrics: Arc<Metrics>) -> Router {
    let mut router = signal.route("/", get(|| async { Redirect::temporary("/demo") }).head(warm_up));
    for asset in &demo::ASSETS {
        router = router.route(asset.path, get(move |headers: HeaderMap| async move { page(asset, &headers) }));
    }
    let router = router.fallback(|| async { (StatusCode::NOT_FOUND, "nothing is here: try /demo, /whip/{room} or /whep/{room}\n") });
    // Refusals of the bounds are answers, and counted.
    counted(serve::bounded(router), metrics)
}

/// Clients of rooms ask so from any page, to have name, connection and TLS ready before they join.
async fn warm_up() -> Response {
    [(ACCESS_CONTROL_ALLOW_ORIGIN, "*")].into_response()
}

/// Counts every answer of `router` under the pattern of its route.
pub(crate) fn counted(router: Router, metrics: Arc<Metrics>) -> Router {
    router.layer(middleware::from_fn_with_state(metrics, count))
}

async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    // Never the path: strangers choose it, and each would become a series.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    metrics.count_http(route.as_ref().map_or("other", MatchedPath::as_str), response.status().as_u16(), started.elapsed());
    response
}

fn page(asset: &'static Asset, request: &HeaderMap) -> Response {
    let headers: [(HeaderName, &str); 6] = [
        (CONTENT_TYPE, asset.content_type),
        // The next release has other files under the same names, where the name tells no version.
        (CACHE_CONTROL, if asset.versioned { "public, max-age=31536000, immutable" } else { "no-cache" }),
        (VARY, "accept-encoding"),
        (CONTENT_SECURITY_POLICY, demo::CONTENT_SECURITY_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    if takes_gzip(request) {
        return (headers, [(CONTENT_ENCODING, "gzip")], asset.gzipped()).into_response();
    }
    (headers, asset.body).into_response()
}

/// `gzip` stands in Accept-Encoding and is not refused there (RFC 9110 section 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    codings.map(str::trim).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse().ok()).unwrap_or(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && weight > 0.0
    })
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
    use axum::body::Body;
    use axum::extract::Path;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::metrics::{Exposition, JoinSeconds};

    async fn get_path(router: &Router, path: &str) -> Response {
        let request = Request::builder().uri(path).body(Body::empty()).expect("a request");
        TowerToHyperService::new(router.clone()).call(request).await.expect("a router always answers")
    }

    #[tokio::test]
    async fn the_page_is_served_with_its_policy_and_the_root_leads_there() {
        let router = router(Router::new(), Metrics::new("mmsg", &JoinSeconds::default(), Vec::new()));
        let root = get_path(&router, "/").await;
        assert_eq!((root.status(), root.headers()["location"].as_bytes()), (StatusCode::TEMPORARY_REDIRECT, b"/demo".as_slice()));
        for asset in &demo::ASSETS {
            let answer = get_path(&router, asset.path).await;
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.headers()["content-type"], asset.content_type);
            assert!(answer.headers().contains_key("content-security-policy"));
        }
        assert_eq!(get_path(&router, "/other").await.status(), StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn the_library_is_compressed_for_whoever_takes_that_and_kept_by_caches() {
        let asset = demo::ASSETS.iter().find(|asset| asset.versioned).expect("the library");
        let ask = |accepts: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, accepts.parse().expect("a value"));
            page(asset, &headers)
        };
        for refuses in ["identity", "br", "gzip;q=0", "gzip; q=0.0", "xgzip"] {
            assert!(!ask(refuses).headers().contains_key("content-encoding"), "{refuses}");
        }
        for takes in ["gzip", "br, GZIP", "deflate, gzip;q=0.5"] {
            let answer = ask(takes);
            assert_eq!(
                (&answer.headers()["content-encoding"], &answer.headers()["vary"]),
                (&"gzip".parse().unwrap(), &"accept-encoding".parse().unwrap())
            );
            assert_eq!(answer.headers()["cache-control"], "public, max-age=31536000, immutable");
            let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
            assert!(body.len() < asset.body.len() / 3, "{} bytes", body.len());
            let mut text = String::new();
            std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&body[..]), &mut text).expect("gzip");
            assert!(text == asset.body, "it is the same file");
        }
    }

    #[test]
    fn a_room_becomes_one_segment() {
        assert_eq!(encode_component("Straße 7"), "Stra%C3%9Fe%207");
        assert_eq!(encode_component("a-b._~"), "a-b._~");
    }

    #[tokio::test]
    async fn strangers_cannot_make_series() {
        let metrics = Metrics::new("mmsg", &JoinSeconds::default(), Vec::new());
        let signal = Router::new().route("/whip/{room}", get(|Path(room): Path<String>| async { room }));
        let router = router(signal, Arc::clone(&metrics));
        for path in ["/whip/a", "/whip/b", "/x1", "/x2"] {
            get_path(&router, path).await;
        }
        let text = metrics.encode(Exposition::OpenMetrics);
        assert!(text.contains("pop_http_requests_total{route=\"/whip/{room}\",code=\"200\"} 2"), "{text}");
        assert!(text.contains("pop_http_requests_total{route=\"other\",code=\"404\"} 2"), "{text}");
    }
}
