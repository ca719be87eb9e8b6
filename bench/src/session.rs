//! `pop-bench session`: a call of many, in which each gets what all the others publish.
//!
//! ```text
//! publishers join -> (watchers join) -> for each pace: warm-up -> floor -> run -> floor -> .. -> report
//! ```

use std::time::Duration;

use serde_json::json;

use crate::fanout::server::Common;
use crate::fanout::timeline::{Pace, Spread};
use crate::fanout::{FrameArgs, parse_bitrate, parse_duration};
use crate::measured::{Repeats, Run, detail_of, figures_of};
use crate::result::case_json;
use crate::rooms::{Room, Shape, Site};
use crate::sdp::Media;

/// Before anything is measured: caches, histories and the worker's buffers fill.
const WARM_UP: Duration = Duration::from_secs(1);

/// `pop-bench session`
#[derive(Debug, clap::Args)]
pub(crate) struct SessionArgs {
    /// Participants in one room; each gets what all the others publish.
    #[arg(long, alias = "members", default_value_t = 50)]
    participants: usize,
    /// How many of them publish a video track; default: all.
    #[arg(long)]
    publishers: Option<usize>,
    /// All of them publish, which is the default.
    #[arg(long, conflicts_with = "publishers")]
    publishers_all: bool,
    /// Bits of RTP packets per second and publisher; k and M are understood.
    #[arg(long, default_value = "500k", value_parser = parse_bitrate)]
    bitrate: u64,
    #[command(flatten)]
    frames: FrameArgs,
    /// How the packets of a frame leave, one measurement each; the one with the lower floor ratio counts.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "paced,frames")]
    pace: Vec<Spread>,
    /// How long one run is, such as 10s or 500ms.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Runs of each pace, between floors.
    #[arg(long, default_value_t = 1)]
    repeats: usize,
    #[command(flatten)]
    common: Common,
}

impl SessionArgs {
    fn pace_of(&self, spread: Spread) -> Pace {
        let FrameArgs { packet_size: packet_len, fps } = self.frames;
        Pace { bitrate: self.bitrate, packet_len, fps, spread, duration: self.duration, media: Media::Video }
    }
}

/// Runs the case and writes its report. The error is a sentence.
pub(crate) fn run(args: &SessionArgs) -> Result<(), String> {
    let publishers = args.publishers.unwrap_or(args.participants);
    let shape =
        Shape { members: args.participants, members_max: args.participants, publishers, pace: args.pace_of(args.pace[0]), hidden: false };
    shape.check()?;
    if args.repeats == 0 {
        return Err("--repeats must be above zero".to_owned());
    }
    let site = Site::open(&args.common)?;
    let mut room = Room::open(&shape, &site)?;
    room.publish()?;
    if let Some(sentence) = room.watch(publishers..args.participants)?.failures.first() {
        return Err(sentence.clone());
    }
    let runs = args.pace.iter().map(|spread| measure(args, &mut room, *spread)).collect::<Result<Vec<_>, _>>()?;
    let config = json!({
        "participants": args.participants, "publishers": publishers, "bitrate": args.bitrate, "packet_size": args.frames.packet_size,
        "fps": args.frames.fps, "duration_s": args.duration.as_secs_f64(), "repeats": args.repeats,
    });
    let own = json!({
        "streams": room.crowd.streams(), "members_lost": room.crowd.lost(), "unknown_packets": room.crowd.unknown(),
        "server_drops": room.server.drops(),
    });
    let detail = detail_of(&runs, &site.pinning, own);
    site.write(&case_json("session", &figures_of(&runs), &site.machine(&room.server), config, detail))
}

fn measure(args: &SessionArgs, room: &mut Room<'_>, spread: Spread) -> Result<(Pace, Repeats), String> {
    let pace = args.pace_of(spread);
    let (warm_up, _) = room.run(&Pace { duration: WARM_UP, ..pace })?;
    let mut floor = room.floor_like(&warm_up.trains)?;
    let mut runs = Vec::new();
    for _ in 0..args.repeats {
        let (outcome, spent) = room.run(&pace)?;
        let after = room.floor_like(&outcome.trains)?;
        let run = Run::new(&outcome, &spent, vec![std::mem::replace(&mut floor, after.clone()), after]);
        run.summarize(spread.name());
        runs.push(run);
    }
    Ok((pace, Repeats::new(runs)))
}
