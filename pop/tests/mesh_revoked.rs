//! A certificate that its CA has taken back: all links of whoever has it end everywhere, and none comes to be.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pop::ca::{self, Request};
use pop::mesh::{Ended, Grants, Listed, Mesh, MeshEvent, MeshFiles, MeshIdentity, MeshSettings, NodeName, Refusal};
use pop_relay::control::{self, Message, Want};
use pop_schemas::{Incarnation, NodeId, SessionId, TrackId};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep, timeout};

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Ca(PathBuf);

impl Ca {
    fn new(name: &str) -> Ca {
        let folder = std::env::temp_dir().join(format!("pop-revoked-{}-{name}", std::process::id()));
        ca::init(&folder, "operator", false).expect("a new folder");
        Ca(folder)
    }

    fn issue(&self, name: &NodeName) -> MeshFiles {
        let request = Request { name: name.clone(), days: 1, addresses: Vec::new(), api_keys: Grants::none() };
        let made = ca::issue(&self.0, &ca::default_out(&self.0, name), &request, true).expect("a certificate");
        MeshFiles { ca: made.ca, cert: made.cert, key: made.key }
    }

    fn revoke(&self, name: &NodeName) -> Vec<u8> {
        let list = ca::revoke(&self.0, &ca::serials_of(&self.0, name).expect("it was issued")).expect("a list");
        CertificateRevocationListDer::from_pem_file(list.file).expect("PEM").to_vec()
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn of(pop: &str) -> NodeName {
    NodeName::new("a", pop).expect("a plain name")
}

struct Node {
    mesh: Mesh,
    events: Receiver<MeshEvent>,
}

impl Node {
    /// Of whatever certificate it was issued last.
    async fn start(ca: &Ca, pop: &str, start: u64, peers: &[SocketAddr]) -> Node {
        let (name, out) = (of(pop), ca::default_out(&ca.0, &of(pop)));
        // Of more CAs than its own, where the test has written so.
        let believed = Some(ca.0.join("believed.pem")).filter(|file| file.exists());
        let files =
            MeshFiles { ca: believed.unwrap_or_else(|| ca.0.join("ca.pem")), cert: out.join("node.pem"), key: out.join("node.key") };
        let settings = MeshSettings {
            listen: LOOPBACK,
            identity: MeshIdentity::load(&files, &name).expect("right files"),
            incarnation: Incarnation { start, nonce: start },
            workers: vec![(Ipv4Addr::LOCALHOST, 11_000).into()],
            peers: peers.to_vec(),
            playout: Duration::from_millis(150),
            schema: control::VERSION,
            revoked: None,
            kept: Some(ca.0.join(format!("{pop}-kept.pem"))),
        };
        let (mesh, events) = Mesh::start(settings).await.expect("a free port");
        Node { mesh, events }
    }

    fn id(&self) -> NodeId {
        self.mesh.name().id()
    }

    async fn until_up(&mut self, count: usize) {
        for _ in 0..count {
            let event = timeout(Duration::from_secs(8), self.events.recv()).await.expect("an event within 8 s");
            assert!(matches!(event, Some(MeshEvent::LinkUp { .. })), "{event:?}");
        }
    }

    fn links(&self) -> Vec<String> {
        let mut pops: Vec<_> = self.mesh.links().into_iter().map(|link| link.peer.pop).collect();
        pops.sort();
        pops
    }

    fn listed(&self, outcome: Listed) -> u64 {
        self.mesh.counters().listed[outcome as usize].1
    }
}

async fn until(what: &str, seconds: u64, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "{what}: not within {seconds} s");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_node_whose_certificate_is_taken_back_loses_all_links_and_gets_none() {
    let ca = Ca::new("ends");
    for pop in ["fra", "sin", "ams"] {
        ca.issue(&of(pop));
    }
    let mut fra = Node::start(&ca, "fra", 1, &[]).await;
    let mut sin = Node::start(&ca, "sin", 1, &[fra.mesh.address()]).await;
    let peers = [fra.mesh.address(), sin.mesh.address()];
    let mut ams = Node::start(&ca, "ams", 1, &peers).await;
    for node in [&mut fra, &mut sin, &mut ams] {
        node.until_up(2).await;
    }
    // One node is told.
    assert_eq!(fra.mesh.take_list(&ca.revoke(&of("ams"))), Listed::New);
    until("the others are without it", 5, || fra.links() == ["sin"] && sin.links() == ["fra"] && ams.links().is_empty()).await;
    assert_eq!((sin.listed(Listed::New), sin.mesh.counters().revoked), (1, 1));
    let event = sin.events.recv().await;
    assert!(matches!(event, Some(MeshEvent::LinkDown { node, why: Ended::Revoked }) if node == ams.id()), "{event:?}");
    until("it comes again and is refused", 5, || [&fra, &sin].iter().all(|node| node.mesh.counters().refused(Refusal::Revoked) >= 2)).await;
    assert!(ams.links().is_empty() && fra.links() == ["sin"]);
    let session = SessionId::new("stage").expect("a name");
    let want = Message::Want(Want { session, track: TrackId(1), worker: 0, origin: None });
    assert!(fra.mesh.send(sin.id(), &want), "the others go on");

    // It is remembered by who begins anew without anybody to tell.
    drop(fra);
    drop(sin);
    let sin = Node::start(&ca, "sin", 2, &[ams.mesh.address()]).await;
    until("it is refused", 5, || sin.mesh.counters().refused(Refusal::Revoked) >= 1).await;
    assert!(sin.links().is_empty());

    // A new certificate is another one.
    drop(ams);
    ca.issue(&of("ams"));
    let mut ams = Node::start(&ca, "ams", 2, &[sin.mesh.address()]).await;
    ams.until_up(1).await;
    assert_eq!(sin.links(), ["ams"]);
}

#[tokio::test]
async fn a_list_that_is_forged_or_old_counts_for_nothing_and_ends_nothing() {
    let (ca, foreign) = (Ca::new("own"), Ca::new("foreign"));
    for pop in ["fra", "sin"] {
        ca.issue(&of(pop));
        foreign.issue(&of(pop));
    }
    let mut fra = Node::start(&ca, "fra", 1, &[]).await;
    let mut sin = Node::start(&ca, "sin", 1, &[fra.mesh.address()]).await;
    fra.until_up(1).await;
    sin.until_up(1).await;
    ca.issue(&of("moon"));
    let (old, new) = (ca.revoke(&of("moon")), ca.revoke(&of("moon")));
    assert_eq!(fra.mesh.take_list(&new), Listed::New);
    until("the other one knows", 5, || sin.listed(Listed::New) == 1).await;
    // A node with a certificate says what it likes.
    let forged = foreign.revoke(&of("fra"));
    for (list, outcome) in [(old, Listed::Old), (new, Listed::Known), (forged, Listed::Forged), (vec![7; 100], Listed::Malformed)] {
        let before = sin.listed(outcome);
        assert!(fra.mesh.send(sin.id(), &Message::Revoked(list.into())));
        until("it is counted", 5, || sin.listed(outcome) == before + 1).await;
    }
    assert!(!fra.mesh.send(sin.id(), &Message::Revoked(vec![7; 128 * 1_024 + 1].into())), "that is no message");
    assert_eq!((sin.links(), fra.links(), sin.mesh.counters().revoked), (vec!["fra".to_owned()], vec!["sin".to_owned()], 1));
    assert!(sin.events.try_recv().is_err(), "nobody has noticed");
}

#[tokio::test]
async fn a_flood_of_other_lists_is_bounded_and_keeps_no_revocation_from_anybody() {
    let (ca, other, foreign) = (Ca::new("flooded"), Ca::new("floods"), Ca::new("unknown"));
    for pop in ["fra", "sin", "ams", "moon", "pluto"] {
        ca.issue(&of(pop));
    }
    ca.revoke(&of("pluto"));
    for pop in ["moon", "mars"] {
        other.issue(&of(pop));
    }
    foreign.issue(&of("moon"));
    let pem = |ca: &Ca| std::fs::read_to_string(ca.0.join("ca.pem")).expect("a CA");
    std::fs::write(ca.0.join("believed.pem"), pem(&ca) + &pem(&other)).expect("a file");
    let mut fra = Node::start(&ca, "fra", 1, &[]).await;
    let mut sin = Node::start(&ca, "sin", 1, &[fra.mesh.address()]).await;
    let mut ams = Node::start(&ca, "ams", 1, &[fra.mesh.address(), sin.mesh.address()]).await;
    for node in [&mut fra, &mut sin, &mut ams] {
        node.until_up(2).await;
    }
    // One is of nobody whom sin believes, and one has a CA; each of their lists is another one.
    let tell = |list: Vec<u8>| assert!(fra.mesh.send(sin.id(), &Message::Revoked(list.into())));
    (0..150).for_each(|_| tell(foreign.revoke(&of("moon"))));
    (0..50).for_each(|_| tell(other.revoke(&of("moon"))));
    assert_eq!(ams.mesh.take_list(&ca.revoke(&of("moon"))), Listed::New);
    (0..50).for_each(|_| tell(other.revoke(&of("moon"))));
    // It names two, the others one.
    until("the honest list is known to all", 5, || [&fra, &sin].iter().all(|node| node.mesh.counters().revoked >= 2)).await;
    // Of what is too much the last one counts.
    tell(other.revoke(&of("mars")));
    until("the last list counts, too", 10, || [&fra, &sin, &ams].iter().all(|node| node.mesh.counters().revoked == 4)).await;
    let looked_at = [Listed::New, Listed::Old, Listed::Forged].into_iter().map(|outcome| sin.listed(outcome)).sum::<u64>();
    assert!(looked_at <= 30, "of 250 lists {looked_at} were looked at");
    let links = [&fra, &sin, &ams].map(|node| node.links().len());
    assert_eq!(links, [2; 3]);
    assert!(sin.events.try_recv().is_err() && ams.events.try_recv().is_err(), "nobody has noticed");
}
