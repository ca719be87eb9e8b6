//! The one TOML file: every key checked, defaulted and typed. `config/pop.toml` documents each key.

mod error;
mod mesh;
mod probe;
mod rtp;
mod value;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pop_proto::loudest::LOUDEST_MAX;
use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub use mesh::{BusConfig, MeshConfig, PEERS_MAX};
pub use probe::{ProbeConfig, ReflectorPlace};
pub use rtp::{Direction, ROUTES_MAX, RouteCodec, RouteConfig, RouteRtcp, RtpConfig, SdesKey, Suite};
pub use value::{Cores, IceServer, PublicUrl, Secret, parse_duration};
pub(crate) use value::{KEY_TEXT_LEN_MAX, keys as keys_of_table};

/// Packet workers that one node may have: the bound of every per-worker table and of the media port range.
pub const WORKERS_MAX: usize = 256;

/// Addresses that media may be bound to: each is two sockets' worth of work per worker turn.
pub const MEDIA_ADDRESSES_MAX: usize = 8;

/// Everything that an operator can set. The default is a complete node on loopback.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this node is.
    pub node: NodeConfig,
    /// The public HTTP listener.
    pub http: HttpConfig,
    /// The operator's listener and unix socket.
    pub admin: AdminConfig,
    /// Where media arrives.
    pub media: MediaConfig,
    /// Latency probes of strangers.
    pub probe: ProbeConfig,
    /// RTP without WebRTC.
    pub rtp: RtpConfig,
    /// State that the nodes of one PoP share.
    pub bus: BusConfig,
    /// Secured links to other nodes.
    pub mesh: MeshConfig,
    /// Rooms.
    pub session: SessionConfig,
    /// The demo page.
    pub demo: DemoConfig,
    /// Workers and their memory.
    pub dataplane: DataplaneConfig,
    /// Who may sign tokens.
    pub auth: AuthConfig,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// `[demo]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DemoConfig {
    /// Whoever is in a call may end the process that carries it: for a lab.
    pub crash: bool,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name in logs, metrics and the API; `auto` is the host's name.
    #[serde(deserialize_with = "value::node_name")]
    pub name: String,
    /// Where the node keeps what it must know after a crash; `None` (`auto` in the file) is systemd's StateDirectory, or
    /// `/var/lib/pop` for root, or nowhere.
    #[serde(deserialize_with = "value::folder_or_auto")]
    pub state_dir: Option<PathBuf>,
    /// The PoP that it is a node of: its name in the mesh, and in certificates.
    #[serde(deserialize_with = "value::pop_name")]
    pub pop: String,
    /// Where it stands, as clients are told; empty: not told.
    #[serde(deserialize_with = "value::region")]
    pub region: String,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port of WHIP, WHEP and the demo; port 0 takes any free one.
    #[serde(deserialize_with = "value::socket_address")]
    pub listen: SocketAddr,
    /// Addresses of the PoP, of which each is at one of its nodes at a time; the port is that of `listen`.
    #[serde(deserialize_with = "value::service_addresses")]
    pub vip: Vec<IpAddr>,
    /// How clients reach the listener, when a proxy or a name stands in front; `None` is the scheme and the bound address.
    pub public_url: Option<PublicUrl>,
    /// Certificate chain, PEM, the node's own first; with [`HttpConfig::tls_key`] the listener speaks TLS alone.
    pub tls_cert: Option<PathBuf>,
    /// The chain's private key, PEM.
    pub tls_key: Option<PathBuf>,
    /// STUN and TURN servers that clients are told of.
    #[serde(deserialize_with = "value::ice_servers")]
    pub ice_servers: Vec<IceServer>,
    /// Open connections of one client address (of one /64 of IPv6); loopback has no bound.
    #[serde(deserialize_with = "value::bounded::<_, _, 1, 4_096>")]
    pub connections_per_address_max: usize,
    /// Requests per second of one client address, over some seconds; loopback has no bound.
    #[serde(deserialize_with = "value::bounded::<_, _, 1, 100_000>")]
    pub requests_per_address_per_s_max: u32,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port of health, metrics and the read-only API; port 0 takes any free one.
    #[serde(deserialize_with = "value::socket_address")]
    pub listen: SocketAddr,
    /// The command line's unix socket; `None` (`auto` in the file) is the first of [`socket_places`] that this user may have.
    #[serde(deserialize_with = "value::path_or_auto")]
    pub socket: Option<PathBuf>,
}

