//! `pop-bench people`: light people in sessions of a node that runs already, here or at the other end of a network that a test has made.
//!
//! ```text
//! join (publishers, then watchers) -> {"joined": ..} -> commands on stdin, a line each -> stdin ends, and they leave
//!   reset   counts begin anew                    -> {"reset": true}
//!   stats   what came since, by where it is from -> {"stats": ..}
//! ```
//! Several of them in the same sessions at nodes of other PoPs make a session that spans PoPs. A packet says who has sent it and when, by a
//! clock that all processes of a machine share, so what each watcher got tells loss, delay and pauses by origin. They decode nothing.

use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use pop::dtls::{Certificate, Dtls};
use pop_proto::srtp::{SrtpReceiver, SrtpSender};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader};
use pop_proto::wire::rtp::RtpView;
use pop_proto::wire::{Protocol, demux};
use pop_uring::monotonic_time;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep};

use crate::blast::new_histogram;
use crate::fanout::ice::{Checks, REQUEST_LEN_MAX};
use crate::fanout::join::{DATAGRAM_LEN_MAX, JOIN_TIMEOUT};
use crate::fanout::load::CHECK_INTERVAL;
use crate::fanout::packet::{FrameSizer, HEADER_LEN, Place, read_payload, write_packet};
use crate::fanout::{FrameArgs, parse_bitrate};
use crate::groups::SOCKET_QUEUE_LEN;
use crate::random::random_bytes;
use crate::rooms::member::{Member, Ticket, join};
use crate::sdp::Media;
use crate::token::{Grant, sign_token};

/// People that come at the same time.
const JOINS_AT_ONCE: usize = 20;

/// Between two offers of somebody who waits for tracks.
const OFFER_PAUSE: Duration = Duration::from_millis(300);

/// Who comes, and what they do.
#[derive(Debug, clap::Args)]
pub(crate) struct PeopleArgs {
    /// Base URL of the node's signalling.
    #[arg(long)]
    http: String,
    /// The API key, as ID=SECRET.
    #[arg(long, value_parser = parse_key)]
    key: (String, String),
    /// What their sessions are called; with more than one a number is behind it.
    #[arg(long, default_value = "people")]
    room: String,
    /// How many sessions, each with people of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rooms: u16,
    /// Where they are, as packets say it; unlike that of others in the same sessions.
    #[arg(long, default_value_t = 0)]
    origin: u16,
    /// Who publish a video track, in each session.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=200))]
    publishers: u16,
    /// Who watch everybody, in each session.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=4_000))]
    watchers: u16,
    /// Tracks that each watcher is to get, of publishers at other nodes, too: it is there when it has them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=200))]
    receives: u16,
    /// Nobody is told of the watchers: an audience.
    #[arg(long)]
    hidden: bool,
    /// Bits of RTP packets per second and publisher; k and M are understood.
    #[arg(long, default_value = "100k", value_parser = parse_bitrate)]
    bitrate: u64,
    #[command(flatten)]
    frames: FrameArgs,
}

fn parse_key(text: &str) -> Result<(String, String), String> {
    text.split_once('=').map(|(id, secret)| (id.to_owned(), secret.to_owned())).ok_or_else(|| "give ID=SECRET".to_owned())
}

/// Runs until stdin ends. The error is a sentence.
pub(crate) fn run(args: &PeopleArgs) -> Result<(), String> {
    args.frames.check()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(|e| format!("no runtime: {e}"))?;
    let mut crowd = runtime.block_on(Crowd::come(args))?;
    println!("{}", json!({ "joined": crowd.seen.len(), "seconds": crowd.seconds }));
    for line in std::io::stdin().lock().lines() {
        let answer = match line.map_err(|e| format!("stdin: {e}"))?.trim() {
            "reset" => {
                crowd.reset();
                json!({ "reset": true })
            }
            "stats" => json!({ "stats": crowd.stats() }),
            other => json!({ "error": format!("{other:?} is no command: reset, stats") }),
        };
        println!("{answer}");
    }
    // Who leaves says so.
    runtime.block_on(async { crowd.tasks.shutdown().await });
    Ok(())
}

/// All that are there.
struct Crowd {
    tasks: JoinSet<()>,
    /// Of each watcher.
    seen: Vec<Arc<Mutex<Seen>>>,
    seconds: f64,
}

