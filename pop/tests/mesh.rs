//! Links between nodes over real sockets: who gets one, what both ends know then, and what ends it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::Request as HttpRequest;
use axum::routing::get;
use axum::{Extension, Router};
use pop::ca::{self, Request};
use pop::mesh::{
    Carried, CarryError, Elsewhere, Ended, GRANTS_MAX, Grants, LinkSecret, Listed, Mesh, MeshEvent, MeshFiles, MeshIdentity, MeshSettings,
    NodeName, Peer, Refusal,
};
use pop_relay::control::{self, CONTROL_LEN_MAX, Hello, Message, Want};
use pop_schemas::{Incarnation, NodeId, SessionId, TrackId};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// An operator's CA in a folder of its own.
struct Ca(PathBuf);

impl Ca {
    fn new(name: &str) -> Ca {
        let folder = std::env::temp_dir().join(format!("pop-mesh-{}-{name}", std::process::id()));
        ca::init(&folder, name, false).expect("a new folder");
        Ca(folder)
    }

    fn issue(&self, node: &str) -> MeshFiles {
        self.issue_for(name(node), Grants::none())
    }

    fn issue_for(&self, name: NodeName, api_keys: Grants) -> MeshFiles {
        let out = self.0.join(name.node());
        let request = Request { name, days: 1, addresses: Vec::new(), api_keys };
        let made = ca::issue(&self.0, &out, &request, true).expect("a certificate");
        MeshFiles { ca: made.ca, cert: made.cert, key: made.key }
    }

    /// Of the year 2000.
    fn issue_expired(&self, node: &str) -> MeshFiles {
        let files = self.issue(node);
        let read = |file: &str| std::fs::read_to_string(self.0.join(file)).expect("it was made");
        let key = rcgen::KeyPair::from_pem(&read("ca.key")).expect("a key");
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.pem"), key).expect("a CA");
        let mut params = rcgen::CertificateParams::new(vec![name(node).dns()]).expect("a name");
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(1999, 1, 1), rcgen::date_time_ymd(2000, 1, 1));
        let key = rcgen::KeyPair::generate().expect("a key");
        std::fs::write(&files.cert, params.signed_by(&key, &issuer).expect("a certificate").pem()).expect("our folder");
        std::fs::write(&files.key, key.serialize_pem()).expect("our folder");
        files
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn name(node: &str) -> NodeName {
    NodeName::new(node, "fra").expect("a plain name")
}

struct Node {
    mesh: Mesh,
    events: Receiver<MeshEvent>,
}

impl Node {
    async fn start(ca: &Ca, node: &str, start: u64, peers: &[SocketAddr]) -> Node {
        Self::start_at(LOOPBACK, ca, node, start, peers).await
    }

    async fn start_at(listen: SocketAddr, ca: &Ca, node: &str, start: u64, peers: &[SocketAddr]) -> Node {
        Self::start_with(listen, &ca.issue(node), name(node), start, peers).await
    }

    async fn start_with(listen: SocketAddr, files: &MeshFiles, name: NodeName, start: u64, peers: &[SocketAddr]) -> Node {
        Self::start_as(listen, MeshIdentity::load(files, &name).expect("right files"), start, peers).await
    }

    async fn start_as(listen: SocketAddr, identity: MeshIdentity, start: u64, peers: &[SocketAddr]) -> Node {
        let incarnation = Incarnation { start, nonce: start * 7 };
        let workers = vec!["127.0.0.1:11000".parse().expect("an address")];
        let playout = Duration::from_millis(150);
        let settings = MeshSettings {
            listen,
            identity,
            incarnation,
            workers,
            peers: peers.to_vec(),
            playout,
            schema: control::VERSION,
            revoked: None,
            kept: None,
        };
        let (mesh, events) = Mesh::start(settings).await.expect("a free port");
        Node { mesh, events }
    }

    fn id(&self) -> NodeId {
        self.mesh.name().id()
    }

    async fn next(&mut self) -> MeshEvent {
        timeout(Duration::from_secs(8), self.events.recv()).await.expect("an event within 8 s").expect("the mesh lives")
    }

    async fn up(&mut self) -> (Peer, LinkSecret) {
        match self.next().await {
            MeshEvent::LinkUp { peer, secret } => (*peer, secret),
            other => panic!("{other:?}"),
        }
    }

    async fn down(&mut self) -> (NodeId, Ended) {
        match self.next().await {
            MeshEvent::LinkDown { node, why } => (node, why),
            other => panic!("{other:?}"),
        }
    }

