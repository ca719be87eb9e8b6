//! Control links that go on over a third node: what both ends notice of it, which is nothing, and what a hostile node gets, which is less.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pop::ca::{self, Request};
use pop::mesh::{Grants, Mesh, MeshEvent, MeshFiles, MeshIdentity, MeshSettings, NodeName, TRANSITS_PER_ASKER_MAX, Transit};
use pop_proto::control::{LinkStats, PathStats};
use pop_relay::control::{self, Message, Want};
use pop_schemas::{Incarnation, NodeId, SessionId, TrackId};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc::Receiver, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Ca(PathBuf);

impl Ca {
    fn new(name: &str) -> Ca {
        let folder = std::env::temp_dir().join(format!("pop-transit-{}-{name}", std::process::id()));
        ca::init(&folder, name, false).expect("a new folder");
        Ca(folder)
    }

    fn issue(&self, name: &NodeName) -> MeshFiles {
        let request = Request { name: name.clone(), days: 1, addresses: Vec::new(), api_keys: Grants::all() };
        let made = ca::issue(&self.0, &self.0.join(name.to_string()), &request, true).expect("a certificate");
        MeshFiles { ca: made.ca, cert: made.cert, key: made.key }
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Node `a` of a PoP.
fn of(pop: &str) -> NodeName {
    NodeName::new("a", pop).expect("a plain name")
}

/// What the workers of a link would tell.
#[derive(Default)]
struct Workers {
    /// Datagrams come, by whatever way.
    carried: AtomicU64,
    /// They come directly.
    direct: AtomicU64,
}

struct Node {
    mesh: Mesh,
    events: Receiver<MeshEvent>,
    telling: Vec<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.telling.iter().for_each(JoinHandle::abort);
    }
}

impl Node {
    async fn start(ca: &Ca, pop: &str, peers: &[SocketAddr]) -> Node {
        let name = of(pop);
        let identity = MeshIdentity::load(&ca.issue(&name), &name).expect("right files");
        let settings = MeshSettings {
            listen: LOOPBACK,
            identity,
            incarnation: Incarnation { start: 1, nonce: 7 },
            workers: vec![(Ipv4Addr::LOCALHOST, 11_000).into()],
            peers: peers.to_vec(),
            playout: Duration::from_millis(150),
            schema: control::VERSION,
            revoked: None,
            kept: None,
        };
        let (mesh, events) = Mesh::start(settings).await.expect("a free port");
        Node { mesh, events, telling: Vec::new() }
    }

    fn id(&self) -> NodeId {
        self.mesh.name().id()
    }

    /// The workers of the link with `node` say four times a second what comes.
    fn work(&mut self, node: NodeId, workers: &Arc<Workers>) {
        let (mesh, workers) = (self.mesh.clone(), Arc::clone(workers));
        self.telling.push(tokio::spawn(async move {
            let (mut came, mut came_directly) = (0, 0);
            loop {
                came += workers.carried.load(Ordering::Relaxed);
                came_directly += workers.direct.load(Ordering::Relaxed);
                let direct = PathStats { came: came_directly, ..PathStats::default() };
                mesh.note_figures(node, LinkStats { datagrams_out: 1, datagrams_in: came, direct, ..LinkStats::default() });
                sleep(Duration::from_millis(250)).await;
            }
        }));
    }

    fn tell_thirds(&self, pop: &str, thirds: &[&Node]) {
        self.mesh.note_thirds(HashMap::from([(pop.to_owned(), thirds.iter().map(|node| node.id()).collect())]));
    }

    /// The PoP over which the link with `node` goes; `None`: it is direct.
    fn over(&self, node: NodeId) -> Option<String> {
        let link = self.mesh.links().into_iter().find(|link| link.peer.node == node).expect("there is a link");
        link.over.map(|(_, pop)| pop)
    }

