//! `pop-bench fanout`: one node, publishers and many subscribers, everything real from HTTP to the last SRTP tag.
//!
//! ```text
//! start or attach -> publishers join -> subscribers join, 20 at a time
//!   -> for each pace: warm-up (lengths of trains) -> (search) -> floor -> measured run -> floor -> .. -> report
//! ```
//! The packet worker has one core, the load another, and a veth pair lies between them. The floor runs on the worker's core while the
//! worker sleeps, into the same sockets, with the lengths of the trains of the run before it.

pub(crate) mod arrival;
pub(crate) mod ice;
pub(crate) mod join;
pub(crate) mod load;
pub(crate) mod packet;
mod padding;
pub(crate) mod seats;
pub(crate) mod server;
pub(crate) mod timeline;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pop::dtls::{Certificate, Dtls};
use pop_proto::control::SrtpProfile;
use pop_uring::BackendKind;
use serde_json::{Value, json};

use crate::floor::{Floor, Plan, measure_beside, pin_to};
use crate::http;
use crate::machine::{Machine, Pinning, Workers};
use crate::measured::{Repeats, Run, Spent, counting, detail_of, figures_of};
use crate::network::Network;
use crate::random::random_hex;
use crate::result::case_json;
use crate::sdp::Media;
use crate::token::{Grant, sign_token};
use crate::{make_folder_of, write_json};

use arrival::Trains;
use join::{Ticket, join};
use load::{Load, Outcome};
use packet::PACKET_LEN_MIN;
use seats::{JOINS_AT_ONCE, Member, Seats};
use server::{Capacity, Common, Place, Server};
use timeline::{Pace, Spread};

/// Before anything is measured: caches, histories and the worker's buffers fill.
const WARM_UP: Duration = Duration::from_secs(1);

/// Packets of one floor round, at most: about 0.1 s.
const FLOOR_PACKETS_MAX: u64 = 200_000;

/// Packets of one floor round for each second of a measurement.
const FLOOR_PACKETS_PER_SECOND: f64 = 40_000.0;

/// Loss at which a search says "too fast", as a share.
pub(crate) const SEARCH_LOSS_MAX: f64 = 0.000_1;

/// A queue that takes longer than this to work off after the last frame means that the rate was not kept up with: deep socket
/// queues hide seconds of it without a loss.
pub(crate) const OVERRUN_MAX: Duration = Duration::from_millis(20);

/// A search ends when the last good and the first bad rate are this close.
const SEARCH_RATIO: f64 = 1.03;

/// The longest RTP packet that is sent, in bytes: with its tag it fits an Ethernet MTU.
pub(crate) const PACKET_LEN_MAX: usize = 1_400;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct FanoutArgs {
    /// Subscribers in all; they spread evenly over the publishers.
    #[arg(long, default_value_t = 50)]
    subscribers: usize,
    /// Publishers, each in a room of its own.
    #[arg(long, default_value_t = 1)]
    publishers: usize,
    /// Bits of RTP packets per second and publisher; k and M are understood.
    #[arg(long, default_value = "1.5M", value_parser = parse_bitrate)]
    bitrate: u64,
    #[command(flatten)]
    frames: FrameArgs,
    /// How the packets of a frame leave, one measurement each; the one with the lower floor ratio counts.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "paced,frames")]
    pace: Vec<Spread>,
    /// How long to measure, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Runs of each pace, between floors.
    #[arg(long, default_value_t = 1)]
    repeats: usize,
    /// SRTP of the clients. The floor seals with GCM whatever they have.
    #[arg(long, value_enum, default_value_t = Protection::Gcm)]
    profile: Protection,
    /// Raise the bitrate until packets are lost or queue up, and report the highest rate without either.
    #[arg(long)]
    search: bool,
    /// What padding costs: the first half of a frame's packets is a byte shorter, and all clients are there twice, with RTX, whose packets
    /// the node may pad, and without. The two are measured in turn.
    #[arg(long, conflicts_with_all = ["http", "search"])]
    uneven: bool,
    /// Measure a node that runs on this machine: its signalling URL.
    #[arg(long, requires = "token", conflicts_with = "pop")]
    http: Option<String>,
    /// A token for its room, with publish and subscribe grants.
    #[arg(long, requires = "http")]
    token: Option<String>,
    /// Its operator's URL, for /metrics; without it allocations are not reported.
    #[arg(long, requires = "http")]
    admin: Option<String>,
    /// Its process, when several nodes run here.
    #[arg(long, requires = "http")]
    pid: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// What the frames of a load are cut into.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct FrameArgs {
    /// Bytes of an RTP packet before protection.
    #[arg(long, default_value_t = 1_100)]
    pub(crate) packet_size: usize,
    /// Frames per second.
    #[arg(long, default_value_t = 30)]
    pub(crate) fps: u32,
}