/// `[media]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MediaConfig {
    /// Addresses that every worker binds, 1 to [`MEDIA_ADDRESSES_MAX`], no wildcard: each becomes a candidate.
    #[serde(deserialize_with = "value::addresses")]
    pub addresses: Vec<IpAddr>,
    /// Worker `i` binds `port + i`; 0 takes any free port per worker.
    #[serde(deserialize_with = "value::bounded::<_, _, 0, 65_535>")]
    pub port: u16,
    /// Listen for ICE-TCP on the same ports, too (RFC 6544), for clients whose network passes no UDP.
    pub tcp: bool,
    /// What candidates say instead of `addresses`, in the same order; empty: the addresses themselves.
    #[serde(deserialize_with = "value::addresses")]
    pub advertise: Vec<IpAddr>,
    /// Which DTLS role the node takes when the client leaves it the choice.
    pub dtls_role: DtlsRole,
    /// A client that has sent neither a check nor an authentic packet for so long is gone (RFC 7675 uses 30 s).
    #[serde(deserialize_with = "value::duration::<_, 2_000, 120_000>")]
    pub consent_timeout: Duration,
}

/// `media.dtls_role`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtlsRole {
    /// Server when the offer allows it, so that the node chooses the SRTP profile; else client.
    #[default]
    Auto,
    /// Always server; an offer that insists on being server too is refused.
    Passive,
    /// Client when the offer allows it; else server.
    Active,
}

/// `[session]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionConfig {
    /// How long people of a node that gives no sign of life are kept in their rooms.
    #[serde(deserialize_with = "value::duration::<_, 500, 120_000>")]
    pub grace: Duration,
    /// Microphones of one session that cross a link to another node at once at most, the loudest; 0: all.
    #[serde(deserialize_with = "value::bounded::<_, _, 0, { LOUDEST_MAX as u64 }>")]
    pub loudest: u8,
    /// Cameras of one session that cross a link to another node at once at most, those of who spoke last; 0: all.
    #[serde(deserialize_with = "value::bounded::<_, _, 0, 255>")]
    pub last_n: u8,
}

/// `[dataplane]`: all sizes are per worker.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataplaneConfig {
    /// Cores that carry a packet worker each.
    #[serde(deserialize_with = "value::cores")]
    pub cores: Cores,
    /// How packets enter and leave the kernel.
    pub backend: Backend,
    /// Transports (clients) that one worker takes.
    #[serde(deserialize_with = "value::bounded::<_, _, 1, 65_535>")]
    pub transports_max: usize,
    /// Published tracks that one worker takes.
    #[serde(deserialize_with = "value::bounded::<_, _, 1, 65_535>")]
    pub tracks_max: usize,
    /// Subscriber media sections that one worker takes.
    #[serde(deserialize_with = "value::bounded::<_, _, 1, 1_000_000>")]
    pub subscriptions_max: usize,
    /// Packets that the histories of all tracks of one worker hold together.
    #[serde(deserialize_with = "value::bounded::<_, _, 1_024, 4_194_304>")]
    pub packet_pool: usize,
    /// Receive buffers of one worker: 64 KiB each with `gro`, else 2 KiB. A power of two: it is the size of a kernel ring.
    #[serde(deserialize_with = "value::power_of_two::<_, 16, 4_096>")]
    pub recv_buffers: usize,
    /// Send trains of one worker, 64 KiB each.
    #[serde(deserialize_with = "value::bounded::<_, _, 4, 4_096>")]
    pub trains: usize,
    /// Let the kernel join datagrams of one sender before they are read.
    pub gro: bool,
    /// Microseconds that a worker looks for packets before it sleeps; 0: it sleeps at once.
    #[serde(deserialize_with = "value::bounded::<_, _, 0, 10_000>")]
    pub busy_poll_us: u32,
}

/// `dataplane.backend`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// What `pop doctor --bench` measured to be faster on this kernel, else io_uring; recvmmsg and sendmmsg when it is refused.
    #[default]
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// recvmmsg and sendmmsg.
    Mmsg,
}

