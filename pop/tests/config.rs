//! The config file: what is taken, what is refused, and what the refusal says.

use std::path::Path;
use std::time::Duration;

use pop::config::{Backend, Config, Cores, DtlsRole, LogFormat, LogLevel};

const DOCUMENTED: &str = include_str!("../../config/pop.toml");

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("pop.toml")).map_err(|error| error.to_string())
}

fn refusal(text: &str) -> String {
    parse(text).err().unwrap_or_else(|| panic!("accepted:\n{text}"))
}

#[test]
fn the_documented_file_is_the_default() {
    assert_eq!(parse(DOCUMENTED), Ok(Config::default()));
}

#[test]
fn the_example_is_a_node_of_three() {
    let config = parse(include_str!("../../config/examples/three-nodes.toml")).expect("it is taken as it stands");
    assert_eq!((config.node.pop.as_str(), config.bus.connect.len()), ("fra", 2));
    assert!(config.mesh.listen.is_some() && config.mesh.files().is_some());
}

/// The reader itself lists its keys when it meets one that it does not know.
#[test]
fn every_key_is_documented() {
    for section in ["node", "http", "admin", "media", "probe", "bus", "mesh", "session", "dataplane", "auth", "log"] {
        let message = refusal(&format!("[{section}]\nnot_a_key = 1\n"));
        let known = message.split_once("known here: ").unwrap_or_else(|| panic!("no list in {message:?}")).1;
        for key in known.split([',', ' ']).map(|key| key.trim_matches('`')).filter(|key| !key.is_empty() && *key != "or") {
            let written = ["", "#"].iter().any(|mark| DOCUMENTED.lines().any(|line| line.starts_with(&format!("{mark}{key} = "))));
            assert!(written || DOCUMENTED.contains(&format!("[{section}.{key}]")), "config/pop.toml lacks {section}.{key}");
        }
    }
}

/// The routes have no default: a comment shows one with every key.
#[test]
fn every_key_of_a_route_is_documented_in_a_comment_that_parses() {
    let shown: String = DOCUMENTED.lines().filter_map(|line| line.strip_prefix("#   ")).map(|line| format!("{line}\n")).collect();
    let known = refusal("[[rtp.route]]\nnot_a_key = 1\n");
    let known: Vec<_> = known.split_once("known here: ").expect("a list").1.split([',', ' ']).map(|key| key.trim_matches('`')).collect();
    let keys: toml::Table = shown.parse().expect("it is TOML");
    for key in known.iter().filter(|key| !key.is_empty() && **key != "or") {
        assert!(keys.contains_key(*key), "config/pop.toml does not show rtp.route.{key}");
    }
    // Keys that exclude each other are in it, so it is no route as a whole.
    let without = |left_out: &[&str]| {
        let lines = shown.lines().filter(|line| !left_out.iter().any(|key| line.starts_with(&format!("{key} = "))));
        parse(&format!("[[rtp.route]]\n{}", lines.collect::<Vec<_>>().join("\n")))
    };
    let route = without(&["from", "clock_rate", "key", "to", "to_suite", "to_key", "ssrc"]).expect("a route in").rtp.route.remove(0);
    assert_eq!((route.name.as_deref(), route.peer_timeout, route.port), (Some("camera"), Duration::from_secs(30), 0));
    assert!(refusal(&format!("[[rtp.route]]\n{shown}")).contains("base64"), "BASE64 is no key");
}

#[test]
fn the_keys_without_a_default_work_when_their_line_is_uncommented() {
    for key in ["#public_url = ", "#keys_file = ", "#name = "] {
        assert!(DOCUMENTED.contains(key), "{key}");
        let config = parse(&DOCUMENTED.replace(key, &key[1..])).expect("an uncommented line is valid");
        assert_ne!(config, Config::default());
    }
}