impl FrameArgs {
    /// The error is a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(PACKET_LEN_MIN..=PACKET_LEN_MAX).contains(&self.packet_size) {
            return Err(format!("--packet-size must be {PACKET_LEN_MIN} to {PACKET_LEN_MAX} bytes"));
        }
        if !(1..=1_000).contains(&self.fps) {
            return Err("--fps must be 1 to 1000".to_owned());
        }
        Ok(())
    }
}

/// What the clients offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Protection {
    /// AEAD_AES_128_GCM.
    Gcm,
    /// AES_CM_128_HMAC_SHA1_80.
    AesCm,
    /// Every second subscriber AES-CM, the others GCM: latency is that of the others, who must not be slowed down.
    Mixed,
}

impl Protection {
    /// Of the publishers, and of the `n`-th subscriber.
    fn is_aes_cm(self, subscriber: Option<usize>) -> bool {
        match self {
            Protection::Gcm => false,
            Protection::AesCm => true,
            Protection::Mixed => subscriber.is_some_and(|n| n % 2 == 1),
        }
    }
}

/// `10s`, `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    pop::config::parse_duration(text).ok_or_else(|| "give digits and a unit, such as 10s or 500ms".to_owned())
}

/// `1.5M`, `500k`, `64000`.
pub(crate) fn parse_bitrate(text: &str) -> Result<u64, String> {
    let (number, factor) = match text.strip_suffix(['M', 'm']) {
        Some(number) => (number, 1e6),
        None => text.strip_suffix(['k', 'K']).map_or((text, 1.0), |number| (number, 1e3)),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number * factor <= 1e11 => Ok((number * factor) as u64),
        _ => Err("give bits per second, such as 1.5M, 500k or 64000".to_owned()),
    }
}

/// Runs the case and writes its report. The error is a sentence.
pub(crate) fn run(args: &FanoutArgs) -> Result<(), String> {
    check_args(args)?;
    let common = &args.common;
    make_folder_of(common.json.as_deref())?;
    let key = ("bench", random_hex::<20>());
    let network = Network::open(common.loopback || args.http.is_some());
    let pinning = Pinning::new(common.server_core, common.workers, common.load_core);
    let seats = args.seats(&network);
    let server = match &args.http {
        Some(http) => {
            let pid = args.pid.map_or_else(Workers::find_process, Ok)?;
            Server::attach(http, args.admin.as_deref(), pid)
        }
        None => {
            let program = common.pop.clone().map_or_else(program_beside, Ok)?;
            let capacity = Capacity { transports: seats.len() + 8, ..Capacity::default() };
            let place = Place { cores: &pinning.workers, network: &network };
            Server::start(&program, place, capacity, &common.backend, (key.0, &key.1))?
        }
    };
    // Only now: a child inherits the cores of its parent.
    pin_to(common.load_core)?;
    let workers = Workers::find(server.pid)?;
    let door = Door { args, base: &server.http, key: (key.0, &key.1) };
    let (mut load, members) = door.join_all(&seats)?;
    if args.uneven {
        load.cut_as_libwebrtc();
    }
    let sides = Side::all(args, &members);
    let mut bench = Bench { args, server: &server, workers: &workers, network: &network, load: &mut load, sides };
    let result = args.pace.iter().map(|spread| bench.measure(*spread)).collect::<Result<Vec<_>, String>>();
    // A node of ours ends with its process; in somebody else's the clients must not linger until consent expires.
    if let Some(token) = &args.token {
        for member in &members {
            let _ = http::request("DELETE", &member.resource, &[("Authorization", &format!("Bearer {token}"))], "");
        }
    }
    let mut sides: Vec<Vec<(Pace, Repeats)>> = vec![Vec::new(); args.sides()];
    for of_pace in result? {
        sides.iter_mut().zip(of_pace).for_each(|(side, runs)| side.push(runs));
    }
    let machine = machine(&server).with(network.describe(), pinning.clone());
    let profiles: BTreeSet<&str> = members.iter().map(|member| member.profile).collect();
    let mut own = json!({"server_drops": server.drops(), "srtp_profiles": profiles});
    if let [padded, plain] = &sides[..] {
        own["padding"] = padding::compare(padded, plain);
    }
    let json = report(args, &sides[0], (&machine, &pinning), own);
    write_json(common.json.as_deref(), &serde_json::to_string_pretty(&json).map_err(|e| e.to_string())?)
}