    fn is_connected(&self, node: NodeId) -> bool {
        self.mesh.links().iter().any(|link| link.peer.node == node && link.is_connected)
    }

    async fn until_up(&mut self, count: usize) {
        for _ in 0..count {
            let event = timeout(Duration::from_secs(8), self.events.recv()).await.expect("an event within 8 s");
            assert!(matches!(event, Some(MeshEvent::LinkUp { .. })), "{event:?}");
        }
    }

    /// The tracks that other nodes wanted since the last time.
    fn wanted(&mut self) -> Vec<u64> {
        let mut wanted = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            match event {
                MeshEvent::Message { message: Message::Want(want), .. } => wanted.push(want.track.0),
                other => panic!("{other:?}"),
            }
        }
        wanted
    }

    fn transited(&self, outcome: Transit) -> u64 {
        self.mesh.counters().transited(outcome)
    }
}

async fn until(what: &str, seconds: u64, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "{what}: not within {seconds} s");
        sleep(Duration::from_millis(5)).await;
    }
}

fn want(track: u64) -> Message {
    let session = SessionId::new(&"s".repeat(100)).expect("a name");
    Message::Want(Want { session, track: TrackId(track), worker: 0, origin: None })
}

/// A way to `to` that can be cut: then it takes everything and nothing comes out.
struct Wire {
    address: SocketAddr,
    is_cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    async fn to(to: SocketAddr) -> Wire {
        let listener = TcpListener::bind(LOOPBACK).await.expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        let (is_cut, seen) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.expect("it is open");
                let (seen, far) = (seen.clone(), TcpStream::connect(to).await.expect("it listens"));
                all.spawn(async move {
                    let (near, far) = (near.into_split(), far.into_split());
                    tokio::join!(pass(near.0, far.1, seen.clone()), pass(far.0, near.1, seen));
                });
            }
        });
        Wire { address, is_cut, task }
    }
}