#[test]
fn every_value_reaches_its_place() {
    let config = parse(
        r#"
        node = { name = "fra1-2", region = "Frankfurt am Main", state_dir = "/var/lib/other" }
        probe = { stun = 3_479, stamp = "192.0.2.1:863", ice = false, http = false, prefix_requests_per_second = 9,
            requests_per_second = 10, pops = ["https://sin.pop.example"] }
        bus = { listen = ["127.0.0.1:7447"] }
        http = { listen = "[::1]:81", vip = ["192.0.2.80", "2001:db8::80"], public_url = "https://pop.example/", tls_cert = "c.pem", tls_key = "k.pem", connections_per_address_max = 3, requests_per_address_per_s_max = 4, ice_servers = [{ url = "stun:stun.example:3478" }] }
        admin = { listen = "127.0.0.1:1", socket = "/run/pop/other.sock" }
        auth.keys.one = "0123456789abcdef0123456789abcdef"
        log = { format = "json", level = "trace" }
        [media]
        addresses = ["192.0.2.1", "2001:db8::1"]
        advertise = ["198.51.100.1", "2001:db8::2"]
        port = 443
        dtls_role = "active"
        consent_timeout = "30s"
        [dataplane]
        cores = "1-3,5"
        backend = "io_uring"
        transports_max = 7
        tracks_max = 8
        subscriptions_max = 9
        packet_pool = 2048
        recv_buffers = 16
        trains = 4
        gro = false
        busy_poll_us = 50
        "#,
    )
    .expect("every value is in its bounds");
    assert_eq!(config.node.state_dir.as_deref(), Some(Path::new("/var/lib/other")));
    assert_eq!((config.node.shown_name().as_str(), config.node.region.as_str()), ("fra1-2", "Frankfurt am Main"));
    let probe = &config.probe;
    let texts = |places: Vec<std::net::SocketAddr>| places.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(probe.stun.addresses(&config.media, 1)), ["192.0.2.1:3479", "[2001:db8::1]:3479"]);
    assert_eq!(texts(probe.stamp.addresses(&config.media, 1)), ["192.0.2.1:863"]);
    assert_eq!((probe.ice, probe.http, probe.prefix_requests_per_second, probe.requests_per_second), (false, false, 9, 10));
    assert_eq!(probe.pops[0].as_str(), "https://sin.pop.example");
    assert_eq!(config.http.public_url.as_ref().map(|url| url.as_str()), Some("https://pop.example"));
    assert_eq!((config.http.tls_cert.as_deref(), config.http.tls_key.as_deref()), (Some(Path::new("c.pem")), Some(Path::new("k.pem"))));
    assert_eq!((config.http.connections_per_address_max, config.http.requests_per_address_per_s_max), (3, 4));
    assert_eq!(config.http.vip, ["192.0.2.80".parse::<std::net::IpAddr>().unwrap(), "2001:db8::80".parse().unwrap()]);
    assert_eq!(config.http.ice_servers[0].url, "stun:stun.example:3478");
    assert_eq!(config.admin.socket_path(), Path::new("/run/pop/other.sock"));
    assert_eq!(config.media.advertised(1), "2001:db8::2".parse().ok());
    assert_eq!((config.media.port, config.media.dtls_role), (443, DtlsRole::Active));
    assert_eq!(config.media.consent_timeout, Duration::from_secs(30));
    assert_eq!((config.dataplane.cores, config.dataplane.backend), (Cores::List(vec![1, 2, 3, 5]), Backend::IoUring));
    assert_eq!((config.dataplane.transports_max, config.dataplane.tracks_max, config.dataplane.packet_pool), (7, 8, 2_048));
    assert_eq!(config.dataplane.subscriptions_max, 9);
    assert_eq!((config.dataplane.recv_buffers, config.dataplane.trains, config.dataplane.gro), (16, 4, false));
    assert_eq!(config.dataplane.busy_poll_us, 50);
    assert_eq!((config.log.format, config.log.level), (LogFormat::Json, LogLevel::Trace));
    assert_eq!(config.auth.keys["one"].expose().len(), 32);
}

