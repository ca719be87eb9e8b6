//! Tracks of members: announced, opened when their media section comes, changed, closed. `open_track` and `close_track` serve
//! every publisher.

use pop_proto::control::{Codec, Command, LAYERS_MAX, MediaKind, OpenTrack, TrackSsrcs};
use pop_schemas::{ParticipantId, SubscriptionId, Time, TrackId};

use super::Session;
use super::negotiate::MemberSection;
use super::output::{Action, Output, audit};
use crate::format::PayloadFormat;
use crate::member::{
    AddTrack, Notice, OfferedSection, Quality, RequestRefusal, SendingSection, Source, TrackInfo, TrackUpdate, VideoLayer,
};
use crate::participant::{Choice, Origin, Track};

/// Longest name, stream or client's id of a track, in bytes. The SDKs send UUIDs and words.
pub const TRACK_TEXT_LEN_MAX: usize = 256;

/// Layers that an announcement may name: three qualities, three spatial layers each.
const ANNOUNCED_LAYERS_MAX: usize = 9;

/// Tracks of a client that is back which are named as ended, at most: more than any client had.
const PUBLISHED_MAX: usize = 64;

/// A track whose media section has not come.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(super) cid: Box<str>,
    pub(super) info: TrackInfo,
    /// As announced.
    pub(super) layers: Vec<VideoLayer>,
    /// See [`AddTrack::codec`].
    pub(super) codec: Option<Codec>,
}

impl Session {
    /// Takes the announcement of a track. Its client waits for the answer before it makes an offer, or makes both at once.
    pub(super) fn add_track(&mut self, now: Time, id: ParticipantId, add: AddTrack) {
        let cid = add.cid.clone();
        if let Err(refused) = self.check_add_track(id, &add) {
            self.notify(id, Notice::AddTrackRefused { cid, refused });
            return;
        }
        let info = announce(TrackId(self.draw.next_id()), &add);
        self.notify(id, Notice::TrackPublished { cid: cid.clone(), track: Box::new(info.clone()) });
        let Some(member) = self.member_mut(id) else { return };
        member.announced.push(Announced { cid: cid.clone(), info, layers: add.layers, codec: add.codec });
        // The offer may have been faster; its answer said that nothing is taken, so another one is needed.
        let early = member.sections.iter().find(|(_, section)| {
            let offered = section.sends.as_ref();
            section.takes.is_none() && offered.is_some_and(|sends| sends.cid == cid)
        });
        if let Some(mid) = early.map(|(mid, _)| mid.clone()) {
            self.take_section(now, id, &mid, &cid);
            self.ask_for_offer(now, id);
        }
    }

    /// Answers announcements again that a client which is back has not seen answered, and names what of it was ended meanwhile.
    pub(super) fn repeat_published(&mut self, id: ParticipantId, known: &[(Box<str>, TrackId)]) {
        let Some(member) = self.member(id) else { return };
        let is_new = |track: TrackId| !known.iter().any(|(_, known)| *known == track);
        let announced = member.announced.iter().map(|announced| (announced.cid.clone(), announced.info.clone()));
        let sent = member.sections.values().filter_map(|section| {
            let track = self.tracks.get(&section.takes?)?;
            Some((section.cid.clone(), track.info.clone()))
        });
        let all: Vec<_> = announced.chain(sent).collect();
        let owns = |track: TrackId| self.tracks.get(&track).is_some_and(|track| track.owner == id);
        let is_here = |track: TrackId| owns(track) || all.iter().any(|(_, info)| info.track == track);
        let over: Vec<_> = known.iter().map(|(_, track)| *track).filter(|track| !is_here(*track)).take(PUBLISHED_MAX).collect();
        for (cid, info) in all.into_iter().filter(|(_, info)| is_new(info.track)) {
            self.notify(id, Notice::TrackPublished { cid, track: Box::new(info) });
        }
        for track in over {
            self.notify(id, Notice::TrackUnpublished(track));
        }
    }

