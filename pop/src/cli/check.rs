//! `pop check`: the config and its keys, without touching the host.

use super::{CheckArgs, Failure};
use crate::config::Config;
use crate::keys::ApiKeys;

pub(super) fn check(args: &CheckArgs) -> Result<(), Failure> {
    let config = Config::load(&args.file)?;
    let keys = ApiKeys::from_config(&config.auth)?;
    let keys = if keys.drawn() { "a key drawn at each start".to_owned() } else { format!("{} API keys", keys.iter().count()) };
    println!("{}: ok, http on {}, admin on {}, {keys}", args.file.display(), config.http.listen, config.admin.listen);
    Ok(())
}
