//! The reflectors on real sockets: truthful replies, no amplification, bounds under a flood.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pop_dataplane::reflect::{Reflect, ReflectCounters, ReflectSocket, SharedRates};
use pop_dataplane::{Clock, Service};
use pop_proto::probe::{ProbeRates, ProbeResult, ReflectorKind};
use pop_proto::wire::stamp::{self, ErrorEstimate, NtpTime, Reply};
use pop_proto::wire::stun::{self, Message, TransactionId};
use pop_uring::RawUdp;

const SEED: [u128; 4] = [0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835, 7, 0xc2b2_ae3d_27d4_eb4f_1656_67b1_9e37_79f9, 11];
const WIDE: ProbeRates = ProbeRates { per_prefix: 1_000_000, total: 1_000_000 };

struct Rig {
    service: Service,
    address: SocketAddr,
    rates: Arc<SharedRates>,
    counters: Arc<ReflectCounters>,
}

fn start(kind: ReflectorKind, address: &str, rates: ProbeRates) -> Rig {
    let service = Service::start(Clock::start()).expect("a thread");
    let socket = ReflectSocket::bind(kind, address.parse().expect("an address")).expect("a free port");
    let (address, rates, counters) = (socket.local_addr(), SharedRates::new(rates), Arc::default());
    let reflect = Reflect { socket, rates: Arc::clone(&rates), counters: Arc::clone(&counters), seed: SEED };
    service.reflect(reflect).expect("the thread is there");
    Rig { service, address, rates, counters }
}

fn client(of: &Rig) -> UdpSocket {
    let socket = UdpSocket::bind((of.address.ip(), 0)).expect("a free port");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("it is a duration");
    socket.connect(of.address).expect("UDP connects");
    socket
}

fn stamp_request(sequence: u32, ssid: u16) -> [u8; stamp::PACKET_LEN] {
    let mut request = [0; stamp::PACKET_LEN];
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    stamp::write_request(sequence, NtpTime::from_unix(now), ErrorEstimate(1), ssid, &mut request);
    request
}

fn binding() -> [u8; stun::HEADER_LEN] {
    let mut request = [0; stun::HEADER_LEN];
    stun::write_plain_request(TransactionId([1; 12]), &mut request);
    request
}

#[test]
fn a_stamp_reply_holds_the_kernels_time_the_ttl_and_the_session() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let rig = start(ReflectorKind::Stamp, address, WIDE);
        let client = client(&rig);
        client.set_ttl(37).expect("a TTL");
        for sequence in 0..50 {
            client.send(&stamp_request(sequence, 0xbeef)).expect("loopback takes it");
            let mut bytes = [0; 100];
            let len = client.recv(&mut bytes).expect("a reply");
            let reply = Reply::parse(&bytes[..len]).expect("it is a reply");
            assert_eq!((len, reply.ssid, reply.sender_sequence), (stamp::PACKET_LEN, 0xbeef, sequence));
            assert_eq!(reply.sender_ttl, if rig.address.is_ipv4() { 37 } else { 64 }, "the hop limit is another option's");
            // Sent, received by the kernel, answered: in this order, on one clock. A third of a second is a very slow machine.
            let (there, inside) = (reply.received.nanos_since(reply.sender_at), reply.transmitted.nanos_since(reply.received));
            assert!((0..300_000_000).contains(&there) && (1..300_000_000).contains(&inside), "{there} ns there, {inside} ns inside");
            assert!(reply.error.error() > Duration::ZERO);
        }
    }
}

