//! `pop ca`: what makes nodes trust each other.

use serde_json::json;

use super::{CaCommand, CaRevokeArgs, Failure};
use crate::ca::{self, List, Made, Request, Serial};
use crate::mesh::{Grants, NodeName};
use crate::token::unix_now_s;

pub(super) fn run(command: &CaCommand) -> Result<(), Failure> {
    let (made, next, json) = match command {
        CaCommand::Revoke(args) => return revoke(args),
        CaCommand::Init(args) => {
            let made = ca::init(&args.dir, &args.name, args.force).map_err(Failure::Other)?;
            let dir = args.dir.display();
            (
                made,
                format!("keep its key away from the nodes; next, for each node: pop ca issue --dir {dir} --node NAME --pop POP"),
                args.json,
            )
        }
        CaCommand::Issue(args) => {
            let name = NodeName::new(&args.node, &args.pop).map_err(Failure::Usage)?;
            let out = args.out.clone().unwrap_or_else(|| ca::default_out(&args.dir, &name));
            let request = Request { name, days: args.days, addresses: args.address.clone(), api_keys: parse(&args.api_keys)? };
            let made = ca::issue(&args.dir, &out, &request, args.force).map_err(Failure::Other)?;
            (made, "copy the folder to the node and name the three files in [mesh] of its config".to_owned(), args.json)
        }
        CaCommand::Renew(args) => {
            let out = match (&args.out, &args.node) {
                (Some(out), _) => out.clone(),
                (None, Some(node)) => ca::default_out(&args.dir, &NodeName::new(node, &args.pop).map_err(Failure::Usage)?),
                (None, None) => return Err(Failure::Usage("whose? give --node and --pop, or the folder as --out".to_owned())),
            };
            let api_keys = match &args.api_keys {
                Some(list) => Some(parse(list)?),
                None => args.no_api_keys.then(Grants::none),
            };
            let made = ca::renew(&args.dir, &out, args.days, api_keys).map_err(Failure::Other)?;
            (made, "copy node.pem and node.key to the node, then `pop reload` there".to_owned(), args.json)
        }
    };
    show(&made, &next, json);
    Ok(())
}

fn revoke(args: &CaRevokeArgs) -> Result<(), Failure> {
    let serials = match (&args.serial, &args.node) {
        (Some(serial), _) => vec![Serial::parse(serial).map_err(Failure::Usage)?],
        (None, Some(node)) => {
            let name = NodeName::new(node, &args.pop).map_err(Failure::Usage)?;
            ca::serials_of(&args.dir, &name).map_err(Failure::Other)?
        }
        (None, None) => return Err(Failure::Usage("whose? give --node and --pop, or --serial".to_owned())),
    };
    let List { file, number, serials, revoked } = ca::revoke(&args.dir, &serials).map_err(Failure::Other)?;
    let serials: Vec<String> = serials.iter().map(ToString::to_string).collect();
    if args.json {
        println!("{}", json!({ "crl": file, "number": number, "serials": serials, "revoked": revoked }));
        return Ok(());
    }
    println!("{}, list {number} of {revoked} certificates, with {}", file.display(), serials.join(" "));
    eprintln!("name it in [mesh] revoked of one node's config, then `pop reload` there: it tells all others");
    Ok(())
}

fn parse(list: &[String]) -> Result<Grants, Failure> {
    Grants::parse(list.iter().map(String::as_str)).map_err(|error| Failure::Usage(format!("--api-keys: {error}")))
}

fn show(made: &Made, next: &str, json: bool) {
    let Made { ca, cert, key, expires_at_s, api_keys } = made;
    if json {
        let mut answer = json!({ "ca": ca, "cert": cert, "key": key, "expires_at_s": expires_at_s });
        if let Some(grants) = api_keys {
            answer["api_keys"] = json!(grants.list());
        }
        println!("{answer}");
        return;
    }
    let days = expires_at_s.saturating_sub(unix_now_s()) / 86_400;
    let grants = api_keys.as_ref().map(|grants| format!(", API keys towards other PoPs: {grants}")).unwrap_or_default();
    println!("{} and {}, valid for {days} days{grants}", cert.display(), key.display());
    eprintln!("{next}");
}
