//! The page at `/demo`: static files inside the binary, no build step, nothing from outside.

/// What browsers may load and reach from the page: its own files and this node.
pub(crate) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; worker-src 'self'; \
     connect-src 'self'; media-src 'self' blob:; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One file of the page.
pub(crate) struct Asset {
    /// Path of the request.
    pub(crate) path: &'static str,
    /// Value of `Content-Type`.
    pub(crate) content_type: &'static str,
    /// The file.
    pub(crate) body: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Every file of the page.
pub(crate) const ASSETS: &[Asset] = &[
    Asset { path: "/demo", content_type: HTML, body: include_str!("demo/index.html") },
    Asset { path: "/demo/icon.svg", content_type: SVG, body: include_str!("demo/icon.svg") },
    Asset { path: "/demo/style.css", content_type: CSS, body: include_str!("demo/style.css") },
    Asset { path: "/demo/app.js", content_type: JAVASCRIPT, body: include_str!("demo/app.js") },
    Asset { path: "/demo/whip.js", content_type: JAVASCRIPT, body: include_str!("demo/whip.js") },
    Asset { path: "/demo/meter.js", content_type: JAVASCRIPT, body: include_str!("demo/meter.js") },
    Asset { path: "/demo/pattern.js", content_type: JAVASCRIPT, body: include_str!("demo/pattern.js") },
    Asset { path: "/demo/ticker.js", content_type: JAVASCRIPT, body: include_str!("demo/ticker.js") },
];

#[cfg(test)]
mod tests {
    use super::ASSETS;

    #[test]
    fn every_file_that_the_page_names_is_served_and_none_is_from_outside() {
        let mut named = 0;
        for asset in ASSETS {
            for part in asset.body.split('"').filter(|part| part.starts_with("/demo/")) {
                named += 1;
                assert!(ASSETS.iter().any(|other| other.path == part), "{} names {part}, which is not served", asset.path);
            }
            assert!(!asset.body.contains("https://"), "{} loads from outside", asset.path);
        }
        assert!(named >= 5, "the page names its style and its modules");
    }
}