/// What was written meanwhile comes once it is healed, as TCP's repetitions do.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut is_cut: watch::Receiver<bool>) {
    let mut bytes = vec![0; 4_096];
    while let Ok(len @ 1..) = from.read(&mut bytes).await {
        if is_cut.wait_for(|is_cut| !is_cut).await.is_err() || to.write_all(&bytes[..len]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// fra and sin, whose direct path is `wire`, and others that have links with both.
struct World {
    fra: Node,
    sin: Node,
    thirds: Vec<Node>,
    wire: Wire,
    workers: Arc<Workers>,
    _ca: Ca,
}

impl World {
    async fn new(name: &str, thirds: &[&str]) -> World {
        let ca = Ca::new(name);
        let mut between = Vec::new();
        for pop in thirds {
            between.push(Node::start(&ca, pop, &[]).await);
        }
        let addresses: Vec<_> = between.iter().map(|node| node.mesh.address()).collect();
        let mut sin = Node::start(&ca, "sin", &addresses).await;
        let wire = Wire::to(sin.mesh.address()).await;
        let mut fra = Node::start(&ca, "fra", &[addresses, vec![wire.address]].concat()).await;
        fra.until_up(thirds.len() + 1).await;
        sin.until_up(thirds.len() + 1).await;
        for node in &mut between {
            node.until_up(2).await;
            node.mesh.locate([(fra.id(), fra.mesh.address()), (sin.id(), sin.mesh.address())]);
        }
        let workers = Arc::new(Workers { carried: 1.into(), direct: 1.into() });
        let ids = (fra.id(), sin.id());
        fra.work(ids.1, &workers);
        sin.work(ids.0, &workers);
        fra.tell_thirds("sin", &between.iter().collect::<Vec<_>>());
        sin.tell_thirds("fra", &between.iter().collect::<Vec<_>>());
        World { fra, sin, thirds: between, wire, workers, _ca: ca }
    }

    fn cut(&self, is_cut: bool) {
        self.workers.direct.store(u64::from(!is_cut), Ordering::Relaxed);
        self.wire.is_cut.send_replace(is_cut);
    }

    fn over(&self) -> [Option<String>; 2] {
        [self.fra.over(self.sin.id()), self.sin.over(self.fra.id())]
    }

    async fn until_over(&self, pop: Option<&str>, seconds: u64) {
        let is_so = || self.fra.is_connected(self.sin.id()) && self.sin.is_connected(self.fra.id());
        until(&format!("the link goes over {pop:?}"), seconds, || is_so() && self.over().iter().all(|over| over.as_deref() == pop)).await;
    }
}

#[tokio::test]
async fn a_link_goes_on_over_a_third_node_and_back_and_nothing_is_lost_or_comes_twice() {
    let mut world = World::new("exact", &["ams"]).await;
    let (fra, sin) = (world.fra.mesh.clone(), world.sin.mesh.clone());
    let (of_fra, of_sin) = (world.fra.id(), world.sin.id());
    let (stop, stopped) = watch::channel(false);
    let saying = tokio::spawn(async move {
        let mut said = 0;
        while !*stopped.borrow() {
            assert!(fra.send(of_sin, &want(said)) && sin.send(of_fra, &want(said)), "the link is up");
            said += 1;
            sleep(Duration::from_millis(10)).await;
        }
        said
    });
    sleep(Duration::from_millis(300)).await;
    let ages = [world.fra.mesh.links()[0].age, world.sin.mesh.links()[0].age];
    let mut heard = [Vec::new(), Vec::new()];
    for round in 0..2 {
        world.cut(true);
        world.until_over(Some("ams"), 5).await;
        heard[0].extend(world.fra.wanted());
        heard[1].extend(world.sin.wanted());
        assert_eq!(world.thirds[0].mesh.counters().transits, 1);
        world.cut(false);
        // What was under way on the direct path comes now, and nobody listens.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(world.over(), [Some("ams".to_owned()), Some("ams".to_owned())], "not at once: round {round}");
        world.until_over(None, 20).await;
        heard[0].extend(world.fra.wanted());
        heard[1].extend(world.sin.wanted());
        until("the transit ends", 5, || world.thirds[0].mesh.counters().transits == 0).await;
    }
    stop.send_replace(true);
    let said = saying.await.expect("every message was taken");
    let all: Vec<u64> = (0..said).collect();
    until("all has come", 5, || {
        heard[0].extend(world.fra.wanted());
        heard[1].extend(world.sin.wanted());
        heard.iter().all(|heard| heard.len() >= all.len())
    })
    .await;
    assert!(heard.iter().all(|heard| *heard == all), "{} said", all.len());
    assert!(world.fra.mesh.links()[0].age > ages[0] && world.sin.mesh.links()[0].age > ages[1], "it is the same link");
    assert_eq!(world.fra.mesh.counters().moved, [("direct", 2), ("over", 2)]);
    assert!(world.thirds[0].mesh.counters().transit_bytes > 100_000);
    assert!(world.thirds[0].wanted().is_empty(), "it has heard nothing of what it carries");
}

#[tokio::test]
async fn a_node_that_takes_its_time_moves_no_link() {
    let mut world = World::new("busy", &["ams"]).await;
    // More than wait for the node.
    for track in 0..2_000 {
        assert!(world.fra.mesh.send(world.sin.id(), &want(track)));
    }
    sleep(Duration::from_secs(4)).await;
    let mut wanted = Vec::new();
    until("all comes", 5, || {
        wanted.extend(world.sin.wanted());
        wanted.len() >= 2_000
    })
    .await;
    assert_eq!(wanted, (0..2_000).collect::<Vec<_>>());
    assert_eq!([&world.fra, &world.sin].map(|node| node.mesh.counters().moved), [[("direct", 0), ("over", 0)]; 2]);
}

#[tokio::test]
async fn when_the_third_node_dies_another_one_carries() {
    let mut world = World::new("dies", &["ams", "khi"]).await;
    world.cut(true);
    world.until_over(Some("ams"), 5).await;
    drop(world.thirds.remove(0));
    world.until_over(Some("khi"), 5).await;
    let event = timeout(Duration::from_secs(5), world.fra.events.recv()).await.expect("within 5 s");
    assert!(matches!(event, Some(MeshEvent::LinkDown { node, .. }) if node == of("ams").id()), "{event:?}");
    assert!(world.fra.mesh.send(world.sin.id(), &want(1)));
    let mut events = Vec::new();
    until("what is said comes", 5, || {
        events.extend(std::iter::from_fn(|| world.sin.events.try_recv().ok()));
        events.iter().any(|event| matches!(event, MeshEvent::Message { .. }))
    })
    .await;
    assert!(!events.iter().any(|event| matches!(event, MeshEvent::LinkDown { node, .. } if *node == world.fra.id())), "{events:?}");
}

#[tokio::test]
async fn a_third_node_that_stalls_costs_less_than_a_second() {
    let world = World::new("stalls", &["ams", "khi"]).await;
    // It takes connections and says nothing.
    let hole = TcpListener::bind(LOOPBACK).await.expect("loopback has ports");
    let at = hole.local_addr().expect("it is bound");
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = hole.accept().await {
            held.push(stream);
        }
    });
    world.fra.mesh.locate([(world.thirds[0].id(), at)]);
    world.sin.mesh.locate([(world.thirds[0].id(), at)]);
    world.cut(true);
    world.until_over(Some("khi"), 5).await;
    holding.abort();
}

