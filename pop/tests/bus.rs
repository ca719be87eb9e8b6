//! Buses of several nodes in one process, over loopback, with the real zenoh between them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use pop::bus::{Bus, BusEvent, BusEvents, BusSettings, Gone, Ignored, NodeRecord, SCHEMA, encode_participant};
use pop::config::Config;
use pop::mesh::MeshIdentity;
use pop_schemas::{Identity, Incarnation, NodeId, ParticipantId, SessionId};
use pop_session::Kind;
use pop_session::member::Permissions;
use pop_session::presence::{LocalRecord, Manifest, Version};

const POP: &str = "lab";

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has ports");
    listener.local_addr().expect("it is bound")
}

fn room() -> SessionId {
    SessionId::new("room").expect("a name")
}

fn local(participant: u64, counter: u32) -> LocalRecord {
    let manifest = Manifest::new(Identity::new(&format!("who-{participant}")).expect("a name"), Kind::Publisher, Permissions::PUBLISHER);
    LocalRecord { participant: ParticipantId(participant), version: Version { epoch: 0, counter }, manifest: Some(manifest) }
}

fn left(participant: u64, counter: u32) -> LocalRecord {
    LocalRecord { manifest: None, ..local(participant, counter) }
}

/// A node of the test, and what it has heard.
struct Node {
    bus: Bus,
    events: BusEvents,
    id: NodeId,
    incarnation: Incarnation,
    /// Participants of others that are here, with their counters.
    others: BTreeMap<(NodeId, u64), u32>,
    up: BTreeMap<NodeId, NodeRecord>,
    gone: Vec<(NodeId, Gone)>,
    duplicates: Vec<Incarnation>,
    /// Participants that were said to have left.
    left: usize,
}

fn settings(name: &str, listen: &[SocketAddr], connect: &[SocketAddr]) -> BusSettings {
    BusSettings {
        pop: POP.to_owned(),
        name: name.to_owned(),
        listen: listen.to_vec(),
        connect: connect.to_vec(),
        tls: None,
        schema: SCHEMA,
    }
}

fn node_record(name: &str, incarnation: Incarnation) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        pop: POP.into(),
        node: NodeId::of(POP, name),
        incarnation,
        mesh: Some("127.0.0.1:7890".parse().expect("an address")),
        release: "test".into(),
        load: 0,
        capacity: 100,
        draining: false,
        vips: Vec::new(),
    }
}

impl Node {
    async fn start(name: &str, start: u64, listen: &[SocketAddr], connect: &[SocketAddr]) -> Node {
        Node::start_with(name, start, &settings(name, listen, connect)).await
    }

    async fn start_with(name: &str, start: u64, settings: &BusSettings) -> Node {
        let (id, incarnation) = (NodeId::of(POP, name), Incarnation { start, nonce: start ^ 0x5a5a });
        let (bus, events) = Bus::open(settings, id, incarnation).await.expect("the bus opens");
        bus.put_node(node_record(name, incarnation));
        bus.watch(&room());
        let (others, up) = (BTreeMap::new(), BTreeMap::new());
        Node { bus, events, id, incarnation, others, up, gone: Vec::new(), duplicates: Vec::new(), left: 0 }
    }

    fn put(&self, record: &LocalRecord) {
        self.bus.put_participant(&room(), record).expect("it is bounded");
    }

    fn apply(&mut self, event: BusEvent) {
        match event {
            BusEvent::Record { session, record } => {
                assert_eq!(session, room());
                let key = (NodeId(record.key.node), record.key.participant.0);
                match record.manifest {
                    Some(_) => drop(self.others.insert(key, record.version.counter)),
                    None => {
                        self.others.remove(&key);
                        self.left += 1;
                    }
                }
            }
            BusEvent::NodeUp(record) | BusEvent::NodeChanged(record) => drop(self.up.insert(record.node, record)),
            BusEvent::NodeGone { node, why } => {
                self.up.remove(&node);
                self.others.retain(|(of, _), _| *of != node);
                self.gone.push((node, why));
            }
            BusEvent::Duplicate { theirs, .. } => self.duplicates.push(theirs),
            BusEvent::Keep(_) => {}
        }
    }

