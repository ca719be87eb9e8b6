//! `[probe]`: who may measure the way to this node, and how often.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Unexpected, Visitor};

use super::value::{self, AUTO};
use super::{MediaConfig, PublicUrl};

/// PoPs that a node tells clients about.
const POPS_MAX: usize = 64;

/// `[probe]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeConfig {
    /// Where plain STUN Binding is answered.
    pub stun: ReflectorPlace,
    /// Where STAMP and TWAMP-Light are answered.
    pub stamp: ReflectorPlace,
    /// Whether the media ports answer checks for the public probe ufrag.
    pub ice: bool,
    /// Whether `/probe` and `/.well-known/pop.json` are served.
    pub http: bool,
    /// Probes answered per second and source prefix (/24, /48), by each reflector and worker.
    #[serde(deserialize_with = "value::bounded::<_, _, 1, 1_000_000>")]
    pub prefix_requests_per_second: u32,
    /// Probes answered per second altogether, by each reflector and worker.
    #[serde(deserialize_with = "value::bounded::<_, _, 1, 10_000_000>")]
    pub requests_per_second: u32,
    /// Other PoPs that the page and the command measure, too.
    #[serde(deserialize_with = "pops")]
    pub pops: Vec<PublicUrl>,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            stun: ReflectorPlace::Auto,
            stamp: ReflectorPlace::Auto,
            ice: true,
            http: true,
            prefix_requests_per_second: 100,
            requests_per_second: 5_000,
            pops: Vec::new(),
        }
    }
}

/// `probe.stun`, `probe.stamp`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReflectorPlace {
    /// The standard port of every media address, where it can be had; else a warning and no reflector.
    #[default]
    Auto,
    /// The standard port of every media address, or no start.
    On,
    /// None.
    Off,
    /// This port of every media address; 0 takes any free one.
    Port(u16),
    /// There.
    Address(SocketAddr),
}

impl ReflectorPlace {
    /// What to bind; `port` is the standard's.
    pub fn addresses(self, media: &MediaConfig, port: u16) -> Vec<SocketAddr> {
        let on = |port: u16| media.addresses.iter().map(|ip: &IpAddr| SocketAddr::new(*ip, port)).collect();
        match self {
            ReflectorPlace::Auto | ReflectorPlace::On => on(port),
            ReflectorPlace::Off => Vec::new(),
            ReflectorPlace::Port(port) => on(port),
            ReflectorPlace::Address(address) => vec![address],
        }
    }
}

impl<'de> Deserialize<'de> for ReflectorPlace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PlaceVisitor;
        impl Visitor<'_> for PlaceVisitor {
            type Value = ReflectorPlace;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", true, false, a port, or an address and a port such as \"192.0.2.1:3478\"")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<ReflectorPlace, E> {
                Ok(if on { ReflectorPlace::On } else { ReflectorPlace::Off })
            }
            fn visit_i64<E: de::Error>(self, port: i64) -> Result<ReflectorPlace, E> {
                u16::try_from(port).map(ReflectorPlace::Port).map_err(|_| E::invalid_value(Unexpected::Signed(port), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ReflectorPlace, E> {
                if text == AUTO {
                    return Ok(ReflectorPlace::Auto);
                }
                text.parse().map(ReflectorPlace::Address).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(PlaceVisitor)
    }
}

fn pops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PublicUrl>, D::Error> {
    struct PopsVisitor;
    impl<'de> Visitor<'de> for PopsVisitor {
        type Value = Vec<PublicUrl>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {POPS_MAX} URLs such as \"https://fra.pop.example\"")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<PublicUrl>, A::Error> {
            let mut pops = Vec::new();
            while let Some(url) = seq.next_element()? {
                if pops.len() == POPS_MAX {
                    return Err(de::Error::invalid_value(Unexpected::Other("more"), &self));
                }
                pops.push(url);
            }
            Ok(pops)
        }
    }
    deserializer.deserialize_seq(PopsVisitor)
}
