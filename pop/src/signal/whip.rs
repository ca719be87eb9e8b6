//! WHIP (RFC 9725): what a publisher's accepted sections become.

use pop_proto::control::OpenTrack;
use pop_schemas::{TrackId, TransportId};
use pop_session::{Media, Publication};

use super::answer::Negotiation;
use crate::node::Node;

/// One track per accepted section.
pub(super) fn media(node: &Node, negotiation: &Negotiation<'_>, transport: TransportId) -> Media {
    let publications = negotiation.accepted().map(|section| {
        let open = OpenTrack {
            track: TrackId(node.next_id()),
            transport,
            kind: section.kind,
            ssrc: section.ssrc,
            rtx_ssrc: section.rtx_ssrc,
            mid: section.mid.into(),
            layers: section.layers.iter().map(|layer| layer.id.into()).collect(),
            order: Vec::new(),
            payload_types: Vec::new(),
            nack: section.nack,
            pli: section.pli,
            fir: section.fir,
        };
        Publication { open, formats: section.formats.clone() }
    });
    Media::Publish(publications.collect())
}