    /// Takes events until `is_so`; how long that took.
    async fn until(&mut self, what: &str, wait_max: Duration, is_so: impl Fn(&Node) -> bool) -> Duration {
        let begun = Instant::now();
        while !is_so(self) {
            let left = wait_max.saturating_sub(begun.elapsed());
            match tokio::time::timeout(left, self.events.recv()).await {
                Ok(event) => self.apply(event.expect("the bus is open")),
                Err(_) => panic!(
                    "not within {wait_max:?}: {what}; others {:?}, up {:?}, gone {:?}, {:?}",
                    self.others,
                    self.up.keys(),
                    self.gone,
                    self.bus.counters()
                ),
            }
        }
        begun.elapsed()
    }

    /// Takes what comes in so long.
    async fn listen(&mut self, time: Duration) {
        let over = Instant::now() + time;
        while let Ok(event) = tokio::time::timeout(over.saturating_duration_since(Instant::now()), self.events.recv()).await {
            self.apply(event.expect("the bus is open"));
        }
    }

    fn ids(&self) -> Vec<u64> {
        self.others.keys().map(|(_, id)| *id).collect()
    }
}

const SOON: Duration = Duration::from_secs(3);

async fn pair() -> (Node, Node) {
    let address = free_address();
    let mut a = Node::start("a", 1, &[address], &[]).await;
    let mut b = Node::start("b", 1, &[], &[address]).await;
    a.until("b is up", SOON, |a| a.up.len() == 1).await;
    b.until("a is up", SOON, |b| b.up.len() == 1).await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_know_each_others_participants_and_a_late_one_resyncs() {
    let addresses = [free_address(), free_address()];
    // Begins alone: whom it connects to is not there yet.
    let mut b = Node::start("b", 1, &[addresses[1]], &[addresses[0]]).await;
    b.put(&local(20, 1));
    let mut a = Node::start("a", 1, &[addresses[0]], &[]).await;
    a.put(&local(10, 1));
    a.put(&local(11, 1));
    a.until("b's participant", SOON, |a| a.ids() == [20]).await;
    b.until("a's participants", SOON, |b| b.ids() == [10, 11]).await;
    a.put(&local(10, 2));
    a.put(&left(11, 2));
    b.until("what a changed", SOON, |b| b.others == [((a.id, 10), 2)].into()).await;

    let mut c = Node::start("c", 1, &[], &addresses).await;
    c.put(&local(30, 1));
    let mut expected = [(a.id, 10), (b.id, 20)];
    expected.sort();
    c.until("both others", SOON, |c| c.others.keys().copied().eq(expected.iter().copied())).await;
    a.until("c's participant", SOON, |a| a.others.contains_key(&(c.id, 30))).await;
    b.until("c's participant", SOON, |b| b.others.contains_key(&(c.id, 30))).await;

    b.bus.put_node(NodeRecord { draining: true, load: 700, ..node_record("b", b.incarnation) });
    a.until("that b drains", SOON, |a| a.up.get(&NodeId::of(POP, "b")).is_some_and(|b| b.draining && b.load == 700)).await;

    // Who no longer watches hears nothing; who does again hears all.
    a.bus.unwatch(&room());
    b.put(&local(21, 1));
    c.until("b's new one", SOON, |c| c.others.contains_key(&(b.id, 21))).await;
    a.others.clear();
    a.bus.watch(&room());
    a.until("all again", SOON, |a| a.others.len() == 3).await;
}

/// Zenoh's thread answers a question for another node by itself, and must not wait there for what only it could free. Tests run with its
/// one thread as nodes do (`.cargo/config.toml`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_meet_lose_no_connection() {
    const NODES: u64 = 5;
    assert_eq!(std::env::var("ZENOH_RUNTIME").as_deref(), Ok(pop::bus::RUNTIME));
    let addresses: Vec<SocketAddr> = (0..NODES).map(|_| free_address()).collect();
    let mut nodes = Vec::new();
    for at in 0..addresses.len() {
        let others: Vec<SocketAddr> = addresses.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, address)| *address).collect();
        let node = Node::start(&format!("node-{at}"), 1_000, &addresses[at..=at], &others).await;
        node.put(&local(at as u64 + 1, 1));
        nodes.push(node);
    }
    for node in &mut nodes {
        node.until("everybody is here", Duration::from_secs(10), |node| {
            node.up.len() == addresses.len() - 1 && node.others.len() == addresses.len() - 1
        })
        .await;
    }
    for node in &mut nodes {
        node.listen(Duration::from_millis(300)).await;
        assert!(node.gone.is_empty(), "{:?}", node.gone);
    }
}

