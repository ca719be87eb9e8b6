//! Whether media still comes through: once a second a packet goes the whole way through each worker, as a client's would.
//!
//! ```text
//! tester --check, SRTP--> media port -> ice -> unprotect -> inbound -> router -> outbound -> protect -> media port --SRTP--> tester
//! ```
//! The tester's name, password and keys are drawn here and leave this process for its workers alone, so nobody else's packet passes for
//! one of its own. A worker through which five tries in a row did not come back is gray, and so is its node: nothing new is placed there
//! until three in a row did.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pop_proto::Command;
use pop_proto::control::{
    Codec, ExtensionIds, IceCredentials, MasterKey, MediaKind, OpenSubscription, OpenTrack, OpenTransport, PayloadType, PayloadTypeMap,
    SELF_TEST, SrtpKeys, SrtpProfile,
};
use pop_proto::protection::{Receiver, Sender};
use pop_proto::wire::rtp::{self, RtpView};
use pop_proto::wire::stun::{self, BindingRequest, Role, TransactionId};
use pop_schemas::{SubscriptionId, TrackId, TransportId};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::Node;

/// From one try to the next, and how long each may take: a client's media is of no use after a second.
const INTERVAL: Duration = Duration::from_secs(1);

/// A tester that is woken so much too late has not been given its time: then the worker may have had none, either, and the try counts for
/// nothing. Beside 16 hogs on two cores a task waits for tens of milliseconds.
const LATE_MAX: Duration = Duration::from_millis(250);

/// So many tries in a row that did not come back make a worker gray: 5 to 6 s after its last sign, and within 10 s although some of them
/// count for nothing.
const MISSES_MAX: u64 = 5;

/// So many in a row that came back end that: one may be what waited in a socket.
const PASSES_MIN: u64 = 3;

/// After so many misses the tester begins anew, with other keys: the worker may have lost what it was told, and the packet numbers of SRTP
/// must not run ahead of what was received by 2^15.
const REOPEN_AFTER: u64 = 1_000;

/// Payload type of the test's packets.
const PAYLOAD_TYPE: u8 = 111;

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryResult {
    /// It came back.
    Passed,
    /// It did not.
    Missed,
    /// It did not, and this process was not given its time.
    Uncounted,
}

impl TryResult {
    /// All, in the order of their discriminants.
    pub const ALL: [TryResult; 3] = [TryResult::Passed, TryResult::Missed, TryResult::Uncounted];

    /// The `result` label of `pop_self_test_tries_total`.
    pub const fn name(self) -> &'static str {
        match self {
            TryResult::Passed => "passed",
            TryResult::Missed => "missed",
            TryResult::Uncounted => "uncounted",
        }
    }

    /// `waited`: from the sending until it came back, or until the tester looked because its time was over.
    fn of(came_back: bool, waited: Duration) -> TryResult {
        match (came_back, waited <= INTERVAL + LATE_MAX) {
            (true, _) => TryResult::Passed,
            (false, true) => TryResult::Missed,
            (false, false) => TryResult::Uncounted,
        }
    }
}

/// Says from the tries of one worker whether it is gray.
#[derive(Debug, Default)]
struct Judge {
    is_gray: bool,
    /// In a row.
    misses: u64,
    /// In a row.
    passes: u64,
}

impl Judge {
    /// Takes one more try; tells whether the verdict changed.
    fn take(&mut self, result: TryResult) -> bool {
        match result {
            TryResult::Passed => (self.passes, self.misses) = (self.passes + 1, 0),
            TryResult::Missed => (self.passes, self.misses) = (0, self.misses + 1),
            TryResult::Uncounted => {}
        }
        let is_gray = if self.is_gray { self.passes < PASSES_MIN } else { self.misses >= MISSES_MAX };
        std::mem::replace(&mut self.is_gray, is_gray) != is_gray
    }
}

/// What is known of one worker: its tester writes, others read.
#[derive(Debug, Default)]
pub struct WorkerTest {
    is_gray: AtomicBool,
    tries: [AtomicU64; TryResult::ALL.len()],
    round_trip_us: AtomicU64,
}

impl WorkerTest {
    /// Media does not come back through it.
    pub fn is_gray(&self) -> bool {
        self.is_gray.load(Ordering::Relaxed)
    }

    /// Tries that ended so.
    pub fn tries(&self, result: TryResult) -> u64 {
        self.tries[result as usize].load(Ordering::Relaxed)
    }

    /// How long the last took that came back; zero before the first.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed))
    }
}

/// What is known of all workers.
#[derive(Debug)]
pub struct SelfTest(Box<[WorkerTest]>);

impl SelfTest {
    pub(super) fn new(workers: usize) -> SelfTest {
        SelfTest((0..workers).map(|_| WorkerTest::default()).collect())
    }

    /// By index of the worker.
    pub fn workers(&self) -> &[WorkerTest] {
        &self.0
    }

    /// One of them is gray.
    pub fn is_gray(&self) -> bool {
        self.0.iter().any(WorkerTest::is_gray)
    }
}

