//! A node of another PoP, with a certificate of the same CA: it gets a link, and what it says of this PoP's rooms counts for nothing.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use pop::ca::{self, Request};
use pop::mesh::{Grants, Mesh, MeshEvent, MeshFiles, MeshIdentity, MeshSettings, NodeName};
use pop_relay::control::{self, Action, Data, Done, Follow, Heard, Message, Order, Outcome, Refuse, Room, Want};
use pop_schemas::{Identity, Incarnation, ParticipantId, SessionId, TrackId};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

#[path = "cli_support/process.rs"]
mod process;

use process::{Folder, Node, code, config, http, run, shown};

const PATIENCE: Duration = Duration::from_secs(20);

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has ports");
    listener.local_addr().expect("it is bound")
}

fn issue(folder: &Folder, node: &str, pop: &str, api_keys: Grants) -> (NodeName, MeshFiles) {
    let name = NodeName::new(node, pop).expect("a plain name");
    let request = Request { name: name.clone(), days: 1, addresses: Vec::new(), api_keys };
    let made = ca::issue(&folder.path("ca"), &folder.path(&format!("{node}-{pop}")), &request, true).expect("a certificate");
    (name, MeshFiles { ca: made.ca, cert: made.cert, key: made.key })
}

/// Node a of PoP fra, with a room in which somebody publishes a track.
fn start(folder: &Folder, mesh: SocketAddr) -> Node {
    ca::init(&folder.path("ca"), "operator", false).expect("a new folder");
    let (_, MeshFiles { ca, cert, key }) = issue(folder, "a", "fra", Grants::of(["desk", "a,b"]));
    folder.write("keys.toml", &format!("test = \"{}\"\n", process::SECRET));
    let own = format!(
        "[node]\nname = \"a\"\npop = \"fra\"\n[bus]\nlisten = [\"{}\"]\n[mesh]\nlisten = \"{mesh}\"\nrelay_port = 0\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n\
         [[rtp.route]]\nname = \"camera\"\ndirection = \"in\"\nroom = \"stage\"\ncodec = \"VP8\"\npayload_type = 96\n",
        free_address(),
        shown(&ca),
        shown(&cert),
        shown(&key),
    );
    let text = format!("{}{own}", config(&folder.path("pop.sock"), "127.0.0.1:0"));
    Node::start(&folder.write("pop.toml", &text), &[])
}

async fn stranger(folder: &Folder, at: SocketAddr) -> (Mesh, Receiver<MeshEvent>) {
    let (name, files) = issue(folder, "x", "ams", Grants::of(["test", "ä"]));
    let settings = MeshSettings {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        identity: MeshIdentity::load(&files, &name).expect("right files"),
        incarnation: Incarnation { start: 1, nonce: 1 },
        workers: vec![(Ipv4Addr::LOCALHOST, 11_000).into()],
        peers: vec![at],
        playout: Duration::from_millis(150),
        schema: control::VERSION,
        revoked: None,
        kept: None,
    };
    Mesh::start(settings).await.expect("a free port")
}

