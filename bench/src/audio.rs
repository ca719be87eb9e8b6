//! `pop-bench audio`: a few speakers and an audience that grows until packets are lost.
//!
//! ```text
//! speakers join -> the audience joins -> floor, run -> more join -> floor, run -> .. until a run loses packets or is late
//! ```
//! The audience is hidden, so that nobody is told of thousands who come.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::fanout::server::Common;
use crate::fanout::timeline::{Pace, Spread};
use crate::fanout::{OVERRUN_MAX, SEARCH_LOSS_MAX, parse_duration};
use crate::measured::Run;
use crate::result::case_json;
use crate::rooms::{Room, Shape, Site};
use crate::sdp::Media;

/// Opus packets a second: 20 ms each.
const PACKETS_PER_SECOND: u32 = 50;

/// `pop-bench audio`
#[derive(Debug, clap::Args)]
pub(crate) struct AudioArgs {
    /// Who speaks, all at the same time.
    #[arg(long, default_value_t = 10)]
    speakers: usize,
    /// The audience at first.
    #[arg(long, default_value_t = 200)]
    subscribers: usize,
    /// Where raising ends.
    #[arg(long, default_value_t = 3_000)]
    subscribers_max: usize,
    /// The audience of a run over that of the run before it.
    #[arg(long, default_value_t = 1.5)]
    raise: f64,
    /// Bytes of an RTP packet before protection: 12 of header and 20 ms of Opus, here at 40 kbit/s.
    #[arg(long, default_value_t = 112)]
    packet_size: usize,
    /// How long one run is, such as 3s or 500ms.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    duration: Duration,
    #[command(flatten)]
    common: Common,
}

/// One size of the audience.
#[derive(Debug, Serialize)]
struct Step {
    subscribers: usize,
    /// Nothing was lost, and nothing late.
    holds: bool,
    #[serde(flatten)]
    run: Run,
}

/// Runs the case and writes its report. The error is a sentence.
pub(crate) fn run(args: &AudioArgs) -> Result<(), String> {
    if args.subscribers == 0 || args.raise <= 1.0 {
        return Err("--subscribers must be above zero, and --raise above 1".to_owned());
    }
    let pace = Pace {
        bitrate: 8 * args.packet_size as u64 * u64::from(PACKETS_PER_SECOND),
        packet_len: args.packet_size,
        fps: PACKETS_PER_SECOND,
        spread: Spread::Paced,
        duration: args.duration,
        media: Media::Audio,
    };
    let shape = Shape {
        members: args.speakers + args.subscribers,
        members_max: args.speakers + args.subscribers_max.max(args.subscribers),
        publishers: args.speakers,
        pace,
        hidden: true,
    };
    shape.check()?;
    let site = Site::open(&args.common)?;
    let mut room = Room::open(&shape, &site)?;
    room.publish()?;
    let steps = raise(args, &mut room, &pace)?;
    let held = steps.iter().rev().find(|step| step.holds);
    if let Some(step) = held {
        eprintln!("audio     {:>10} subscribers of {} speakers without loss", step.subscribers, args.speakers);
    }
    let config = json!({
        "speakers": args.speakers, "subscribers": args.subscribers, "subscribers_max": args.subscribers_max, "raise": args.raise,
        "packet_size": args.packet_size, "packets_per_second": PACKETS_PER_SECOND, "duration_s": args.duration.as_secs_f64(),
    });
    let figures = held.or(steps.last()).map(|step| step.run.figures.clone()).unwrap_or_default();
    let beware: Vec<String> = steps.iter().flat_map(|step| step.run.beware()).collect();
    let detail = json!({
        "beware": beware, "subscribers": held.map(|step| step.subscribers), "steps": steps, "members_lost": room.crowd.lost(),
        "unknown_packets": room.crowd.unknown(), "server_drops": room.server.drops(),
    });
    site.write(&case_json("audio", &figures, &site.machine(&room.server), config, detail))
}

/// Runs of a growing audience; the last lost packets, or is as large as may be.
fn raise(args: &AudioArgs, room: &mut Room<'_>, pace: &Pace) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut joining = args.speakers..args.speakers + args.subscribers;
    loop {
        let subscribers = joining.end - args.speakers;
        if let Some(sentence) = room.watch(joining.clone())?.failures.first() {
            return Err(sentence.clone());
        }
        let (warm_up, _) = room.run(&Pace { duration: pace.duration / 2, ..*pace })?;
        let before = room.floor_like(&warm_up.trains)?;
        let (outcome, spent) = room.run(pace)?;
        let run = Run::new(&outcome, &spent, vec![before, room.floor_like(&outcome.trains)?]);
        eprintln!("audience  {subscribers:>10} subscribers");
        run.summarize("run");
        let holds = outcome.loss() <= SEARCH_LOSS_MAX && outcome.overrun <= OVERRUN_MAX;
        steps.push(Step { subscribers, holds, run });
        if !holds || subscribers >= args.subscribers_max {
            return Ok(steps);
        }
        let next = ((subscribers as f64 * args.raise).ceil() as usize).min(args.subscribers_max);
        joining = joining.end..args.speakers + next;
    }
}
