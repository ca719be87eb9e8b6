//! Which track feeds which section. A watcher does not choose: a section takes the oldest track of its kind that
//! it can decode; a route out may name the publisher.

use std::collections::BTreeMap;

use pop_proto::control::Codec;
use pop_schemas::TrackId;

use crate::format::takes;
use crate::participant::{Choice, LocalSection, Track};

/// How good a source is; the smaller is the better.
///
/// Only the first two fields move a section away from a source that it has: a viewer does not jump between two publishers that
/// both work because of their age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// The publisher now sends something that the section cannot decode, although it may switch to something that it can.
    undecodable_now: bool,
    /// No packet has come yet.
    silent: bool,
    /// Place in the room's order of publishers.
    order: u64,
}

impl Track {
    /// The codec that the section would get: what the last packet carried, or, before the first, what a client sends by
    /// itself, which is the first of the answer.
    fn sends(&self, codec: Codec) -> bool {
        self.stats.codec.or(self.formats.first().map(|first| first.format.codec())) == Some(codec)
    }
}

fn rank(track: &Track, section: &LocalSection) -> Option<Rank> {
    let Choice::Oldest { publisher } = &section.choice else { return None };
    if track.kind != section.kind || publisher.as_ref().is_some_and(|only| *only != track.publisher) {
        return None;
    }
    let mut decodable = track.formats.iter().filter(|from| takes(&section.formats, from.format)).peekable();
    decodable.peek()?;
    let undecodable_now = !decodable.any(|from| track.sends(from.format.codec()));
    Some(Rank { undecodable_now, silent: !track.started, order: track.order })
}

/// The track that should feed `section`, of those that are open to it.
pub(crate) fn choose(tracks: &BTreeMap<TrackId, Track>, section: &LocalSection, is_open: impl Fn(&Track) -> bool) -> Option<TrackId> {
    let rank = |track| rank(track, section).filter(|_| is_open(track));
    let ranked = tracks.values().filter_map(|track| Some((rank(track)?, track.id)));
    let (best, best_track) = ranked.min()?;
    let current = section.source.and_then(|id| tracks.get(&id)).and_then(|track| Some((rank(track)?, track.id)));
    match current {
        Some((rank, id)) if (rank.undecodable_now, rank.silent) <= (best.undecodable_now, best.silent) => Some(id),
        _ => Some(best_track),
    }
}
