//! How soon a link repairs, and what that costs in bytes: real links, fake time, and the wire that relay's own tests have.

#[path = "../../../relay/tests/common/mod.rs"]
mod wire;

use std::time::Duration;

use pop_relay::control::VERSION;
use serde::Serialize;

use wire::{Net, Wire};

/// Round trips, in milliseconds, and losses, of 1,000.
const WIRES: [(u64, usize); 6] = [(20, 20), (20, 100), (60, 20), (60, 100), (100, 20), (100, 100)];
/// Tracks of audio and of video of [`Net::talk`].
const AUDIO: std::ops::Range<u16> = 0..3;
const VIDEO: std::ops::Range<u16> = 10..12;
/// Bytes of its video packets.
const VIDEO_LEN: usize = 1_100;
/// Until the links know their round trip; and until what is under way has come.
const SETTLE: Duration = Duration::from_secs(1);

/// What one kind of wire did to two ends that talk, over all seeds.
#[derive(Debug, Serialize)]
pub(super) struct Repair {
    rtt_ms: u64,
    loss: f64,
    /// Seeds from 0 on.
    seeds: u64,
    /// Packets of audio, and the share of them that came within the playout budget; of video, and the share that came.
    audio: usize,
    audio_in_time: f64,
    video: usize,
    video_delivered: f64,
    /// Packets that came by a repair, and how long after their time.
    repaired: usize,
    repair_ms: Option<Percentiles>,
    /// The 99th percentile over the round trip.
    p99_per_rtt: Option<f64>,
    /// Share of the UDP payload bytes that are not RTP: heads, tags, feedback, repairs.
    share_not_rtp: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Percentiles {
    p50: u64,
    p99: u64,
    max: u64,
}

impl Repair {
    pub(super) fn summarize(&self) {
        let Percentiles { p50, p99, max } = self.repair_ms.unwrap_or(Percentiles { p50: 0, p99: 0, max: 0 });
        eprintln!(
            "repair    rtt {:>3} ms, loss {:>2.0} %: audio in time {:.5}, {} repaired after p50 {p50} ms, p99 {p99} ms, at most {max} ms; {:.4} of the bytes are not RTP",
            self.rtt_ms,
            self.loss * 100.0,
            self.audio_in_time,
            self.repaired,
            self.share_not_rtp,
        );
    }
}

/// Both ends talk for `time` over each wire, once by each seed.
pub(super) fn measure(seeds: u64, time: Duration) -> Vec<Repair> {
    WIRES.into_iter().map(|(rtt_ms, loss_permille)| measure_wire(rtt_ms, loss_permille, seeds, time)).collect()
}

fn measure_wire(rtt_ms: u64, loss_permille: usize, seeds: u64, time: Duration) -> Repair {
    let (mut audio, mut in_time, mut video, mut delivered) = (0, 0, 0, 0);
    let (mut times, mut bytes, mut rtp_bytes) = (Vec::new(), 0, 0);
    for seed in 0..seeds {
        let wire = Wire { loss_permille, delay: Duration::from_millis(rtt_ms / 2), ..Wire::GOOD };
        let mut net = Net::new(seed, wire, [VERSION; 2]);
        net.run(SETTLE);
        net.talk(time, VIDEO_LEN);
        net.run(SETTLE);
        for from in 0..2 {
            let (of_audio, of_video) = (net.delivered(from, AUDIO), net.delivered(from, VIDEO));
            (audio, in_time) = (audio + of_audio.0, in_time + of_audio.1);
            (video, delivered) = (video + of_video.0, delivered + of_video.2);
            times.extend(net.repair_times_ms(from));
            let stats = net.ends[from].link.stats();
            (bytes, rtp_bytes) = (bytes + stats.bytes_out, rtp_bytes + stats.media_bytes_out);
        }
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
    let repair_ms = (!times.is_empty()).then(|| Percentiles { p50: at(0.5), p99: at(0.99), max: at(1.0) });
    Repair {
        rtt_ms,
        loss: loss_permille as f64 / 1e3,
        seeds,
        audio,
        audio_in_time: in_time as f64 / audio.max(1) as f64,
        video,
        video_delivered: delivered as f64 / video.max(1) as f64,
        repaired: times.len(),
        repair_ms,
        p99_per_rtt: repair_ms.map(|ms| ms.p99 as f64 / rtt_ms as f64),
        share_not_rtp: 1.0 - rtp_bytes as f64 / bytes.max(1) as f64,
    }
}
