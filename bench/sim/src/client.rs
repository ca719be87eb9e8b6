//! A client of the room protocol, as far as it understands.

use std::collections::{BTreeMap, BTreeSet};

use pop_proto::control::{ExtensionIds, IceCredentials, MediaKind};
use pop_schemas::{ParticipantId, TrackId};
use pop_session::member::{
    LeaveAction, MemberState, Notice, Offer, OfferedSection, ParticipantInfo, Permissions, ReceivingSection, SendingSection, Sync,
    TransportOffer,
};
use pop_session::{Format, PayloadFormat};

/// Of a version as clients see it, the highest bit says that it was taken over.
const EPOCH_SHIFT: u32 = 31;

/// What a client offers; numbers are those of its node, so that no two nodes have the same.
pub(crate) fn formats(node: u64, kind: MediaKind) -> Vec<PayloadFormat> {
    let number = 96 + 2 * node as u8;
    match kind {
        MediaKind::Audio => vec![PayloadFormat { number, format: Format::Opus, rtx: None }],
        MediaKind::Video => vec![PayloadFormat { number, format: Format::Vp8, rtx: Some(number + 1) }],
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: &'static str,
    pub(crate) permissions: Permissions,
    /// Where it came in first: its numbers of formats stay.
    node: u64,
    /// By identity, as the SDKs keep them.
    pub(crate) others: BTreeMap<String, ParticipantInfo>,
    pub(crate) sections: Vec<OfferedSection>,
    pub(crate) asked: Option<(u32, u32)>,
    offers: u32,
    pub(crate) is_connected: bool,
    /// Whom it knew and its node did not when it came there: nobody tells it that they go.
    pub(crate) missed: BTreeSet<ParticipantId>,
    /// Its tracks, by what it calls them.
    published: BTreeMap<Box<str>, TrackId>,
    /// It has been at more than one node, of which one may have known less than the other: what is older it leaves aside, as SDKs do.
    pub(crate) has_moved: bool,
}

/// What a notice means for the client's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Goes,
    ComesBack,
    IsOut,
}

impl Client {
    pub(crate) fn new(name: &'static str, permissions: Permissions, node: u64) -> Client {
        let (others, sections, missed, published) = Default::default();
        let (asked, offers, is_connected, has_moved) = (Some((1, 1)), 0, false, false);
        Client { name, permissions, node, others, sections, asked, offers, is_connected, missed, published, has_moved }
    }

    /// What it says first when it is back: then comes an offer.
    pub(crate) fn sync(&mut self) -> Sync {
        self.has_moved = true;
        self.is_connected = false;
        self.asked.get_or_insert_default();
        let sends = |cid: &str| self.sections.iter().any(|section| section.sends.as_ref().is_some_and(|sends| &*sends.cid == cid));
        let published = self.published.iter().filter(|(cid, _)| sends(cid)).map(|(cid, track)| (cid.clone(), *track)).collect();
        Sync { published, ..Sync::default() }
    }

    /// Its next offer, with the sections that it was asked for.
    pub(crate) fn offer(&mut self) -> Offer {
        let (audio, video) = self.asked.take().unwrap_or_default();
        for (kind, count) in [(MediaKind::Audio, audio), (MediaKind::Video, video)] {
            for _ in 0..count {
                self.add(kind, None);
            }
        }
        self.offers += 1;
        let ice = IceCredentials { local_ufrag: "l".into(), local_pwd: "p".into(), remote_ufrag: "r".into() };
        let transport = TransportOffer { extensions: ExtensionIds::NONE, transport_cc: true, remb: false, reduced_size_rtcp: true };
        Offer { id: self.offers, ice, transport, sections: self.sections.clone() }
    }

    /// A section that sends `cid`, or receives.
    pub(crate) fn add(&mut self, kind: MediaKind, cid: Option<&str>) {
        let formats = formats(self.node, kind);
        let sends = cid.map(|cid| SendingSection {
            cid: cid.into(),
            formats: formats.clone(),
            ssrc: None,
            rtx_ssrc: None,
            layers: Vec::new(),
            nack: true,
            pli: true,
            fir: false,
        });
        let receives = cid.is_none().then_some(ReceivingSection { formats, extensions: ExtensionIds::NONE, rtx: true });
        let mid = self.sections.len().to_string().into();
        self.sections.push(OfferedSection { mid, kind, sends, receives });
    }

    pub(crate) fn hear(&mut self, notice: Notice) -> Heard {
        match notice {
            Notice::Welcome(welcome) => self.learn(&welcome.others),
            Notice::Participants(infos) => self.learn(&infos),
            Notice::SectionsNeeded { audio, video } => self.asked = Some((audio, video)),
            Notice::TrackPublished { cid, track } => drop(self.published.insert(cid, track.track)),
            Notice::Leave { action: LeaveAction::Resume, .. } => return Heard::ComesBack,
            Notice::Leave { .. } => return Heard::IsOut,
            _ => {}
        }
        Heard::Goes
    }

    fn learn(&mut self, infos: &[ParticipantInfo]) {
        for info in infos.iter().filter(|info| info.identity.as_str() != self.name) {
            let key = info.identity.to_string();
            let known = self.others.get(&key).filter(|known| known.participant == info.participant);
            if known.is_some_and(|known| known.version > info.version) {
                // Two nodes may have taken it over at once, and the one that has lost told more.
                let is_moved = info.version >= 1 << EPOCH_SHIFT;
                assert!(self.has_moved || is_moved, "an older word comes after a newer one: {info:?}");
                continue;
            }
            if info.state == MemberState::Disconnected {
                let known = self.others.get(&key);
                if known.is_some_and(|known| known.participant != info.participant) {
                    assert!(self.has_moved, "another one of the identity went: {info:?}");
                    continue;
                }
                self.others.remove(&key);
            } else {
                self.others.insert(key, info.clone());
            }
        }
    }
}
