//! A room on two workers: who is placed where, and that what one brings reaches the others to the last bit.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use pop::cli::Failure;
use pop::config::Config;
use pop::keys::ApiKeys;
use pop::node::Node;
use pop::rtp::Routes;
use pop_proto::wire::rtp;

/// Longer than anything takes on a busy machine; a test that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node with two workers of 8 places: from the third client of a room on, the next worker is looked for.
fn start(rest: &str) -> Option<(Node, Config)> {
    start_with(16, rest)
}

fn start_with(tracks_max: usize, rest: &str) -> Option<(Node, Config)> {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return None;
    }
    let text = format!(
        "[media]\nport = 0\n[dataplane]\ncores = \"0,1\"\nbackend = \"mmsg\"\ntransports_max = 8\ntracks_max = {tracks_max}\n\
         subscriptions_max = 64\npacket_pool = 1024\nrecv_buffers = 16\ntrains = 4\ngro = false\n{rest}"
    );
    let config = Config::parse(&text, Path::new("test.toml")).unwrap();
    Some((Node::start(&config, ApiKeys::draw()).unwrap(), config))
}

fn receiver() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn route(name: &str, rest: &str) -> String {
    format!(
        "[[rtp.route]]\nname = \"{name}\"\nroom = \"stage\"\ncodec = \"opus\"\npayload_type = 111\nrtcp = \"off\"\n\
         address = \"127.0.0.1\"\n{rest}\n"
    )
}

fn packet(sequence: u16) -> Vec<u8> {
    let mut packet = vec![0; 12];
    rtp::write_header(&mut packet, false, 111, sequence, 960 * u32::from(sequence), 77);
    packet.extend((0..60u8).map(|byte| byte.wrapping_mul(sequence as u8)));
    packet
}