    fn refused(&self, reason: Refusal) -> u64 {
        self.mesh.counters().refused(reason)
    }

    fn is_quiet(&mut self) -> bool {
        self.events.try_recv().is_err()
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(8), "{what}: not within 8 s");
        sleep(Duration::from_millis(5)).await;
    }
}

fn want(track: u64) -> Message {
    let session = SessionId::new(&"s".repeat(128)).expect("a name");
    Message::Want(Want { session, track: TrackId(track), worker: 0, origin: None })
}

/// One message each way.
async fn talk(a: &mut Node, b: &mut Node, track: u64) {
    assert!(a.mesh.send(b.id(), &want(track)) && b.mesh.send(a.id(), &want(track + 1)));
    for (node, from, track) in [(b, a.id(), track)] {
        assert!(matches!(node.next().await, MeshEvent::Message { node, message } if node == from && message == want(track)));
    }
    assert!(matches!(a.next().await, MeshEvent::Message { message, .. } if message == want(track + 1)));
}

/// A pair with a link.
async fn pair(ca: &Ca) -> (Node, Node) {
    let mut a = Node::start(ca, "a", 1, &[]).await;
    let mut b = Node::start(ca, "b", 1, &[a.mesh.address()]).await;
    a.up().await;
    b.up().await;
    (a, b)
}

/// A TLS client that shows `files`, or nothing, and believes the server's CA.
async fn connect(ca: &Ca, to: &Node, files: Option<&MeshFiles>) -> TlsStream<TcpStream> {
    connect_by(ca, to, files, None).await
}

async fn connect_by(ca: &Ca, to: &Node, files: Option<&MeshFiles>, protocol: Option<&[u8]>) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.0.join("ca.pem")).expect("a certificate")).expect("a CA");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider())).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = config.expect("TLS 1.3").with_root_certificates(roots);
    let mut config = match files {
        Some(files) => {
            let chain = vec![CertificateDer::from_pem_file(&files.cert).expect("a certificate")];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&files.key).expect("a key")).expect("a pair")
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols.extend(protocol.map(<[u8]>::to_vec));
    let stream = TcpStream::connect(to.mesh.address()).await.expect("it listens");
    let server = ServerName::try_from(to.mesh.name().dns()).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(server, stream).await.expect("the server is believed")
}

fn hello(node: &str) -> Hello {
    Hello {
        version: control::VERSION,
        version_min: control::VERSION_MIN,
        node: node.to_owned(),
        pop: "fra".to_owned(),
        incarnation: Incarnation { start: 1, nonce: 1 },
        link: 1,
        workers: Vec::new(),
        playout: Duration::from_millis(150),
        resumes: true,
    }
}

async fn say(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("a small message");
    let _ = stream.write_all(&[&len.to_le_bytes(), bytes].concat()).await;
}

async fn say_hello(stream: &mut TlsStream<TcpStream>, hello: Hello) {
    say(stream, &control::encode(&Message::Hello(hello), control::VERSION).expect("a message")).await;
}

#[tokio::test]
async fn two_nodes_speak_and_have_the_same_keys_in_both_directions() {
    let ca = Ca::new("speak");
    let mut a = Node::start(&ca, "a", 3, &[]).await;
    let mut b = Node::start(&ca, "b", 5, &[a.mesh.address()]).await;
    let ((at_a, a_secret), (at_b, b_secret)) = (a.up().await, b.up().await);
    assert_eq!((at_a.node, &*at_a.name, &*at_a.pop, at_a.incarnation.start), (b.id(), "b", "fra", 5));
    assert_eq!((at_b.node, at_b.incarnation.start, at_b.address), (a.id(), 3, a.mesh.address()));
    assert_eq!((at_a.number, at_a.their_number), (at_b.their_number, at_b.number));
    assert_eq!((at_a.version, at_a.workers.len(), at_a.playout), (control::VERSION, 1, Duration::from_millis(150)));
    for (generation, local, remote) in [(0, 0, 1), (0, 1, 0), (1, 0, 1)] {
        let (ours, theirs) = (a_secret.keys(generation, local, remote), b_secret.keys(generation, remote, local));
        assert!(ours.send == theirs.receive && ours.receive == theirs.send && ours.send != ours.receive);
    }
    assert!(a_secret.keys(0, 0, 1).send != a_secret.keys(1, 0, 1).send && a_secret.keys(0, 0, 1).send != a_secret.keys(0, 1, 0).send);
    talk(&mut a, &mut b, 1).await;
    assert!(!a.mesh.send(NodeId(1), &want(1)), "nobody is there");
    let counters = a.mesh.counters();
    assert!(counters.links == 1 && counters.messages_in > 0 && counters.messages_out > 0, "{counters:?}");
}