    fn check_add_track(&self, id: ParticipantId, add: &AddTrack) -> Result<(), RequestRefusal> {
        let Some(member) = self.member(id) else { return Err(RequestRefusal::NotFound) };
        if !member.permissions.may_publish(add.source) {
            return Err(RequestRefusal::NotAllowed);
        }
        let texts = [&add.cid, &add.name, &add.stream];
        let is_bounded = texts.iter().all(|text| text.len() <= TRACK_TEXT_LEN_MAX);
        if add.cid.is_empty() || add.kind.is_none() || !is_bounded {
            return Err(RequestRefusal::Invalid);
        }
        if member.announced.iter().any(|announced| announced.cid == add.cid) {
            return Err(RequestRefusal::Invalid);
        }
        let is_many = add.layers.len() > ANNOUNCED_LAYERS_MAX || add.audio_features.len() > ANNOUNCED_LAYERS_MAX;
        if is_many || member.announced.len() + self.participants[&id].tracks.len() >= self.limits.tracks_max {
            return Err(RequestRefusal::LimitExceeded);
        }
        Ok(())
    }

    /// Ends the tracks of sections that no longer send them, then opens those that are announced.
    pub(super) fn take_offered(&mut self, now: Time, id: ParticipantId, offered: &[OfferedSection]) {
        let Some(member) = self.member(id) else { return };
        // Its track is offered still; whether with the same layers.
        let goes_on = |mid: &str, section: &MemberSection| {
            let now = offered.iter().find(|offered| *offered.mid == *mid && offered.kind == section.kind);
            let now = now.and_then(|offered| offered.sends.as_ref());
            let (now, before) = (now?, section.sends.as_ref()?);
            (now.cid == before.cid).then(|| now.layers == before.layers)
        };
        let taken = member.sections.iter().filter_map(|(mid, section)| Some((mid.clone(), section.takes?, goes_on(mid, section))));
        let over: Vec<_> = taken.filter(|(.., goes_on)| *goes_on != Some(true)).collect();
        for (mid, track, goes_on) in &over {
            if goes_on.is_some() {
                self.announce_again(id, mid, *track);
            }
            self.close_track(*track);
        }
        self.note_sections(id, offered);
        for (mid, ..) in over.iter().filter(|(.., goes_on)| goes_on.is_some()) {
            let cid = self.member(id).and_then(|member| member.sections.get(mid)).map(|section| section.cid.clone());
            self.take_section(now, id, mid, &cid.unwrap_or_default());
        }
        let sending = offered.iter().filter_map(|section| Some((section, section.sends.as_ref()?)));
        let sending: Vec<_> = sending.map(|(section, sends)| (section.mid.clone(), section.kind, sends.cid.clone())).collect();
        for (mid, _, cid) in &sending {
            self.take_section(now, id, mid, cid);
        }
        // Some clients (Firefox) write another track id than they announce: then the first of the kind is meant.
        for (mid, kind, _) in &sending {
            let Some(member) = self.member(id) else { return };
            if member.sections.get(mid).is_some_and(|section| section.is_spent) {
                continue;
            }
            let first = member.announced.iter().find(|announced| announced.info.kind == *kind).map(|announced| announced.cid.clone());
            if let Some(cid) = first {
                self.take_section(now, id, mid, &cid);
            }
        }
    }

    /// A track with other layers than before is another one to the worker, whose places are counted by what is offered now: it is
    /// opened anew under the id that everybody knows.
    fn announce_again(&mut self, id: ParticipantId, mid: &str, track: TrackId) {
        let Some(info) = self.tracks.get(&track).map(|track| track.info.clone()) else { return };
        let Some(member) = self.member_mut(id) else { return };
        let Some(section) = member.sections.get(mid) else { return };
        let (cid, codec, layers) = (section.cid.clone(), section.codec, info.layers.clone());
        member.announced.push(Announced { cid, info, layers, codec });
    }

