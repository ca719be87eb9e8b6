//! When each packet of a stream is to leave.

use std::time::Duration;

use serde::Serialize;

use super::packet::FrameSizer;
use crate::sdp::Media;

/// A frame of a camera leaves an encoder's pacer over about this long.
const FRAME_SPREAD: Duration = Duration::from_millis(5);

/// How the packets of a frame leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Spread {
    /// Evenly until the next frame.
    Paced,
    /// Evenly over 5 ms.
    Frames,
    /// All at once.
    Burst,
}

impl Spread {
    fn over(self, interval: Duration) -> Duration {
        match self {
            Spread::Paced => interval,
            Spread::Frames => FRAME_SPREAD.min(interval),
            Spread::Burst => Duration::ZERO,
        }
    }

    /// Its word on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Spread::Paced => "paced",
            Spread::Frames => "frames",
            Spread::Burst => "burst",
        }
    }
}

/// How the publishers send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Bits of RTP packets per second and publisher.
    pub(crate) bitrate: u64,
    /// Bytes of an RTP packet before protection.
    pub(crate) packet_len: usize,
    /// Frames per second and publisher.
    pub(crate) fps: u32,
    /// How the packets of a frame leave.
    pub(crate) spread: Spread,
    /// How long.
    pub(crate) duration: Duration,
    /// What it is.
    pub(crate) media: Media,
}

impl Pace {
    /// From one frame of a publisher to its next.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.fps
    }

    /// Frames of each publisher: their number is fixed, so that two runs do the same.
    pub(crate) fn frames(&self) -> u32 {
        (self.duration.as_secs_f64() * f64::from(self.fps)).round().max(1.0) as u32
    }
}

/// One stream's packets that are still to leave.
pub(crate) struct Timeline {
    sizer: FrameSizer,
    interval: Duration,
    over: Duration,
    /// When the frame begins, its packets, and which of them is next.
    frame: Duration,
    packets: usize,
    next: usize,
    frames_left: u32,
}

impl Timeline {
    /// `frames` frames, of which the first begins at `start`.
    pub(crate) fn new(pace: &Pace, start: Duration, frames: u32) -> Timeline {
        let mut sizer = FrameSizer::new(pace.bitrate, pace.packet_len, pace.fps);
        let (packets, interval) = (sizer.next_frame(), pace.interval());
        Timeline { packets, sizer, interval, over: pace.spread.over(interval), frame: start, next: 0, frames_left: frames }
    }

    /// When the next packet is to leave, if there is one.
    pub(crate) fn due(&self) -> Option<Duration> {
        (self.frames_left > 0).then(|| self.frame + self.over * self.next as u32 / self.packets as u32)
    }

    /// The next packet begins a frame, and ends one.
    pub(crate) fn place(&self) -> (bool, bool) {
        (self.next == 0, self.next + 1 == self.packets)
    }

    /// The next packet is of the first half of its frame, the larger one where its packets are odd in number: those are the shorter ones where a frame is cut as
    /// evenly as can be.
    pub(crate) fn is_early(&self) -> bool {
        2 * self.next < self.packets && self.packets > 1
    }

    /// The next packet has left.
    pub(crate) fn advance(&mut self) {
        self.next += 1;
        if self.next == self.packets {
            self.frame += self.interval;
            self.frames_left -= 1;
            (self.next, self.packets) = (0, self.sizer.next_frame());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dues(spread: Spread) -> Vec<u128> {
        // Two packets a frame.
        let duration = Duration::from_millis(200);
        let pace = Pace { bitrate: 160_000, packet_len: 1_000, fps: 10, spread, duration, media: Media::Video };
        let mut timeline = Timeline::new(&pace, Duration::from_millis(7), pace.frames());
        std::iter::from_fn(|| {
            let due = timeline.due()?;
            let (starts, ends) = timeline.place();
            assert!(starts != ends, "two packets a frame");
            timeline.advance();
            Some(due.as_micros())
        })
        .collect()
    }

    #[test]
    fn packets_of_a_frame_leave_as_the_spread_says() {
        assert_eq!(dues(Spread::Paced), [7_000, 57_000, 107_000, 157_000]);
        assert_eq!(dues(Spread::Frames), [7_000, 9_500, 107_000, 109_500]);
        assert_eq!(dues(Spread::Burst), [7_000, 7_000, 107_000, 107_000]);
    }
}