/// What one watcher got since the last reset: by the origin and the number of who has sent it.
#[derive(Default)]
struct Seen(HashMap<(u16, u16), Stream>);

struct Stream {
    first: u32,
    last: u32,
    packets: u64,
    came: Instant,
    longest: Duration,
    delays: Vec<u32>,
}

impl Crowd {
    async fn come(args: &PeopleArgs) -> Result<Crowd, String> {
        let begun = Instant::now();
        let dtls = Dtls::new(Certificate::generate().map_err(|e| e.to_string())?, JOINS_AT_ONCE);
        let mut crowd = Crowd { tasks: JoinSet::new(), seen: Vec::new(), seconds: 0.0 };
        for publishes in [true, false] {
            let (gate, mut joining) = (Arc::new(Semaphore::new(JOINS_AT_ONCE)), JoinSet::new());
            let count = if publishes { args.publishers } else { args.watchers };
            for (room, number) in (0..args.rooms).flat_map(|room| (0..count).map(move |number| (room, number))) {
                let ticket = ticket(args, room, number, publishes)?;
                let (dtls, gate, socket) = (dtls.clone(), Arc::clone(&gate), bind()?);
                let receives = ticket.receives;
                joining.spawn(async move {
                    let permit = gate.acquire_owned().await.map_err(|e| e.to_string())?;
                    let member = join(dtls, socket, ticket, permit).await?;
                    Ok::<_, String>((number, until_all_are_offered(member, receives).await?))
                });
            }
            while let Some(joined) = joining.join_next().await {
                let (number, member) = joined.map_err(|e| e.to_string())??;
                if publishes {
                    let frames = Frames {
                        origin: args.origin,
                        number,
                        bitrate: args.bitrate,
                        packet_len: args.frames.packet_size,
                        fps: args.frames.fps,
                    };
                    crowd.tasks.spawn(publish(member, frames));
                } else {
                    let seen = Arc::<Mutex<Seen>>::default();
                    crowd.seen.push(Arc::clone(&seen));
                    crowd.tasks.spawn(watch(member, seen));
                }
            }
        }
        crowd.seconds = begun.elapsed().as_secs_f64();
        Ok(crowd)
    }

    fn reset(&mut self) {
        for seen in &self.seen {
            *seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::default();
        }
    }

    fn stats(&self) -> Value {
        let (now, mut origins) = (Instant::now(), BTreeMap::<u16, Origin>::new());
        for seen in &self.seen {
            for ((origin, _), stream) in &seen.lock().unwrap_or_else(PoisonError::into_inner).0 {
                origins.entry(*origin).or_insert_with(Origin::new).add(stream, now);
            }
        }
        let origins: serde_json::Map<String, Value> = origins.iter().map(|(origin, of)| (origin.to_string(), of.stats())).collect();
        json!({ "watchers": self.seen.len(), "origins": origins })
    }
}

/// All streams from one origin.
struct Origin {
    streams: u64,
    packets: u64,
    lost: u64,
    delay_us: Histogram<u64>,
    longest_us: Histogram<u64>,
}

impl Origin {
    fn new() -> Origin {
        Origin { streams: 0, packets: 0, lost: 0, delay_us: new_histogram(), longest_us: new_histogram() }
    }

    fn add(&mut self, stream: &Stream, now: Instant) {
        let expected = u64::from(stream.last.wrapping_sub(stream.first)) + 1;
        (self.streams, self.packets, self.lost) =
            (self.streams + 1, self.packets + stream.packets, self.lost + expected.saturating_sub(stream.packets));
        stream.delays.iter().for_each(|us| self.delay_us.saturating_record(u64::from(*us).max(1)));
        self.longest_us.saturating_record(stream.longest.max(now - stream.came).as_micros() as u64);
    }

    fn stats(&self) -> Value {
        let of = |histogram: &Histogram<u64>| {
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| histogram.value_at_quantile(part) as f64 / 1e3);
            json!({ "p50": p50, "p99": p99, "max": max })
        };
        json!({
            "streams": self.streams, "packets": self.packets, "lost": self.lost,
            "delay_ms": of(&self.delay_us), "longest_pause_ms": of(&self.longest_us),
        })
    }
}

