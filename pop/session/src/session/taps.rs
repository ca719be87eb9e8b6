//! Captures: which tracks are copied to the service thread.

use pop_proto::control::{Command, MediaKind};

use super::Session;
use super::request::{Refusal, Reply, TappedTrack};

impl Session {
    pub(super) fn open_tap(&mut self, tap: u32, kind: Option<MediaKind>) -> Result<Reply, Refusal> {
        let wanted = |k: MediaKind| kind.is_none_or(|only| only == k);
        let kinds = [MediaKind::Audio, MediaKind::Video];
        // A track has one tap, so a capture of both kinds needs both to be free.
        if kinds.iter().any(|k| wanted(*k) && self.taps[*k as usize].is_some()) || self.taps.contains(&Some(tap)) {
            return Err(Refusal::TapBusy);
        }
        for k in kinds.into_iter().filter(|k| wanted(*k)) {
            self.taps[k as usize] = Some(tap);
        }
        let tracks: Vec<_> = self
            .tracks
            .values()
            .filter(|track| wanted(track.kind) && !track.is_remote())
            .map(|track| TappedTrack { track: track.id, kind: track.kind, formats: track.formats.clone() })
            .collect();
        self.rated.extend(tracks.iter().map(|tapped| tapped.track));
        for tapped in &tracks {
            self.command(Command::Tap { track: tapped.track, tap: Some(tap) });
        }
        Ok(Reply::Tapped { tracks })
    }

    pub(super) fn close_tap(&mut self, tap: u32) -> Result<Reply, Refusal> {
        if !self.taps.contains(&Some(tap)) {
            return Err(Refusal::UnknownTap);
        }
        let tapped = self.tracks.values().filter(|t| self.taps[t.kind as usize] == Some(tap) && !t.is_remote());
        let tapped: Vec<_> = tapped.map(|track| track.id).collect();
        self.rated.extend(tapped.iter().copied());
        for track in tapped {
            self.command(Command::Tap { track, tap: None });
        }
        for slot in self.taps.iter_mut().filter(|slot| **slot == Some(tap)) {
            *slot = None;
        }
        Ok(Reply::Untapped)
    }
}