#[tokio::test]
async fn each_end_of_a_link_knows_which_api_keys_the_other_may_use() {
    let ca = Ca::new("grants");
    let (fra, sin) = (Grants::of(["desk", "a,b %"]), Grants::all());
    let mut a = Node::start_with(LOOPBACK, &ca.issue_for(name("a"), fra.clone()), name("a"), 1, &[]).await;
    let of_sin = NodeName::new("b", "sin").expect("a plain name");
    let mut b = Node::start_with(LOOPBACK, &ca.issue_for(of_sin.clone(), sin.clone()), of_sin, 1, &[a.mesh.address()]).await;
    let mut c = Node::start(&ca, "c", 1, &[a.mesh.address()]).await;
    assert_eq!((a.mesh.grants(), b.mesh.grants(), c.mesh.grants()), (fra.clone(), sin.clone(), Grants::none()));
    // As many bytes as a certificate holds.
    let ids: Vec<String> = (0..GRANTS_MAX).map(|n| format!("{n:0112}")).collect();
    let most = Grants::of(ids.iter().map(String::as_str));
    let mut d = Node::start_with(LOOPBACK, &ca.issue_for(name("d"), most.clone()), name("d"), 1, &[a.mesh.address()]).await;
    let at_a: HashMap<String, Grants> = [a.up().await.0, a.up().await.0, a.up().await.0].map(|peer| (peer.name, peer.grants)).into();
    assert_eq!(at_a, HashMap::from([("b".to_owned(), sin), ("c".to_owned(), Grants::none()), ("d".to_owned(), most)]), "who accepts knows");
    let at_others = [b.up().await.0.grants, c.up().await.0.grants, d.up().await.0.grants];
    assert!(at_others.iter().all(|grants| *grants == fra), "who dials knows: {at_others:?}");
    assert!(a.mesh.links().iter().all(|link| link.peer.grants == at_a[&link.peer.name]));
}

#[tokio::test]
async fn who_is_no_node_gets_no_link_and_disturbs_none() {
    let (ca, foreign) = (Ca::new("own"), Ca::new("foreign"));
    let (mut a, mut b) = pair(&ca).await;
    let (c, stranger, expired) = (ca.issue("c"), foreign.issue("c"), ca.issue_expired("d"));
    let rows = [
        (None, hello("c"), Refusal::NoCertificate),
        (Some(&stranger), hello("c"), Refusal::ForeignCa),
        (Some(&expired), hello("d"), Refusal::Expired),
        // Of the right CA, and borrows the name of a node that is there.
        (Some(&c), hello("b"), Refusal::WrongName),
        (Some(&c), Hello { pop: "ams".to_owned(), ..hello("c") }, Refusal::WrongName),
        (Some(&c), Hello { link: 0, ..hello("c") }, Refusal::Malformed),
        (Some(&c), Hello { version: 99, version_min: 98, ..hello("c") }, Refusal::Version),
    ];
    for (files, hello, reason) in rows {
        let before = a.refused(reason);
        let mut stream = connect(&ca, &a, files).await;
        say_hello(&mut stream, hello).await;
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(8), stream.read_to_end(&mut answer)).await.expect("it is hung up on");
        assert!(answer.is_empty(), "{reason:?}: {answer:?}");
        assert_eq!(a.refused(reason), before + 1, "{reason:?}");
    }
    for (bytes, reason) in [(&b"GET / HTTP/1.1\r\n\r\n"[..], Refusal::Malformed), (b"", Refusal::Closed)] {
        let before = a.refused(reason);
        let mut stream = TcpStream::connect(a.mesh.address()).await.expect("it listens");
        stream.write_all(bytes).await.expect("it is open");
        drop(stream);
        until("garbage is counted", || a.refused(reason) == before + 1).await;
    }
    assert!(a.is_quiet(), "nothing was delivered");
    talk(&mut a, &mut b, 1).await;
    assert_eq!(a.mesh.counters().links, 1);
}

