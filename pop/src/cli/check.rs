//! `pop check`: the config, its keys and its certificate, without touching the host.

use serde_json::{Value, json};

use super::{CheckArgs, Failure};
use crate::config::{Config, ConfigError};
use crate::keys::ApiKeys;
use crate::mesh::MeshIdentity;
use crate::tls::TlsIdentity;

pub(super) fn check(args: &CheckArgs) -> Result<(), Failure> {
    let checked = Config::load(&args.file).and_then(|config| {
        if let (Some(cert), Some(key)) = (&config.http.tls_cert, &config.http.tls_key) {
            TlsIdentity::load(cert, key).map_err(|sentence| ConfigError::whole_file(&args.file, sentence))?;
        }
        let mesh = MeshIdentity::of(&config).map_err(|sentence| ConfigError::whole_file(&args.file, sentence))?;
        Ok((ApiKeys::from_config(&config.auth)?, mesh, config))
    });
    let (keys, mesh, config) = checked.map_err(|error| {
        if args.json {
            println!("{}", refusal(&error));
        }
        Failure::from(error)
    })?;
    if let Some(warning) = mesh.as_ref().and_then(MeshIdentity::warning) {
        eprintln!("{warning}");
    }
    let (file, http, admin) = (args.file.display(), config.http.listen, config.admin.listen);
    if args.json {
        let keys = if keys.drawn() { 0 } else { keys.iter().count() };
        let mesh = mesh
            .map(|mesh| json!({ "name": mesh.name().to_string(), "expires_at_s": mesh.expires_at_s(), "api_keys": mesh.grants().list() }));
        println!("{}", json!({ "ok": true, "file": args.file, "http": http, "admin": admin, "keys": keys, "mesh": mesh }));
    } else {
        let keys = if keys.drawn() { "a key drawn at each start".to_owned() } else { format!("{} API keys", keys.iter().count()) };
        let shown = |mesh: MeshIdentity| {
            format!(", certificate of {} valid for {} days, API keys towards other PoPs: {}", mesh.name(), mesh.days_left(), mesh.grants())
        };
        let mesh = mesh.map(shown).unwrap_or_default();
        println!("{file}: ok, http on {http}, admin on {admin}, {keys}{mesh}");
    }
    Ok(())
}

/// What an editor needs to show the fault in its place.
fn refusal(error: &ConfigError) -> Value {
    let (line, column) = error.place().unzip();
    json!({ "ok": false, "file": error.file(), "line": line, "column": column, "error": error.message() })
}
