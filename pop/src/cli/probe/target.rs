//! What the user names: a host and a port, or a PoP's URL whose `pop.json` says the rest.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::web::{self, Url};
use super::{Failure, Method};
use crate::probe::{Description, IceDescription};

/// One place to measure.
#[derive(Debug)]
pub(super) struct Target {
    /// As the user wrote it.
    pub(super) text: String,
    /// What the PoP calls itself, where it was asked.
    pub(super) name: Option<String>,
    pub(super) method: Method,
    pub(super) place: Place,
    /// Other PoPs that its document names.
    pub(super) pops: Vec<String>,
}

#[derive(Debug)]
pub(super) enum Place {
    Udp(UdpPlace),
    Web(Url),
}

/// Where datagrams go, and for ICE under which name.
#[derive(Debug)]
pub(super) struct UdpPlace {
    pub(super) address: SocketAddr,
    pub(super) ice: Option<IceDescription>,
}

impl Target {
    /// Resolves `text`; asks the PoP where that is needed. Without a method, a URL is measured by ICE and a host by STUN.
    pub(super) async fn find(text: &str, method: Option<Method>, timeout: Duration) -> Result<Target, Failure> {
        let url = Url::parse(text);
        let method = method.unwrap_or(if url.is_some() { Method::Ice } else { Method::Stun });
        let place = |place, description: Description| Target {
            text: text.to_owned(),
            name: Some(description.name.chars().filter(|c| !c.is_control()).take(63).collect()).filter(|name: &String| !name.is_empty()),
            method,
            place,
            pops: description.pops,
        };
        let Some(url) = url else {
            let port = match method {
                Method::Stun => 3_478,
                Method::Stamp => 862,
                Method::Http | Method::Ice => {
                    let sentence = format!("{text}: --{} needs the PoP's URL, such as http://127.0.0.1:7880", method.name());
                    return Err(Failure::Usage(sentence));
                }
            };
            let address = resolve(text, port).await?;
            return Ok(place(Place::Udp(UdpPlace { address, ice: None }), Description::default()));
        };
        if method == Method::Http && url.path != "/" {
            return Ok(place(Place::Web(url), Description::default()));
        }
        let (description, peer) = describe(&url, timeout).await?;
        let lacks = || Failure::Other(format!("{text} answers no {} probes: its pop.json names no place", method.name()));
        let reflector = |places: &[SocketAddr]| nearest(places, peer).map(|address| UdpPlace { address, ice: None }).ok_or_else(lacks);
        let found = match method {
            Method::Stun => Place::Udp(reflector(&description.stun)?),
            Method::Stamp => Place::Udp(reflector(&description.stamp)?),
            Method::Http => Place::Web(url.join(&description.http).ok_or_else(lacks)?),
            Method::Ice => {
                let ice = description.ice.clone().filter(is_usable).ok_or_else(lacks)?;
                let places: Vec<_> = ice.candidates.iter().map(|it| SocketAddr::new(it.address, it.port)).collect();
                Place::Udp(UdpPlace { address: nearest(&places, peer).ok_or_else(lacks)?, ice: Some(ice) })
            }
        };
        Ok(place(found, description))
    }

    /// What lines call it.
    pub(super) fn label(&self) -> String {
        match &self.name {
            Some(name) => format!("{name} ({})", self.address()),
            None => self.address(),
        }
    }

    /// Where it is.
    pub(super) fn address(&self) -> String {
        match &self.place {
            Place::Udp(place) => place.address.to_string(),
            Place::Web(url) => url.to_string(),
        }
    }
}

/// Of several places, the one that this host surely reaches: where HTTP was answered, else one of the same family.
fn nearest(places: &[SocketAddr], peer: IpAddr) -> Option<SocketAddr> {
    let same = places.iter().find(|place| place.ip() == peer);
    same.or_else(|| places.iter().find(|place| place.is_ipv4() == peer.is_ipv4())).or(places.first()).copied()
}