/// (text, line:column, what the sentence must contain)
const REFUSED: &[(&str, &str, &str)] = &[
    ("[[rtp.route]]\ndirection = \"in\"\ncodec = \"VP8\"\nroom = \"r\"\n", "1:7", "each [[rtp.route]] needs a name"),
    (
        "[[rtp.route]]\nname = \"a\"\ndirection = \"out\"\ncodec = \"VP8\"\nroom = \"r\"\n",
        "1:7",
        "RTP route \"a\": a route out needs a peer",
    ),
    // Behind a NAT what goes to its outer address comes back.
    (
        "[media]\naddresses = [\"10.0.0.1\"]\nadvertise = [\"198.51.100.7\"]\n\
         [[rtp.route]]\nname = \"a\"\ndirection = \"in\"\ncodec = \"VP8\"\nroom = \"r\"\nport = 5004\n\
         [[rtp.route]]\nname = \"b\"\ndirection = \"out\"\ncodec = \"VP8\"\nroom = \"r\"\npeer = \"198.51.100.7:5004\"\n",
        "4:7",
        "RTP route \"b\": peer 198.51.100.7:5004 is the RTP route \"a\" of this node",
    ),
    ("[[rtp.route]]\ncodec = \"MPEG\"\n", "2:9", "opus, VP8, VP9, H264, H265, AV1 or any"),
    ("[[rtp.route]]\nport = 70000\n", "2:8", ""),
    ("[nod]\n", "1:2", "there is no key `nod` here; known here: `node`, `http`"),
    ("\n[http]\n  lisen = \"x\"\n", "3:3", "there is no key `lisen` here; known here: `listen`, `vip`, `public_url`"),
    ("[http]\nlisten = 7880\n", "2:10", "listen must be an address and a port"),
    ("[http]\nlisten = \"localhost:1\"\n", "2:10", "not string \"localhost:1\""),
    ("[http]\npublic_url = \"pop.example\"\n", "2:14", "public_url must be a URL such as"),
    ("[http]\npublic_url = \"https://pop.example/media\"\n", "2:14", "with nothing after host and port"),
    ("[http]\ntls_cert = \"c.pem\"\n", "2:1", "http.tls_cert needs http.tls_key beside it"),
    ("[http]\ntls_key = \"k.pem\"\n", "2:1", "http.tls_key needs http.tls_cert beside it"),
    ("[http]\nice_servers = [{ url = \"http://x\" }]\n", "2:24", "ice_servers must be a STUN or TURN URL"),
    ("[http]\nice_servers = [{ url = \"stun:x>\\r\\n\" }]\n", "2:24", "ice_servers must be a STUN or TURN URL"),
    ("[http]\nice_servers = [{ url = \"turn:x\" }]\n", "2:15", "turn:x needs username and credential"),
    (
        "[http]\nice_servers = [{ url = \"turn:x\", username = \"u\", credential = \"\" }]\n",
        "2:63",
        "username and credential must be 1 to 256",
    ),
    ("[http]\nconnections_per_address_max = 0\n", "2:31", "connections_per_address_max must be a whole number from 1 to 4096"),
    ("[http]\nvip = [\"192.0.2.80/24\"]\n", "2:8", "vip must be one IP address"),
    ("[http]\nvip = [\"0.0.0.0\"]\n", "2:8", "no wildcard"),
    ("[http]\nvip = [\"ff02::1\"]\n", "2:8", "no multicast"),
    ("[http]\nvip = [\"127.0.0.1\"]\n", "2:7", "127.0.0.1 is no address that clients could reach at one node after the other"),
    ("[http]\nvip = [\"fe80::1\"]\n", "2:7", "fe80::1 is no address that clients could reach"),
    ("[http]\nvip = [\"192.0.2.80\", \"192.0.2.80\"]\n", "2:7", "not 192.0.2.80 twice"),
    ("[http]\nvip = [\"192.0.2.80\"]\n", "2:1", "http.vip needs [bus]"),
    (
        "[http]\nlisten = \"127.0.0.1:0\"\nvip = [\"192.0.2.80\"]\n[bus]\nlisten = [\"127.0.0.1:7447\"]\n",
        "2:1",
        "http.vip needs a port in http.listen",
    ),
    ("[node]\nname = \"\"\n", "2:8", "name must be \"auto\" or 1 to 63"),
    ("[node]\nstate_dir = \"state\"\n", "2:13", "state_dir must be \"auto\" or the path of a folder that starts with /"),
    ("[admin]\nsocket = \"\"\n", "2:10", "socket must be \"auto\" or a path"),
    ("[media]\naddresses = [\"127.0.0.1\", \"0.0.0.0\"]\n", "2:27", "no wildcard"),
    ("[media]\naddresses = [\"::\"]\n", "2:14", "no wildcard"),
    ("[media]\naddresses = [\"127.0.0.1\", \"127.0.0.1\"]\n", "2:13", "not 127.0.0.1 twice"),
    ("[media]\naddresses = []\n", "2:1", "media.addresses needs at least one address"),
    ("[media]\nadvertise = [\"192.0.2.1\"]\n", "2:1", "media.advertise has 1 addresses and media.addresses 2"),
    ("[media]\nport = 65536\n", "2:8", "port must be a whole number from 0 to 65535, not integer `65536`"),
    ("[media]\nport = -1\n", "2:8", "port must be a whole number"),
    ("[media]\nport = \"1\"\n", "2:8", "port must be a whole number from 0 to 65535, not string"),
    ("media = { addresses = [], port = 1 }\n", "1:11", "media.addresses needs at least one address"),
    ("node.name = \"a\"\nmedia.addresses = []\n", "2:7", "media.addresses needs at least one address"),
    ("[media]\nport = 65535\n[dataplane]\ncores = \"0,1\"\n", "2:1", "set it to 65534 or less"),
    ("[media]\nconsent_timeout = 15\n", "2:19", "consent_timeout must be a duration from \"2s\" to \"120s\""),
    ("[media]\nconsent_timeout = \"1s\"\n", "2:19", "consent_timeout must be a duration"),
    ("[media]\nconsent_timeout = \"121s\"\n", "2:19", "consent_timeout must be a duration"),
    ("[media]\ndtls_role = \"server\"\n", "2:13", "dtls_role must be one of `auto`, `passive`, `active`, not `server`"),
    ("[node]\nregion = \"a\\nb\"\n", "2:10", "region must be at most 63 characters"),
    ("[probe]\nstun = 65536\n", "2:8", "stun must be \"auto\", true, false, a port, or an address"),
    ("[probe]\nstun = \"on\"\n", "2:8", "not string \"on\""),
    ("[probe]\nstamp = \"192.0.2.1\"\n", "2:9", "stamp must be"),
    ("[probe]\nrequests_per_second = 0\n", "2:23", "requests_per_second must be a whole number from 1 to 10000000"),
    ("[probe]\nprefix_requests_per_second = 1000001\n", "2:30", "prefix_requests_per_second must be"),
    ("[probe]\npops = [\"pop.example\"]\n", "2:9", "a URL such as"),
    ("[dataplane]\ncores = \"3-1\"\n", "2:9", "cores must be \"auto\" or 1 to 256 core numbers"),
    ("[dataplane]\nbackend = \"epoll\"\n", "2:11", "backend must be one of `auto`, `io_uring`, `mmsg`, not `epoll`"),
    ("[dataplane]\ntransports_max = 0\n", "2:18", "transports_max must be a whole number from 1 to 65535"),
    ("[dataplane]\ntransports_max = 65536\n", "2:18", "transports_max must be"),
    ("[dataplane]\ntracks_max = 0\n", "2:14", "tracks_max must be a whole number from 1 to 65535"),
    ("[dataplane]\nsubscriptions_max = 0\n", "2:21", "subscriptions_max must be a whole number from 1 to 1000000"),
    ("[dataplane]\nsubscriptions_max = 1000001\n", "2:21", "subscriptions_max must be"),
    ("[dataplane]\npacket_pool = 1023\n", "2:15", "packet_pool must be a whole number from 1024 to 4194304"),
    ("[dataplane]\npacket_pool = 4194305\n", "2:15", "packet_pool must be"),
    ("[dataplane]\nbusy_poll_us = 10001\n", "2:16", "busy_poll_us must be a whole number from 0 to 10000"),
    ("[dataplane]\nrecv_buffers = 100\n", "2:16", "recv_buffers must be a power of two from 16 to 4096"),
    ("[dataplane]\nrecv_buffers = 8192\n", "2:16", "recv_buffers must be"),
    ("[dataplane]\ntrains = 3\n", "2:10", "trains must be a whole number from 4 to 4096"),
    ("[dataplane]\ntrains = 4097\n", "2:10", "trains must be"),
    ("[dataplane]\ngro = 1\n", "2:7", "gro must be a boolean"),
    ("[auth.keys]\nshort = \"0123456789abcdef0123456789abcde\"\n", "2:9", "not one of 31 bytes"),
    ("[auth]\nkeys_file = \"k\"\nkeys.a = \"0123456789abcdef0123456789abcdef\"\n", "2:1", "keep one of them"),
    ("[log]\nlevel = \"loud\"\n", "2:9", "level must be one of `error`, `warn`"),
    ("[log]\nformat = true\n", "2:10", "format must be a string"),
    ("[log]\nlevel = \"info\"\nlevel = \"info\"\n", "3:1", "duplicate key"),
    ("[log\n", "1:5", "unclosed table"),
];

