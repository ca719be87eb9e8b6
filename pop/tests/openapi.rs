//! `config/openapi.json` against the routes in the source: neither knows a path or a method that the other does not.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Sources that give the operator's listeners their routes.
const SOURCES: &[&str] = &["src/admin.rs", "src/rtp/api.rs"];

/// `METHOD /path` of each `.route("/path", get(..).put(..))`.
fn served() -> BTreeSet<String> {
    let mut served = BTreeSet::new();
    for source in SOURCES {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(source)).expect("a source of this crate");
        for route in text.split(".route(\"").skip(1) {
            let (path, handlers) = route.split_once('"').expect("a path ends");
            // Up to the next route or the end of the statement.
            let handlers = handlers.split(['\n', ';']).next().expect("split gives one at least");
            for method in ["get", "post", "put", "delete"] {
                if handlers.contains(&format!("{method}(")) {
                    served.insert(format!("{method} {path}"));
                }
            }
        }
    }
    served
}

fn described() -> BTreeSet<String> {
    let text = include_str!("../../config/openapi.json");
    let api: Value = serde_json::from_str(text).expect("JSON");
    let paths = api["paths"].as_object().expect("paths");
    paths.iter().flat_map(|(path, item)| item.as_object().expect("methods").keys().map(move |m| format!("{m} {path}"))).collect()
}

#[test]
fn the_file_describes_every_route_and_no_other() {
    let (served, described) = (served(), described());
    assert!(served.len() > 12, "{served:?}");
    assert_eq!(served, described);
}

#[test]
fn every_reference_leads_somewhere() {
    let text = include_str!("../../config/openapi.json");
    let api: Value = serde_json::from_str(text).expect("JSON");
    for reference in text.split("\"#").skip(1).map(|rest| rest.split('"').next().expect("a reference ends")) {
        assert!(api.pointer(reference).is_some(), "{reference}");
    }
}