fn report(args: &FanoutArgs, runs: &[(Pace, Repeats)], (machine, pinning): (&Machine, &Pinning), own: Value) -> Value {
    let (pace, _) = counting(runs);
    let config = json!({
        "subscribers": args.subscribers, "publishers": args.publishers, "bitrate": pace.bitrate, "packet_size": pace.packet_len,
        "fps": pace.fps, "duration_s": pace.duration.as_secs_f64(), "search": args.search, "repeats": args.repeats,
        "profile": args.profile, "uneven": args.uneven,
        "server": if args.http.is_some() { "attached" } else { "started" }, "backend": args.common.backend,
    });
    let detail = detail_of(runs, pinning, own);
    case_json("fanout", &figures_of(runs), machine, config, detail)
}

fn check_args(args: &FanoutArgs) -> Result<(), String> {
    if args.http.is_some() && args.publishers > 1 {
        return Err("--http takes one publisher: a token opens one room".to_owned());
    }
    if args.duration.is_zero() || args.repeats == 0 || args.common.workers == 0 {
        return Err("--duration, --repeats and --workers must be above zero".to_owned());
    }
    args.frames.check()
}

/// The `pop` that was built together with this program.
pub(crate) fn program_beside() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    Ok(own.with_file_name("pop"))
}

/// The room that a token is for: the server checks the signature, this only reads.
fn room_of(token: &str) -> Result<String, String> {
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<Value> = claims.and_then(|json| serde_json::from_slice(&json).ok());
    let room = claims.as_ref().and_then(|claims| claims.get("video")?.get("room")?.as_str());
    room.map(str::to_owned).ok_or_else(|| "--token names no room (video.room): make one with pop token create --room R".to_owned())
}

/// The way into the node, for each client.
struct Door<'a> {
    args: &'a FanoutArgs,
    base: &'a str,
    key: (&'a str, &'a str),
}

impl Door<'_> {
    fn join_all(&self, seats: &Seats) -> Result<(Load, Vec<Member>), String> {
        let Door { args, base, key } = self;
        let given = match &args.token {
            Some(token) => Some((token.clone(), room_of(token)?)),
            None => None,
        };
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| format!("the clock: {e}"))?.as_secs();
        let dtls = |profiles: &'static [SrtpProfile]| -> Result<Dtls, String> {
            Ok(Dtls::with_profiles(Certificate::generate().map_err(|e| e.to_string())?, JOINS_AT_ONCE, profiles))
        };
        let (gcm, aes_cm) = (dtls(&[SrtpProfile::AeadAes128Gcm])?, dtls(&[SrtpProfile::Aes128CmSha1_80])?);
        seats.fill(|seat, socket| {
            let (door, grant) = if seat.subscriber.is_some() { ("whep", Grant::Watch) } else { ("whip", Grant::Publish) };
            let (token, room) = given.clone().unwrap_or_else(|| {
                let room = format!("bench-{}", seat.publisher);
                (sign_token(*key, &room, &random_hex::<8>(), grant, now_s), room)
            });
            let rtx = args.uneven && seat.side == Side::PADDED;
            let dtls = if args.profile.is_aes_cm(seat.subscriber) { &aes_cm } else { &gcm };
            join(dtls.clone(), socket, Ticket { url: format!("{base}/{door}/{room}"), token, ssrc: seat.published(), rtx })
        })
    }
}

