//! The pages at `/demo`, a call, and `/demo/broadcast`, WHIP and WHEP: static files inside the binary, no build step, nothing from
//! outside. LiveKit's client library is a copy of the npm package's file (`demo/vendor`, checked by `bench/browser/vendor.test.js`).

mod crash;
mod guest;

use std::io::Write;
use std::sync::OnceLock;

use axum::Router;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::config::DemoConfig;
use crate::http::encode_component;
use crate::node::Node;

/// What the pages ask of `node`.
pub(crate) fn routes(node: Node, config: &DemoConfig) -> Router {
    guest::routes(node.clone()).merge(crash::routes(node, config))
}

/// What browsers may load and reach from the pages: their own files and this node, by HTTP and by WebSocket ('self' is both: CSP 3,
/// section 6.7.2.8).
pub(crate) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; worker-src 'self'; \
     connect-src 'self'; media-src 'self' blob:; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One file of the pages.
pub(crate) struct Asset {
    /// Path of the request.
    pub(crate) path: &'static str,
    /// Value of `Content-Type`.
    pub(crate) content_type: &'static str,
    /// The file.
    pub(crate) body: &'static str,
    /// Another version of it has another path, so that a cache may keep this one for good.
    pub(crate) versioned: bool,
    gzipped: OnceLock<Vec<u8>>,
}

impl Asset {
    const fn new(path: &'static str, content_type: &'static str, body: &'static str) -> Self {
        Self { path, content_type, body, versioned: false, gzipped: OnceLock::new() }
    }

    const fn versioned(path: &'static str, content_type: &'static str, body: &'static str) -> Self {
        Self { path, content_type, body, versioned: true, gzipped: OnceLock::new() }
    }

    /// The file for clients that take gzip, made once, at the first request: 610 KB of library become 154 KB in about 40 ms.
    pub(crate) fn gzipped(&self) -> &[u8] {
        self.gzipped.get_or_init(|| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(self.body.as_bytes()).and_then(|()| encoder.finish()).expect("memory takes what is written")
        })
    }
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Every file of the pages.
pub(crate) static ASSETS: [Asset; 27] = [
    Asset::new("/demo", HTML, include_str!("demo/call.html")),
    Asset::new("/demo/broadcast", HTML, include_str!("demo/broadcast.html")),
    Asset::new("/demo/icon.svg", SVG, include_str!("demo/icon.svg")),
    Asset::new("/demo/style.css", CSS, include_str!("demo/style.css")),
    Asset::new("/demo/call.css", CSS, include_str!("demo/call.css")),
    Asset::new("/demo/address.js", JAVASCRIPT, include_str!("demo/address.js")),
    Asset::new("/demo/theme.js", JAVASCRIPT, include_str!("demo/theme.js")),
    Asset::new("/demo/words.js", JAVASCRIPT, include_str!("demo/words.js")),
    Asset::new("/demo/pattern.js", JAVASCRIPT, include_str!("demo/pattern.js")),
    Asset::new("/demo/ticker.js", JAVASCRIPT, include_str!("demo/ticker.js")),
    Asset::new("/demo/call.js", JAVASCRIPT, include_str!("demo/call.js")),
    Asset::new("/demo/crash.js", JAVASCRIPT, include_str!("demo/crash.js")),
    Asset::new("/demo/guest.js", JAVASCRIPT, include_str!("demo/guest.js")),
    Asset::new("/demo/livekit.js", JAVASCRIPT, include_str!("demo/livekit.js")),
    Asset::new("/demo/lobby.js", JAVASCRIPT, include_str!("demo/lobby.js")),
    Asset::new("/demo/sources.js", JAVASCRIPT, include_str!("demo/sources.js")),
    Asset::new("/demo/tiles.js", JAVASCRIPT, include_str!("demo/tiles.js")),
    Asset::new("/demo/chat.js", JAVASCRIPT, include_str!("demo/chat.js")),
    Asset::new("/demo/stats.js", JAVASCRIPT, include_str!("demo/stats.js")),
    Asset::new("/demo/drawer.js", JAVASCRIPT, include_str!("demo/drawer.js")),
    Asset::new("/demo/spark.js", JAVASCRIPT, include_str!("demo/spark.js")),
    Asset::new("/demo/broadcast.js", JAVASCRIPT, include_str!("demo/broadcast.js")),
    Asset::new("/demo/whip.js", JAVASCRIPT, include_str!("demo/whip.js")),
    Asset::new("/demo/meter.js", JAVASCRIPT, include_str!("demo/meter.js")),
    Asset::versioned("/demo/vendor/livekit-client-2.23.0.umd.js", JAVASCRIPT, include_str!("demo/vendor/livekit-client-2.23.0.umd.js")),
    Asset::new("/demo/vendor/LICENSE", TEXT, include_str!("demo/vendor/LICENSE")),
    Asset::new("/demo/vendor/NOTICE", TEXT, include_str!("demo/vendor/NOTICE")),
];

/// The call page of the node at `base`, with all that it needs to join. The token stands behind the '#': no server sees it and no log.
pub(crate) fn url(base: &str, room: &str, token: &str) -> String {
    format!("{base}/demo?room={}#token={token}", encode_component(room))
}

#[cfg(test)]
mod tests {
    use super::ASSETS;

    #[test]
    fn every_file_that_the_pages_name_is_served_and_none_is_from_outside() {
        let mut named = 0;
        // The library names outside addresses in its messages; the policy is what keeps it from them.
        for asset in ASSETS.iter().filter(|asset| !asset.path.starts_with("/demo/vendor/")) {
            for part in asset
                .body
                .split('"')
                .filter(|part| part.starts_with("/demo/") && !["/demo/guest", "/demo/hosts", "/demo/crash"].contains(part))
            {
                named += 1;
                assert!(ASSETS.iter().any(|other| other.path == part), "{} names {part}, which is not served", asset.path);
            }
            assert!(!asset.body.contains("https://"), "{} loads from outside", asset.path);
        }
        assert!(named >= 15, "the pages name their styles and modules");
    }
}