#[tokio::test]
async fn a_link_whose_datagrams_end_too_ends_within_seconds() {
    let mut world = World::new("ends", &[]).await;
    world.cut(true);
    world.workers.carried.store(0, Ordering::Relaxed);
    for node in [&mut world.fra, &mut world.sin] {
        let event = timeout(Duration::from_secs(6), node.events.recv()).await.expect("within 6 s");
        assert!(matches!(event, Some(MeshEvent::LinkDown { .. })), "{event:?}");
    }
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_directly_gets_its_link_over_a_third_one() {
    let ca = Ca::new("fresh");
    let mut ams = Node::start(&ca, "ams", &[]).await;
    let mut fra = Node::start(&ca, "fra", &[ams.mesh.address()]).await;
    let mut sin = Node::start(&ca, "sin", &[ams.mesh.address()]).await;
    fra.until_up(1).await;
    sin.until_up(1).await;
    ams.until_up(2).await;
    ams.mesh.locate([(sin.id(), sin.mesh.address())]);
    fra.tell_thirds("sin", &[&ams]);
    // Nobody is there.
    let nowhere = TcpListener::bind(LOOPBACK).await.expect("loopback has ports").local_addr().expect("it is bound");
    fra.mesh.dial(sin.id(), "sin", "a", nowhere);
    fra.until_up(1).await;
    sin.until_up(1).await;
    assert_eq!([fra.over(sin.id()), sin.over(fra.id())], [Some("ams".to_owned()), Some("ams".to_owned())]);
    assert_eq!(fra.mesh.sought(), std::collections::HashSet::from(["sin".to_owned()]));
    assert!(fra.mesh.send(sin.id(), &want(5)));
    until("what is said comes", 5, || sin.wanted() == [5]).await;
}

/// TLS as node `a` of a PoP, or of whoever `stream` leads to, with a protocol.
async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    ca: &Ca,
    as_pop: &str,
    to_pop: &str,
    protocol: &[u8],
    stream: S,
) -> std::io::Result<TlsStream<S>> {
    let files = ca.0.join(of(as_pop).to_string());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.0.join("ca.pem")).expect("a certificate")).expect("a CA");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider())).with_protocol_versions(&[&rustls::version::TLS13]);
    let chain = vec![CertificateDer::from_pem_file(files.join("node.pem")).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_file(files.join("node.key")).expect("a key");
    let config = config.expect("TLS 1.3").with_root_certificates(roots).with_client_auth_cert(chain, key);
    let mut config = config.expect("a pair");
    config.alpn_protocols = Some(protocol.to_vec()).filter(|protocol| !protocol.is_empty()).into_iter().collect();
    let server = ServerName::try_from(of(to_pop).dns()).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(server, stream).await
}

