//! A member's offers: read, cut down to what can be served, and answered when the session has decided.

use std::collections::{BTreeMap, HashMap, VecDeque};

use livekit_protocol as proto;
use pop_proto::control::ExtensionIds;
use pop_session::member::{Answer, Feed, Offer, OfferedSection, ReceivingSection, SectionUse, SendingSection, TransportOffer};
use pop_session::placement::Claim;
use pop_session::session::MEMBER_SECTIONS_MAX;
use pop_session::sid::{format_participant_sid, format_track_sid};

use super::counters::Refused;
use super::socket::Context;
use crate::dtls::{Fingerprint, Role};
use crate::node::{Line, Seat, TransportStart};
use crate::signal::answer::{Accepted, Agreed, FeedText, LocalSource, LocalTransport, MemberNegotiation, MemberSection, negotiate_member};
use crate::signal::patch::draw_credentials;
use crate::signal::sdp::{self, Bounds, SdpError};

/// An offer with as many video sections as a client is asked for is read; each takes 4 KiB.
const _: () = assert!(Bounds::MEMBER.media > MEMBER_SECTIONS_MAX && Bounds::MEMBER.len >= MEMBER_SECTIONS_MAX * 4_096);

/// Offers that may wait for their answer: a client has one at a time, and perhaps one more after an ICE restart.
pub(super) const PENDING_MAX: usize = 4;

/// Offers that the room has not answered yet, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Offers {
    pending: VecDeque<Pending>,
}

/// What the answer needs of its offer. The text is read again then: what is borrowed from it cannot wait.
#[derive(Debug)]
struct Pending {
    id: u32,
    text: String,
    before: Agreed,
    claim: Claim,
}

/// How the streams of an answer are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamNames {
    /// By what they show: a camera and its microphone are one stream and played in step. The client finds the track by its mid.
    OfSources,
    /// By their track, for clients that find it by this alone.
    OfTracks,
}

/// Why an offer is not taken.
#[derive(Debug)]
pub(super) enum OfferError {
    /// It cannot be read or served.
    Sdp(SdpError),
    /// It comes with another certificate than the first: that would be another DTLS association.
    Certificate,
}

impl Offers {
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_MAX
    }

    /// Reads an offer and hands it to the room.
    pub(super) async fn take(&mut self, context: &Context, seat: &Seat, description: proto::SessionDescription) -> Result<(), OfferError> {
        let proto::SessionDescription { sdp: text, id, .. } = description;
        let (before, known) = settled(&seat.line());
        let (offer, start, claim) = {
            let offer = sdp::parse_within(Bounds::MEMBER, text.as_bytes()).map_err(OfferError::Sdp)?;
            let mut negotiation = negotiate_member(&offer, context.dtls_role, before).map_err(OfferError::Sdp)?;
            let fingerprints = super::super::endpoint::strong_fingerprints(negotiation.fingerprints).map_err(OfferError::Sdp)?;
            if !known.is_empty() && !known.iter().any(|known| fingerprints.contains(known)) {
                return Err(OfferError::Certificate);
            }
            let claim = seat.claim(negotiation.claim()).await;
            let left_out = negotiation.left_out + negotiation.restrict(claim);
            (0..left_out).for_each(|_| context.counters().refuse(Refused::Section));
            let ice = draw_credentials(&context.node, negotiation.remote_ufrag);
            let transport = TransportOffer {
                extensions: negotiation.agreed.sends,
                transport_cc: negotiation.agreed.transport_cc,
                remb: negotiation.agreed.remb,
                reduced_size_rtcp: negotiation.reduced_size_rtcp,
            };
            let role = if negotiation.passive { Role::Server } else { Role::Client };
            let sections = negotiation.sections().filter_map(offered_section).collect();
            let mut line = seat.line();
            // Together: another offer may come before the room has judged this one.
            line.numbering = negotiation.agreed.numbering;
            line.transport = Some(transport.clone());
            if line.fingerprints.is_empty() {
                line.fingerprints.clone_from(&fingerprints);
            }
            (Offer { id, ice, transport, sections }, TransportStart { role, fingerprints }, claim)
        };
        self.pending.push_back(Pending { id, text, before, claim });
        seat.offer(offer, start).await;
        Ok(())
    }

    /// The room does not take the offer.
    pub(super) fn forget(&mut self, id: u32) {
        self.pending.retain(|pending| pending.id != id);
    }

    /// The answer as its client gets it; `None` when nobody waits for it.
    pub(super) fn answer(
        &mut self,
        context: &Context,
        seat: &Seat,
        streams: StreamNames,
        answer: &Answer,
    ) -> Option<proto::SessionDescription> {
        let place = self.pending.iter().position(|pending| pending.id == answer.id)?;
        let Pending { text, before, claim, .. } = self.pending.remove(place)?;
        let offer = sdp::parse_within(Bounds::MEMBER, text.as_bytes()).ok()?;
        let mut negotiation = negotiate_member(&offer, context.dtls_role, before).ok()?;
        negotiation.restrict(claim);
        negotiation.prefer(|mid| answer.sections.get(mid)?.codec);
        Some(proto::SessionDescription {
            r#type: "answer".to_owned(),
            sdp: write(context, seat, streams, &negotiation, answer),
            id: answer.id,
            mid_to_track_id: name_tracks(&answer.sections),
        })
    }
}