    /// The worker has a place for so many more streams of this publisher.
    fn has_room_for(&self, id: ParticipantId, layers: usize) -> bool {
        let open = self.tracks_of(id).filter(|track| !track.is_away());
        let open: usize = open.map(|track| track.layers.len().max(1)).sum();
        open + layers.max(1) <= self.limits.streams_max
    }

    /// Opens the track that was announced as `cid` from a section that sends and is not taken.
    pub(super) fn take_section(&mut self, now: Time, id: ParticipantId, mid: &str, cid: &str) {
        let Some(transport) = self.participants.get(&id).and_then(|participant| participant.transport) else { return };
        let Some(section) = self.member(id).and_then(|member| member.sections.get(mid)) else { return };
        let layers = section.sends.as_ref().map_or(0, |sends| sends.layers.len());
        if !self.has_room_for(id, layers) {
            return;
        }
        let Some(member) = self.member_mut(id) else { return };
        let Some(section) = member.sections.get_mut(mid).filter(|section| section.takes.is_none()) else { return };
        let (kind, Some(mut sends)) = (section.kind, section.sends.clone()) else { return };
        let place = member.announced.iter().position(|announced| *announced.cid == *cid && announced.info.kind == kind);
        let Some(place) = place else { return };
        let Announced { mut info, layers, codec, .. } = member.announced.remove(place);
        (section.takes, section.is_spent) = (Some(info.track), false);
        section.cid = cid.into();
        section.codec = codec;
        let order;
        (info.layers, order) = order_layers(kind, &sends.layers, &layers);
        info.simulcast = sends.layers.len() > 1;
        // As in the answer.
        sends.formats.sort_by_key(|format| Some(format.format.codec()) != codec);
        info.mime = mime_of(&sends.formats);
        info.mid = mid.into();
        let SendingSection { formats, ssrc, rtx_ssrc, layers, nack, pli, fir, .. } = sends;
        let mid = mid.into();
        let (track, payload_types) = (info.track, Vec::new());
        let open = OpenTrack { track, transport, kind, ssrc, rtx_ssrc, mid, layers, order, payload_types, nack, pli, fir };
        let place = self.draw_order(now);
        self.open_track(id, open, formats, info, place);
    }

    /// A publisher's place in the room, after all that were given here, and near to its age on other nodes' scale.
    pub(super) fn draw_order(&mut self, now: Time) -> u64 {
        self.next_order = (self.next_order + 1).max(self.wall_ms(now).saturating_mul(1_000));
        self.next_order
    }

    /// Opens a track for everybody. The payload types of `open` come from `formats`.
    pub(super) fn open_track(
        &mut self,
        owner: ParticipantId,
        mut open: OpenTrack,
        formats: Vec<PayloadFormat>,
        info: TrackInfo,
        order: u64,
    ) {
        let Some(participant) = self.participants.get_mut(&owner) else { return };
        let (id, kind, publisher) = (open.track, open.kind, participant.identity.clone());
        if !participant.tracks.contains(&id) {
            participant.tracks.push(id);
        }
        open.payload_types = formats.iter().map(|format| format.payload_type()).collect();
        let layers = open.layers.clone();
        self.command(Command::OpenTrack(Box::new(open)));
        let (demand, judged, stats) = Default::default();
        let origin = Origin::Here;
        // Of one that was taken over: whoever took it takes it still.
        let mut ssrcs = TrackSsrcs::default();
        let before = self.tracks.remove(&id).map(|before| {
            for (rid, of_layer) in before.layers.iter().zip(before.ssrcs) {
                if let Some(place) = layers.iter().position(|layer| layer == rid).filter(|place| *place < LAYERS_MAX) {
                    ssrcs[place] = of_layer;
                }
            }
            (before.started, before.takers, before.order)
        });
        if ssrcs != TrackSsrcs::default() {
            self.command(Command::BindLayers { track: id, ssrcs });
        }
        let (started, takers, order) = before.unwrap_or((false, Default::default(), order));
        let sections: Vec<_> = takers.iter().copied().collect();
        let track =
            Track { id, owner, origin, publisher, kind, formats, layers, ssrcs, order, started, info, takers, demand, judged, stats };
        self.tracks.insert(id, track);
        for section in sections {
            self.forward(section, Some(id));
        }
        if let Some(tap) = self.taps[kind as usize] {
            self.command(Command::Tap { track: id, tap: Some(tap) });
        }
        self.touch(owner);
        self.offer_track(id);
        self.rated.insert(id);
    }

