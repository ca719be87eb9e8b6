//! One task per worker: it takes the worker's events and brings each to the room, or to the DTLS association, that it is for.

use std::collections::HashMap;
use std::io;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use pop_dataplane::Drops;
use pop_proto::{Command, DropReason, Event};
use pop_schemas::{SubscriptionId, TrackId, TransportId};
use pop_uring::{AsyncWake, WakeReceiver};
use tokio::sync::mpsc;

use super::directory::RoomSender;
use super::room::RoomMessage;
use super::{EndsProcess, Shared};
use crate::dtls::DtlsPeer;

/// Where the events of one transport go. Dropping it ends the transport's DTLS.
pub(super) struct Route {
    pub(super) room: RoomSender,
    /// `None` for an RTP route.
    pub(super) peer: Option<DtlsPeer>,
}

/// The rooms tell of each thing before its worker hears of it, so no event comes for something unknown.
enum Change {
    Add(TransportId, Box<Route>),
    Remove(TransportId),
    AddTrack(TransportId, TrackId),
    RemoveTrack(TrackId),
    AddSubscription(TransportId, SubscriptionId),
    RemoveSubscription(SubscriptionId),
}

/// The rooms' end of a pump's table.
pub(super) struct Routes {
    changes: mpsc::UnboundedSender<Change>,
}

impl Routes {
    pub(super) fn new() -> (Routes, Changes) {
        let (changes, received) = mpsc::unbounded_channel();
        (Routes { changes }, Changes(received))
    }

    pub(super) fn add(&self, transport: TransportId, route: Route) {
        // The pump lives as long as the node; at its end nobody needs a route.
        let _ = self.changes.send(Change::Add(transport, Box::new(route)));
    }

    pub(super) fn remove(&self, transport: TransportId) {
        let _ = self.changes.send(Change::Remove(transport));
    }

    /// Learns from a command what it opens and closes.
    pub(super) fn note(&self, command: &Command) {
        let change = match command {
            Command::OpenTrack(open) => Change::AddTrack(open.transport, open.track),
            Command::CloseTrack { track } => Change::RemoveTrack(*track),
            Command::OpenSubscription(open) => Change::AddSubscription(open.transport, open.subscription),
            Command::CloseSubscription { subscription } => Change::RemoveSubscription(*subscription),
            _ => return,
        };
        let _ = self.changes.send(change);
    }
}

/// The pump's end of its table.
pub(super) struct Changes(mpsc::UnboundedReceiver<Change>);

/// Datagrams that DTLS refused, by reason; the pump is the one writer.
pub(super) struct Refused([AtomicU64; DropReason::ALL.len()]);

impl Refused {
    pub(super) fn new() -> Refused {
        Refused(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn count(&self, reason: DropReason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_to(&self, drops: &mut Drops) {
        for (total, refused) in drops.iter_mut().zip(&self.0) {
            *total += refused.load(Ordering::Relaxed);
        }
    }
}

/// Starts the pump of one worker.
pub(super) fn start(shared: Weak<Shared>, worker: usize, wake: WakeReceiver, changes: Changes) -> io::Result<()> {
    let pump = Pump { shared, worker, changes: changes.0, routes: HashMap::new(), tracks: HashMap::new(), subscriptions: HashMap::new() };
    tokio::spawn(pump.run(AsyncWake::new(wake)?));
    Ok(())
}

struct Pump {
    shared: Weak<Shared>,
    worker: usize,
    changes: mpsc::UnboundedReceiver<Change>,
    routes: HashMap<TransportId, Route>,
    tracks: HashMap<TrackId, TransportId>,
    subscriptions: HashMap<SubscriptionId, TransportId>,
}

impl Pump {
    async fn run(mut self, wake: AsyncWake) {
        let _guard = EndsProcess;
        loop {
            tokio::select! {
                change = self.changes.recv() => match change {
                    Some(change) => self.apply(change),
                    None => return,
                },
                woken = wake.woken() => {
                    woken.expect("an eventfd that this process made can be read");
                    let Some(shared) = self.shared.upgrade() else { return };
                    while let Some(event) = shared.workers[self.worker].poll_event() {
                        // A route is announced before its transport is opened, so before any event of it.
                        while let Ok(change) = self.changes.try_recv() {
                            self.apply(change);
                        }
                        self.deliver(&shared, event);
                    }
                }
            }
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Add(transport, route) => drop(self.routes.insert(transport, *route)),
            Change::Remove(transport) => {
                self.routes.remove(&transport);
                self.tracks.retain(|_, of| *of != transport);
                self.subscriptions.retain(|_, of| *of != transport);
            }
            Change::AddTrack(transport, track) => drop(self.tracks.insert(track, transport)),
            Change::RemoveTrack(track) => drop(self.tracks.remove(&track)),
            Change::AddSubscription(transport, subscription) => drop(self.subscriptions.insert(subscription, transport)),
            Change::RemoveSubscription(subscription) => drop(self.subscriptions.remove(&subscription)),
        }
    }

    fn deliver(&self, shared: &Shared, event: Event) {
        let transport = match &event {
            Event::TransportValidated { transport, .. }
            | Event::Dtls { transport, .. }
            | Event::TransportLost { transport, .. }
            | Event::RtpPeerStats { transport, .. }
            | Event::Data { transport, .. } => Some(transport),
            Event::TrackStarted { track }
            | Event::LayersBound { track, .. }
            | Event::TrackStats { track, .. }
            | Event::AudioLevel { track, .. } => self.tracks.get(track),
            Event::SubscriptionStats { subscription, .. } => self.subscriptions.get(subscription),
            Event::LinkStats { .. } | Event::LinkMissing { .. } | Event::LinkWanted { .. } | Event::LinkKeysUsed { .. } => {
                if let Some(cluster) = shared.cluster.get() {
                    cluster.link_event(self.worker, &event);
                }
                return;
            }
        };
        // An event of what has just been closed.
        let Some(route) = transport.and_then(|t| self.routes.get(t)) else { return };
        match (event, &route.peer) {
            (Event::Dtls { datagram, .. }, Some(peer)) => {
                if let Err(reason) = peer.deliver(datagram.as_slice()) {
                    shared.dtls_refused[self.worker].count(reason);
                }
            }
            (event, peer) => {
                if let (Event::TransportValidated { .. }, Some(peer)) = (&event, peer) {
                    peer.start();
                }
                // A room that has ended has closed its transports.
                let _ = route.room.send(RoomMessage::Event(Box::new(event)));
            }
        }
    }
}