/// What a node hears of is told to each other node when they meet, all of it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_host_thousands_of_rooms_meet() {
    const ROOMS: u64 = 2_000;
    let address = free_address();
    let mut a = Node::start("a", 1_000, &[address], &[]).await;
    for room in 0..ROOMS {
        a.bus.watch(&SessionId::new(&format!("a room whose name is of some length, number {room}")).expect("a name"));
    }
    let mut b = Node::start("b", 1_000, &[], &[address]).await;
    b.put(&local(2, 1));
    let took =
        a.until("b and its participant are here", Duration::from_secs(10), |node| node.up.len() == 1 && node.others.len() == 1).await;
    println!("{ROOMS} rooms: b is here {took:?} after it began");
    a.listen(Duration::from_millis(700)).await;
    b.listen(Duration::from_millis(10)).await;
    assert!(a.gone.is_empty() && b.gone.is_empty(), "{:?}, {:?}", a.gone, b.gone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_is_gone_and_one_that_starts_again_takes_its_own_place() {
    let address = free_address();
    let mut a = Node::start("a", 1, &[address], &[]).await;
    let b = Node::start("b", 1, &[], &[address]).await;
    b.put(&local(20, 1));
    a.until("b's participant", SOON, |a| a.ids() == [20]).await;
    let id = b.id;
    drop(b);
    let took = a.until("b is gone", Duration::from_millis(500), |a| a.gone == [(id, Gone::Left)]).await;
    println!("a node that leaves is gone after {took:?}");
    assert!(a.others.is_empty());

    // Two starts of one node at once: the later one replaces the earlier, which hears so.
    let old = Node::start("b", 2, &[], &[address]).await;
    old.put(&local(20, 1));
    a.until("b is back", SOON, |a| a.ids() == [20]).await;
    let begun = Instant::now();
    let mut new = Node::start("b", 3, &[free_address()], &[address]).await;
    println!("a bus opens within {:?}", begun.elapsed());
    let begun = Instant::now();
    new.put(&local(21, 1));
    a.until("the new b", SOON, |a| a.ids() == [21]).await;
    println!("a node that starts again replaces itself after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert!(a.gone.contains(&(id, Gone::Restarted)), "{:?}", a.gone);
    // What the old one says has no effect any longer. It reaches the new one by way of nobody: both are connected to a alone.
    old.put(&local(22, 1));
    tokio::time::sleep(Duration::from_millis(300)).await;
    a.put(&local(10, 1));
    new.until("a's participant", SOON, |new| new.ids() == [10]).await;
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(10), a.events.recv()).await {
        a.apply(event);
    }
    assert_eq!(a.ids(), [21]);
    assert!(a.bus.counters().ignored(Ignored::Older) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_with_one_id_the_earlier_hears_that_it_has_to_stop() {
    let address = free_address();
    let mut first = Node::start("a", 5, &[address], &[]).await;
    let mut second = Node::start("a", 6, &[], &[address]).await;
    let theirs = second.incarnation;
    first.until("it is a duplicate", SOON, |first| first.duplicates == [theirs]).await;
    let begun = Instant::now();
    while second.bus.counters().duplicates() == 0 {
        assert!(begun.elapsed() < SOON, "the other one has not heard of it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(10), second.events.recv()).await {
        second.apply(event);
    }
    assert!(second.duplicates.is_empty(), "and goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_says_first_who_has_left() {
    const PEOPLE: u64 = 2_000;
    let (a, mut b) = pair().await;
    (0..PEOPLE).for_each(|id| a.put(&local(id, 1)));
    b.until("all are here", SOON, |b| b.others.len() == PEOPLE as usize).await;
    (0..PEOPLE).for_each(|id| a.put(&left(id, 2)));
    let begun = Instant::now();
    a.bus.leave().await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    b.until("a is gone", SOON, |b| !b.gone.is_empty()).await;
    assert_eq!((b.left, b.gone.as_slice()), (PEOPLE as usize, [(a.id, Gone::Left)].as_slice()), "each one, before the node");
    a.bus.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forged_is_counted_and_changes_nothing() {
    let (mut a, b) = pair().await;
    b.put(&local(20, 1));
    a.until("b's participant", SOON, |a| a.ids() == [20]).await;
    // A third one on the bus that obeys no rule. It listens, so that its puts have somewhere to go.
    let address = free_address();
    let mut c = Node::start("c", 1, &[address], &[]).await;
    let config = format!(
        "{{mode: 'peer', connect: {{endpoints: ['tcp/{address}']}}, listen: {{endpoints: []}},
          scouting: {{multicast: {{enabled: false}}, gossip: {{enabled: false}}}}}}"
    );
    let forger = zenoh::open(zenoh::Config::from_json5(&config).expect("a config")).await.expect("it opens");
    let key = |node: NodeId, participant: u64| format!("pop/{POP}/session/1a/room/participant/{node}/{participant:016x}");
    let honest = encode_participant(b.id, b.incarnation, &local(66, 9), SCHEMA).expect("it is bounded");
    let counters = c.bus.counters();
    let count = |why| counters.ignored(why);
    let cases = [
        (key(a.id, 66), honest.clone(), Ignored::Foreign),
        (key(b.id, 67), honest.clone(), Ignored::Foreign),
        (key(b.id, 66), honest.clone(), Ignored::UnknownNode),
        (key(b.id, 66), honest[..honest.len() - 9].to_vec(), Ignored::Malformed),
        (format!("pop/{POP}/session/1a/room/participant/x/y"), honest.clone(), Ignored::Malformed),
        (key(b.id, 66), vec![0; pop::bus::RECORD_LEN_MAX + 1], Ignored::TooLarge),
        (format!("pop/{POP}/node/{}", b.id), honest.clone(), Ignored::Malformed),
        (format!("pop/{POP}/beat/{}", b.id), vec![7; 3], Ignored::Malformed),
    ];
    for (i, (key, bytes, why)) in cases.into_iter().enumerate() {
        let before = count(why);
        let begun = Instant::now();
        // The first may come before the subscription is known to the forger.
        while count(why) == before {
            assert!(begun.elapsed() < SOON, "case {i} is not counted as {why:?}: {counters:?}");
            forger.put(&key, bytes.clone()).await.expect("it is sent");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    forger.delete(key(b.id, 20)).await.expect("it is sent");
    let nothing = tokio::time::timeout(Duration::from_millis(100), c.events.recv()).await;
    assert!(nothing.is_err(), "{nothing:?}");
}

/// Carries TCP connections to `target`, while it does.
struct Proxy {
    address: SocketAddr,
    /// From those who connect, and to them.
    passes: [Arc<AtomicBool>; 2],
}

impl Proxy {
    fn start(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        let passes = [Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true))];
        let both = passes.clone();
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target) else { continue };
                let copies = [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))];
                for ((from, to), passes) in copies.into_iter().zip(both.clone()) {
                    thread::spawn(move || Proxy::carry(from.expect("a copy"), to.expect("a copy"), &passes));
                }
            }
        });
        Proxy { address, passes }
    }

    fn carry(mut from: TcpStream, mut to: TcpStream, passes: &AtomicBool) {
        let mut buffer = [0; 65_536];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            // What is on the way waits, as TCP's would; also the end of a connection is not seen.
            while !passes.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
            if to.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        while !passes.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    fn pass(&self, from: bool, to: bool) {
        self.passes[0].store(from, Ordering::Relaxed);
        self.passes[1].store(to, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_heals_to_equal_sets() {
    let address = free_address();
    let mut a = Node::start("a", 1, &[address], &[]).await;
    let proxy = Proxy::start(address);
    let mut b = Node::start("b", 1, &[], &[proxy.address]).await;
    for id in 0..20 {
        a.put(&local(100 + id, 1));
        b.put(&local(200 + id, 1));
    }
    a.until("b's", SOON, |a| a.others.len() == 20).await;
    b.until("a's", SOON, |b| b.others.len() == 20).await;
    let cuts = [("both ways", (false, false)), ("to the one that listens", (false, true)), ("to the one that connects", (true, false))];
    for (version, (way, cut)) in (10..).zip(cuts) {
        proxy.pass(cut.0, cut.1);
        a.gone.clear();
        b.gone.clear();
        // Who hears nothing knows soon; the other one when it is told so by the end of the connection.
        let wait_max = Duration::from_millis(900);
        let cut_at = Instant::now();
        match cut {
            (false, false) => {
                b.until("a is gone", wait_max, |b| !b.gone.is_empty()).await;
                a.until("b is gone", wait_max, |a| !a.gone.is_empty()).await
            }
            (false, true) => a.until("b is gone", wait_max, |a| !a.gone.is_empty()).await,
            _ => b.until("a is gone", wait_max, |b| !b.gone.is_empty()).await,
        };
        let took = cut_at.elapsed();
        println!("cut {way}: seen after {took:?}");
        // Both go on by themselves: one leaves, one comes, one changes.
        for (node, base) in [(&a, 100), (&b, 200)] {
            node.put(&left(base, 10));
            node.put(&local(base + 1, version));
            node.put(&local(base + 30, version));
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        let healed = Instant::now();
        proxy.pass(true, true);
        let (ours, theirs) = (a.id, b.id);
        let is_whole = |node: &Node, of: NodeId, base: u64| {
            node.others.len() == 20 && node.others.get(&(of, base + 1)) == Some(&version) && !node.others.contains_key(&(of, base))
        };
        a.until("b's set", SOON, |a| is_whole(a, theirs, 200)).await;
        b.until("a's set", SOON, |b| is_whole(b, ours, 100)).await;
        println!("cut {way}: equal sets {:?} after the heal", healed.elapsed());
        assert!(healed.elapsed() < Duration::from_millis(1_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_known_within_milliseconds_and_a_crowd_within_a_second() {
    let (a, mut b) = pair().await;
    let mut latencies = Vec::new();
    for counter in 1..=500 {
        let begun = Instant::now();
        a.put(&local(1, counter));
        b.until("the change", SOON, |b| b.others.get(&(a.id, 1)) == Some(&counter)).await;
        latencies.push(begun.elapsed());
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    latencies.sort();
    println!("put to event: p50 {:?}, p99 {:?}, max {:?}", latencies[250], latencies[495], latencies[499]);
    assert!(latencies[250] < Duration::from_millis(20), "{:?}", latencies[250]);

    let begun = Instant::now();
    for id in 1_000..11_000 {
        a.put(&local(id, 1));
    }
    b.until("all 10,000", Duration::from_secs(10), |b| b.others.len() == 10_001).await;
    println!("10,000 participants put after {:?}", begun.elapsed());
    b.bus.unwatch(&room());
    b.others.clear();
    let begun = Instant::now();
    b.bus.watch(&room());
    b.until("all again", Duration::from_secs(10), |b| b.others.len() == 10_001).await;
    println!("10,000 participants read after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_connections_and_is_not_on_the_bus_is_met_by_entering_it_anew() {
    // What zenoh believes to have is not there: it takes connections, and says nothing.
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has ports");
    let (address_of_b, mute_address) = (free_address(), mute.local_addr().expect("it is bound"));
    let mut a = Node::start("a", 1, &[], &[address_of_b, mute_address]).await;
    let mut b = Node::start("b", 1, &[address_of_b], &[]).await;
    a.put(&local(10, 1));
    b.until("a's participant", SOON, |b| b.ids() == [10]).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while a.bus.counters().entered_anew() == 0 {
        assert!(Instant::now() < deadline, "a looks for who is missing");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Whom it knew it knows again, and others it.
    b.until("a is away from the bus", SOON, |b| !b.gone.is_empty()).await;
    b.until("a with its people", SOON, |b| b.ids() == [10]).await;
    b.put(&local(20, 1));
    a.until("b's participant", SOON, |a| a.ids() == [20]).await;
    assert_eq!((a.bus.counters().entered_anew(), b.bus.counters().entered_anew()), (1, 0));
}

/// A CA and a certificate of it, in files of `folder`.
fn certificates(folder: &Path, ca: &str) -> (PathBuf, PathBuf, PathBuf) {
    certificates_for(folder, ca, &[Duration::from_secs(3_600)]).remove(0)
}

/// A CA and certificates of it that hold for so long, in files of `folder`.
fn certificates_for(folder: &Path, ca: &str, lives: &[Duration]) -> Vec<(PathBuf, PathBuf, PathBuf)> {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, ca);
    let ca_certificate = params.self_signed(&ca_key).expect("it signs itself");
    let issuer = Issuer::new(params, ca_key);
    let issued = lives.iter().enumerate().map(|(n, life)| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![format!("a.{POP}.pop.internal")]).expect("a name");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        (params.not_before, params.not_after) = (epoch + (now - Duration::from_secs(60)), epoch + (now + *life));
        let certificate = params.signed_by(&key, &issuer).expect("it signs");
        let write = |what: &str, text: String| {
            let path = folder.join(format!("{ca}-{what}-{n}.pem"));
            std::fs::write(&path, text).expect("the folder takes files");
            // A node takes no key that everybody may read.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
            path
        };
        (write("ca", ca_certificate.pem()), write("node", certificate.pem()), write("key", key.serialize_pem()))
    });
    issued.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_enters_anew_with_another_certificate_outlives_the_one_of_before() {
    pop::dtls::install_crypto_provider();
    let folder = std::env::temp_dir().join(format!("pop-bus-anew-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is a place for files");
    let life = Duration::from_secs(4);
    let mut issued = certificates_for(&folder, "ours", &[life, Duration::from_secs(3_600)]).into_iter();
    let (short, long) = (issued.next().expect("two"), issued.next().expect("two"));
    let address = free_address();
    let begun = Instant::now();
    let of_a = |files: &(PathBuf, PathBuf, PathBuf)| BusSettings { tls: Some(files.clone()), ..settings("a", &[address], &[]) };
    let mut a = Node::start_with("a", 1, &of_a(&short)).await;
    let mut b = Node::start_with("b", 1, &BusSettings { tls: Some(long.clone()), ..settings("b", &[], &[address]) }).await;
    a.put(&local(10, 1));
    b.put(&local(20, 1));
    a.until("b's participant", SOON, |a| a.ids() == [20]).await;
    b.until("a's participant", SOON, |b| b.ids() == [10]).await;
    a.bus.enter_anew(of_a(&long));
    // What is put while it is away from the bus is told when it is back.
    a.put(&local(11, 1));
    b.until("a is away from the bus", SOON, |b| !b.gone.is_empty()).await;
    let away = b.until("a with all of its people", SOON, |b| b.ids() == [10, 11]).await;
    println!("back on the bus after {away:?}");
    // By then b's connection of before would have ended, and no other could be made.
    let until = begun + life + Duration::from_secs(2);
    tokio::time::sleep(until.saturating_duration_since(Instant::now())).await;
    let gone = b.gone.len();
    a.put(&local(12, 1));
    b.put(&local(21, 1));
    b.until("a's last participant", SOON, |b| b.ids() == [10, 11, 12]).await;
    a.until("b's last participant", SOON, |a| a.ids() == [20, 21]).await;
    assert_eq!(b.gone.len(), gone, "and a was there all the time");
    std::fs::remove_dir_all(&folder).expect("it is ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_ca_for_each_pop_no_node_of_another_one_is_let_in() {
    pop::dtls::install_crypto_provider();
    let folder = std::env::temp_dir().join(format!("pop-bus-pops-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is a place for files");
    let (ours, theirs) = (certificates(&folder, "ours"), certificates(&folder, "theirs"));
    let both = folder.join("both.pem");
    let pem = |path: &Path| std::fs::read_to_string(path).expect("it is there");
    std::fs::write(&both, pem(&ours.0) + &pem(&theirs.0)).expect("the folder takes files");
    let of = |name: &str, bus_ca: Option<&Path>, (_, cert, key): &(PathBuf, PathBuf, PathBuf)| {
        let bus_ca = bus_ca.map(|ca| format!("ca = {ca:?}\n")).unwrap_or_default();
        let bus = format!("[bus]\nlisten = [\"{}\"]\n{bus_ca}", free_address());
        let text = format!("[node]\nname = {name:?}\npop = {POP:?}\n{bus}[mesh]\nca = {both:?}\ncert = {cert:?}\nkey = {key:?}\n");
        Config::parse(&text, Path::new("pop.toml")).expect("it is whole")
    };
    let connecting =
        |config: &Config, connect: SocketAddr| BusSettings { connect: vec![connect], ..BusSettings::of(config).expect("it has a bus") };
    // The stranger listens, too, and believes everybody.
    let (of_stranger, of_a) = (of("stranger", None, &theirs), of("a", Some(&ours.0), &ours));
    let (at_stranger, at_a) = (of_stranger.bus.listen[0], of_a.bus.listen[0]);
    MeshIdentity::of(&of_a).expect("its certificate is of both");
    let error = MeshIdentity::of(&of("a", Some(&theirs.0), &ours)).expect_err("nobody would let it in");
    assert!(error.contains("is not of the CA in bus.ca"), "{error}");

    let mut stranger = Node::start_with("stranger", 1, &connecting(&of_stranger, at_a)).await;
    let mut a = Node::start_with("a", 1, &connecting(&of_a, at_stranger)).await;
    let mut b = Node::start_with("b", 1, &connecting(&of("b", Some(&ours.0), &ours), at_a)).await;
    // Has our certificate and no `bus.ca`: what the stranger says does arrive where it is let in.
    let mut lax = Node::start_with("lax", 1, &connecting(&of("lax", None, &ours), at_stranger)).await;
    for node in [&stranger, &b, &lax] {
        node.put(&local(20, 1));
    }
    lax.until("the stranger's participant", SOON, |lax| !lax.others.is_empty()).await;
    stranger.until("lax's participant", SOON, |stranger| !stranger.others.is_empty()).await;
    a.until("b's participant", SOON, |a| a.others.len() == 1).await;
    a.put(&local(10, 1));
    b.until("a's participant", SOON, |b| b.ids() == [10]).await;
    for node in [&mut a, &mut b, &mut stranger] {
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(10), node.events.recv()).await {
            node.apply(event);
        }
    }
    assert_eq!(a.up.keys().copied().collect::<Vec<_>>(), [b.id], "nobody else came in");
    assert_eq!(stranger.up.keys().copied().collect::<Vec<_>>(), [lax.id], "nor was told anything");
    assert!(a.gone.is_empty() && b.gone.is_empty(), "and nobody was disturbed");
    std::fs::remove_dir_all(&folder).expect("it is ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_the_operators_ca_is_let_in_and_no_other() {
    pop::dtls::install_crypto_provider();
    let folder = std::env::temp_dir().join(format!("pop-bus-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is a place for files");
    let (ours, foreign) = (certificates(&folder, "ours"), certificates(&folder, "foreign"));
    let address = free_address();
    let secured = |name: &str, tls: &(PathBuf, PathBuf, PathBuf), listen: &[SocketAddr], connect: &[SocketAddr]| BusSettings {
        tls: Some(tls.clone()),
        ..settings(name, listen, connect)
    };
    let mut a = Node::start_with("a", 1, &secured("a", &ours, &[address], &[])).await;
    let stranger = Node::start_with("stranger", 1, &secured("stranger", &foreign, &[], &[address])).await;
    let naked = Node::start("naked", 1, &[], &[address]).await;
    // Knows our CA, and has a certificate of another one.
    let borrowed = (ours.0.clone(), foreign.1.clone(), foreign.2.clone());
    let borrower = Node::start_with("borrower", 1, &secured("borrower", &borrowed, &[], &[address])).await;
    let mut b = Node::start_with("b", 1, &secured("b", &ours, &[], &[address])).await;
    for node in [&stranger, &naked, &borrower, &b] {
        node.put(&local(20, 1));
    }
    a.until("b's participant", SOON, |a| a.others.len() == 1).await;
    a.put(&local(10, 1));
    b.until("a's participant", SOON, |b| b.ids() == [10]).await;
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(10), a.events.recv()).await {
        a.apply(event);
    }
    assert_eq!(a.up.keys().copied().collect::<Vec<_>>(), [b.id], "nobody else came in");
    std::fs::remove_dir_all(&folder).expect("it is ours");
}