    /// Takes which SSRCs a track's layers have: whoever takes its publisher over must know.
    pub(super) fn note_layers(&mut self, id: TrackId, ssrcs: TrackSsrcs) -> bool {
        let Some(track) = self.tracks.get_mut(&id) else { return false };
        if !track.is_remote() && track.ssrcs != ssrcs {
            track.ssrcs = ssrcs;
            let owner = track.owner;
            self.restate(owner);
        }
        true
    }

    /// Ends a track while its owner stays.
    pub(super) fn close_track(&mut self, id: TrackId) {
        let Some((owner, is_away)) = self.tracks.get(&id).map(|track| (track.owner, track.is_away())) else { return };
        // One of a member that was taken over, which its client no longer sends, was never open here.
        if !is_away {
            self.command(Command::CloseTrack { track: id });
        }
        if let Some(participant) = self.participants.get_mut(&owner) {
            participant.tracks.retain(|track| *track != id);
            let action = Action::Unpublished { track: id };
            let audit = audit(participant, action);
            self.outputs.push_back(Output::Audit(audit));
        }
        self.forget_track(id);
        self.touch(owner);
        self.feed_sections();
    }

    /// Takes a track out of the books, with all that members have to do with it.
    pub(super) fn forget_track(&mut self, id: TrackId) {
        let Some(track) = self.tracks.remove(&id) else { return };
        if let Some(member) = self.member_mut(track.owner) {
            for section in member.sections.values_mut().filter(|section| section.takes == Some(id)) {
                (section.takes, section.is_spent) = (None, true);
            }
        }
        self.forget_demand(id, &track.demand);
        for section in track.takers {
            self.stop_section(section, id);
        }
        self.withdraw_track(id);
    }

    /// A member's section is idle until its next offer.
    fn stop_section(&mut self, id: SubscriptionId, track: TrackId) {
        let Some(section) = self.sections.get_mut(&id).filter(|section| section.source == Some(track)) else { return };
        // The session chooses another one for its viewers, by what their sections had.
        if matches!(section.choice, Choice::Oldest { .. }) {
            return;
        }
        section.source = None;
        self.command(Command::Forward { subscription: id, track: None, payload_types: Vec::new() });
    }

    /// Silences a track of a member, or lets it be heard. `false`: it has no such track.
    pub(super) fn mute_track(&mut self, owner: ParticipantId, id: TrackId, muted: bool) -> bool {
        let announced = self.member_mut(owner).and_then(|member| member.announced.iter_mut().find(|a| a.info.track == id));
        if let Some(announced) = announced {
            announced.info.muted = muted;
            return true;
        }
        let Some(track) = self.tracks.get_mut(&id).filter(|track| track.owner == owner) else { return false };
        if track.info.muted != muted {
            track.info.muted = muted;
            track.judged = None;
            self.touch(owner);
            self.wish_for_all(id);
        }
        true
    }

    /// Takes what a member says of one of its tracks.
    pub(super) fn update_track(&mut self, owner: ParticipantId, update: TrackUpdate) -> bool {
        let Some(track) = self.tracks.get_mut(&update.track).filter(|track| track.owner == owner) else { return false };
        if let Some((width, height)) = update.size {
            (track.info.width, track.info.height) = (width, height);
        }
        if let Some(mut features) = update.audio_features {
            features.truncate(ANNOUNCED_LAYERS_MAX);
            track.info.audio_features = features;
        }
        self.touch(owner);
        true
    }
}