#[tokio::test]
async fn a_node_that_says_nonsense_or_nothing_loses_its_link() {
    let ca = Ca::new("nonsense");
    let (mut a, mut b) = pair(&ca).await;
    let files = ca.issue("c");
    let too_large = (CONTROL_LEN_MAX as u32 + 1).to_le_bytes();
    let rows: [(&[u8], Ended); 3] = [
        (
            &[32, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            Ended::Malformed,
        ),
        (&too_large, Ended::TooLarge),
        (&[], Ended::Silent),
    ];
    for (bytes, why) in rows {
        let mut stream = connect(&ca, &a, Some(&files)).await;
        say_hello(&mut stream, hello("c")).await;
        assert_eq!(a.up().await.0.name, "c");
        stream.write_all(bytes).await.expect("it is open");
        assert_eq!(a.down().await, (name("c").id(), why));
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(1), stream.read_to_end(&mut rest)).await.expect("it is hung up on");
    }
    assert_eq!((a.refused(Refusal::Malformed), a.refused(Refusal::TooLarge)), (1, 1));
    talk(&mut a, &mut b, 1).await;
}

#[tokio::test]
async fn a_node_that_takes_nothing_is_resumed_by_a_new_link() {
    let ca = Ca::new("slow");
    let (mut a, mut b) = pair(&ca).await;
    let sent = (0..10_000).take_while(|track| a.mesh.send(b.id(), &want(*track))).count();
    assert!((1_000..9_000).contains(&sent), "{sent} messages of some 200 bytes are 1 MiB");
    assert_eq!(a.down().await, (b.id(), Ended::Slow));
    assert_eq!(a.up().await.0.name, "b");
    loop {
        match b.next().await {
            MeshEvent::Message { .. } => {}
            MeshEvent::LinkDown { node, .. } => break assert_eq!(node, a.id()),
            other => panic!("{other:?}"),
        }
    }
    b.up().await;
    talk(&mut a, &mut b, 1).await;
}

#[tokio::test]
async fn three_hundred_who_only_connect_delay_nobody() {
    let ca = Ca::new("idle");
    let mut a = Node::start(&ca, "a", 1, &[]).await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(a.mesh.address()).await.expect("it listens"));
    }
    let start = Instant::now();
    let mut b = Node::start(&ca, "b", 1, &[a.mesh.address()]).await;
    a.up().await;
    b.up().await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    until("the crowd is counted", || a.refused(Refusal::Crowded) >= 284).await;
    let mut byte = [0];
    assert_eq!(idle[0].read(&mut byte).await.ok(), Some(0), "who waited longest is hung up on");
    talk(&mut a, &mut b, 1).await;
}

#[tokio::test]
async fn a_newer_start_takes_the_place_of_the_older_which_is_refused_from_then_on() {
    let ca = Ca::new("restart");
    let (mut a, mut old) = pair(&ca).await;
    let mut new = Node::start(&ca, "b", 2, &[a.mesh.address()]).await;
    assert_eq!(a.down().await, (new.id(), Ended::Replaced));
    assert_eq!(a.up().await.0.incarnation.start, 2);
    new.up().await;
    assert_eq!(old.down().await.0, a.id());
    until("the older start is refused", || a.refused(Refusal::Duplicate) >= 2).await;
    assert!(a.is_quiet() && old.is_quiet());
    talk(&mut a, &mut new, 1).await;
}

#[tokio::test]
async fn two_that_dial_each_other_at_once_have_one_link() {
    let ca = Ca::new("both");
    for round in 0..10 {
        let free = || std::net::TcpListener::bind(LOOPBACK).and_then(|listener| listener.local_addr()).expect("a free port");
        let (at_a, at_b) = (free(), free());
        let (peers_of_a, peers_of_b) = ([at_a, at_b], [at_a, at_b]);
        let (a, b) = tokio::join!(Node::start_at(at_a, &ca, "a", 1, &peers_of_a), Node::start_at(at_b, &ca, "b", 1, &peers_of_b));
        let linked = || {
            let (a, b) = (a.mesh.links(), b.mesh.links());
            a.len() == 1 && b.len() == 1 && a[0].dialled != b[0].dialled && a[0].age.min(b[0].age) > Duration::from_millis(300)
        };
        until(&format!("round {round}"), linked).await;
        let refused: u64 = [&a, &b].iter().flat_map(|node| node.mesh.counters().refused).map(|(_, count)| count).sum();
        assert_eq!(refused, 0, "nobody is to blame");
        let (mut a, mut b) = (a, b);
        while !a.is_quiet() {}
        while !b.is_quiet() {}
        talk(&mut a, &mut b, 1).await;
    }
}

