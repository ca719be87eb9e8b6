//! `pop ca` as an operator types it: two commands for a node, and a sentence for every mistake.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pop::mesh::{Grants, NodeName};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;

#[path = "cli_support/process.rs"]
mod process;

use process::{Folder, code, json, run, shown, stderr};

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).permissions().mode() & 0o777
}

fn read(file: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Whether `cert` is of `ca` for `name`, as a server and as a client.
fn holds(ca: &Path, cert: &Path, name: &str) -> Result<(), rustls::Error> {
    let (mut roots, provider) = (RootCertStore::empty(), std::sync::Arc::new(default_provider()));
    roots.add(read(ca)).expect("a certificate");
    let roots = std::sync::Arc::new(roots);
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build().expect("one root");
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider).build().expect("one root");
    let (cert, now) = (read(cert), UnixTime::now());
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    servers.verify_server_cert(&cert, &[], &name, &[], now)?;
    clients.verify_client_cert(&cert, &[], now).map(|_| ())
}

fn refused(words: &[&str], exit: i32, sentence: &str) {
    let output = run(words);
    assert_eq!(code(&output), Some(exit), "{words:?}: {output:?}");
    let said = stderr(&output);
    assert!(said.contains(sentence) && !said.contains("panicked"), "{words:?} says {said}");
}