fn announce(track: TrackId, add: &AddTrack) -> TrackInfo {
    TrackInfo {
        track,
        kind: add.kind.expect("it was checked"),
        source: add.source,
        name: add.name.clone(),
        muted: add.muted,
        width: add.width,
        height: add.height,
        layers: order_layers(MediaKind::Video, &[], &add.layers).0,
        simulcast: false,
        mime: "".into(),
        mid: "".into(),
        stream: if add.stream.is_empty() { stream_of(add.source).into() } else { add.stream.clone() },
        encryption: add.encryption,
        audio_features: add.audio_features.clone(),
        disable_red: add.disable_red,
        stereo: add.stereo,
        disable_dtx: add.disable_dtx,
    }
}

/// Tracks of one stream are played in step.
const fn stream_of(source: Source) -> &'static str {
    match source {
        Source::Camera | Source::Microphone => "camera",
        Source::ScreenShare | Source::ScreenShareAudio => "screen_share",
        Source::Unknown => "",
    }
}

/// `video/VP8` and the like, of what a client sends by itself.
pub(super) fn mime_of(formats: &[PayloadFormat]) -> Box<str> {
    formats.first().map_or("".into(), |first| {
        let codec = first.format.codec();
        format!("{}/{}", codec.kind().name(), codec.name()).into()
    })
}

/// The layers of a track, the lowest first, and the places of `rids` in this order. By size when every size is known, else by the
/// names that the SDKs use, else as the offer lists them.
pub(super) fn order_layers(kind: MediaKind, rids: &[Box<str>], announced: &[VideoLayer]) -> (Vec<VideoLayer>, Vec<u8>) {
    if kind == MediaKind::Audio {
        return (Vec::new(), Vec::new());
    }
    let area = |layer: &VideoLayer| u64::from(layer.width) * u64::from(layer.height);
    if rids.is_empty() {
        let mut layers = announced.to_vec();
        layers.sort_by_key(|layer| (layer.spatial, area(layer), layer.quality));
        return (layers, Vec::new());
    }
    let mut layers: Vec<_> = (0..).zip(rids).map(|(place, rid)| (place, describe_layer(rid, announced))).collect();
    let all_sizes = layers.iter().all(|(_, layer)| area(layer) > 0);
    let all_names = rids.iter().all(|rid| quality_of(rid).is_some());
    if all_sizes {
        layers.sort_by_key(|(_, layer)| area(layer));
    } else if all_names {
        layers.sort_by_key(|(_, layer)| layer.quality);
    }
    if !all_names {
        // Steps from above: two layers are the best and the one below.
        let steps = [Quality::High, Quality::Medium, Quality::Low];
        for (step, (_, layer)) in layers.iter_mut().rev().enumerate() {
            layer.quality = *steps.get(step).unwrap_or(&Quality::Low);
        }
    }
    let order = layers.iter().map(|(place, _)| *place).collect();
    (layers.into_iter().map(|(_, layer)| layer).collect(), order)
}

fn describe_layer(rid: &str, announced: &[VideoLayer]) -> VideoLayer {
    let quality = quality_of(rid);
    let named = announced.iter().find(|layer| *layer.rid == *rid);
    let meant = named.or_else(|| announced.iter().find(|layer| layer.rid.is_empty() && Some(layer.quality) == quality));
    let mut layer = meant.cloned().unwrap_or_default();
    layer.rid = rid.into();
    layer.quality = quality.unwrap_or(layer.quality);
    layer
}

/// The RIDs of the LiveKit SDKs: quarter, half, full.
fn quality_of(rid: &str) -> Option<Quality> {
    match rid {
        "q" => Some(Quality::Low),
        "h" => Some(Quality::Medium),
        "f" => Some(Quality::High),
        _ => None,
    }
}
