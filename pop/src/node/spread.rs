//! Which worker has what of a room. The session knows no workers: its commands are brought to where they belong here, and a track that
//! has subscribers on another worker than its publisher's is mirrored there, once, for as long as it has some. A track of another node
//! comes over a link to one worker, which is then its home, and ends when nobody here takes it.

use std::collections::HashMap;

use pop_proto::Command;
use pop_proto::control::{ExtensionIds, LinkId, OpenTrack};
use pop_schemas::{SubscriptionId, TrackId, TransportId};

/// A command and the worker that gets it.
pub(super) type Directed = (usize, Command);

/// The state. `S` is what a mirror claims of its worker's plan.
pub(super) struct Spread<S> {
    transports: HashMap<TransportId, Place>,
    tracks: HashMap<TrackId, Track<S>>,
    sections: HashMap<SubscriptionId, Section>,
    /// Claims of mirrors that are to be closed, until their workers have been told.
    released: Vec<S>,
}

/// Where a transport is, and what it calls the extensions in the packets of its client.
struct Place {
    worker: usize,
    extensions: ExtensionIds,
}

/// What the origin of a track of another node says of it.
#[derive(Debug)]
pub(crate) struct RemoteTrack {
    /// As there; the transport means nothing here.
    pub(crate) open: Box<OpenTrack>,
    pub(crate) extensions: ExtensionIds,
    pub(crate) link: LinkId,
    pub(crate) alias: u16,
}

struct Track<S> {
    /// `None`: of another node.
    transport: Option<TransportId>,
    home: usize,
    open: Box<OpenTrack>,
    /// Of another node.
    remote: Option<Remote<S>>,
    /// By worker.
    mirrors: HashMap<usize, Mirror<S>>,
}

/// What a track of another node is here.
struct Remote<S> {
    /// Of its place at home.
    claim: S,
    /// Those that it feeds there.
    sections: usize,
    extensions: ExtensionIds,
    /// It goes on to other nodes.
    is_passed: bool,
}

struct Mirror<S> {
    /// How many it feeds.
    sections: usize,
    claim: S,
}

struct Section {
    transport: TransportId,
    worker: usize,
    /// What feeds it.
    track: Option<TrackId>,
}

impl<S> Track<S> {
    /// It is of another node, and nobody takes it.
    fn is_idle(&self) -> bool {
        self.mirrors.is_empty() && self.remote.as_ref().is_some_and(|remote| remote.sections == 0 && !remote.is_passed)
    }
}

impl<S> Default for Spread<S> {
    fn default() -> Spread<S> {
        Spread { transports: HashMap::new(), tracks: HashMap::new(), sections: HashMap::new(), released: Vec::new() }
    }
}

impl<S> Spread<S> {
    /// A transport is about to be opened on `worker`.
    pub(super) fn place(&mut self, transport: TransportId, worker: usize) {
        self.transports.insert(transport, Place { worker, extensions: ExtensionIds::NONE });
    }

    /// Where a transport is.
    pub(super) fn worker_of(&self, transport: TransportId) -> Option<usize> {
        self.transports.get(&transport).map(|place| place.worker)
    }

    /// Where a section is.
    pub(super) fn worker_of_section(&self, section: SubscriptionId) -> Option<usize> {
        self.sections.get(&section).map(|section| section.worker)
    }

    /// It is here, of this node or of another.
    pub(super) fn has_track(&self, track: TrackId) -> bool {
        self.tracks.contains_key(&track)
    }

    /// A track of this node, for another one: its home, how it was opened, and what its packets call their extensions.
    pub(super) fn local_track(&self, track: TrackId) -> Option<(usize, &OpenTrack, ExtensionIds)> {
        let track = self.tracks.get(&track)?;
        let place = self.transports.get(&track.transport?)?;
        Some((track.home, &track.open, place.extensions))
    }

    /// The same of a track of another node, which goes on to further ones.
    pub(super) fn passed_track(&self, track: TrackId) -> Option<(usize, &OpenTrack, ExtensionIds)> {
        let track = self.tracks.get(&track)?;
        let remote = track.remote.as_ref().filter(|remote| remote.is_passed)?;
        Some((track.home, &track.open, remote.extensions))
    }

