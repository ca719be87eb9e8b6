//! One task per worker: it takes the worker's events and brings each to the room, or to the DTLS association, that it is for.

use std::collections::HashMap;
use std::io;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use pop_dataplane::Drops;
use pop_proto::{DropReason, Event};
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
    pub(super) tracks: Vec<TrackId>,
    pub(super) subscriptions: Vec<SubscriptionId>,
}

pub(super) enum Change {
    Add(TransportId, Box<Route>),
    Remove(TransportId),
}

/// The rooms' end of a pump's table.
pub(super) struct Routes {
    changes: mpsc::UnboundedSender<Change>,
}

impl Routes {
    pub(super) fn new() -> (Routes, mpsc::UnboundedReceiver<Change>) {
        let (changes, received) = mpsc::unbounded_channel();
        (Routes { changes }, received)
    }

    pub(super) fn add(&self, transport: TransportId, route: Route) {
        // The pump lives as long as the node; at its end nobody needs a route.
        let _ = self.changes.send(Change::Add(transport, Box::new(route)));
    }

    pub(super) fn remove(&self, transport: TransportId) {
        let _ = self.changes.send(Change::Remove(transport));
    }
}

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
pub(super) fn start(shared: Weak<Shared>, worker: usize, wake: WakeReceiver, changes: mpsc::UnboundedReceiver<Change>) -> io::Result<()> {
    let pump = Pump { shared, worker, changes, routes: HashMap::new(), tracks: HashMap::new(), subscriptions: HashMap::new() };
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
            Change::Add(transport, route) => {
                self.tracks.extend(route.tracks.iter().map(|t| (*t, transport)));
                self.subscriptions.extend(route.subscriptions.iter().map(|s| (*s, transport)));
                self.routes.insert(transport, *route);
            }
            Change::Remove(transport) => {
                if let Some(route) = self.routes.remove(&transport) {
                    for track in &route.tracks {
                        self.tracks.remove(track);
                    }
                    for subscription in &route.subscriptions {
                        self.subscriptions.remove(subscription);
                    }
                }
            }
        }
    }

    fn deliver(&self, shared: &Shared, event: Event) {
        let transport = match &event {
            Event::TransportValidated { transport, .. }
            | Event::Dtls { transport, .. }
            | Event::TransportLost { transport, .. }
            | Event::RtpPeerStats { transport, .. }
            | Event::Data { transport, .. } => Some(transport),
            Event::TrackStarted { track } | Event::TrackStats { track, .. } | Event::AudioLevel { track, .. } => self.tracks.get(track),
            Event::SubscriptionStats { subscription, .. } => self.subscriptions.get(subscription),
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