const PROTOCOL: &[u8] = b"pop-transit/1";

fn words(what: u8, node: NodeId) -> Vec<u8> {
    [&[what][..], &node.0.to_le_bytes()].concat()
}

/// What `third` answers node `a` of a PoP that says this; and the stream.
async fn ask(ca: &Ca, as_pop: &str, third: &Node, said: &[u8]) -> (Option<u8>, TlsStream<TcpStream>) {
    let stream = TcpStream::connect(third.mesh.address()).await.expect("it listens");
    let mut stream = secure(ca, as_pop, third.mesh.name().pop(), PROTOCOL, stream).await.expect("it is a node");
    stream.write_all(said).await.expect("it is open");
    let mut answer = [0; 1];
    let came = timeout(Duration::from_secs(8), stream.read(&mut answer)).await.expect("an answer or an end within 8 s");
    (matches!(came, Ok(1)).then_some(answer[0]), stream)
}

#[tokio::test]
async fn who_asks_for_what_it_may_not_is_refused_and_counted_and_nobody_else_notices() {
    let mut world = World::new("hostile", &["ams"]).await;
    let (ca, ams) = (&world._ca, &world.thirds[0]);
    ca.issue(&of("eve"));
    let rows = [
        ("fra", words(0, of("nowhere").id()), Some(2), Transit::Unknown),
        ("fra", words(0, of("ams").id()), Some(3), Transit::Myself),
        ("fra", words(0, of("fra").id()), Some(3), Transit::Myself),
        // Of the right CA, and without a link.
        ("eve", words(0, of("sin").id()), Some(4), Transit::Stranger),
        ("fra", vec![9; 9], None, Transit::Malformed),
    ];
    for (as_pop, said, answer, outcome) in rows {
        let before = ams.transited(outcome);
        let (came, mut stream) = ask(ca, as_pop, ams, &said).await;
        assert_eq!((came, ams.transited(outcome)), (answer, before + 1), "{outcome:?}");
        assert_eq!(stream.read(&mut [0; 9]).await.unwrap_or_default(), 0, "and is hung up on");
    }

    // In a transit there is none: neither by asking the one that is reached, nor by bringing somebody else.
    for (protocol, as_pop, loops) in [(PROTOCOL, "fra", 1), (b"pop-http/1", "fra", 2), (b"", "eve", 3)] {
        let (came, stream) = ask(ca, "fra", ams, &words(0, of("sin").id())).await;
        assert_eq!(came, Some(0));
        if let Ok(mut inner) = secure(ca, as_pop, "sin", protocol, stream).await {
            let _ = inner.write_all(&words(0, of("ams").id())).await;
            let mut answer = [0; 1];
            assert_eq!(timeout(Duration::from_secs(8), inner.read(&mut answer)).await.expect("an end").unwrap_or_default(), 0);
        }
        until("it is counted", 5, || world.sin.transited(Transit::Loop) == loops).await;
    }

    // Garbage instead of TLS ends it.
    let (came, mut stream) = ask(ca, "fra", ams, &words(0, of("sin").id())).await;
    assert_eq!(came, Some(0));
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("it is open");
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(8), stream.read_to_end(&mut rest)).await.expect("it is hung up on");

    // As many as one may have, and the others have theirs.
    until("those before have ended", 8, || ams.mesh.counters().transits == 0).await;
    let mut held = Vec::new();
    for _ in 0..TRANSITS_PER_ASKER_MAX {
        let (came, stream) = ask(ca, "fra", ams, &words(0, of("sin").id())).await;
        assert_eq!(came, Some(0));
        held.push(stream);
    }
    let (came, _) = ask(ca, "fra", ams, &words(0, of("sin").id())).await;
    assert_eq!((came, ams.transited(Transit::Full)), (Some(5), 1));
    let (came, stream) = ask(ca, "sin", ams, &words(0, of("fra").id())).await;
    assert_eq!(came, Some(0));
    drop((held, stream));

    assert!(world.fra.wanted().is_empty() && world.sin.wanted().is_empty(), "nobody has noticed");
    assert!(world.fra.mesh.send(world.sin.id(), &want(1)) && world.sin.mesh.send(world.thirds[0].id(), &want(2)));
    until("all links are as they were", 5, || world.sin.wanted() == [1]).await;
    until("that of the third node, too", 5, || world.thirds[0].wanted() == [2]).await;
}