    /// A track of another node goes on to further ones, or no longer. As long as it does it stays, although no section may take it.
    pub(super) fn pass(&mut self, id: TrackId, on: bool) -> Vec<Directed> {
        let Some(track) = self.tracks.get_mut(&id) else { return Vec::new() };
        let Some(remote) = &mut track.remote else { return Vec::new() };
        remote.is_passed = on;
        if track.is_idle() { self.close_remote(id) } else { Vec::new() }
    }

    /// A track of another node comes to worker `home`, where it has a `claim`. It is closed when the last section has let go of it.
    pub(super) fn open_remote(&mut self, home: usize, remote: RemoteTrack, claim: S) -> Vec<Directed> {
        let RemoteTrack { open, extensions, link, alias } = remote;
        let id = open.track;
        let mut directed = self.close_remote(id);
        let command = Command::OpenRemoteTrack { open: open.clone(), extensions, link, alias };
        let remote = Some(Remote { claim, sections: 0, extensions, is_passed: false });
        self.tracks.insert(id, Track { transport: None, home, open, remote, mirrors: HashMap::new() });
        directed.push((home, command));
        directed
    }

    /// The link to its node is gone, or its node has nothing more of it. Sections that it fed are silent and may take it again.
    pub(super) fn close_remote(&mut self, id: TrackId) -> Vec<Directed> {
        let Some(home) = self.tracks.get(&id).filter(|track| track.remote.is_some()).map(|track| track.home) else { return Vec::new() };
        let mut directed = self.close_mirrors(id);
        directed.push((home, Command::CloseTrack { track: id }));
        for section in self.sections.values_mut().filter(|section| section.track == Some(id)) {
            section.track = None;
        }
        directed
    }

    /// The worker on which `command` needs a mirror that is not there, and the streams that it takes of that one's plan.
    pub(super) fn missing_mirror(&self, command: &Command) -> Option<(usize, usize)> {
        let Command::Forward { subscription, track: Some(track), .. } = command else { return None };
        let (section, track) = (self.sections.get(subscription)?, self.tracks.get(track)?);
        let is_there = section.worker == track.home || track.mirrors.contains_key(&section.worker);
        (!is_there).then(|| (section.worker, track.open.layers.len().max(1)))
    }

    /// Brings a command to its worker, with what that takes on others, in the order in which they are to be sent. A mirror that is
    /// missing is made with `claim`; without one the section gets nothing.
    pub(super) fn direct(&mut self, command: Command, claim: Option<S>) -> Vec<Directed> {
        let worker = match &command {
            Command::OpenTransport(open) => self.note_extensions(open.transport, open.extensions),
            Command::OpenRtp(open) => self.worker_of(open.transport),
            Command::UpdateTransport { transport, extensions, .. } => self.note_extensions(*transport, *extensions),
            Command::CloseTransport { transport }
            | Command::RestartIce { transport, .. }
            | Command::SendDtls { transport, .. }
            | Command::InstallKeys { transport, .. }
            | Command::SendData { transport, .. } => self.worker_of(*transport),
            Command::OpenTrack(open) => self.open_track(open),
            Command::CloseTrack { track } => return self.close_track(*track, command),
            Command::OpenSubscription(open) => {
                let (transport, worker) = (open.transport, self.worker_of(open.transport));
                if let Some(worker) = worker {
                    self.sections.insert(open.subscription, Section { transport, worker, track: None });
                }
                worker
            }
            Command::CloseSubscription { subscription } => return self.close_section(*subscription, command),
            Command::Forward { subscription, track, .. } => return self.forward(*subscription, *track, command, claim),
            Command::Wish { subscription, .. } => self.sections.get(subscription).map(|section| section.worker),
            Command::Tap { track, .. } | Command::BindLayers { track, .. } | Command::Spoke { track } => {
                self.tracks.get(track).map(|track| track.home)
            }
            Command::OpenMirror { .. }
            | Command::Export { .. }
            | Command::ProbeRates(_)
            | Command::OpenLink(_)
            | Command::RekeyLink { .. }
            | Command::RouteLink { .. }
            | Command::CloseLink { .. }
            | Command::OpenRemoteTrack { .. }
            | Command::ExportToLink { .. } => {
                unreachable!("a session knows no workers: {command:?}")
            }
        };
        // Of what has gone with its transport there is nothing to tell.
        worker.map(|worker| (worker, command)).into_iter().collect()
    }