#[tokio::test]
async fn keys_step_on_both_ends_to_the_same_generation() {
    let ca = Ca::new("rekey");
    let (mut a, mut b) = pair(&ca).await;
    assert!(a.mesh.rekey(b.id()) && !a.mesh.rekey(NodeId(1)));
    for node in [&mut a, &mut b] {
        assert!(matches!(node.next().await, MeshEvent::Rekeyed { generation: 1, .. }));
    }
    assert_eq!((a.mesh.links()[0].generation, b.mesh.links()[0].generation), (1, 1));
    assert_eq!((a.mesh.counters().rekeys, b.mesh.counters().rekeys), (1, 1));
}

#[tokio::test]
async fn a_node_that_dies_is_down_at_once_and_up_when_it_is_back() {
    let ca = Ca::new("dies");
    let mut b = Node::start(&ca, "b", 1, &[]).await;
    let at_b = b.mesh.address();
    let mut a = Node::start(&ca, "a", 1, &[at_b]).await;
    a.up().await;
    b.up().await;
    let (died, id) = (Instant::now(), b.id());
    drop(b);
    assert_eq!(a.down().await, (id, Ended::Closed));
    assert!(died.elapsed() < Duration::from_millis(500), "{:?}", died.elapsed());
    let mut b = Node::start_at(at_b, &ca, "b", 2, &[]).await;
    assert_eq!(a.up().await.0.incarnation.start, 2);
    b.up().await;
}

#[tokio::test]
async fn the_lower_of_two_dials_and_only_whom_it_means() {
    let ca = Ca::new("lower");
    let (a, b) = (Node::start(&ca, "a", 1, &[]).await, Node::start(&ca, "b", 1, &[]).await);
    let (mut lower, mut higher) = if a.id() < b.id() { (a, b) } else { (b, a) };
    let (low, high) = (lower.mesh.name().clone(), higher.mesh.name().clone());
    higher.mesh.dial(low.id(), low.pop(), low.node(), lower.mesh.address());
    lower.mesh.dial(NodeId(u64::MAX), high.pop(), high.node(), higher.mesh.address());
    sleep(Duration::from_millis(200)).await;
    assert!(lower.is_quiet() && higher.is_quiet());
    // Somebody else is at that address.
    let stranger = Node::start(&ca, "zz", 1, &[]).await;
    lower.mesh.dial(high.id(), high.pop(), high.node(), stranger.mesh.address());
    until("another node's certificate is refused", || lower.refused(Refusal::WrongName) >= 1).await;
    assert!(lower.is_quiet());
    lower.mesh.dial(high.id(), high.pop(), high.node(), higher.mesh.address());
    lower.up().await;
    higher.up().await;
    lower.mesh.forget(high.id());
    assert_eq!((lower.down().await.1, higher.down().await.0), (Ended::Forgotten, low.id()));
    sleep(Duration::from_millis(300)).await;
    assert!(lower.is_quiet(), "it is dialled no longer");
}

#[tokio::test]
async fn a_new_certificate_is_for_new_links_and_old_ones_go_on() {
    let ca = Ca::new("reload");
    let (mut a, mut b) = pair(&ca).await;
    let before = a.mesh.counters().expires_at_s;
    let request = Request { name: name("a"), days: 30, addresses: Vec::new(), api_keys: Grants::none() };
    let made = ca::issue(&ca.0, &ca.0.join("again"), &request, false).expect("a certificate");
    let files = MeshFiles { ca: made.ca, cert: made.cert, key: made.key };
    a.mesh.reload(&files).expect("right files");
    assert!(a.mesh.counters().expires_at_s > before + 20 * 86_400);
    let others = ca.issue("c");
    let error = a.mesh.reload(&others).expect_err("it is another node's");
    assert!(error.contains("is of c.fra and this node is a.fra"), "{error}");
    let foreign = Ca::new("reload-foreign");
    let error = a.mesh.reload(&MeshFiles { ca: foreign.0.join("ca.pem"), ..files }).expect_err("it is not of that CA");
    assert!(error.contains("is not of the CA in mesh.ca"), "{error}");
    assert!(a.mesh.counters().expires_at_s > before + 20 * 86_400, "the new one stays");
    assert!(a.is_quiet() && b.is_quiet());
    talk(&mut a, &mut b, 1).await;
    let mut c = Node::start(&ca, "c", 1, &[a.mesh.address()]).await;
    a.up().await;
    c.up().await;
    let shown = connect(&ca, &a, Some(&others)).await;
    let shown = shown.get_ref().1.peer_certificates().expect("a certificate")[0].clone();
    assert_eq!(shown, CertificateDer::from_pem_file(ca.0.join("again/node.pem")).expect("it was made"));
}