/// `[auth]`: without a key, one is drawn at start and lives in memory only.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// A TOML file of `name = "secret"` lines; a relative path starts at the config file's folder.
    #[serde(deserialize_with = "value::optional_path")]
    pub keys_file: Option<PathBuf>,
    /// The same lines inline; not together with `keys_file`.
    #[serde(deserialize_with = "value::keys")]
    pub keys: BTreeMap<String, Secret>,
}

/// `[log]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// For people or for machines.
    pub format: LogFormat,
    /// The least important line that is still written.
    pub level: LogLevel,
}

/// `log.format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// `log.level`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What ends or degrades the node.
    Error,
    /// What an operator should change.
    Warn,
    /// Start, stop, peers.
    #[default]
    Info,
    /// One line per request and transport.
    Debug,
    /// Everything.
    Trace,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { name: value::AUTO.to_owned(), pop: "pop".to_owned(), state_dir: None, region: String::new() }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7880)),
            vip: Vec::new(),
            public_url: None,
            tls_cert: None,
            tls_key: None,
            ice_servers: Vec::new(),
            connections_per_address_max: 256,
            requests_per_address_per_s_max: 200,
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)), socket: None }
    }
}

impl Default for MediaConfig {
    fn default() -> Self {
        Self {
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
            port: 10_000,
            advertise: Vec::new(),
            tcp: true,
            dtls_role: DtlsRole::Auto,
            consent_timeout: Duration::from_secs(15),
        }
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { grace: Duration::from_secs(5), loudest: 16, last_n: 0 }
    }
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            cores: Cores::Auto,
            backend: Backend::Auto,
            transports_max: 2_000,
            tracks_max: 1_000,
            subscriptions_max: 10_000,
            packet_pool: 65_536,
            recv_buffers: 256,
            trains: 64,
            gro: true,
            busy_poll_us: 0,
        }
    }
}

impl Config {
    /// Reads and checks `file`.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Ok(Self::read(file)?.0)
    }

    /// Reads and checks `file`, and gives its text too.
    pub fn read(file: &Path) -> Result<(Self, String), ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|e| ConfigError::unreadable(file, &e))?;
        let mut config = Self::parse(&text, file)?;
        if let Some(folder) = file.parent() {
            let (http, mesh) = (&mut config.http, &mut config.mesh);
            let identity = [&mut config.bus.ca, &mut mesh.ca, &mut mesh.cert, &mut mesh.key, &mut mesh.revoked];
            let paths = [&mut config.auth.keys_file, &mut http.tls_cert, &mut http.tls_key];
            for path in paths.into_iter().chain(identity).flatten() {
                *path = folder.join(&*path);
            }
        }
        Ok((config, text))
    }

    /// Checks `text`; `file` is only what errors call it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::from_toml(text, file, &e))?;
        config.check_together().map_err(|(key, message)| ConfigError::at_key(text, file, key, message))?;
        Ok(config)
    }

    /// What no key alone can tell. The error names the key to point at.
    fn check_together(&self) -> Result<(), (&'static str, String)> {
        let media = &self.media;
        if media.addresses.is_empty() {
            return Err(("media.addresses", "media.addresses needs at least one address to bind".to_owned()));
        }
        if !media.advertise.is_empty() && media.advertise.len() != media.addresses.len() {
            let (said, bound) = (media.advertise.len(), media.addresses.len());
            return Err((
                "media.advertise",
                format!("media.advertise has {said} addresses and media.addresses {bound}: give one for each, in the same order"),
            ));
        }
        if let Cores::List(cores) = &self.dataplane.cores
            && let Err(message) = media.check_ports(cores.len())
        {
            return Err(("media.port", message));
        }
        match (&self.http.tls_cert, &self.http.tls_key) {
            (Some(_), None) => return Err(("tls_cert", "http.tls_cert needs http.tls_key beside it: the chain's private key".to_owned())),
            (None, Some(_)) => return Err(("tls_key", "http.tls_key needs http.tls_cert beside it: the key's chain".to_owned())),
            _ => {}
        }
        mesh::check(&self.bus, &self.mesh)?;
        if !self.http.vip.is_empty() && !self.bus.is_on() {
            return Err(("http.vip", "http.vip needs [bus]: a node alone has nobody who could take the address over".to_owned()));
        }
        if !self.http.vip.is_empty() && self.http.listen.port() == 0 {
            return Err(("http.listen", "http.vip needs a port in http.listen, the same at all nodes of the PoP".to_owned()));
        }
        crate::rtp::check_file(self).map_err(|message| ("rtp.route", message))?;
        if self.auth.keys_file.is_some() && !self.auth.keys.is_empty() {
            return Err(("auth.keys_file", "auth.keys_file and [auth.keys] are both set: keep one of them".to_owned()));
        }
        Ok(())
    }
}