/// Offers again until the node has so many tracks for it: those of other nodes are told of after it came.
async fn until_all_are_offered(member: Member, receives: usize) -> Result<Member, String> {
    let (begun, mut offered) = (Instant::now(), member.sources.len());
    while offered < receives {
        if begun.elapsed() > JOIN_TIMEOUT {
            return Err(format!("{offered} of {receives} tracks are there after {JOIN_TIMEOUT:?}"));
        }
        sleep(OFFER_PAUSE).await;
        offered = member.seat.offer_again().await?.len();
    }
    Ok(member)
}

fn ticket(args: &PeopleArgs, room: u16, number: u16, publishes: bool) -> Result<Ticket, String> {
    let room = if args.rooms == 1 { args.room.clone() } else { format!("{}-{room}", args.room) };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| format!("the clock: {e}"))?.as_secs();
    let (what, grant) = match (publishes, args.hidden) {
        (true, _) => ("publisher", Grant::Publish),
        (false, true) => ("watcher", Grant::Hidden),
        (false, false) => ("watcher", Grant::Watch),
    };
    let identity = format!("{what}-{}-{number}", args.origin);
    Ok(Ticket {
        index: number.into(),
        http: args.http.clone(),
        wave: Instant::now(),
        token: sign_token((&args.key.0, &args.key.1), &room, &identity, grant, now_s),
        ssrc: publishes.then(|| u32::from_be_bytes(random_bytes())),
        receives: if publishes { 0 } else { args.receives.into() },
        media: Media::Video,
        awaits_keyframe: false,
    })
}

/// A client's socket.
pub(crate) fn bind() -> Result<std::net::UdpSocket, String> {
    let unspecified = std::net::SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0));
    let socket = pop_uring::bind_udp(unspecified, SOCKET_QUEUE_LEN / 8, SOCKET_QUEUE_LEN / 8);
    let socket = socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    socket.map_err(|e| format!("client socket: {e}: raise the limit of open files (ulimit -n)"))
}

/// What a publisher sends.
pub(crate) struct Frames {
    pub(crate) origin: u16,
    pub(crate) number: u16,
    pub(crate) bitrate: u64,
    pub(crate) packet_len: usize,
    pub(crate) fps: u32,
}

/// Sends frames from now on, a keyframe when one is asked for.
pub(crate) async fn publish(member: Member, frames: Frames) {
    let Member { socket, server, mut checks, keys, ssrc, seat: _seat, .. } = member;
    let Ok(media) = UdpSocket::from_std(socket) else { return };
    let (sender, mut receiver) = (SrtpSender::new(keys.profile, &keys.local), SrtpReceiver::new(keys.profile, &keys.remote));
    let mut sizer = FrameSizer::new(frames.bitrate, frames.packet_len, frames.fps);
    let interval = Duration::from_secs(1) / frames.fps;
    // They do not all send at once.
    let offset = interval.mul_f64(f64::from(u16::from_be_bytes(random_bytes())) / f64::from(u16::MAX));
    let mut ticks = interval_at(tokio::time::Instant::now() + offset, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewals = interval_at(tokio::time::Instant::now() + CHECK_INTERVAL.mul_f64(0.5), CHECK_INTERVAL);
    let (mut index, mut frame, mut wants_keyframe) = (0_u32, 0_u32, true);
    let (mut packet, mut sealed, mut buffer) = (vec![0; frames.packet_len], [0; DATAGRAM_LEN_MAX], [0; DATAGRAM_LEN_MAX]);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let packets = sizer.next_frame();
                for at in 0..packets {
                    let place = Place {
                        ssrc: ssrc.unwrap_or_default(),
                        sequence: index as u16,
                        timestamp: frame.wrapping_mul(90_000 / frames.fps),
                        starts_frame: at == 0,
                        ends_frame: at + 1 == packets,
                        keyframe: at == 0 && std::mem::take(&mut wants_keyframe),
                        media: Media::Video,
                    };
                    let number = u64::from(frames.origin) << 48 | u64::from(frames.number) << 32 | u64::from(index);
                    write_packet(&mut packet, &place, number, monotonic_time().as_nanos() as u64);
                    let (header, payload) = packet.split_at(HEADER_LEN);
                    if let Ok(len) = sender.protect_rtp(index.into(), header, payload, &mut sealed) {
                        // What the kernel does not take is lost, as on any wire.
                        let _ = media.send_to(&sealed[..len], server).await;
                    }
                    index = index.wrapping_add(1);
                }
                frame = frame.wrapping_add(1);
            }
            _ = renewals.tick() => renew(&mut checks, &media, server).await,
            received = media.recv(&mut buffer) => {
                let Ok(len) = received else { continue };
                let datagram = &mut buffer[..len];
                if demux(datagram) != Ok(Protocol::Rtcp) {
                    continue;
                }
                let Ok(len) = receiver.unprotect_rtcp(datagram) else { continue };
                let packets = RtcpReader::new(&datagram[..len]).into_iter().flatten();
                wants_keyframe |= packets.into_iter().any(|packet| matches!(packet, RtcpPacket::Pli { .. } | RtcpPacket::Fir { .. }));
            }
        }
    }
}

