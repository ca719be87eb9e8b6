//! The FlatBuffers tables that travel in datagrams, written by a builder that is kept and read behind our own bounds.

use std::time::Duration;

use flatbuffers::FlatBufferBuilder;
use pop_schemas::generated::{
    relay::{self as schema, CounterRange},
    verifier,
};

use super::path::BASE;
use crate::{RelayDrop, frame::OVERHEAD};

/// Ranges of counters in one feedback: with them it is still shorter than the path's base MTU.
pub(super) const RANGES_MAX: usize = 64;
/// Bytes of each.
pub(super) const RANGE_LEN: usize = size_of::<CounterRange>();
/// Longest table that is read.
const TABLE_LEN_MAX: usize = BASE - OVERHEAD;
/// What the builder starts with, more than the longest table needs, so that it never grows.
const BUILDER_LEN: usize = 2_048;

/// So many counters, from the first on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) count: u16,
}

/// The fields of the table of this name but the ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Feedback {
    pub(super) next: u64,
    pub(super) received: u64,
    pub(super) echo_us: u64,
    pub(super) echo_held_us: u32,
    pub(super) now_us: u64,
    pub(super) generation: u32,
    pub(super) probe: u64,
    pub(super) jitter_us: u32,
}

/// What the subscribers behind a link want of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Of which.
    pub alias: u16,
    /// A bit for each layer that somebody takes.
    pub wanted: u8,
    /// A bit for each layer whose keyframe somebody waits for.
    pub keyframes: u8,
}

/// The publisher's clock of a layer as of its last sender report, and how the layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Of which track.
    pub alias: u16,
    /// Of which of its layers.
    pub layer: u8,
    /// The publisher's wall clock, in NTP's 32.32 bits; 0: not known yet.
    pub ntp: u64,
    /// Its RTP timestamp then.
    pub rtp_timestamp: u32,
    /// How long ago the report came to the origin; a receiver gets it with half the link's round trip added.
    pub age: Duration,
    /// The publisher has said goodbye for the layer.
    pub ended: bool,
    /// The layer does not come now.
    pub paused: bool,
    /// Its rank among the track's layers, from the lowest quality up; 255: not told.
    pub rank: u8,
    /// What it brings in kbit/s; 0: not measured.
    pub rate_kbps: u32,
}

/// Writes tables. Allocates in [`Tables::new`] alone.
pub(super) struct Tables {
    builder: FlatBufferBuilder<'static>,
    ranges: Box<[CounterRange; RANGES_MAX]>,
}

impl Tables {
    pub(super) const MEMORY_LEN: usize = BUILDER_LEN + RANGES_MAX * size_of::<CounterRange>() + 256;

    pub(super) fn new() -> Tables {
        let ranges = Box::new([CounterRange::default(); RANGES_MAX]);
        let mut tables = Tables { builder: FlatBufferBuilder::with_capacity(BUILDER_LEN), ranges };
        // The builder's own lists grow on first use: here, at the largest.
        let most = u64::MAX;
        let feedback =
            Feedback { next: most, received: most, echo_us: most, echo_held_us: 1, now_us: most, generation: 1, probe: most, jitter_us: 1 };
        tables.feedback(&feedback, &[Range::default(); RANGES_MAX], 1);
        tables
    }

    /// Bytes of a feedback, in the schema's `version`; `missing` are [`RANGES_MAX`] at most.
    pub(super) fn feedback(&mut self, feedback: &Feedback, missing: &[Range], version: u8) -> &[u8] {
        for (to, range) in self.ranges.iter_mut().zip(missing) {
            *to = CounterRange::new(range.first, range.count);
        }
        self.builder.reset();
        let missing = match missing.len().min(RANGES_MAX) {
            0 => None,
            len => Some(self.builder.create_vector(&self.ranges[..len])),
        };
        let args = schema::FeedbackArgs {
            next: feedback.next,
            received: feedback.received,
            echo_us: feedback.echo_us,
            echo_held_us: feedback.echo_held_us,
            now_us: feedback.now_us,
            missing,
            generation: feedback.generation,
            probe: feedback.probe,
            jitter_us: if version >= 1 { feedback.jitter_us } else { 0 },
        };
        let table = schema::Feedback::create(&mut self.builder, &args);
        self.builder.finish_minimal(table);
        self.builder.finished_data()
    }