#[test]
fn a_refusal_says_where_and_what_to_write() {
    for (text, place, sentence) in REFUSED {
        let message = refusal(text);
        assert!(message.starts_with(&format!("pop.toml:{place}: ")), "{message}\nshould be at {place} in\n{text}");
        assert!(message.contains(sentence), "{message}\nshould say {sentence:?}");
        assert!(!message.contains('\n'), "more than one line: {message:?}");
    }
}

#[test]
fn a_refused_secret_is_not_shown() {
    let message = refusal("[auth.keys]\na = \"hunter2\"\n");
    assert!(!message.contains("hunter2"), "{message}");
}

/// Each bound's two ends are inside.
#[test]
fn a_bound_itself_is_taken() {
    for line in [
        "media.port = 0",
        "media.port = 65535",
        "media.consent_timeout = \"2s\"",
        "media.consent_timeout = \"2m\"",
        "dataplane.transports_max = 1",
        "dataplane.transports_max = 65535",
        "dataplane.tracks_max = 1",
        "dataplane.tracks_max = 65535",
        "dataplane.subscriptions_max = 1",
        "dataplane.subscriptions_max = 1000000",
        "dataplane.packet_pool = 1024",
        "dataplane.packet_pool = 4194304",
        "dataplane.recv_buffers = 16",
        "dataplane.recv_buffers = 4096",
        "dataplane.trains = 4",
        "dataplane.trains = 4096",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
    }
}

