//! A client of the room protocol, as far as it understands.

use std::collections::BTreeMap;

use pop_proto::control::{ExtensionIds, IceCredentials, MediaKind};
use pop_session::member::{MemberState, Notice, Offer, OfferedSection, ParticipantInfo, ReceivingSection, SendingSection, TransportOffer};
use pop_session::{Format, PayloadFormat};

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
    node: u64,
    /// By identity, as the SDKs keep them.
    pub(crate) others: BTreeMap<String, ParticipantInfo>,
    pub(crate) sections: Vec<OfferedSection>,
    pub(crate) asked: Option<(u32, u32)>,
    offers: u32,
    pub(crate) is_connected: bool,
}

impl Client {
    pub(crate) fn new(name: &'static str, node: u64) -> Client {
        let (others, sections) = Default::default();
        Client { name, node, others, sections, asked: Some((1, 1)), offers: 0, is_connected: false }
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

    /// `false`: it was told that it is out.
    pub(crate) fn hear(&mut self, notice: Notice) -> bool {
        match notice {
            Notice::Welcome(welcome) => self.learn(&welcome.others),
            Notice::Participants(infos) => self.learn(&infos),
            Notice::SectionsNeeded { audio, video } => self.asked = Some((audio, video)),
            Notice::Leave { .. } => return false,
            _ => {}
        }
        true
    }

    fn learn(&mut self, infos: &[ParticipantInfo]) {
        for info in infos.iter().filter(|info| info.identity.as_str() != self.name) {
            let key = info.identity.to_string();
            if let Some(known) = self.others.get(&key).filter(|known| known.participant == info.participant) {
                assert!(known.version <= info.version, "an older word comes after a newer one: {info:?}");
            }
            if info.state == MemberState::Disconnected {
                let known = self.others.remove(&key);
                assert!(known.is_none_or(|known| known.participant == info.participant), "another one of the identity went: {info:?}");
            } else {
                self.others.insert(key, info.clone());
            }
        }
    }
}
