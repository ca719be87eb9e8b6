//! What a node's certificate calls it.

use std::fmt;

use pop_schemas::NodeId;
use rustls::pki_types::ServerName;
use x509_parser::extensions::GeneralName;

/// Ends the name of every node: a domain that is nobody's (RFC 9476 keeps `.internal` out of the public DNS).
const SUFFIX: &str = ".pop.internal";

/// A node and its PoP. Its certificate has the name `NODE.POP.pop.internal` (SAN DNS), so neither part has a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeName {
    node: String,
    pop: String,
}

impl NodeName {
    /// Checks both: 1 to 63 letters, digits, hyphens and underscores, no hyphen at an end. The error says what to change.
    pub fn new(node: &str, pop: &str) -> Result<NodeName, String> {
        for (what, name) in [("node", node), ("PoP", pop)] {
            if !is_label(name) {
                return Err(format!(
                    "{name:?} cannot name a {what} in a certificate: 1 to 63 letters, digits, hyphens and underscores, no hyphen at an end"
                ));
            }
        }
        Ok(NodeName { node: node.to_owned(), pop: pop.to_owned() })
    }

    /// The node that a certificate (DER) names; `None` when it names none, or more than one.
    pub fn of_certificate(der: &[u8]) -> Option<NodeName> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten()?;
        let mut names = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => name.strip_suffix(SUFFIX),
            _ => None,
        });
        let (name, None) = (names.next()?, names.next()) else { return None };
        let (node, pop) = name.split_once('.')?;
        NodeName::new(node, pop).ok()
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its PoP's name.
    pub fn pop(&self) -> &str {
        &self.pop
    }

    /// Its number, which is the same everywhere.
    pub fn id(&self) -> NodeId {
        NodeId::of(&self.pop, &self.node)
    }

    /// The name in its certificate.
    pub fn dns(&self) -> String {
        format!("{}.{}{SUFFIX}", self.node, self.pop)
    }

    /// As TLS asks for it.
    pub(super) fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.dns()).expect("two labels that were checked, and two of ours")
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.pop)
    }
}

fn is_label(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (1..=63).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = rcgen::KeyPair::generate().expect("a key");
        rcgen::CertificateParams::new(names).expect("names").self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn a_certificate_names_one_node_or_none() {
        let name = NodeName::new("a1", "fra").expect("it is right");
        assert_eq!(NodeName::of_certificate(&certificate(&["192.0.2.1", "example.org", &name.dns()])), Some(name.clone()));
        assert_eq!(name.server_name().to_str(), "a1.fra.pop.internal");
        let wrong: [&[&str]; 6] = [
            &["192.0.2.1"],
            &["a1.fra.pop.internal", "a2.fra.pop.internal"],
            &["a1.pop.internal"],
            &["a.b.c.pop.internal"],
            &["*.fra.pop.internal"],
            &["a1.fra.pop.internal.example.org"],
        ];
        for names in wrong {
            assert_eq!(NodeName::of_certificate(&certificate(names)), None, "{names:?}");
        }
        assert_eq!(NodeName::of_certificate(b"nothing"), None);
    }

    #[test]
    fn a_name_that_could_be_read_in_two_ways_is_none() {
        for wrong in ["", "a.b", "-a", "a-", "a b", "ä", &"a".repeat(64)] {
            assert!(NodeName::new(wrong, "fra").is_err() && NodeName::new("a", wrong).is_err(), "{wrong:?}");
        }
        assert!(NodeName::new(&"a".repeat(63), &"b".repeat(63)).is_ok_and(|name| name.server_name().to_str().len() == 140));
    }
}