#[test]
fn two_commands_make_a_node_and_a_third_renews_it() {
    let folder = Folder::new();
    let ca = folder.path("ca");
    let output = run(&["ca", "init", "--dir", shown(&ca), "--name", "Example CA"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert_eq!((mode(&ca), mode(&ca.join("ca.key")), mode(&ca.join("ca.pem"))), (0o700, 0o600, 0o644));
    let issue = ["ca", "issue", "--dir", shown(&ca), "--node", "a1", "--pop", "fra", "--address", "192.0.2.1", "--address", "2001:db8::1"];
    let output = run(&[&issue[..], &["--json"]].concat());
    assert_eq!(code(&output), Some(0), "{output:?}");
    let node = ca.join("a1.fra");
    assert_eq!(json(&output)["cert"].as_str(), Some(shown(&node.join("node.pem"))));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    let left = json(&output)["expires_at_s"].as_u64().expect("a time") - now;
    assert!((89 * 86_400..=90 * 86_400).contains(&left), "{left} s");
    assert_eq!(mode(&node.join("node.key")), 0o600);
    assert_eq!(fs::read(node.join("ca.pem")).expect("a copy"), fs::read(ca.join("ca.pem")).expect("the CA"));
    let (root, cert) = (node.join("ca.pem"), node.join("node.pem"));
    assert_eq!(NodeName::of_certificate(&read(&cert)), NodeName::new("a1", "fra").ok());
    let names = ["a1.fra.pop.internal", "192.0.2.1", "2001:db8::1"];
    for name in names {
        holds(&root, &cert, name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    holds(&root, &cert, "a2.fra.pop.internal").expect_err("it is another node");

    let (old_cert, old_key) = (read(&cert), fs::read(node.join("node.key")).expect("a key"));
    let output = run(&["ca", "renew", "--dir", shown(&ca), "--node", "a1", "--pop", "fra", "--days", "10"]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("valid for 10 days") || String::from_utf8_lossy(&output.stdout).contains("9 days")
    );
    assert!(read(&cert) != old_cert && fs::read(node.join("node.key")).expect("a key") != old_key);
    assert_eq!(mode(&node.join("node.key")), 0o600);
    for name in names {
        holds(&root, &cert, name).unwrap_or_else(|error| panic!("{name} after the renewal: {error}"));
    }
    let config = |name: &str| {
        let files = "[mesh]\nca = \"ca.pem\"\ncert = \"node.pem\"\nkey = \"node.key\"\nlisten = \"127.0.0.1:7890\"\n";
        fs::write(folder.path("pop.toml"), format!("[node]\nname = \"{name}\"\npop = \"fra\"\n{files}")).expect("our folder");
    };
    for file in ["ca.pem", "node.pem", "node.key"] {
        fs::copy(node.join(file), folder.path(file)).expect("it is there");
    }
    config("a1");
    let output = run(&["check", shown(&folder.path("pop.toml"))]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("certificate of a1.fra valid for 9 days") || said.contains("valid for 10 days"), "{said} {output:?}");
    config("a2");
    refused(&["check", shown(&folder.path("pop.toml"))], 2, "is of a1.fra and this node is a2.fra");

    let left = fs::read_dir(&node).expect("the folder").count();
    assert_eq!(left, 3, "nothing but the three files");
}

#[test]
fn every_mistake_is_a_sentence_and_overwrites_nothing() {
    let folder = Folder::new();
    let (ca, other) = (folder.path("ca"), folder.path("other"));
    let (dir, at) = (shown(&ca), |file: &str| ca.join(file));
    let issue = |node: &'static str| ["ca", "issue", "--dir", dir, "--node", node, "--pop", "fra"];
    refused(&issue("a1"), 1, "pop ca init --dir");
    assert_eq!(code(&run(&["ca", "init", "--dir", dir])), Some(0));
    assert_eq!(code(&run(&["ca", "init", "--dir", shown(&other)])), Some(0));
    let before = fs::read(at("ca.key")).expect("a key");
    refused(&["ca", "init", "--dir", dir], 1, "--force overwrites it");
    assert_eq!(fs::read(at("ca.key")).expect("a key"), before);
    for node in ["a.b", "a-", "a b", ""] {
        refused(&issue(node), 2, "cannot name a node");
    }
    refused(&["ca", "issue", "--dir", dir, "--node", "a", "--pop", "x.y"], 2, "cannot name a PoP");
    refused(&["ca", "issue", "--dir", dir, "--node", "a", "--days", "0"], 2, "--days");
    refused(&["ca", "issue", "--dir", dir, "--node", "a", "--days", "3650", "--address", "localhost"], 2, "--address");
    refused(&["ca", "renew", "--dir", dir, "--node", "a1", "--pop", "fra"], 1, "is no certificate to renew");
    refused(&["ca", "renew", "--dir", dir], 2, "--node");
    refused(&["ca", "renew", "--dir", dir, "--out", dir], 1, "is no certificate to renew");
    assert_eq!(code(&run(&issue("a1"))), Some(0));
    refused(&issue("a1"), 1, "is there already");
    assert_eq!(code(&run(&[&issue("a1")[..], &["--force"]].concat())), Some(0));

    fs::set_permissions(at("ca.key"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    refused(&issue("a2"), 1, "chmod 600");
    fs::copy(other.join("ca.key"), at("ca.key")).expect("it is there");
    fs::set_permissions(at("ca.key"), fs::Permissions::from_mode(0o600)).expect("it is ours");
    refused(&issue("a2"), 1, "is not the key of");
    fs::write(at("ca.key"), "hello").expect("it is ours");
    refused(&issue("a2"), 1, "is no private key");
    fs::write(at("ca.pem"), "hello").expect("it is ours");
    fs::write(at("ca.key"), before).expect("it is ours");
    refused(&issue("a2"), 1, "is no certificate");
    fs::copy(at("a1.fra/node.pem"), at("ca.pem")).expect("it is there");
    refused(&issue("a2"), 1, "is no CA");
    assert!(!at("a2.fra").exists(), "a refusal leaves nothing behind");
}

#[test]
fn a_certificate_is_for_the_api_keys_that_were_named_and_a_renewal_keeps_them() {
    let folder = Folder::new();
    let (ca, node) = (folder.path("ca"), folder.path("node"));
    let (dir, out) = (shown(&ca), shown(&node));
    assert_eq!(code(&run(&["ca", "init", "--dir", dir])), Some(0));
    let issue = ["ca", "issue", "--dir", dir, "--node", "a1", "--pop", "fra", "--address", "192.0.2.1", "--out", out, "--force"];
    let renew = ["ca", "renew", "--dir", dir, "--out", out];
    let many: Vec<String> = (0..=256).map(|n| format!("key-{n}")).collect();
    let (full, too_many) = (many[1..].join(","), many.join(","));
    let (long, too_long) = ("ä".repeat(128), "ä".repeat(128) + "a");
    let large = (0..130).map(|n| format!("{n:03}{}", "a".repeat(253))).collect::<Vec<_>>().join(",");
    let rows: [(&[&str], &[&str], Grants); 14] = [
        (&issue, &[], Grants::none()),
        (&renew, &[], Grants::none()),
        (&issue, &["--api-keys", "APIdesk,a b,%2A,a%2Cb,100%25,ä"], Grants::of(["APIdesk", "a b", "*", "a,b", "100%", "ä"])),
        (&renew, &[], Grants::of(["APIdesk", "a b", "*", "a,b", "100%", "ä"])),
        (&renew, &["--api-keys", "x", "--api-keys", "y,z"], Grants::of(["x", "y", "z"])),
        (&renew, &[], Grants::of(["x", "y", "z"])),
        (&renew, &["--no-api-keys"], Grants::none()),
        (&renew, &["--api-keys", "*"], Grants::all()),
        (&renew, &[], Grants::all()),
        (&issue, &["--api-keys", &full], Grants::of(many[1..].iter().map(String::as_str))),
        (&renew, &[], Grants::of(many[1..].iter().map(String::as_str))),
        (&issue, &["--api-keys", &long], Grants::of([&*long])),
        (&issue, &["--api-keys", "*"], Grants::all()),
        (&issue, &[], Grants::none()),
    ];
    for (command, keys, granted) in rows {
        let words = [command, keys, &["--json"]].concat();
        let output = run(&words);
        assert_eq!(code(&output), Some(0), "{words:?}: {output:?}");
        let cert = node.join("node.pem");
        assert_eq!(Grants::of_certificate(&read(&cert)), granted, "{words:?}");
        assert_eq!(json(&output)["api_keys"], serde_json::json!(granted.list()), "{words:?}");
        assert_eq!(NodeName::of_certificate(&read(&cert)), NodeName::new("a1", "fra").ok());
        for name in ["a1.fra.pop.internal", "192.0.2.1"] {
            holds(&node.join("ca.pem"), &cert, name).unwrap_or_else(|error| panic!("{words:?}, {name}: {error}"));
        }
    }
    let before = read(&node.join("node.pem"));
    let wrong = [
        (&*too_many, "at most 256 API keys, not 257"),
        (&too_long, "longer than 256 bytes"),
        (&large, "32768 bytes of API keys"),
        ("", "it is empty"),
        ("a,,b", "it is empty"),
        ("a,*", "give it alone"),
        ("100%", "write a percent sign as %25"),
        ("%ff", "not UTF-8"),
        ("a\tb", "control characters"),
    ];
    for (keys, sentence) in wrong {
        refused(&[&issue[..], &["--api-keys", keys]].concat(), 2, sentence);
        refused(&[&renew[..], &["--api-keys", keys]].concat(), 2, sentence);
    }
    refused(&[&renew[..], &["--api-keys", "a", "--no-api-keys"]].concat(), 2, "cannot be used with");
    assert!(read(&node.join("node.pem")) == before, "a refusal changes nothing");
    let output = run(&[&renew[..], &["--api-keys", "a,b"]].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with("days, API keys towards other PoPs: a,b\n"), "{said}");
}

#[test]
fn what_was_issued_is_taken_back_by_name_or_by_number() {
    let folder = Folder::new();
    let ca = folder.path("ca");
    let dir = ["--dir", shown(&ca)];
    assert_eq!(code(&run(&[&["ca", "init"][..], &dir].concat())), Some(0));
    let node = ["--node", "a1", "--pop", "fra"];
    assert_eq!(code(&run(&[&["ca", "issue"][..], &dir, &node].concat())), Some(0));
    assert_eq!(code(&run(&[&["ca", "renew"][..], &dir, &node].concat())), Some(0));
    let output = run(&[&["ca", "revoke", "--json"][..], &dir, &node].concat());
    assert_eq!(code(&output), Some(0), "{output:?}");
    let answer = json(&output);
    let first = answer["number"].as_u64().expect("a number");
    assert_eq!(answer["revoked"].as_u64(), Some(2), "the one before, too: {answer}");
    assert_eq!(answer["crl"].as_str(), Some(shown(&ca.join("crl.pem"))));
    let output = run(&[&["ca", "revoke", "--serial", "0a:0B", "--json"][..], &dir].concat());
    let answer = json(&output);
    assert!(answer["number"].as_u64() > Some(first), "it is newer: {answer}");
    assert_eq!(answer["revoked"].as_u64(), Some(3), "those before stay: {answer}");
    assert_eq!(answer["serials"][0].as_str(), Some("0a0b"));
    let output = run(&[&["ca", "revoke"][..], &dir, &node].concat());
    assert_eq!(code(&output), Some(0));
    assert!(stderr(&output).contains("pop reload"), "{output:?}");
    refused(
        &[&["ca", "revoke", "--node", "nobody", "--pop", "fra"][..], &dir].concat(),
        1,
        "this CA has made no certificate of nobody.fra",
    );
    refused(&[&["ca", "revoke", "--serial", "xyz"][..], &dir].concat(), 2, "--serial takes");
    refused(&[&["ca", "revoke"][..], &dir].concat(), 2, "--node");
    fs::write(ca.join("crl.pem"), "nothing").expect("our folder");
    refused(&[&["ca", "revoke", "--serial", "01"][..], &dir].concat(), 1, "crl.pem");
}