/// Payloads that have come.
fn take(socket: &UdpSocket, into: &mut Vec<Vec<u8>>) {
    let mut bytes = [0; 2_048];
    while let Ok((len, _)) = socket.recv_from(&mut bytes) {
        into.push(bytes[12..len].to_vec());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn audio_of_one_worker_reaches_receivers_on_both_and_nothing_is_left_when_it_ends() {
    let sinks: Vec<UdpSocket> = (0..5).map(|_| receiver()).collect();
    let mut text = route("in", "direction = \"in\"");
    for (at, sink) in sinks.iter().enumerate() {
        let rest = format!("direction = \"out\"\npeer = \"{}\"", sink.local_addr().unwrap());
        text += &route(&format!("out{at}"), &rest);
    }
    let Some((node, config)) = start(&text) else { return };
    let routes = Routes::new(node.clone(), &config.media, Vec::new());
    let started = routes.start(&config.rtp.route).await;
    if let Err(Failure::Usage(sentence) | Failure::Other(sentence)) = started {
        panic!("{sentence}");
    }

    let sessions = node.sessions().await;
    let mut workers: Vec<Option<usize>> = sessions[0].participants.iter().map(|participant| participant.worker).collect();
    workers.sort_unstable();
    assert_eq!(workers.iter().filter(|worker| **worker == Some(0)).count(), 3, "{workers:?}");
    assert_eq!(workers.iter().filter(|worker| **worker == Some(1)).count(), 3, "{workers:?}");

    let to: SocketAddr = routes.show("in").await.unwrap_or_else(|_| panic!("it is there")).address;
    let sender = receiver();
    let mut heard = vec![Vec::new(); sinks.len()];
    let mut sent = Vec::new();
    let start = Instant::now();
    for sequence in 1.. {
        assert!(start.elapsed() < PATIENCE, "{:?}", heard.iter().map(Vec::len).collect::<Vec<_>>());
        let packet = packet(sequence);
        sender.send_to(&packet, to).unwrap();
        sent.push(packet[12..].to_vec());
        tokio::time::sleep(Duration::from_millis(2)).await;
        sinks.iter().zip(&mut heard).for_each(|(sink, heard)| take(sink, heard));
        if heard.iter().all(|heard| heard.len() >= 100) {
            break;
        }
    }
    for heard in &heard {
        let first = sent.iter().position(|payload| *payload == heard[0]).expect("it was sent");
        assert_eq!(heard[..], sent[first..first + heard.len()], "in order, whole, and to the last bit");
    }
    // Workers publish their figures every 20 ms.
    let crossed = || node.workers().iter().map(|worker| worker.counters.handover_packets_out).sum::<u64>();
    while crossed() < 100 {
        assert!(start.elapsed() < PATIENCE, "{} packets crossed", crossed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(crossed() <= sent.len() as u64, "once, not once per receiver: {} of {}", crossed(), sent.len());
    let snapshot = node.workers();
    assert_eq!(snapshot.iter().map(|worker| worker.gauges.mirrors).sum::<u64>(), 1);

    for name in ["out0", "out1", "out2", "out3", "out4", "in"] {
        routes.remove(name).await.unwrap_or_else(|_| panic!("it is there"));
    }
    let start = Instant::now();
    while node.workers().iter().any(|worker| worker.gauges.transports + worker.gauges.tracks + worker.gauges.mirrors > 0) {
        assert!(start.elapsed() < PATIENCE, "something is left: {:?}", node.workers());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(node.sessions().await.is_empty(), "the room ends with its last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_ends_with_its_last_receiver_while_the_source_goes_on() {
    let sinks: Vec<UdpSocket> = (0..4).map(|_| receiver()).collect();
    let mut text = route("in", "direction = \"in\"");
    for (at, sink) in sinks.iter().enumerate() {
        text += &route(&format!("out{at}"), &format!("direction = \"out\"\npeer = \"{}\"", sink.local_addr().unwrap()));
    }
    let Some((node, config)) = start(&text) else { return };
    let routes = Routes::new(node.clone(), &config.media, Vec::new());
    let started = routes.start(&config.rtp.route).await;
    if let Err(Failure::Usage(sentence) | Failure::Other(sentence)) = started {
        panic!("{sentence}");
    }
    let to = routes.show("in").await.unwrap_or_else(|_| panic!("it is there")).address;
    let sender = receiver();
    let mirrors = || node.workers().iter().map(|worker| worker.gauges.mirrors).sum::<u64>();
    let (start, mut sequence) = (Instant::now(), 0);
    let mut run_until = async |what: &str, done: &dyn Fn() -> bool| {
        while !done() {
            assert!(start.elapsed() < PATIENCE, "{what}");
            sequence += 1;
            sender.send_to(&packet(sequence), to).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    run_until("a mirror is made", &|| mirrors() == 1).await;
    // In a room of five, two are on the source's worker beside it.
    for name in ["out0", "out1", "out2", "out3"] {
        routes.remove(name).await.unwrap_or_else(|_| panic!("it is there"));
    }
    run_until("the mirror ends", &|| mirrors() == 0).await;
    // Each worker tells its figures by itself, the one some milliseconds after the other.
    let told = start.elapsed() + Duration::from_millis(100);
    run_until("both have told their figures", &|| start.elapsed() >= told).await;
    let before: u64 = node.workers().iter().map(|worker| worker.counters.handover_packets_out).sum();
    let packets = || node.workers().iter().map(|worker| worker.counters.rtp_packets_in).sum::<u64>();
    let goal = packets() + 20;
    run_until("the source goes on", &|| packets() >= goal).await;
    assert_eq!(node.workers().iter().map(|worker| worker.counters.handover_packets_out).sum::<u64>(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_section_that_found_no_place_for_a_mirror_gets_it_when_there_is_one() {
    // Seven find a place beside the source, whose worker has eight, and the last is on the other worker.
    let sinks: Vec<UdpSocket> = (0..8).map(|_| receiver()).collect();
    let mut text = route("in", "direction = \"in\"");
    // It takes the one place for a track of the other worker.
    text += &route("other", "direction = \"in\"").replace("stage", "elsewhere");
    for (at, sink) in sinks.iter().enumerate() {
        text += &route(&format!("out{at}"), &format!("direction = \"out\"\npeer = \"{}\"", sink.local_addr().unwrap()));
    }
    let Some((node, config)) = start_with(1, &text) else { return };
    let routes = Routes::new(node.clone(), &config.media, Vec::new());
    let started = routes.start(&config.rtp.route).await;
    if let Err(Failure::Usage(sentence) | Failure::Other(sentence)) = started {
        panic!("{sentence}");
    }
    let to = routes.show("in").await.unwrap_or_else(|_| panic!("it is there")).address;
    let sender = receiver();
    let mut heard = vec![Vec::new(); sinks.len()];
    let (start, mut sequence) = (Instant::now(), 0);
    let mut run_until = async |what: &str, heard: &mut Vec<Vec<Vec<u8>>>, done: &dyn Fn(&[usize]) -> bool| loop {
        let lens: Vec<usize> = heard.iter().map(Vec::len).collect();
        if done(&lens) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {lens:?}");
        sequence += 1;
        sender.send_to(&packet(sequence), to).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        sinks.iter().zip(heard.iter_mut()).for_each(|(sink, heard)| take(sink, heard));
    };
    run_until("the near ones hear", &mut heard, &|lens| lens.iter().filter(|len| **len > 50).count() == 7).await;
    assert_eq!(heard.iter().filter(|heard| heard.is_empty()).count(), 1, "the far one has no mirror");
    routes.remove("other").await.unwrap_or_else(|_| panic!("it is there"));
    run_until("everybody hears", &mut heard, &|lens| lens.iter().all(|len| *len > 0)).await;
}