fn metric(node: &Node, name: &str) -> u64 {
    let (_, text) = http(node.said("admin"), "GET", "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().expect("a number")
}

fn room(node: &Node) -> serde_json::Value {
    let (_, text) = http(node.said("admin"), "GET", "/api/v1/sessions");
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut room = all["sessions"][0].clone();
    // What changes by itself.
    room["participants"].as_array_mut().expect("a list").iter_mut().for_each(|participant| drop(participant["age_ms"].take()));
    room
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_pop_has_no_say_in_rooms() {
    pop::dtls::install_crypto_provider();
    let (folder, address) = (Folder::new(), free_address());
    let node = start(&folder, address);
    let before = room(&node);
    let participant = &before["participants"][0];
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).unwrap_or_else(|| panic!("{before}"));
    let number = |value: &serde_json::Value| u64::from_str_radix(&text(value)[3..], 16).unwrap_or_else(|_| panic!("{before}"));
    let (publisher, track) = (ParticipantId(number(&participant["id"])), TrackId(number(&participant["tracks"][0]["id"])));
    let (mesh, mut events) = stranger(&folder, address).await;
    let begun = Instant::now();
    let of_a = loop {
        match timeout(PATIENCE, events.recv()).await.expect("a link").expect("the mesh lives") {
            MeshEvent::LinkUp { peer, .. } => break peer.node,
            other => assert!(begun.elapsed() < PATIENCE, "{other:?}"),
        }
    };
    let session = SessionId::new("stage").expect("a name");
    let order =
        |number, action, identity| Message::Order(Order { number, session: session.clone(), action, identity, tracks: vec![track] });
    let said = [
        Message::Want(Want { session: session.clone(), track, worker: 0, origin: None }),
        Message::Want(Want { session: session.clone(), track, worker: 0, origin: Some(of_a) }),
        order(1, Action::Delete, None),
        order(2, Action::Remove, Some(Identity::new("camera").expect("a name"))),
        order(3, Action::Mute, Some(Identity::new("camera").expect("a name"))),
        Message::Follow(Follow { session: session.clone(), age: Duration::from_secs(60), received: vec![(publisher, 0)] }),
        Message::Heard(Heard { session: session.clone(), speaking: vec![(publisher, 9)], connections: Vec::new() }),
        Message::Room(Room { session: session.clone(), metadata: "ours now".to_owned(), participants_max: 1, said: (u64::MAX, 1) }),
        Message::Data(Data {
            session: session.clone(),
            sender: publisher,
            reliable: true,
            sequence: 1,
            to: Vec::new(),
            body: (*b"forged").into(),
        }),
    ];
    for message in &said {
        assert!(mesh.send(of_a, message), "{message:?}");
    }
    let (mut refused, mut done) = (Vec::new(), Vec::new());
    while refused.len() < 2 || done.len() < 3 {
        match timeout(PATIENCE, events.recv()).await.expect("an answer").expect("the mesh lives") {
            MeshEvent::Message { message: Message::Refuse(Refuse { track, .. }), .. } => refused.push(track),
            MeshEvent::Message { message: Message::Done(Done { number, outcome }), .. } => done.push((number, outcome)),
            MeshEvent::LinkDown { why, .. } => panic!("{why:?}"),
            other => panic!("an answer to what it may not ask: {other:?}"),
        }
    }
    assert_eq!(refused, [track; 2]);
    assert_eq!(done, [1, 2, 3].map(|number| (number, Outcome::UnknownParticipant)));
    while metric(&node, "pop_mesh_ignored_messages_total{reason=\"foreign\"}") < said.len() as u64 {
        assert!(begun.elapsed() < 2 * PATIENCE, "not all are counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(room(&node), before, "and nothing has changed");
    assert_eq!(mesh.links().len(), 1, "it keeps its link");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_pop_sees_which_api_keys_the_other_may_use_and_a_reload_changes_that() {
    pop::dtls::install_crypto_provider();
    let (folder, address) = (Folder::new(), free_address());
    let node = start(&folder, address);
    let (_mesh, mut events) = stranger(&folder, address).await;
    let granted = async |events: &mut Receiver<MeshEvent>| loop {
        let event = timeout(PATIENCE, events.recv()).await.expect("a link").expect("the mesh lives");
        if let MeshEvent::LinkUp { peer, .. } = event {
            break peer.grants;
        }
    };
    assert_eq!(granted(&mut events).await, Grants::of(["desk", "a,b"]));
    let begun = Instant::now();
    while http(node.said("admin"), "GET", "/api/v1/status").1.find("\"api_keys\":[\"test\",\"ä\"]").is_none() {
        assert!(begun.elapsed() < PATIENCE, "{}", http(node.said("admin"), "GET", "/api/v1/status").1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (socket, config) = (folder.path("pop.sock"), folder.path("pop.toml"));
    let said = |words: &[&str]| {
        let output = run(words);
        assert_eq!(code(&output), Some(0), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let table = said(&["mesh", "--socket", shown(&socket)]);
    assert!(table.contains("API KEYS") && table.lines().any(|line| line.starts_with("x.ams") && line.ends_with(" test,ä")), "{table}");
    let checked = said(&["check", shown(&config)]);
    assert!(checked.contains("API keys towards other PoPs: a%2Cb,desk"), "{checked}");
    let checked = said(&["check", shown(&config), "--json"]);
    assert!(checked.contains("\"api_keys\":[\"a%2Cb\",\"desk\"]"), "{checked}");
    issue(&folder, "a", "fra", Grants::all());
    let reloaded = said(&["reload", "--socket", shown(&socket)]);
    assert!(reloaded.contains("API keys of mesh.cert: *; links are made anew"), "{reloaded}");
    assert_eq!(granted(&mut events).await, Grants::all());
}