    fn note_extensions(&mut self, transport: TransportId, extensions: ExtensionIds) -> Option<usize> {
        let place = self.transports.get_mut(&transport)?;
        place.extensions = extensions;
        Some(place.worker)
    }

    /// A transport is gone with its tracks and sections: the mirrors that it leaves behind are closed.
    pub(super) fn close_transport(&mut self, transport: TransportId) -> Vec<Directed> {
        let mut directed = Vec::new();
        let sections: Vec<_> = self.sections.iter().filter(|(_, section)| section.transport == transport).map(|(id, _)| *id).collect();
        for section in sections {
            if let Some(Section { worker, track: Some(track), .. }) = self.sections.remove(&section) {
                directed.extend(self.release(track, worker));
            }
        }
        let tracks: Vec<_> = self.tracks.iter().filter(|(_, track)| track.transport == Some(transport)).map(|(id, _)| *id).collect();
        for track in tracks {
            directed.extend(self.close_mirrors(track));
        }
        self.transports.remove(&transport);
        directed
    }

    /// Everything that came back was sent: what closed mirrors claimed is free. Before, another room could open a track in its place.
    pub(super) fn give_back(&mut self) {
        self.released.clear();
    }

    fn open_track(&mut self, open: &OpenTrack) -> Option<usize> {
        let home = self.worker_of(open.transport)?;
        let (transport, open_track) = (Some(open.transport), Box::new(open.clone()));
        let track = Track { transport, home, open: open_track, remote: None, mirrors: HashMap::new() };
        self.tracks.insert(open.track, track);
        Some(home)
    }

    fn close_track(&mut self, id: TrackId, command: Command) -> Vec<Directed> {
        let Some(home) = self.tracks.get(&id).map(|track| track.home) else { return Vec::new() };
        let mut directed = self.close_mirrors(id);
        directed.push((home, command));
        directed
    }

    /// Forgets a track, and ends its mirrors. Sections that it fed are told by the session.
    fn close_mirrors(&mut self, id: TrackId) -> Vec<Directed> {
        let Some(track) = self.tracks.remove(&id) else { return Vec::new() };
        self.released.extend(track.remote.map(|remote| remote.claim));
        let mut directed = Vec::new();
        for (worker, mirror) in track.mirrors {
            self.released.push(mirror.claim);
            directed.extend(close_mirror(id, track.home, worker));
        }
        directed
    }

    fn close_section(&mut self, id: SubscriptionId, command: Command) -> Vec<Directed> {
        let Some(section) = self.sections.remove(&id) else { return Vec::new() };
        let mut directed = vec![(section.worker, command)];
        if let Some(track) = section.track {
            directed.extend(self.release(track, section.worker));
        }
        directed
    }

    fn forward(&mut self, id: SubscriptionId, track: Option<TrackId>, mut command: Command, claim: Option<S>) -> Vec<Directed> {
        let Some(section) = self.sections.get_mut(&id) else { return Vec::new() };
        let (worker, before) = (section.worker, std::mem::replace(&mut section.track, track));
        let mut directed = Vec::new();
        if let Some(to) = track
            && before != track
            && !self.acquire(to, worker, claim, &mut directed)
        {
            if let Command::Forward { track, .. } = &mut command {
                *track = None;
            }
            if let Some(section) = self.sections.get_mut(&id) {
                section.track = None;
            }
        }
        directed.push((worker, command));
        if let Some(before) = before.filter(|before| Some(*before) != track) {
            directed.extend(self.release(before, worker));
        }
        directed
    }

    /// One more section of `worker` takes a track; false: the track is neither there nor can it be mirrored there.
    fn acquire(&mut self, id: TrackId, worker: usize, claim: Option<S>, directed: &mut Vec<Directed>) -> bool {
        // One that is gone feeds nobody, wherever.
        let Some(track) = self.tracks.get_mut(&id) else { return false };
        if track.home == worker {
            track.remote.iter_mut().for_each(|remote| remote.sections += 1);
            return true;
        }
        if let Some(mirror) = track.mirrors.get_mut(&worker) {
            mirror.sections += 1;
            return true;
        }
        let Some(claim) = claim else { return false };
        track.mirrors.insert(worker, Mirror { sections: 1, claim });
        directed.push((worker, Command::OpenMirror { open: track.open.clone(), home: track.home }));
        directed.push((track.home, Command::Export { track: id, to: worker, on: true }));
        true
    }