#[tokio::test]
async fn a_certificate_for_other_api_keys_is_shown_to_all_at_once() {
    let ca = Ca::new("regrant");
    let (mut a, mut b) = pair(&ca).await;
    let of_sin = NodeName::new("c", "sin").expect("a plain name");
    let files = ca.issue_for(of_sin.clone(), Grants::none());
    let mut c = Node::start_with(LOOPBACK, &files, of_sin, 1, &[a.mesh.address()]).await;
    assert_eq!((a.up().await.0.name, c.up().await.0.grants), ("c".to_owned(), Grants::none()));
    for (granted, is_new) in [(Grants::of(["desk"]), true), (Grants::of(["desk"]), false), (Grants::none(), true)] {
        let files = ca.issue_for(name("a"), granted.clone());
        a.mesh.reload(&files).expect("right files");
        assert_eq!(a.mesh.grants(), granted);
        if is_new {
            let (mut gone, mut back) = (HashSet::new(), HashSet::new());
            while back.len() < 2 {
                match a.next().await {
                    MeshEvent::LinkDown { node, why: Ended::Renewed } => drop(gone.insert(node)),
                    MeshEvent::LinkUp { peer, .. } => drop(back.insert(peer.node)),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((&gone, &back), (&HashSet::from([b.id(), c.id()]), &gone));
            for other in [&mut b, &mut c] {
                assert_eq!(other.down().await.0, a.id());
                assert_eq!(other.up().await.0.grants, granted);
            }
        }
    }
    assert!(a.is_quiet() && b.is_quiet() && c.is_quiet());
    talk(&mut a, &mut b, 1).await;
}

#[tokio::test]
async fn who_has_another_pops_ca_names_no_node_of_this_one() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let read = |ca: &Ca| std::fs::read_to_string(ca.0.join("ca.pem")).expect("it was made");
    let both = ours.0.join("both.pem");
    std::fs::write(&both, read(&ours) + &read(&theirs)).expect("our folder");
    let with_both = |files: MeshFiles| MeshFiles { ca: both.clone(), ..files };
    let MeshFiles { ca, cert, key } = with_both(ours.issue("a"));
    let bus = format!("[bus]\nca = {:?}\n", ours.0.join("ca.pem"));
    let text = format!("[node]\nname = \"a\"\npop = \"fra\"\n{bus}[mesh]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n");
    let config = pop::config::Config::parse(&text, std::path::Path::new("pop.toml")).expect("it is whole");
    let identity = MeshIdentity::of(&config).expect("right files").expect("it has files");
    let mut a = Node::start_as(LOOPBACK, identity.clone(), 1, &[]).await;
    // Theirs is let in as what it is, ours as what it is, and theirs not as one of ours, whoever dials.
    let of_sin = NodeName::new("c", "sin").expect("a plain name");
    let mut c =
        Node::start_with(LOOPBACK, &with_both(theirs.issue_for(of_sin.clone(), Grants::none())), of_sin, 1, &[a.mesh.address()]).await;
    assert_eq!((a.up().await.0.pop, c.up().await.0.node), ("sin".to_owned(), a.id()));
    let mut b = Node::start_with(LOOPBACK, &with_both(ours.issue("b")), name("b"), 1, &[a.mesh.address()]).await;
    assert_eq!((a.up().await.0.node, b.up().await.0.node), (b.id(), a.id()));
    let forged = with_both(theirs.issue("z"));
    let z = Node::start_with(LOOPBACK, &forged, name("z"), 9, &[a.mesh.address()]).await;
    until("it is refused", || a.refused(Refusal::ForeignCa) >= 1).await;
    assert!(a.is_quiet());
    drop(a);
    let mut a = Node::start_as(LOOPBACK, identity, 2, &[z.mesh.address()]).await;
    until("it is not dialled either", || a.refused(Refusal::ForeignCa) >= 1).await;
    assert!(a.is_quiet());
}

#[tokio::test]
async fn who_says_that_it_is_this_node_proves_it_by_the_nodes_certificate() {
    let ca = Ca::new("double");
    let mut a = Node::start(&ca, "a", 1, &[]).await;
    let (mut double, other) = (Node::start(&ca, "a", 2, &[]).await, Node::start(&ca, "b", 7, &[]).await);
    let at = |node: &Node| node.mesh.address();
    assert_eq!(a.mesh.own_start_at(at(&double)).await, Some(Incarnation { start: 2, nonce: 14 }));
    assert_eq!(a.mesh.own_start_at(at(&a)).await, Some(Incarnation { start: 1, nonce: 7 }), "itself");
    assert_eq!(a.mesh.own_start_at(at(&other)).await, None, "another node of the same CA is not this one");
    let nobody = std::net::TcpListener::bind(LOOPBACK).and_then(|listener| listener.local_addr()).expect("a free port");
    assert_eq!(a.mesh.own_start_at(nobody).await, None);
    assert!(a.is_quiet() && double.is_quiet(), "and nobody has a link with itself");
    assert_eq!((a.refused(Refusal::Duplicate), double.refused(Refusal::Duplicate)), (0, 1));
}

#[tokio::test]
async fn a_link_that_is_renewed_is_made_again_from_the_first_keys_on() {
    let ca = Ca::new("renewed");
    let (mut a, mut b) = pair(&ca).await;
    assert!(a.mesh.rekey(b.id()));
    assert!(matches!(a.next().await, MeshEvent::Rekeyed { generation: 1, .. }));
    assert!(matches!(b.next().await, MeshEvent::Rekeyed { generation: 1, .. }));
    a.mesh.renew(b.id());
    assert_eq!(a.down().await, (b.id(), Ended::Renewed));
    b.down().await;
    let (of_a, of_b) = (a.up().await.1, b.up().await.1);
    assert_eq!(of_a.keys(0, 0, 0).send, of_b.keys(0, 0, 0).receive);
    assert_eq!(a.mesh.links()[0].generation, 0);
    talk(&mut a, &mut b, 1).await;
}

#[tokio::test]
async fn a_node_of_the_version_before_has_a_link_and_is_spoken_with_as_it_speaks() {
    let ca = Ca::new("before");
    let mut a = Node::start(&ca, "a", 1, &[]).await;
    let mut b = connect(&ca, &a, Some(&ca.issue("b"))).await;
    let before = control::VERSION - 1;
    say_hello(&mut b, Hello { version: before, version_min: before, ..hello("b") }).await;
    assert_eq!(a.up().await.0.version, before);
    say(&mut b, &control::encode(&want(5), before).expect("a message")).await;
    assert!(matches!(a.next().await, MeshEvent::Message { message, .. } if message == want(5)));
    let offer = Message::Offer(control::Offer {
        track: TrackId(5),
        alias: 9,
        worker: 0,
        audio: false,
        payload_types: Vec::new(),
        extensions: vec![0; 16],
        layers: vec!["q".to_owned(), "h".to_owned()],
        order: vec![0, 1],
        load: 0,
    });
    assert!(a.mesh.send(name("b").id(), &offer));
    let read = async {
        loop {
            let len = b.read_u32_le().await.expect("a length");
            let mut bytes = vec![0; len as usize];
            b.read_exact(&mut bytes).await.expect("a message");
            match control::decode(&bytes).expect("one of ours") {
                Message::Offer(offer) => return offer,
                Message::Hello(_) | Message::Alive(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let heard = timeout(Duration::from_secs(2), read).await.expect("within two seconds");
    assert_eq!((heard.track, heard.alias, heard.layers.len(), heard.order), (TrackId(5), 9, 2, vec![0, 1]));
    // Who speaks nothing that this node speaks has no link.
    let mut c = connect(&ca, &a, Some(&ca.issue("c"))).await;
    say_hello(&mut c, Hello { version: 9, version_min: control::VERSION + 1, ..hello("c") }).await;
    until("its version is refused", || a.refused(Refusal::Version) == 1).await;
}

fn there(node: &Node) -> Elsewhere {
    Elsewhere { name: node.mesh.name().clone(), address: node.mesh.address() }
}

/// A client's request as a listener makes it.
fn ask(client: &str) -> HttpRequest<Bytes> {
    let mut request = HttpRequest::builder().uri("/who?is=it").header("host", "pop").header("pop-client", "192.0.2.9:9");
    request.extensions_mut().expect("no error yet").insert(ConnectInfo(client.parse::<SocketAddr>().expect("an address")));
    request.body(Bytes::from("a body")).expect("a request")
}

#[tokio::test]
async fn a_request_is_carried_with_its_clients_address_and_no_other() {
    let ca = Ca::new("carried");
    let (a, b) = pair(&ca).await;
    let who = |client: Option<Extension<ConnectInfo<SocketAddr>>>, _: Extension<Carried>, request: HttpRequest<Body>| async move {
        let client = client.map(|Extension(ConnectInfo(client))| client.to_string());
        let claims = request.headers().contains_key("pop-client");
        let uri = request.uri().to_string();
        let body = to_bytes(request.into_body(), 100).await.expect("it is short");
        format!("{client:?} {claims} {uri} {}", String::from_utf8_lossy(&body))
    };
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let _answering = b.mesh.answer_carried(Router::new().route("/who", get(who)), stopped);
    let answer = a.mesh.carry(&there(&b), ask("198.51.100.7:7")).await.expect("an answer");
    let body = to_bytes(answer.into_body(), 1_000).await.expect("it is short");
    // What the client itself said of its address is not believed.
    assert_eq!(String::from_utf8_lossy(&body), "Some(\"198.51.100.7:7\") false /who?is=it a body");
}

#[tokio::test]
async fn nothing_is_carried_to_a_node_that_is_not_who_it_should_be_or_does_not_answer() {
    let (ca, foreign) = (Ca::new("carrier"), Ca::new("foreign-carrier"));
    let (a, b) = pair(&ca).await;
    assert!(matches!(a.mesh.carry(&there(&b), ask("192.0.2.1:1")).await, Err(CarryError::Unanswered)), "it has nothing to answer with");
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let _answering = b.mesh.answer_carried(Router::new(), stopped);
    let other = Elsewhere { name: name("c"), address: b.mesh.address() };
    assert!(matches!(a.mesh.carry(&other, ask("192.0.2.1:1")).await, Err(CarryError::Unreachable)), "its certificate names another");
    let stranger = Node::start(&foreign, "x", 1, &[]).await;
    let refused = stranger.mesh.carry(&there(&b), ask("192.0.2.1:1")).await;
    assert!(matches!(refused, Err(CarryError::Unreachable | CarryError::Unanswered)), "of another CA: {refused:?}");
    // And who should be answered is.
    let answer = a.mesh.carry(&there(&b), ask("192.0.2.1:1")).await.expect("an answer");
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn two_that_step_to_new_keys_at_once_and_again_step_once() {
    let ca = Ca::new("at-once");
    let (mut a, mut b) = pair(&ca).await;
    // As their workers do, each of which has used up its keys.
    for _ in 0..3 {
        assert!(a.mesh.rekey(b.id()) && b.mesh.rekey(a.id()));
    }
    assert!(matches!(a.next().await, MeshEvent::Rekeyed { generation: 1, .. }));
    assert!(matches!(b.next().await, MeshEvent::Rekeyed { generation: 1, .. }));
    sleep(Duration::from_millis(300)).await;
    assert!(a.is_quiet() && b.is_quiet(), "the second step would take keys away that are in use");
    talk(&mut a, &mut b, 1).await;
    assert_eq!((a.mesh.links()[0].generation, b.mesh.links()[0].generation), (1, 1));
}

#[tokio::test]
async fn who_carries_requests_is_of_this_pop_and_carries_none_when_its_certificate_is_taken_back() {
    let ca = Ca::new("carriers");
    let a = Node::start(&ca, "a", 1, &[]).await;
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let _answering = a.mesh.answer_carried(Router::new().route("/", get(|| async { "here" })), stopped);
    let of_b = ca.issue("b");
    let of_sin = ca.issue_for(NodeName::new("c", "sin").expect("a plain name"), Grants::none());
    let mut foreign = connect_by(&ca, &a, Some(&of_sin), Some(b"pop-http/1")).await;
    let _ = foreign.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(!matches!(foreign.read(&mut [0; 100]).await, Ok(1..)), "it is of another PoP");
    let mut carrier = connect_by(&ca, &a, Some(&of_b), Some(b"pop-http/1")).await;
    carrier.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("it is open");
    let mut answer = [0; 15];
    carrier.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let list = ca::revoke(&ca.0, &ca::serials_of(&ca.0, &name("b")).expect("it was issued")).expect("a list");
    let list = CertificateRevocationListDer::from_pem_file(list.file).expect("PEM").to_vec();
    assert_eq!(a.mesh.take_list(&list), Listed::New);
    let ended = async { while let Ok(1..) = carrier.read(&mut [0; 4_096]).await {} };
    timeout(Duration::from_secs(2), ended).await.expect("it is over at once");
}