#[tokio::test]
async fn who_only_knows_the_certificate_cannot_take_a_link_over() {
    let mut world = World::new("thief", &[]).await;
    let ca = &world._ca;
    // fra's own key, on a new connection, without the link's secret.
    let stream = TcpStream::connect(world.sin.mesh.address()).await.expect("it listens");
    let mut stream = secure(ca, "fra", "sin", b"", stream).await.expect("it is a node");
    let resume = control::Resume { number: 99, received: 0, proof: [7; 32] };
    let bytes = control::encode(&Message::Resume(resume), control::VERSION).expect("it is short");
    stream.write_all(&[&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat()).await.expect("it is open");
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(8), stream.read_to_end(&mut answer)).await.expect("it is hung up on");
    let refused = control::Resume { number: 0, received: 0, proof: [0; 32] };
    assert_eq!(control::decode(&answer[4..]), Ok(Message::Resume(refused)), "no such link");
    assert_eq!(world.sin.over(world.fra.id()), None);
    assert!(world.fra.mesh.send(world.sin.id(), &want(1)));
    until("the link is as it was", 5, || world.sin.wanted() == [1]).await;
    assert!(world.fra.wanted().is_empty());
}

/// Takes connections and says nothing.
async fn hole() -> (SocketAddr, JoinHandle<()>) {
    let hole = TcpListener::bind(LOOPBACK).await.expect("loopback has ports");
    let at = hole.local_addr().expect("it is bound");
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = hole.accept().await {
            held.push(stream);
        }
    });
    (at, holding)
}

#[tokio::test]
async fn a_third_node_that_stalls_keeps_no_first_link_from_being_made() {
    let ca = Ca::new("first");
    let mut thirds = [Node::start(&ca, "ams", &[]).await, Node::start(&ca, "khi", &[]).await];
    let addresses: Vec<_> = thirds.iter().map(|node| node.mesh.address()).collect();
    let mut fra = Node::start(&ca, "fra", &addresses).await;
    let mut sin = Node::start(&ca, "sin", &addresses).await;
    fra.until_up(2).await;
    sin.until_up(2).await;
    for node in &mut thirds {
        node.until_up(2).await;
        node.mesh.locate([(sin.id(), sin.mesh.address())]);
    }
    let (at, holding) = hole().await;
    fra.mesh.locate([(thirds[0].id(), at)]);
    fra.tell_thirds("sin", &[&thirds[0], &thirds[1]]);
    let nowhere = TcpListener::bind(LOOPBACK).await.expect("loopback has ports").local_addr().expect("it is bound");
    fra.mesh.dial(sin.id(), "sin", "a", nowhere);
    fra.until_up(1).await;
    assert_eq!(fra.over(sin.id()), Some("khi".to_owned()));
    holding.abort();
}

