//! What is taken of one media section.

use pop_proto::control::{Codec, Extension, ExtensionIds, LAYERS_MAX, MediaKind, PAYLOAD_TYPES_MAX};
use pop_session::{Format, PayloadFormat, Role};

use super::super::sdp::{Direction, LayerRid, Offer, OfferedMedia, OfferedPayload};

/// An accepted media section.
#[derive(Debug)]
pub struct Accepted<'a> {
    /// Audio or video.
    pub kind: MediaKind,
    /// Its mid; empty when a lone section has none.
    pub mid: &'a str,
    /// Payload types, in the offer's order.
    pub formats: Vec<PayloadFormat>,
    /// The publisher's SSRC when the offer names it; `None` with layers.
    pub ssrc: Option<u32>,
    /// The SSRC of its retransmissions when the offer names it.
    pub rtx_ssrc: Option<u32>,
    /// The publisher's simulcast layers, in the offer's order; empty when it sends one stream.
    pub layers: Vec<LayerRid<'a>>,
    /// `nack` was agreed for a payload type.
    pub nack: bool,
    /// `nack pli` was agreed for a payload type.
    pub pli: bool,
    /// `ccm fir` was agreed for a payload type.
    pub fir: bool,
    /// Ids of the header extensions that were agreed.
    pub extensions: ExtensionIds,
    /// Parallel to `formats`.
    pub(super) payloads: Vec<&'a OfferedPayload<'a>>,
    /// The publisher's layers are told apart by SSRC alone (`a=ssrc-group:SIM`).
    layered_by_ssrc: bool,
    /// The offer has `transport-cc` for a payload type.
    transport_cc: bool,
    /// The offer has `goog-remb` for a payload type.
    remb: bool,
}

/// `None` when nothing of the section can be served.
pub(super) fn accept<'a>(offer: &'a Offer<'a>, media: &'a OfferedMedia<'a>, role: Role) -> Option<Accepted<'a>> {
    if flows(media, role) { read_section(offer, media, role) } else { None }
}

/// What could be served of the section if media went the way of `role`.
pub(super) fn read_section<'a>(offer: &'a Offer<'a>, media: &'a OfferedMedia<'a>, role: Role) -> Option<Accepted<'a>> {
    let kind = media.kind?;
    if media.disabled || !is_bundled(offer, media) || !is_secure_rtp(media.protocol) {
        return None;
    }
    let known = media.payloads.iter().filter_map(|payload| Some((payload, read_format(media, payload)?)));
    let known = known.filter(|(_, format)| format.format.codec().kind() == kind);
    let (payloads, formats): (Vec<_>, Vec<_>) = known.take(PAYLOAD_TYPES_MAX).unzip();
    if payloads.is_empty() {
        return None;
    }
    let offers = |feedback: &str| payloads.iter().any(|payload| payload.feedback.contains(&feedback));
    let mut accepted = Accepted {
        kind,
        mid: media.mid.unwrap_or_default(),
        ssrc: media.primary_ssrc(),
        rtx_ssrc: None,
        layers: Vec::new(),
        nack: offers("nack"),
        pli: offers("nack pli"),
        fir: offers("ccm fir"),
        extensions: ExtensionIds::NONE,
        layered_by_ssrc: role == Role::Publish && media.is_layered_by_ssrc(),
        transport_cc: offers("transport-cc"),
        remb: offers("goog-remb"),
        payloads,
        formats,
    };
    accepted.rtx_ssrc = accepted.ssrc.filter(|_| accepted.has_rtx()).and_then(|ssrc| media.repair_ssrc(ssrc));
    if role == Role::Publish {
        accepted.layers = read_layers(media, &accepted.formats);
    }
    let flows = |direction: Direction| if role == Role::Publish { direction.sends() } else { direction.receives() };
    accepted.extensions = offered_extensions(offer, media, |extension, direction| flows(direction) && accepted.wants(extension));
    Some(accepted)
}

/// Those of the offered extensions that this node knows, that are `wanted`, and whose ids can be written.
pub(super) fn offered_extensions(
    offer: &Offer<'_>,
    media: &OfferedMedia<'_>,
    wanted: impl Fn(Extension, Direction) -> bool,
) -> ExtensionIds {
    // Ids above 14 need the two-byte header, which is for those who mix both (RFC 8285 section 4.1.2).
    let id_max = if offer.mixed_extensions || media.mixed_extensions { u8::MAX } else { 14 };
    let find = |extension: Extension| {
        let mut named = media.extensions.iter().filter(|offered| offered.uri == extension.uri());
        named.find(|offered| offered.id <= id_max && wanted(extension, offered.direction)).map(|offered| offered.id)
    };
    let ids = Extension::ALL.into_iter().filter_map(|extension| Some((extension, find(extension)?)));
    ids.fold(ExtensionIds::NONE, |all, (extension, id)| all.with(extension, id))
}

/// The media goes the way that the client came for.
pub(super) fn flows(media: &OfferedMedia<'_>, role: Role) -> bool {
    match role {
        Role::Publish => media.direction.sends(),
        Role::Watch => media.direction.receives(),
    }
}

/// In the group, or there is none.
pub(super) fn is_bundled(offer: &Offer<'_>, media: &OfferedMedia<'_>) -> bool {
    offer.bundle.as_ref().is_none_or(|mids| media.mid.is_some_and(|mid| mids.contains(&mid)))
}