    /// Bytes of an ask.
    pub(super) fn ask(&mut self, ask: &Ask) -> &[u8] {
        self.builder.reset();
        let args = schema::AskArgs { alias: ask.alias, wanted: ask.wanted, keyframes: ask.keyframes };
        let table = schema::Ask::create(&mut self.builder, &args);
        self.builder.finish_minimal(table);
        self.builder.finished_data()
    }

    /// Bytes of a clock.
    pub(super) fn clock(&mut self, clock: &Clock) -> &[u8] {
        self.builder.reset();
        let args = schema::ClockArgs {
            alias: clock.alias,
            layer: clock.layer,
            ntp: clock.ntp,
            rtp_timestamp: clock.rtp_timestamp,
            age_us: clock.age.as_micros().try_into().unwrap_or(u32::MAX),
            ended: clock.ended,
            paused: clock.paused,
            rank: clock.rank,
            rate_kbps: clock.rate_kbps,
        };
        let table = schema::Clock::create(&mut self.builder, &args);
        self.builder.finish_minimal(table);
        self.builder.finished_data()
    }
}

/// The root table of `bytes`, behind our bounds and the verifier.
fn root<'a, T: flatbuffers::Follow<'a> + flatbuffers::Verifiable + 'a>(bytes: &'a [u8]) -> Result<T::Inner, RelayDrop> {
    // A root offset, and a table with its vtable.
    if !(12..=TABLE_LEN_MAX).contains(&bytes.len()) {
        return Err(RelayDrop::BadPayload);
    }
    flatbuffers::root_with_opts::<T>(&verifier(1), bytes).map_err(|_| RelayDrop::BadPayload)
}

/// Reads a feedback and its ranges, of which there are [`RANGES_MAX`] at most.
pub(super) fn read_feedback(bytes: &[u8]) -> Result<(Feedback, impl Iterator<Item = Range>), RelayDrop> {
    let table = root::<schema::Feedback<'_>>(bytes)?;
    let missing = table.missing();
    if missing.is_some_and(|missing| missing.len() > RANGES_MAX) {
        return Err(RelayDrop::BadPayload);
    }
    let feedback = Feedback {
        next: table.next(),
        received: table.received(),
        echo_us: table.echo_us(),
        echo_held_us: table.echo_held_us(),
        now_us: table.now_us(),
        generation: table.generation(),
        probe: table.probe(),
        jitter_us: table.jitter_us(),
    };
    Ok((feedback, missing.into_iter().flatten().map(|range| Range { first: range.first(), count: range.count() })))
}

/// Reads an ask.
pub(super) fn read_ask(bytes: &[u8]) -> Result<Ask, RelayDrop> {
    let table = root::<schema::Ask<'_>>(bytes)?;
    Ok(Ask { alias: table.alias(), wanted: table.wanted(), keyframes: table.keyframes() })
}

/// Reads a clock.
pub(super) fn read_clock(bytes: &[u8]) -> Result<Clock, RelayDrop> {
    let table = root::<schema::Clock<'_>>(bytes)?;
    Ok(Clock {
        alias: table.alias(),
        layer: table.layer(),
        ntp: table.ntp(),
        rtp_timestamp: table.rtp_timestamp(),
        age: Duration::from_micros(u64::from(table.age_us())),
        ended: table.ended(),
        paused: table.paused(),
        rank: table.rank(),
        rate_kbps: table.rate_kbps(),
    })
}