#[test]
fn a_missing_file_is_a_sentence() {
    let error = Config::load(Path::new("no/such/pop.toml")).expect_err("there is no such file");
    assert_eq!(error.to_string(), "no/such/pop.toml: there is no such file: check the path");
}

/// SplitMix64: enough for mutations, and the seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

#[test]
fn mutated_text_is_taken_or_refused_with_a_place_and_never_panics() {
    const SEED: u64 = 0x706f_705f_0002;
    println!("seed {SEED:#x}");
    let mut random = Random(SEED);
    // Comments are left out: a mutation there tests nothing.
    let lines: Vec<&str> = DOCUMENTED.lines().filter(|line| !line.starts_with("# ") && !line.is_empty()).collect();
    let (mut taken, mut refused_by_value) = (0, 0);
    let rounds = 20_000;
    for _ in 0..rounds {
        let mut text: Vec<char> = lines.join("\n").chars().collect();
        for _ in 0..=random.below(3) {
            let at = random.below(text.len());
            match random.below(4) {
                0 => text[at] = char::from_u32(random.below(0x250) as u32).unwrap_or('\u{fffd}'),
                1 => drop(text.remove(at)),
                2 => text.insert(at, ['0', '9', '"', '-', ',', '[', ']', '=', '.', '\n', 'ü', '\0'][random.below(12)]),
                _ => text.swap(at, (at + 1) % lines.len()),
            }
        }
        let text: String = text.into_iter().collect();
        match Config::parse(&text, Path::new("mutated")) {
            Ok(_) => taken += 1,
            Err(error) => {
                let (line, column) = error.place().expect("a fault in the text has a place");
                assert!(line >= 1 && column >= 1 && line <= text.lines().count() + 1, "{error}\n{text}");
                refused_by_value += usize::from(error.to_string().contains("must be") || error.to_string().contains("there is no key"));
            }
        }
    }
    println!("{taken} taken, {refused_by_value} refused by a typed value or an unknown key, of {rounds}");
    assert!(taken + refused_by_value > rounds * 3 / 10, "too few mutations pass the syntax: {taken} + {refused_by_value} of {rounds}");
}
