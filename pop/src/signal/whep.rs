//! WHEP (draft-ietf-wish-whep): what a viewer's accepted sections become.

use pop_proto::control::OpenSubscription;
use pop_schemas::{SubscriptionId, TransportId};
use pop_session::{Media, Section};

use super::answer::{LocalSource, Negotiation};
use super::endpoint::draw;
use crate::node::Node;

/// One section per accepted section; `sources` are theirs.
pub(super) fn media(node: &Node, negotiation: &Negotiation<'_>, transport: TransportId, sources: &[LocalSource]) -> Media {
    let sections = negotiation.accepted().zip(sources).map(|(section, source)| {
        let open = OpenSubscription {
            subscription: SubscriptionId(node.next_id()),
            transport,
            kind: section.kind,
            ssrc: source.ssrc,
            // RFC 3711 section 3.3.1: a first number in the lower half keeps both ends at rollover counter 0 when the first
            // packets are lost.
            first_sequence: u16::from_be_bytes(draw(node)) & 0x7fff,
            first_timestamp: u32::from_be_bytes(draw(node)),
            rtx_ssrc: source.rtx_ssrc,
            extensions: section.extensions,
            mid: section.mid.into(),
        };
        Section { open, formats: section.formats.clone(), publisher: None }
    });
    Media::Watch(sections.collect())
}
