//! `/.well-known/pop.json`: how strangers find what they can measure. Its keys are kept from release to release.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    /// Of the node.
    pub name: String,
    /// Where it stands; empty: not told.
    pub region: String,
    /// Its release.
    pub version: String,
    /// `None` when the ICE probe is off.
    pub ice: Option<IceDescription>,
    /// Where plain STUN Binding is answered.
    pub stun: Vec<SocketAddr>,
    /// Where STAMP is answered.
    pub stamp: Vec<SocketAddr>,
    /// What answers 204: an URL, or a path from this document's origin.
    pub http: String,
    /// Base addresses of other PoPs.
    pub pops: Vec<String>,
}

/// What a connectivity check needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceDescription {
    /// Of every check's USERNAME, the first part.
    pub ufrag: String,
    /// Key of its integrity.
    pub pwd: String,
    /// Where to send it.
    pub candidates: Vec<Candidate>,
}

/// A media address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// IPv4 or IPv6.
    pub address: IpAddr,
    /// UDP.
    pub port: u16,
}