/// Starts a tester for each worker; they end with the runtime.
pub(super) fn start(node: &Node) {
    for worker in 0..node.shared.workers.len() {
        tokio::spawn(test(node.clone(), worker));
    }
}

async fn test(node: Node, worker: usize) {
    let (mut judge, mut way) = (Judge::default(), None);
    loop {
        let sent = Instant::now();
        let outcome = tokio::time::timeout_at(sent + INTERVAL, round_trip(&node, worker, &mut way)).await;
        let trouble = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                // It came at once; what is late is judged by the end of the try's time.
                tokio::time::sleep_until(sent + INTERVAL).await;
                Some(error.to_string())
            }
            Err(_) => Some(format!("nothing came back within {INTERVAL:?}")),
        };
        let waited = sent.elapsed();
        let result = TryResult::of(trouble.is_none(), waited);
        let known = &node.shared.self_test.workers()[worker];
        known.tries[result as usize].fetch_add(1, Ordering::Relaxed);
        if result == TryResult::Passed {
            known.round_trip_us.store(waited.as_micros() as u64, Ordering::Relaxed);
        }
        if judge.take(result) {
            known.is_gray.store(judge.is_gray, Ordering::Relaxed);
            match judge.is_gray {
                true => tracing::warn!(
                    worker,
                    trouble,
                    "self-test: media does not come back through this worker: new people are sent to other nodes of the PoP, if there are any"
                ),
                false => tracing::info!(worker, "self-test: media comes back through this worker again"),
            }
            if let Some(cluster) = node.shared.cluster.get() {
                cluster.tell_node();
            }
        }
        if judge.misses > 0 && judge.misses.is_multiple_of(REOPEN_AFTER) {
            way = None;
        }
        tokio::time::sleep_until(sent + INTERVAL).await;
    }
}

/// One try, by a way that is opened where there is none.
async fn round_trip(node: &Node, worker: usize, way: &mut Option<Way>) -> io::Result<()> {
    if way.is_none() {
        *way = Some(Way::open(node, worker).await?);
    }
    way.as_mut().expect("it has just been opened").round_trip().await
}

/// A client of the worker that publishes a track and watches it.
struct Way {
    socket: UdpSocket,
    username: String,
    password: String,
    sender: Sender,
    receiver: Receiver,
    ssrc: u32,
    /// Of the last packet; its payload, too.
    index: u64,
}

impl Way {
    async fn open(node: &Node, worker: usize) -> io::Result<Way> {
        let address = node.shared.workers[worker].addresses()[0];
        let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        // From here on the kernel takes what comes from the worker, and nothing else.
        socket.connect(address).await?;
        let ice = IceCredentials { local_ufrag: drawn_text(node), local_pwd: drawn_text(node), remote_ufrag: "tester".into() };
        let (there, back) = (drawn_key(node), drawn_key(node));
        let keys = |local: &MasterKey, remote: &MasterKey| SrtpKeys {
            profile: SrtpProfile::AeadAes128Gcm,
            local: local.clone(),
            remote: remote.clone(),
        };
        let own = keys(&there, &back);
        let ssrc = drawn_number(node);
        let way = Way {
            socket,
            username: format!("{}:{}", ice.local_ufrag, ice.remote_ufrag),
            password: ice.local_pwd.to_string(),
            sender: Sender::new(Some(&own)),
            receiver: Receiver::new(Some(&own)),
            ssrc,
            index: 0,
        };
        let transport = TransportId(SELF_TEST);
        let (track, subscription) = (TrackId(SELF_TEST), SubscriptionId(SELF_TEST));
        let commands = [
            Command::CloseTransport { transport },
            Command::OpenTransport(Box::new(OpenTransport {
                transport,
                ice,
                extensions: ExtensionIds::NONE,
                transport_cc: false,
                remb: false,
                reduced_size_rtcp: true,
                rtcp_ssrc: !ssrc,
                cname: "self-test".into(),
            })),
            Command::InstallKeys { transport, keys: Box::new(keys(&back, &there)) },
            Command::OpenTrack(Box::new(OpenTrack {
                track,
                transport,
                kind: MediaKind::Audio,
                ssrc: Some(ssrc),
                rtx_ssrc: None,
                mid: "0".into(),
                layers: Vec::new(),
                order: Vec::new(),
                payload_types: vec![PayloadType { number: PAYLOAD_TYPE, codec: Codec::Opus, rtx: None }],
                nack: false,
                pli: false,
                fir: false,
            })),
            Command::OpenSubscription(Box::new(OpenSubscription {
                subscription,
                transport,
                kind: MediaKind::Audio,
                ssrc: ssrc ^ 1,
                first_sequence: 1,
                first_timestamp: 0,
                rtx_ssrc: None,
                extensions: ExtensionIds::NONE,
                mid: "1".into(),
            })),
            Command::Forward {
                subscription,
                track: Some(track),
                payload_types: vec![PayloadTypeMap { from: PAYLOAD_TYPE, to: PAYLOAD_TYPE, rtx: None, unwrap_red: false }],
            },
        ];
        for command in commands {
            node.shared.command(worker, command).await;
        }
        Ok(way)
    }