#[test]
fn bytes_out_never_exceed_bytes_in_for_stamp_and_44_a_request_for_stun() {
    let rig = start(ReflectorKind::Stamp, "127.0.0.1:0", WIDE);
    let stamp_client = client(&rig);
    stamp_client.set_read_timeout(Some(Duration::from_millis(300))).expect("it is a duration");
    let mut bytes = [0; 2_000];
    let (mut bytes_in, mut bytes_out) = (0, 0);
    for len in 0..1_480 {
        stamp_client.send(&vec![0x80; len]).expect("loopback takes it");
        bytes_in += len;
        if (stamp::REQUEST_LEN_MIN..=stamp::REQUEST_LEN_MAX).contains(&len) {
            bytes_out += stamp_client.recv(&mut bytes).expect("a reply");
        }
    }
    stamp_client.recv(&mut bytes).expect_err("nothing else was answered");
    println!("stamp: {bytes_in} bytes in, {bytes_out} bytes out");
    assert!(bytes_out <= bytes_in && bytes_out > bytes_in / 2);

    for address in ["127.0.0.1:0", "[::1]:0"] {
        let rig = start(ReflectorKind::Stun, address, WIDE);
        let stun_client = client(&rig);
        stun_client.send(&binding()).expect("loopback takes it");
        let len = stun_client.recv(&mut bytes).expect("an answer");
        let answer = Message::parse(&bytes[..len]).expect("it is STUN");
        assert_eq!(answer.mapped_address(), Some(stun_client.local_addr().expect("it is bound")));
        println!("stun: {} bytes in, {len} bytes out", stun::HEADER_LEN);
        assert!(len <= 44);
    }
}

#[test]
fn a_source_prefix_gets_its_rate_and_a_change_of_rates_counts_at_once() {
    let rates = ProbeRates { per_prefix: 20, total: 1_000 };
    let rig = start(ReflectorKind::Stun, "127.0.0.1:0", rates);
    let client = client(&rig);
    client.set_read_timeout(Some(Duration::from_millis(500))).expect("it is a duration");
    let answers = |requests: usize| {
        for _ in 0..requests {
            client.send(&binding()).expect("loopback takes it");
        }
        std::iter::from_fn(|| client.recv(&mut [0; 100]).ok()).count()
    };
    let (started, answered) = (Instant::now(), answers(200));
    let due = 21 + started.elapsed().as_millis() as usize / 50;
    assert!((21..=due).contains(&answered), "{answered} answers, at most {due} are due");
    assert_eq!(rig.counters.requests(ProbeResult::Answered), answered as u64);
    assert_eq!(rig.counters.requests(ProbeResult::Limited), 200 - answered as u64);
    rig.rates.set(WIDE);
    // What the slow rate has booked ahead is a second at most.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(answers(100), 100);
}

/// Needs `CAP_NET_RAW`; the machine that runs all tests has it.
#[test]
fn a_flood_of_forged_sources_is_answered_within_the_total_and_the_service_lives() {
    let rates = ProbeRates { per_prefix: 50, total: 500 };
    let rig = start(ReflectorKind::Stun, "127.0.0.1:0", rates);
    let raw = RawUdp::new().expect("CAP_NET_RAW");
    let SocketAddr::V4(target) = rig.address else { unreachable!("it is IPv4") };
    let started = Instant::now();
    let mut sent = 0u32;
    while started.elapsed() < Duration::from_secs(2) {
        // Every /24 of 127/8, each tenth from a reflector's port.
        let port = if sent.is_multiple_of(10) { 3_478 } else { 10_000 + (sent % 50_000) as u16 };
        let from = std::net::SocketAddrV4::new((0x7f00_0000 | (sent.wrapping_mul(2_654_435_761) >> 8)).into(), port);
        raw.send(from, target, &binding()).expect("loopback takes it");
        sent += 1;
    }
    let most = (started.elapsed().as_secs_f64() + 1.0) * 500.0 + 1.0;
    // The queue empties in a few milliseconds.
    std::thread::sleep(Duration::from_millis(100));
    let [answered, limited, refused] = ProbeResult::ALL.map(|result| rig.counters.requests(result));
    println!("{sent} forged requests: {answered} answered, {limited} limited, {refused} refused");
    assert!(answered as f64 <= most + 50.0 && answered >= 500, "{answered} answered, at most {most}");
    assert!(limited > answered && refused > 0);
    // After the flood it serves as before.
    std::thread::sleep(Duration::from_secs(1));
    let client = client(&rig);
    client.send(&binding()).expect("loopback takes it");
    client.recv(&mut [0; 100]).expect("an answer");
    drop(rig.service);
}