    /// One section of `worker` takes a track no longer: the mirror ends with the last, and so does a track of another node.
    fn release(&mut self, id: TrackId, worker: usize) -> Vec<Directed> {
        let Some(track) = self.tracks.get_mut(&id) else { return Vec::new() };
        let mut directed = Vec::new();
        if let Some(mirror) = track.mirrors.get_mut(&worker) {
            mirror.sections -= 1;
            if mirror.sections == 0 {
                self.released.extend(track.mirrors.remove(&worker).map(|mirror| mirror.claim));
                directed.extend(close_mirror(id, track.home, worker));
            }
        } else if let Some(remote) = track.remote.as_mut().filter(|_| track.home == worker) {
            remote.sections -= 1;
        }
        if track.is_idle() {
            directed.extend(self.close_remote(id));
        }
        directed
    }
}

fn close_mirror(track: TrackId, home: usize, worker: usize) -> [Directed; 2] {
    [(home, Command::Export { track, to: worker, on: false }), (worker, Command::CloseTrack { track })]
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use pop_proto::control::{Codec, ExtensionIds, LayerWish, MediaKind, OpenSubscription, PayloadType};

    use super::*;

    /// What the plan of a mirror's worker would count.
    type Claim = Rc<()>;

    struct Rig {
        spread: Spread<Claim>,
        plan: Claim,
    }

    impl Rig {
        /// Transport 1 with track 1 on worker 0; transports 2 to 4 on worker 1, with a section each of the same number.
        fn new() -> Rig {
            let mut rig = Rig { spread: Spread::default(), plan: Rc::default() };
            for (transport, worker) in [(1, 0), (2, 1), (3, 1), (4, 1)] {
                rig.spread.place(TransportId(transport), worker);
            }
            rig.open_track(1);
            for id in 2..5 {
                let open = OpenSubscription {
                    subscription: SubscriptionId(id),
                    transport: TransportId(id),
                    kind: MediaKind::Video,
                    ssrc: 1,
                    first_sequence: 1,
                    first_timestamp: 1,
                    rtx_ssrc: None,
                    extensions: ExtensionIds::NONE,
                    mid: "0".into(),
                };
                assert_eq!(rig.direct(Command::OpenSubscription(Box::new(open))), ["1 OpenSubscription"]);
            }
            rig
        }

        fn open_track(&mut self, id: u64) {
            let open = OpenTrack {
                track: TrackId(id),
                transport: TransportId(1),
                kind: MediaKind::Video,
                ssrc: None,
                rtx_ssrc: None,
                mid: "0".into(),
                layers: vec!["a".into(), "b".into()],
                order: Vec::new(),
                payload_types: vec![PayloadType { number: 96, codec: Codec::Vp8, rtx: None }],
                nack: true,
                pli: true,
                fir: false,
            };
            assert_eq!(self.direct(Command::OpenTrack(Box::new(open))), ["0 OpenTrack"]);
        }

        /// Worker and command, as the node does it.
        fn direct(&mut self, command: Command) -> Vec<String> {
            let claim = self.spread.missing_mirror(&command).map(|(worker, streams)| {
                assert_eq!((worker, streams), (1, 2));
                Rc::clone(&self.plan)
            });
            let directed = show(self.spread.direct(command, claim));
            self.spread.give_back();
            directed
        }

        fn close(&mut self, transport: u64) -> Vec<String> {
            let directed = show(self.spread.close_transport(TransportId(transport)));
            self.spread.give_back();
            directed
        }

        fn forward(&mut self, section: u64, track: Option<u64>) -> Vec<String> {
            self.direct(forward(section, track))
        }

        fn mirrors(&self) -> usize {
            Rc::strong_count(&self.plan) - 1
        }
    }

    fn forward(section: u64, track: Option<u64>) -> Command {
        Command::Forward { subscription: SubscriptionId(section), track: track.map(TrackId), payload_types: Vec::new() }
    }

    fn show(directed: Vec<Directed>) -> Vec<String> {
        let show = |(worker, command)| match command {
            Command::OpenMirror { open, home } => format!("{worker} OpenMirror {} of {home}", open.track.0),
            Command::Export { track, to, on } => format!("{worker} Export {} to {to} {on}", track.0),
            Command::Forward { subscription, track, .. } => format!("{worker} Forward {} {:?}", subscription.0, track.map(|track| track.0)),
            Command::CloseTrack { track } => format!("{worker} CloseTrack {}", track.0),
            Command::OpenRemoteTrack { open, link, alias, .. } => format!("{worker} OpenRemoteTrack {} {}/{alias}", open.track.0, link.0),
            other => format!("{worker} {}", format!("{other:?}").split(['(', ' ']).next().unwrap_or_default()),
        };
        directed.into_iter().map(show).collect()
    }

    #[test]
    fn a_track_is_mirrored_once_for_all_sections_of_a_worker_and_as_long_as_it_has_some() {
        let mut rig = Rig::new();
        assert_eq!(rig.forward(2, Some(1)), ["1 OpenMirror 1 of 0", "0 Export 1 to 1 true", "1 Forward 2 Some(1)"]);
        assert_eq!(rig.forward(3, Some(1)), ["1 Forward 3 Some(1)"]);
        assert_eq!(rig.forward(3, Some(1)), ["1 Forward 3 Some(1)"], "once more is no second section");
        assert_eq!(rig.mirrors(), 1);
        assert_eq!(rig.forward(2, None), ["1 Forward 2 None"]);
        let close = Command::CloseSubscription { subscription: SubscriptionId(3) };
        assert_eq!(rig.direct(close), ["1 CloseSubscription", "0 Export 1 to 1 false", "1 CloseTrack 1"]);
        assert_eq!(rig.mirrors(), 0, "its place is given back");
        assert_eq!(rig.forward(4, Some(1))[0], "1 OpenMirror 1 of 0", "and taken again");
    }

    #[test]
    fn another_track_is_mirrored_before_the_one_before_ends() {
        let mut rig = Rig::new();
        rig.open_track(5);
        rig.forward(2, Some(1));
        let commands = ["1 OpenMirror 5 of 0", "0 Export 5 to 1 true", "1 Forward 2 Some(5)", "0 Export 1 to 1 false", "1 CloseTrack 1"];
        assert_eq!(rig.forward(2, Some(5)), commands);
        assert_eq!(rig.mirrors(), 1);
    }

    #[test]
    fn a_publisher_that_leaves_takes_its_mirrors_with_it_and_so_does_the_last_viewer() {
        let mut rig = Rig::new();
        rig.forward(2, Some(1));
        rig.forward(3, Some(1));
        assert_eq!(rig.close(2), [""; 0]);
        assert_eq!(rig.close(3), ["0 Export 1 to 1 false", "1 CloseTrack 1"]);
        rig.forward(4, Some(1));
        assert_eq!(rig.close(1), ["0 Export 1 to 1 false", "1 CloseTrack 1"]);
        assert_eq!(rig.mirrors(), 0);
        assert_eq!(rig.forward(4, None), ["1 Forward 4 None"]);
        assert_eq!(rig.forward(4, Some(1)), ["1 Forward 4 None"], "what is gone feeds nobody");
        assert_eq!(rig.forward(3, Some(1)), [""; 0], "and who is gone is fed by nothing");
    }

    #[test]
    fn a_closed_track_is_closed_on_every_worker() {
        let mut rig = Rig::new();
        rig.forward(2, Some(1));
        let close = Command::CloseTrack { track: TrackId(1) };
        assert_eq!(rig.direct(close), ["0 Export 1 to 1 false", "1 CloseTrack 1", "0 CloseTrack 1"]);
        assert_eq!(rig.mirrors(), 0);
    }

    #[test]
    fn without_a_place_for_a_mirror_the_section_gets_nothing_and_may_try_again() {
        let mut rig = Rig::new();
        assert_eq!(show(rig.spread.direct(forward(2, Some(1)), None)), ["1 Forward 2 None"]);
        assert_eq!(rig.forward(2, Some(1)).len(), 3);
    }

    fn of_another_node(rig: &mut Rig, id: u64, home: usize) -> Vec<String> {
        let (_, open, extensions) = rig.spread.local_track(TrackId(1)).expect("it is ours");
        let open = Box::new(OpenTrack { track: TrackId(id), ..open.clone() });
        let directed = rig.spread.open_remote(home, RemoteTrack { open, extensions, link: LinkId(7), alias: 9 }, Rc::clone(&rig.plan));
        show(directed)
    }

    #[test]
    fn a_track_of_another_node_comes_to_one_worker_goes_on_to_others_and_ends_with_its_last_section() {
        let mut rig = Rig::new();
        rig.spread.sections.get_mut(&SubscriptionId(4)).expect("it is there").worker = 0;
        assert_eq!(of_another_node(&mut rig, 50, 1), ["1 OpenRemoteTrack 50 7/9"]);
        assert_eq!(rig.forward(2, Some(50)), ["1 Forward 2 Some(50)"]);
        let claim = Rc::clone(&rig.plan);
        let directed = show(rig.spread.direct(forward(4, Some(50)), Some(claim)));
        assert_eq!(directed, ["0 OpenMirror 50 of 1", "1 Export 50 to 0 true", "0 Forward 4 Some(50)"]);
        assert_eq!(rig.mirrors(), 2);
        assert_eq!(rig.forward(2, None), ["1 Forward 2 None"], "the other worker still takes it from here");
        assert_eq!(rig.forward(4, None), ["0 Forward 4 None", "1 Export 50 to 0 false", "0 CloseTrack 50", "1 CloseTrack 50"]);
        assert_eq!(rig.mirrors(), 0);
        assert!(!rig.spread.has_track(TrackId(50)) && rig.spread.local_track(TrackId(50)).is_none());
    }

    #[test]
    fn a_track_that_goes_on_to_other_nodes_stays_without_a_section_until_it_does_not() {
        let mut rig = Rig::new();
        let commands = of_another_node(&mut rig, 50, 1);
        let extensions = rig.spread.local_track(TrackId(1)).map(|(_, _, extensions)| extensions);
        assert_eq!(commands, ["1 OpenRemoteTrack 50 7/9"]);
        assert!(rig.spread.passed_track(TrackId(50)).is_none(), "nobody was told that it is passed on");
        assert_eq!(show(rig.spread.pass(TrackId(50), true)), [""; 0]);
        let passed = rig.spread.passed_track(TrackId(50)).map(|(home, open, extensions)| (home, open.track, extensions));
        assert_eq!(passed, extensions.map(|extensions| (1, TrackId(50), extensions)), "as its packets are");
        rig.forward(2, Some(50));
        assert_eq!(rig.forward(2, None), ["1 Forward 2 None"], "the other node still takes it");
        assert_eq!(show(rig.spread.pass(TrackId(50), false)), ["1 CloseTrack 50"]);
        assert!(!rig.spread.has_track(TrackId(50)));
        of_another_node(&mut rig, 50, 1);
        rig.forward(2, Some(50));
        rig.spread.pass(TrackId(50), true);
        assert_eq!(show(rig.spread.pass(TrackId(50), false)), [""; 0], "a section here takes it");
        assert_eq!(rig.close(2), ["1 CloseTrack 50"]);
        assert_eq!(show(rig.spread.pass(TrackId(1), true)), [""; 0], "our own needs no such thing");
        assert!(rig.spread.passed_track(TrackId(1)).is_none());
    }

    #[test]
    fn a_track_whose_link_is_gone_may_be_taken_again_by_the_same_sections() {
        let mut rig = Rig::new();
        of_another_node(&mut rig, 50, 1);
        rig.forward(2, Some(50));
        assert_eq!(show(rig.spread.close_remote(TrackId(50))), ["1 CloseTrack 50"]);
        assert_eq!(show(rig.spread.close_remote(TrackId(1))), [""; 0], "it is ours");
        of_another_node(&mut rig, 50, 1);
        assert_eq!(rig.forward(2, Some(50)), ["1 Forward 2 Some(50)"]);
        assert_eq!(rig.close(2), ["1 CloseTrack 50"]);
    }

    #[test]
    fn sections_of_the_publishers_own_worker_need_no_mirror() {
        let mut rig = Rig::new();
        rig.spread.place(TransportId(2), 0);
        let section = rig.spread.sections.get_mut(&SubscriptionId(2)).unwrap();
        section.worker = 0;
        assert_eq!(rig.forward(2, Some(1)), ["0 Forward 2 Some(1)"]);
        let wish = Command::Wish { subscription: SubscriptionId(2), wish: LayerWish::default() };
        assert_eq!(rig.direct(wish), ["0 Wish"]);
        assert_eq!(rig.direct(Command::Tap { track: TrackId(1), tap: None }), ["0 Tap"]);
    }
}