    /// Sends the next packet, behind a check that gives it its way back, and waits until it is there.
    async fn round_trip(&mut self) -> io::Result<()> {
        self.index += 1;
        let mut out = [0; 256];
        let check = self.write_check(&mut out);
        self.socket.send(&out[..check]).await?;
        let packet = self.write_packet(&mut out);
        self.socket.send(&out[..packet]).await?;
        loop {
            let mut datagram = [0; 2_048];
            let len = self.socket.recv(&mut datagram).await?;
            if self.is_own(&mut datagram[..len]) {
                return Ok(());
            }
        }
    }

    fn write_check(&self, out: &mut [u8]) -> usize {
        let mut transaction = [0; 12];
        transaction[..8].copy_from_slice(&self.index.to_be_bytes());
        let request = BindingRequest {
            transaction: TransactionId(transaction),
            username: &self.username,
            priority: Some(1),
            role: Some(Role::Controlling(1)),
            use_candidate: true,
        };
        stun::write_request(&request, self.password.as_bytes(), out).expect("a check of 150 bytes fits")
    }

    fn write_packet(&self, out: &mut [u8]) -> usize {
        let mut header = [0; 12];
        rtp::write_header(&mut header, false, PAYLOAD_TYPE, self.index as u16, (self.index as u32).wrapping_mul(48_000), self.ssrc);
        self.sender.protect_rtp(self.index, &header, &self.index.to_be_bytes(), out).expect("a packet of 40 bytes fits")
    }

    /// Whether it is the packet that was sent last: not an answer to a check, and not one that is late.
    fn is_own(&mut self, packet: &mut [u8]) -> bool {
        let Ok(header_len) = RtpView::parse(packet).map(|view| view.header_len()) else { return false };
        let Ok(opened) = self.receiver.unprotect_rtp(packet, header_len) else { return false };
        packet.get(header_len..opened.len) == Some(&self.index.to_be_bytes()[..])
    }
}

fn drawn_text(node: &Node) -> Box<str> {
    let mut drawn = [0; 16];
    node.random(&mut drawn);
    format!("{:032x}", u128::from_ne_bytes(drawn)).into()
}

fn drawn_key(node: &Node) -> MasterKey {
    let mut master = MasterKey { key: [0; 32], salt: [0; 14] };
    node.random(&mut master.key);
    node.random(&mut master.salt);
    master
}

fn drawn_number(node: &Node) -> u32 {
    let mut drawn = [0; 4];
    node.random(&mut drawn);
    u32::from_ne_bytes(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries of a worker, one a second: `p`assed, `m`issed, `u`ncounted; the verdict after each.
    fn verdicts(tries: &str) -> String {
        let mut judge = Judge::default();
        let take = |letter| {
            judge.take(match letter {
                'p' => TryResult::Passed,
                'm' => TryResult::Missed,
                _ => TryResult::Uncounted,
            });
            if judge.is_gray { 'g' } else { '.' }
        };
        tries.chars().map(take).collect()
    }

    #[test]
    fn five_misses_in_a_row_make_a_worker_gray_and_three_passes_end_it() {
        assert_eq!(verdicts("pmmmmmmppp"), ".....gggg.");
        assert_eq!(verdicts("mmmmpmmmmp"), "..........", "one that comes back begins the count anew");
        assert_eq!(verdicts("mmmmmppmppp"), "....gggggg.", "a single one may be what waited");
    }

    #[test]
    fn what_a_starved_tester_sees_counts_for_nothing() {
        assert_eq!(verdicts(&"u".repeat(100)), ".".repeat(100));
        assert_eq!(verdicts("mmuummu"), ".......");
        assert_eq!(verdicts("mmumumm"), "......g", "nor does it hide the others");
        assert_eq!(TryResult::of(false, INTERVAL + LATE_MAX), TryResult::Missed);
        assert_eq!(TryResult::of(false, INTERVAL + LATE_MAX + Duration::from_millis(1)), TryResult::Uncounted);
        // A process that was stopped for half a minute, and what had come meanwhile.
        assert_eq!(TryResult::of(false, Duration::from_secs(30)), TryResult::Uncounted);
        assert_eq!(TryResult::of(true, Duration::from_secs(30)), TryResult::Passed);
    }

    #[test]
    fn the_verdict_is_told_when_it_changes_and_only_then() {
        let mut judge = Judge::default();
        let changes: Vec<bool> =
            "mmmmmmmppp".chars().map(|c| judge.take(if c == 'p' { TryResult::Passed } else { TryResult::Missed })).collect();
        assert_eq!(changes.iter().enumerate().filter(|(_, changed)| **changed).map(|(at, _)| at).collect::<Vec<_>>(), [4, 9]);
    }
}