/// Clients that are measured together, of which there is one set or, with `--uneven`, two.
struct Side {
    publishers: Range<usize>,
    /// Addresses of the subscribers.
    sinks: Vec<SocketAddr>,
}

impl Side {
    /// The number of the side with RTX.
    const PADDED: usize = 0;

    fn all(args: &FanoutArgs, members: &[Member]) -> Vec<Side> {
        let side = |side: usize| {
            let ours = members.iter().filter(|member| member.seat.subscriber.is_some() && member.seat.side == side);
            Side { publishers: side * args.publishers..(side + 1) * args.publishers, sinks: ours.map(|member| member.address).collect() }
        };
        (0..args.sides()).map(side).collect()
    }
}

/// This machine, and what the server says about itself.
pub(crate) fn machine(server: &Server) -> Machine {
    let version = server.version();
    let field = |name: &str| Some(serde_json::from_str::<Value>(version.as_deref()?).ok()?.get(name)?.as_str()?.to_owned());
    Machine::describe(&server.backend().unwrap_or_else(|| "unknown".to_owned()), field("commit"))
}

impl FanoutArgs {
    fn pace_of(&self, spread: Spread) -> Pace {
        let FrameArgs { packet_size: packet_len, fps } = self.frames;
        Pace { bitrate: self.bitrate, packet_len, fps, spread, duration: self.duration, media: Media::Video }
    }

    fn sides(&self) -> usize {
        if self.uneven { 2 } else { 1 }
    }

    fn seats(&self, network: &Network) -> Seats {
        Seats {
            sides: self.sides(),
            publishers: self.publishers,
            subscribers: self.subscribers,
            address: network.load_address(),
            pace: self.pace_of(Spread::Burst),
            timed: (self.profile == Protection::Mixed).then_some(SrtpProfile::AeadAes128Gcm),
        }
    }
}

/// Everything that a measurement needs.
struct Bench<'a> {
    args: &'a FanoutArgs,
    server: &'a Server,
    workers: &'a Workers,
    network: &'a Network,
    load: &'a mut Load,
    sides: Vec<Side>,
}