/// A way to `to` on which nothing more of the caller passes once whoever is behind `to` has begun TLS: the second one of the connection.
async fn stalling_after_tls(to: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(LOOPBACK).await.expect("loopback has ports");
    let address = listener.local_addr().expect("it is bound");
    let task = tokio::spawn(async move {
        let mut all = tokio::task::JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await.expect("it listens");
            all.spawn(async move {
                let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
                // What came back, and what of it was the flight of the first TLS: the second one's is as long.
                let (back, mut flight) = (Arc::new(AtomicU64::new(0)), 0);
                let counted = Arc::clone(&back);
                tokio::join!(
                    async move {
                        let mut bytes = vec![0; 16_384];
                        while let Ok(len @ 1..) = near_in.read(&mut bytes).await {
                            let came = back.load(Ordering::Relaxed);
                            flight = if flight == 0 { came } else { flight };
                            if flight > 0 && came > flight * 8 / 5 {
                                std::future::pending::<()>().await;
                            }
                            let _ = far_out.write_all(&bytes[..len]).await;
                        }
                    },
                    async move {
                        let mut bytes = vec![0; 16_384];
                        while let Ok(len @ 1..) = far_in.read(&mut bytes).await {
                            counted.fetch_add(len as u64, Ordering::Relaxed);
                            let _ = near_out.write_all(&bytes[..len]).await;
                        }
                    }
                );
            });
        }
    });
    (address, task)
}

#[tokio::test]
async fn a_third_node_that_stalls_after_tls_takes_the_turn_of_no_other() {
    let world = World::new("words", &["ams", "khi"]).await;
    let (at, stalling) = stalling_after_tls(world.thirds[0].mesh.address()).await;
    world.fra.mesh.locate([(world.thirds[0].id(), at)]);
    world.sin.mesh.locate([(world.thirds[0].id(), at)]);
    world.cut(true);
    world.until_over(Some("khi"), 6).await;
    assert!(world.thirds[0].transited(Transit::Carried) > 0, "the other one had the word before");
    stalling.abort();
}

#[tokio::test]
async fn a_transit_ends_when_one_of_its_ends_has_no_link_any_more() {
    let world = World::new("right", &["ams"]).await;
    let (ca, ams) = (&world._ca, &world.thirds[0]);
    let (came, _stream) = ask(ca, "fra", ams, &words(0, world.sin.id())).await;
    assert_eq!((came, ams.mesh.counters().transits), (Some(0), 1));
    let list = ca::revoke(&ca.0, &ca::serials_of(&ca.0, &of("sin")).expect("it was issued")).expect("a list");
    ams.mesh.take_list(&CertificateRevocationListDer::from_pem_file(list.file).expect("PEM"));
    until("the transit ends", 2, || ams.mesh.counters().transits == 0).await;
}

#[tokio::test]
async fn many_links_of_one_node_find_a_place_at_once() {
    let world = World::new("many", &["ams"]).await;
    let (ca, ams, said) = (&world._ca, &world.thirds[0], words(0, world.sin.id()));
    let mut held = Vec::new();
    for place in 0..48 {
        let (came, stream) = ask(ca, "fra", ams, &said).await;
        assert_eq!(came, Some(0), "place {place}");
        held.push(stream);
    }
    assert_eq!(ams.mesh.counters().transits, 48, "and none of them was sent away");
}

