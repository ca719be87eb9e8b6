//! The looking glass: the page at `/` of the admin listener. Static files inside the binary; what it shows it asks of `/api/v1/status` and
//! `/api/v1/sessions`, every two seconds.

use axum::Router;
use axum::http::HeaderName;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// Path, `Content-Type` and text of each file.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("glass/index.html")),
    ("/glass/style.css", "text/css; charset=utf-8", include_str!("glass/style.css")),
    ("/glass/app.js", "text/javascript; charset=utf-8", include_str!("glass/app.js")),
    ("/glass/ring.js", "text/javascript; charset=utf-8", include_str!("glass/ring.js")),
    ("/glass/words.js", "text/javascript; charset=utf-8", include_str!("glass/words.js")),
    ("/glass/icon.svg", "image/svg+xml", include_str!("glass/icon.svg")),
];

/// The page loads its own files and asks this node, and nothing else. Names on it come from other PoPs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     require-trusted-types-for 'script'; trusted-types 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let add = |router: Router<S>, (path, content_type, body)| router.route(path, get(move || async move { file(content_type, body) }));
    FILES.into_iter().fold(Router::new(), add)
}

fn file(content_type: &'static str, body: &'static str) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, content_type),
        // The next release has other files under the same names.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_its_own_files_alone_and_makes_no_markup_of_text() {
        let mut named = 0;
        for (path, _, body) in FILES {
            for part in body.split('"').filter(|part| part.starts_with("/glass/")) {
                named += 1;
                assert!(FILES.iter().any(|(other, ..)| *other == part), "{path} names {part}, which is not served");
            }
            assert!(!body.contains("https://"), "{path} loads from outside");
            for word in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("] {
                assert!(!body.contains(word), "{path}: {word}");
            }
        }
        assert_eq!(named, 6);
    }
}