/// The bounds of RFC 8839 section 5.4: what goes into a check must fit one.
fn is_usable(ice: &IceDescription) -> bool {
    let text =
        |text: &str, min: usize| (min..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
    text(&ice.ufrag, 4) && text(&ice.pwd, 22) && !ice.candidates.is_empty()
}

async fn describe(url: &Url, timeout: Duration) -> Result<(Description, IpAddr), Failure> {
    let place = url.join("/.well-known/pop.json").expect("a path joins every URL");
    let asked = tokio::time::timeout(timeout.max(Duration::from_secs(5)), web::get(&place)).await;
    let failed = |why: &dyn std::fmt::Display| Failure::Other(format!("{place} cannot be read: {why}"));
    let (body, peer) = asked.map_err(|_| failed(&"it does not answer"))?.map_err(|error| failed(&error))?;
    let description = serde_json::from_slice(&body).map_err(|_| failed(&"it is no pop.json"))?;
    Ok((description, peer))
}

/// `host`, `host:port`, `address` or `[address]:port`.
async fn resolve(text: &str, default_port: u16) -> Result<SocketAddr, Failure> {
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, default_port));
    }
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => {
            (host, port.parse().map_err(|_| Failure::Usage(format!("{text}: {port} is no port; write HOST, HOST:PORT or a URL")))?)
        }
        None => (text, default_port),
    };
    let unknown = |why: &dyn std::fmt::Display| Failure::Usage(format!("{text}: {host} cannot be resolved: {why}"));
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(|error| unknown(&error))?;
    found.next().ok_or_else(|| unknown(&"it has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Candidate;

    #[tokio::test]
    async fn a_host_is_an_address_with_the_methods_port_unless_it_has_one() {
        for (text, port, address) in [
            ("192.0.2.1", 3_478, "192.0.2.1:3478"),
            ("192.0.2.1:9", 3_478, "192.0.2.1:9"),
            ("2001:db8::1", 862, "[2001:db8::1]:862"),
            ("[2001:db8::1]", 862, "[2001:db8::1]:862"),
            ("[2001:db8::1]:9", 862, "[2001:db8::1]:9"),
        ] {
            assert_eq!(resolve(text, port).await, Ok(address.parse().expect("an address")), "{text}");
        }
        assert!(matches!(resolve("host:x", 1).await, Err(Failure::Usage(sentence)) if sentence.contains("x is no port")));
        let asked = Target::find("192.0.2.1", Some(Method::Ice), Duration::ZERO).await;
        assert!(matches!(asked, Err(Failure::Usage(sentence)) if sentence.contains("--ice needs the PoP's URL")));
    }

    #[test]
    fn the_place_is_one_that_this_host_reaches() {
        let places = ["192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.2:1"].map(|text| text.parse().expect("an address"));
        let nearest = |peer: &str| nearest(&places, peer.parse().expect("an address")).map(|place| place.to_string());
        assert_eq!(nearest("192.0.2.2").as_deref(), Some("192.0.2.2:1"));
        assert_eq!(nearest("198.51.100.1").as_deref(), Some("192.0.2.1:1"));
        assert_eq!(nearest("2001:db8::9").as_deref(), Some("[2001:db8::1]:1"));
    }

    #[test]
    fn credentials_that_fit_no_check_are_not_used() {
        let candidates = vec![Candidate { address: [192, 0, 2, 1].into(), port: 1 }];
        let ice = |ufrag: &str, pwd: &str| IceDescription { ufrag: ufrag.into(), pwd: pwd.into(), candidates: candidates.clone() };
        let pwd = "p".repeat(22);
        assert!(is_usable(&ice("abcd", &pwd)));
        for bad in [ice("abc", &pwd), ice("a:cd", &pwd), ice("abcd", "short"), ice(&"a".repeat(257), &pwd), ice("ab\ncd", &pwd)] {
            assert!(!is_usable(&bad), "{bad:?}");
        }
        assert!(!is_usable(&IceDescription { candidates: Vec::new(), ..ice("abcd", &pwd) }));
    }
}