impl NodeConfig {
    /// The name to show: the host's own for `auto`, `pop` when the host has none.
    pub fn shown_name(&self) -> String {
        if self.name != value::AUTO {
            return self.name.clone();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        match host.trim() {
            "" | "(none)" => "pop".to_owned(),
            name => name.to_owned(),
        }
    }
}

impl MediaConfig {
    /// What candidates say for the `i`-th bound address.
    pub fn advertised(&self, i: usize) -> Option<IpAddr> {
        if self.advertise.is_empty() { self.addresses.get(i).copied() } else { self.advertise.get(i).copied() }
    }

    /// Whether `workers` ports from `port` on exist; the error says what to change.
    pub fn check_ports(&self, workers: usize) -> Result<(), String> {
        let last = usize::from(self.port) + workers.saturating_sub(1);
        if self.port != 0 && last > usize::from(u16::MAX) {
            let highest = usize::from(u16::MAX) + 1 - workers;
            return Err(format!("media.port {} leaves no room for {workers} workers below 65536: set it to {highest} or less", self.port));
        }
        Ok(())
    }
}

impl AdminConfig {
    /// The socket to make: the configured one, or the first of [`socket_places`] that this user may have.
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| {
            let places = socket_places();
            places.iter().find(|place| may_create(place)).unwrap_or(&places[places.len() - 1]).clone()
        })
    }
}

/// Where a node's unix socket may be when no config says so, best first: the system's place, the user's session, a folder
/// of this user among the temporary files.
pub fn socket_places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("/run/pop/pop.sock")];
    places.extend(std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(|dir| PathBuf::from(dir).join("pop.sock")));
    places.push(private_folder().join("pop.sock"));
    places
}

/// This user's folder among the temporary files. Anybody may have made it before: who uses it looks at its owner.
pub(crate) fn private_folder() -> PathBuf {
    std::env::temp_dir().join(format!("pop-{}", user_id()))
}

/// The effective user id of this process. The kernel owns `/proc/self` by it.
pub fn user_id() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map_or(u32::MAX, |proc| proc.uid())
}

/// Whether this user may make a socket at `place`: root always; others where the folder is their own, or, for the last
/// resort, does not exist yet.
fn may_create(place: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let user = user_id();
    let Some(folder) = place.parent() else { return false };
    user == 0 || std::fs::metadata(folder).is_ok_and(|folder| folder.is_dir() && folder.uid() == user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_listens_on_loopback_only_and_has_no_secret() {
        let config = Config::default();
        assert!(config.http.listen.ip().is_loopback() && config.admin.listen.ip().is_loopback());
        assert!(config.media.addresses.iter().all(IpAddr::is_loopback));
        assert!(config.auth.keys.is_empty() && config.auth.keys_file.is_none());
        assert_eq!(Config::parse("", Path::new("empty")).expect("an empty file is the default"), config);
    }

    #[test]
    fn candidates_say_the_advertised_address_of_the_same_place() {
        let mut media = MediaConfig::default();
        assert_eq!(media.advertised(1), Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        media.advertise = vec!["198.51.100.7".parse().expect("an address"), "2001:db8::7".parse().expect("an address")];
        assert_eq!(media.advertised(0), Some("198.51.100.7".parse().expect("an address")));
        assert_eq!(media.advertised(2), None);
    }

    #[test]
    fn the_last_worker_needs_a_port_too() {
        let media = MediaConfig { port: 65_534, ..MediaConfig::default() };
        assert_eq!(media.check_ports(2), Ok(()));
        assert!(media.check_ports(3).expect_err("65536 is no port").contains("set it to 65533 or less"));
    }
}
