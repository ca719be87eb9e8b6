//! `pop reload` and `pop log-level`: what an operator changes about the running node.

use serde_json::{Value, json};

use super::client::Client;
use super::{AskArgs, Failure, LogLevelArgs};

pub(super) async fn reload(args: &AskArgs) -> Result<(), Failure> {
    let report = Client::find(args.socket.as_deref()).await?.ask("POST", "/api/v1/reload", None).await?;
    if args.json {
        println!("{report}");
    } else {
        print!("{}", reload_lines(&report));
    }
    match report["failed"].as_array().and_then(|failed| failed.first()?.as_str()) {
        None => Ok(()),
        Some(sentence) => Err(Failure::Other(format!("the rest of the file is in force, but {sentence}"))),
    }
}

fn reload_lines(report: &Value) -> String {
    let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let change = |change: &Value| format!("{}: {} -> {}", text(&change["key"]), text(&change["from"]), text(&change["to"]));
    let mut lines: Vec<String> = list("applied").iter().map(change).collect();
    lines.extend(list("changes").iter().map(text));
    lines.extend(list("restart").iter().map(|key| format!("needs a restart: {}", change(key))));
    if lines.is_empty() {
        lines.push("nothing has changed".to_owned());
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

pub(super) async fn log_level(args: &LogLevelArgs) -> Result<(), Failure> {
    let client = Client::find(args.socket.as_deref()).await?;
    let answer = match &args.filter {
        Some(filter) => client.ask("PUT", "/api/v1/log", Some(json!({ "filter": filter }))).await?,
        None => client.ask("GET", "/api/v1/log", None).await?,
    };
    if args.json {
        println!("{answer}");
    } else {
        println!("{}", answer["filter"].as_str().unwrap_or_default());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_line_per_change() {
        let report = json!({
            "applied": [{ "key": "log.level", "from": "\"info\"", "to": "\"warn\"" }],
            "restart": [{ "key": "media.port", "from": "1", "to": "2" }],
            "changes": ["API key b added"],
        });
        let lines = "log.level: \"info\" -> \"warn\"\nAPI key b added\nneeds a restart: media.port: 1 -> 2\n";
        assert_eq!(reload_lines(&report), lines);
        assert_eq!(reload_lines(&json!({})), "nothing has changed\n");
    }
}
