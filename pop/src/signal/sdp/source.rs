//! `a=ssrc` and `a=ssrc-group` (RFC 5576): who sends what in a section.

use super::line::Line;
use super::{ATTRIBUTES_MAX, OfferedMedia, SdpError};

/// What the members of an `a=ssrc-group` are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceSemantics {
    /// RFC 5576 section 4.2: the second repairs the first.
    Repair,
    /// `SIM`: layers of one picture, in the form that libwebrtc had before RIDs.
    Simulcast,
    /// Forward error correction: the second protects the first.
    Correction,
}

/// An `a=ssrc-group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceGroup {
    /// What it means.
    pub semantics: SourceSemantics,
    /// Its members, in order; at least one.
    pub ssrcs: Vec<u32>,
}

impl OfferedMedia<'_> {
    /// The source of the stream itself: the best layer of a group `SIM`, which libwebrtc writes last, or the first source that
    /// neither repairs nor protects another. `None` when the offer names none.
    pub fn primary_ssrc(&self) -> Option<u32> {
        let secondary = |ssrc: &u32| self.groups.iter().any(|group| group.is_pair() && group.ssrcs[1..].contains(ssrc));
        let best = self.layered_sources().and_then(|group| group.ssrcs.last()).copied();
        best.or_else(|| self.ssrcs.iter().find(|ssrc| !secondary(ssrc)).copied())
    }

    /// It has layers that are told apart by SSRC.
    pub fn is_layered_by_ssrc(&self) -> bool {
        self.layered_sources().is_some()
    }

    fn layered_sources(&self) -> Option<&SourceGroup> {
        self.groups.iter().find(|group| group.semantics == SourceSemantics::Simulcast)
    }

    /// The source of the retransmissions of `ssrc`.
    pub fn repair_ssrc(&self, ssrc: u32) -> Option<u32> {
        let mut repairs = self.groups.iter().filter(|group| group.semantics == SourceSemantics::Repair);
        repairs.find(|group| group.ssrcs[0] == ssrc).and_then(|group| group.ssrcs.get(1)).copied().filter(|repair| *repair != ssrc)
    }
}

impl SourceGroup {
    fn is_pair(&self) -> bool {
        self.semantics != SourceSemantics::Simulcast
    }
}

pub(super) fn take_ssrc(media: &mut OfferedMedia<'_>, line: Line<'_>, value: &str) -> Result<(), SdpError> {
    let number = value.split(' ').next().unwrap_or_default();
    let ssrc = number.parse().map_err(|_| line.error("is not a number below 2^32"))?;
    if media.ssrcs.contains(&ssrc) {
        return Ok(());
    }
    if media.ssrcs.len() >= ATTRIBUTES_MAX {
        return Err(line.error("names more than 64 sources in one section"));
    }
    media.ssrcs.push(ssrc);
    Ok(())
}

pub(super) fn take_ssrc_group(media: &mut OfferedMedia<'_>, line: Line<'_>, value: &str) -> Result<(), SdpError> {
    let mut words = value.split(' ').filter(|word| !word.is_empty());
    let semantics = match words.next() {
        Some("FID") => SourceSemantics::Repair,
        Some("SIM") => SourceSemantics::Simulcast,
        Some("FEC" | "FEC-FR") => SourceSemantics::Correction,
        _ => return Ok(()),
    };
    let mut room = ATTRIBUTES_MAX - media.groups.iter().map(|group| group.ssrcs.len()).sum::<usize>();
    let mut ssrcs = Vec::new();
    for word in words {
        let ssrc = word.parse().map_err(|_| line.error("holds a source that is not a number below 2^32"))?;
        room = room.checked_sub(1).ok_or_else(|| line.error("names more than 64 sources in one section"))?;
        ssrcs.push(ssrc);
    }
    if ssrcs.is_empty() {
        return Err(line.error("names no source"));
    }
    media.groups.push(SourceGroup { semantics, ssrcs });
    Ok(())
}