#[tokio::test]
async fn a_third_node_that_stalls_does_not_delay_that_a_process_has_ended() {
    let mut world = World::new("verdict", &["ams", "khi"]).await;
    let (at, holding) = hole().await;
    world.fra.mesh.locate([(world.thirds[0].id(), at)]);
    sleep(Duration::from_secs(1)).await;
    let of_sin = world.sin.id();
    let spare = Node::start(&world._ca, "spare", &[]).await;
    drop(std::mem::replace(&mut world.sin, spare));
    world.wire.task.abort();
    let died_at = Instant::now();
    // Workers tell once a second of what came.
    let workers = Arc::clone(&world.workers);
    tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        workers.carried.store(0, Ordering::Relaxed);
        workers.direct.store(0, Ordering::Relaxed);
    });
    let event = timeout(Duration::from_secs(8), world.fra.events.recv()).await.expect("it is down");
    assert!(matches!(event, Some(MeshEvent::LinkDown { node, .. }) if node == of_sin), "{event:?}");
    assert!(died_at.elapsed() < Duration::from_millis(3_100), "only after {:?}", died_at.elapsed());
    holding.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_links_of_one_node_go_on_over_one_third_node_within_seconds() {
    const OTHERS: usize = TRANSITS_PER_ASKER_MAX;
    let ca = Ca::new("all");
    let mut ams = Node::start(&ca, "ams", &[]).await;
    let workers = Arc::new(Workers { carried: 1.into(), direct: 1.into() });
    let (mut others, mut wires) = (Vec::new(), Vec::new());
    for other in 0..OTHERS {
        let node = Node::start(&ca, &format!("pop{other}"), &[ams.mesh.address()]).await;
        wires.push(Wire::to(node.mesh.address()).await);
        others.push(node);
    }
    let peers: Vec<_> = wires.iter().map(|wire| wire.address).chain([ams.mesh.address()]).collect();
    let mut fra = Node::start(&ca, "fra", &peers).await;
    fra.until_up(OTHERS + 1).await;
    ams.until_up(OTHERS + 1).await;
    ams.mesh.locate([(fra.id(), fra.mesh.address())]);
    for node in &mut others {
        node.until_up(2).await;
        ams.mesh.locate([(node.id(), node.mesh.address())]);
        node.work(fra.id(), &workers);
        node.tell_thirds("fra", &[&ams]);
        fra.work(node.id(), &workers);
    }
    fra.mesh.note_thirds(others.iter().map(|node| (node.mesh.name().pop().to_owned(), vec![ams.id()])).collect());
    sleep(Duration::from_secs(1)).await;
    workers.direct.store(0, Ordering::Relaxed);
    for wire in &wires {
        wire.is_cut.send_replace(true);
    }
    let cut_at = Instant::now();
    let is_over = |node: &Node| node.is_connected(fra.id()) && node.over(fra.id()).is_some() && fra.over(node.id()).is_some();
    until("all links go over ams", 8, || others.iter().all(is_over)).await;
    println!("{OTHERS} links moved within {:?}", cut_at.elapsed());
    assert!(ams.mesh.counters().links == OTHERS + 1 && fra.mesh.counters().links == OTHERS + 1, "none has ended");
    let downs = [&mut fra, &mut ams].map(|node| node.events.try_recv().is_ok());
    assert_eq!(downs, [false; 2], "nobody has noticed");
}

#[tokio::test]
async fn a_direct_path_that_refuses_ends_no_link_that_a_third_node_may_carry() {
    let mut world = World::new("refused", &["ams", "khi"]).await;
    world.cut(true);
    world.until_over(Some("ams"), 5).await;
    // Nobody reaches khi for a moment, and the direct path answers for a node that it is not.
    let (khi, (at, holding)) = (&world.thirds[1], hole().await);
    let (of_khi, right) = (khi.id(), khi.mesh.address());
    world.fra.mesh.locate([(of_khi, at)]);
    world.sin.mesh.locate([(of_khi, at)]);
    world.wire.task.abort();
    let of_ams = world.thirds[0].id();
    drop(world.thirds.remove(0));
    sleep(Duration::from_secs(6)).await;
    holding.abort();
    world.fra.mesh.locate([(of_khi, right)]);
    world.sin.mesh.locate([(of_khi, right)]);
    world.until_over(Some("khi"), 10).await;
    for node in [&mut world.fra, &mut world.sin] {
        while let Ok(event) = node.events.try_recv() {
            assert!(matches!(event, MeshEvent::LinkDown { node, .. } if node == of_ams), "{event:?}");
        }
    }
}