pub(super) fn is_secure_rtp(protocol: &str) -> bool {
    // JSEP section 5.1.2: all of these mean DTLS-SRTP.
    matches!(protocol, "UDP/TLS/RTP/SAVPF" | "UDP/TLS/RTP/SAVP" | "RTP/SAVPF" | "RTP/SAVP" | "TCP/DTLS/RTP/SAVPF" | "TCP/DTLS/RTP/SAVP")
}

fn read_format(media: &OfferedMedia<'_>, payload: &OfferedPayload<'_>) -> Option<PayloadFormat> {
    let format = match payload.red_block() {
        Some(block) => {
            let opus = media.payloads.iter().find(|other| other.number == block && other.format() == Some(Format::Opus))?;
            Format::Red { block: opus.number }
        }
        None => payload.format()?,
    };
    // Retransmissions answer NACKs: without the one the other is never used.
    let repairs = |other: &&OfferedPayload<'_>| other.repairs() == Some(payload.number) && other.clock_rate == payload.clock_rate;
    let rtx = media.payloads.iter().find(repairs).filter(|_| payload.feedback.contains(&"nack")).map(|rtx| rtx.number);
    Some(PayloadFormat { number: payload.number, format, rtx })
}

/// Of each layer the first alternative that can be served. A RID without `a=rid` has no restriction: its client sends it anyway.
fn read_layers<'a>(media: &OfferedMedia<'a>, formats: &[PayloadFormat]) -> Vec<LayerRid<'a>> {
    let accepts = |number: &u8| formats.iter().any(|format| format.number == *number);
    let serves = |layer: &&LayerRid<'a>| {
        let rid = media.rids.iter().find(|rid| rid.id == layer.id);
        rid.is_none_or(|rid| rid.understood && (rid.payloads.is_empty() || rid.payloads.iter().any(accepts)))
    };
    media.layers.iter().filter_map(|layer| layer.alternatives.iter().find(serves).copied()).take(LAYERS_MAX).collect()
}

impl Accepted<'_> {
    /// Streams that the section takes of the worker's plan: its layers.
    pub fn streams(&self) -> usize {
        self.layers.len().max(1)
    }

    /// Puts the formats of `codec` first.
    pub(super) fn prefer(&mut self, codec: Option<Codec>) {
        let mut pairs: Vec<_> = self.payloads.drain(..).zip(self.formats.drain(..)).collect();
        pairs.sort_by_key(|(_, format)| Some(format.format.codec()) != codec);
        (self.payloads, self.formats) = pairs.into_iter().unzip();
    }

    /// The client takes, or sends, retransmissions as a stream of their own.
    pub fn has_rtx(&self) -> bool {
        self.formats.iter().any(|format| format.rtx.is_some())
    }

    /// `transport-cc` was agreed.
    pub(super) fn has_transport_cc(&self) -> bool {
        self.transport_cc && self.extensions.get(Extension::TransportCc).is_some()
    }

    /// `goog-remb` is offered and nothing better was agreed.
    pub(super) fn offers_remb(&self) -> bool {
        self.remb
    }

    /// Whether the extension is of use in this section.
    fn wants(&self, extension: Extension) -> bool {
        match extension {
            // With it the packets of the lower layers would pass for the top layer begun anew.
            Extension::Mid => !self.mid.is_empty() && !self.layered_by_ssrc,
            Extension::Rid => !self.layers.is_empty(),
            Extension::RepairedRid => !self.layers.is_empty() && self.has_rtx(),
            Extension::AbsSendTime => self.varies_freely(),
            Extension::TransportCc => self.transport_cc && self.varies_freely(),
            Extension::AudioLevel => self.kind == MediaKind::Audio,
            Extension::DependencyDescriptor | Extension::PlayoutDelay | Extension::VideoOrientation => self.kind == MediaKind::Video,
        }
    }

    /// Values that differ each time a packet is sent are allowed: one (key, SSRC, index) makes one ciphertext, so a packet that
    /// may be sent again under its own number must be the same to the last bit (DESIGN 6). So it is for what a client sends too:
    /// libwebrtc answers a NACK without RTX by the packet with a new time and number, which under GCM gives its authentication key away.
    fn varies_freely(&self) -> bool {
        let again = |(payload, format): (&&OfferedPayload<'_>, &PayloadFormat)| payload.feedback.contains(&"nack") && format.rtx.is_none();
        !self.payloads.iter().zip(&self.formats).any(again)
    }
}

/// One transport has one numbering, which begins with `all`: a section that numbers an extension otherwise goes without it, and
/// without what depends on it.
pub(super) fn agree_on_extensions<'s, 'a: 's>(mut all: ExtensionIds, sections: impl Iterator<Item = &'s mut Accepted<'a>>) -> ExtensionIds {
    for accepted in sections {
        let mut own = ExtensionIds::NONE;
        for extension in Extension::ALL {
            let Some(id) = accepted.extensions.get(extension) else { continue };
            if all.get(extension).map_or(all.extension(id).is_none(), |known| known == id) {
                all = all.with(extension, id);
                own = own.with(extension, id);
            }
        }
        accepted.extensions = own;
        if own.get(Extension::Rid).is_none() {
            accepted.layers.clear();
        }
        if !accepted.layers.is_empty() {
            (accepted.ssrc, accepted.rtx_ssrc) = (None, None);
        }
    }
    all
}