impl Bench<'_> {
    /// All runs of one pace, by side, and the pace, which a search changes.
    fn measure(&mut self, spread: Spread) -> Result<Vec<(Pace, Repeats)>, String> {
        let mut pace = self.args.pace_of(spread);
        let mut floors = Vec::new();
        for side in 0..self.sides.len() {
            self.load.renew_consent()?;
            let warm_up = self.load.run_some(&Pace { duration: WARM_UP, ..pace }, self.sides[side].publishers.clone())?;
            if warm_up.delivered == 0 {
                let (answers, drops) = (self.load.check_answers(), self.server.drops());
                return Err(format!("{answers} clients joined and no packet arrived; the server's drops: {drops}"));
            }
            // The rate that a search finds is run once more between its floors, which have that rate's trains.
            let (found, like) = if self.args.search { self.search(pace)? } else { (pace, warm_up) };
            pace = found;
            floors.push(self.floor_like(side, &like.trains)?);
        }
        let sides = self.sides.len();
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); sides];
        for repeat in 0..self.args.repeats {
            // Each side is first in turn.
            for side in (0..sides).map(|side| (side + repeat) % sides) {
                self.load.renew_consent()?;
                let (outcome, spent) = self.run(&pace, side)?;
                let after = self.floor_like(side, &outcome.trains)?;
                let run = Run::new(&outcome, &spent, vec![std::mem::replace(&mut floors[side], after.clone()), after]);
                let name = if self.args.uneven && side != Side::PADDED { "no rtx" } else { spread.name() };
                run.summarize(name);
                runs[side].push(run);
            }
        }
        Ok(runs.into_iter().map(|runs| (pace, Repeats::new(runs))).collect())
    }

    /// One run of a side, and what the server spent on it.
    fn run(&mut self, pace: &Pace, side: usize) -> Result<(Outcome, Spent), String> {
        let before = Spent::read(self.server, self.workers)?;
        let outcome = self.load.run_some(pace, self.sides[side].publishers.clone())?;
        Ok((outcome, Spent::read(self.server, self.workers)?.since(&before)))
    }

    /// Doubles the bitrate until packets are lost or queue up, then halves the gap. The last rate without either is the result.
    fn search(&mut self, start: Pace) -> Result<(Pace, Outcome), String> {
        let mut good: Option<(Pace, Outcome)> = None;
        let mut bad: Option<u64> = None;
        loop {
            let bitrate = match (&good, bad) {
                (None, None) => start.bitrate,
                (Some((pace, _)), None) => pace.bitrate * 2,
                (None, Some(bad)) => bad / 2,
                (Some((pace, _)), Some(bad)) => (pace.bitrate + bad) / 2,
            };
            let pace = Pace { bitrate, ..start };
            let (outcome, spent) = self.run(&pace, 0)?;
            eprintln!(
                "search: {:>8.3} Mb/s per publisher, {:>9.0} packets/s, loss {:.5} %, {:>6.1} ms overrun, {:.0} ns of worker CPU per packet ({:.0} % of its core)",
                bitrate as f64 / 1e6,
                outcome.delivered as f64 / outcome.elapsed.as_secs_f64(),
                outcome.loss() * 100.0,
                outcome.overrun.as_secs_f64() * 1e3,
                spent.cpu_ns_per_packet(&outcome),
                spent.cpu_share(&outcome) * 100.0,
            );
            if outcome.loss() <= SEARCH_LOSS_MAX && outcome.overrun <= OVERRUN_MAX {
                good = Some((pace, outcome));
            } else {
                bad = Some(bitrate);
            }
            match (good.take(), bad) {
                (Some(found), Some(bad)) if bad as f64 / found.0.bitrate as f64 <= SEARCH_RATIO => return Ok(found),
                (None, Some(bad)) if bad < start.bitrate / 1_000 => return Err("packets are lost or late at every rate".to_owned()),
                (unfinished, _) => good = unfinished,
            }
        }
    }

    /// The floor at the run's packet size and with its trains, on the worker's core, into the subscribers' sockets.
    fn floor_like(&mut self, side: usize, trains: &Trains) -> Result<Floor, String> {
        let args = self.args;
        let packet_len = args.frames.packet_size;
        let plan = Plan {
            seals: true,
            trains: trains.replay(Plan::train_max(packet_len)),
            packet_len,
            packets: floor_packets(args.duration),
            core: args.common.server_core,
            from: self.network.node_address(),
            namespace: self.network.namespace(),
            backend: BackendKind::Mmsg,
        };
        measure_beside(plan, self.sides[side].sinks.clone(), || self.load.drain())
    }
}

/// Packets of one floor round for a measurement of this length: a short one gets a short floor.
pub(crate) fn floor_packets(duration: Duration) -> u64 {
    ((duration.as_secs_f64() * FLOOR_PACKETS_PER_SECOND) as u64).clamp(1_000, FLOOR_PACKETS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitrates_have_units() {
        assert_eq!((parse_bitrate("1.5M"), parse_bitrate("500k"), parse_bitrate("64000")), (Ok(1_500_000), Ok(500_000), Ok(64_000)));
        assert!(["", "M", "-1k", "x", "0"].iter().all(|text| parse_bitrate(text).is_err()));
    }

    #[test]
    fn the_room_is_read_from_the_token() {
        assert_eq!(room_of(&sign_token(("k", "secret"), "blue", "me", Grant::Publish, 1_000)), Ok("blue".to_owned()));
        assert!(room_of("a.b.c").is_err());
    }
}