async fn watch(member: Member, seen: Arc<Mutex<Seen>>) {
    let Member { socket, server, mut checks, keys, seat: _seat, .. } = member;
    let Ok(media) = UdpSocket::from_std(socket) else { return };
    let mut renewals = interval_at(tokio::time::Instant::now() + CHECK_INTERVAL.mul_f64(0.5), CHECK_INTERVAL);
    // A receiver keeps no more than 32 streams.
    let (mut receivers, mut buffer) = (HashMap::<u32, SrtpReceiver>::new(), [0; DATAGRAM_LEN_MAX]);
    loop {
        tokio::select! {
            _ = renewals.tick() => renew(&mut checks, &media, server).await,
            received = media.recv(&mut buffer) => {
                let mut received = received;
                // All that has come.
                while let Ok(len) = received {
                    let datagram = &mut buffer[..len];
                    if demux(datagram) == Ok(Protocol::Rtp)
                        && let Ok(view) = RtpView::parse(datagram)
                    {
                        let (header_len, ssrc) = (view.header_len(), u32::from_be_bytes([datagram[8], datagram[9], datagram[10], datagram[11]]));
                        let receiver = receivers.entry(ssrc).or_insert_with(|| SrtpReceiver::new(keys.profile, &keys.remote));
                        if let Ok(opened) = receiver.unprotect_rtp(datagram, header_len)
                            && let Some((number, sent_ns)) = datagram.get(header_len..opened.len).and_then(read_payload)
                        {
                            seen.lock().unwrap_or_else(PoisonError::into_inner).take(number, sent_ns);
                        }
                    }
                    received = media.try_recv(&mut buffer);
                }
            }
        }
    }
}

async fn renew(checks: &mut Checks, media: &UdpSocket, server: std::net::SocketAddr) {
    let mut check = [0; REQUEST_LEN_MAX];
    let len = checks.write_check(&mut check);
    let _ = media.send_to(&check[..len], server).await;
}

impl Seen {
    fn take(&mut self, number: u64, sent_ns: u64) {
        let (from, index, now) = (((number >> 48) as u16, (number >> 32) as u16), number as u32, Instant::now());
        let delay_us = ((monotonic_time().as_nanos() as u64).saturating_sub(sent_ns) / 1_000) as u32;
        let stream = self.0.entry(from).or_insert(Stream {
            first: index,
            last: index,
            packets: 0,
            came: now,
            longest: Duration::ZERO,
            delays: Vec::new(),
        });
        stream.longest = stream.longest.max(now - stream.came);
        (stream.came, stream.packets) = (now, stream.packets + 1);
        (stream.first, stream.last) = (stream.first.min(index), stream.last.max(index));
        stream.delays.push(delay_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_told_by_origin_with_what_did_not_and_the_longest_pause() {
        let mut seen = Seen::default();
        let now_ns = monotonic_time().as_nanos() as u64;
        for (origin, publisher, index) in [(1, 0, 7), (1, 0, 9), (1, 1, 3), (2, 0, 5)] {
            seen.take(origin << 48 | publisher << 32 | index, now_ns - 5_000_000);
        }
        seen.0.get_mut(&(2, 0)).expect("it came").longest = Duration::from_millis(700);
        let crowd = Crowd { tasks: JoinSet::new(), seen: vec![Arc::new(Mutex::new(seen))], seconds: 0.0 };
        let stats = crowd.stats();
        let one = &stats["origins"]["1"];
        assert_eq!((&one["streams"], &one["packets"], &one["lost"]), (&json!(2), &json!(3), &json!(1)), "{stats}");
        assert!(one["delay_ms"]["p50"].as_f64().is_some_and(|ms| (5.0..500.0).contains(&ms)), "{stats}");
        assert!(stats["origins"]["2"]["longest_pause_ms"]["max"].as_f64().is_some_and(|ms| ms >= 699.0), "{stats}");
    }
}