/// What earlier offers have settled, and the certificates of the first.
fn settled(line: &Line) -> (Agreed, Vec<Fingerprint>) {
    let numbering = line.numbering;
    let agreed = match &line.transport {
        Some(of) => Agreed { numbering, sends: of.extensions, transport_cc: of.transport_cc, remb: of.remb },
        None => Agreed { numbering, sends: ExtensionIds::NONE, ..Agreed::default() },
    };
    (agreed, line.fingerprints.clone())
}

fn offered_section(section: &MemberSection<'_>) -> Option<OfferedSection> {
    let kind = section.takes().or(section.feeds())?.kind;
    let sends = section.takes().map(|takes| SendingSection {
        cid: section.cid().into(),
        formats: takes.formats.clone(),
        ssrc: takes.ssrc,
        rtx_ssrc: takes.rtx_ssrc,
        layers: takes.layers.iter().map(|layer| layer.id.into()).collect(),
        nack: takes.nack,
        pli: takes.pli,
        fir: takes.fir,
    });
    let receiving =
        |feeds: &Accepted<'_>| ReceivingSection { formats: feeds.formats.clone(), extensions: feeds.extensions, rtx: feeds.has_rtx() };
    Some(OfferedSection { mid: section.mid().into(), kind, sends, receives: section.feeds().map(receiving) })
}

fn write(context: &Context, seat: &Seat, streams: StreamNames, negotiation: &MemberNegotiation<'_>, answer: &Answer) -> String {
    let candidates = &*context.node.candidates()[seat.worker()];
    let fingerprint = context.node.fingerprint().attribute();
    let mut line = seat.line();
    line.answers += 1;
    let local = LocalTransport {
        // RFC 8866 section 5.2: one for the session; JSEP keeps it below 2^62.
        session_id: seat.participant().0 >> 2,
        session_version: line.answers,
        ufrag: &answer.ice.local_ufrag,
        pwd: &answer.ice.local_pwd,
        fingerprint: &fingerprint,
        candidates,
        tcp_candidates: if context.node.serves_tcp() { candidates } else { &[] },
    };
    let uses = |mid: &str| {
        let used = answer.sections.get(mid);
        (used.is_some_and(|used| used.takes.is_some()), used.and_then(|used| used.feeds.as_ref()).map(|feed| feed_text(streams, feed)))
    };
    negotiation.write(&local, &answer.cname, uses)
}

/// What clients find a track by: `PARTICIPANT|STREAM`.
fn feed_text(streams: StreamNames, feed: &Feed) -> FeedText {
    let track = format_track_sid(feed.track);
    // The publisher's own word: only what cannot be mistaken, for a line's end or for another track.
    let is_plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) && !name.starts_with("TR");
    let stream = match streams {
        StreamNames::OfSources if !feed.stream.is_empty() && is_plain(&feed.stream) => &*feed.stream,
        _ => &*track,
    };
    let stream = format!("{}|{stream}", format_participant_sid(feed.publisher));
    FeedText { stream, track, source: LocalSource { ssrc: feed.ssrc, rtx_ssrc: feed.rtx_ssrc } }
}

/// Which track each section carries, for clients that cannot name a remote track themselves.
fn name_tracks(sections: &BTreeMap<Box<str>, SectionUse>) -> HashMap<String, String> {
    let fed = sections.iter().filter_map(|(mid, used)| Some((mid.to_string(), used.feeds.as_ref()?.track)));
    fed.map(|(mid, track)| (mid, format_track_sid(track))).collect()
}

#[cfg(test)]
mod tests {
    use pop_schemas::{ParticipantId, TrackId};

    use super::*;

    #[test]
    fn a_publisher_cannot_write_into_the_answers_of_others() {
        let name = |streams, stream: &str| {
            let feed = Feed { track: TrackId(2), publisher: ParticipantId(1), stream: stream.into(), ssrc: 1, rtx_ssrc: None };
            feed_text(streams, &feed).stream
        };
        let by_track = "PA_0000000000000001|TR_0000000000000002";
        assert_eq!(name(StreamNames::OfSources, "camera"), "PA_0000000000000001|camera");
        assert_eq!(name(StreamNames::OfTracks, "camera"), by_track);
        for bad in ["", "a\r\na=candidate:1", "two words", "a|b", "TR_0000000000000003", "\u{e9}"] {
            assert_eq!(name(StreamNames::OfSources, bad), by_track, "{bad:?}");
        }
    }
}
