//! Which layer each subscriber gets: the best at or below its wish, and its client's bandwidth, of those that come.
//!
//! ```text
//! Wish, Forward, a share of bandwidth -----+
//! a layer comes, pauses, ends, is ranked --+-> give_layer -> Outbound::want_layer, or rest; keyframe request, once for all
//! ```
//! The layers inside a stream are chosen by each subscriber itself (`pop_proto::thinning`).
//! It is decided when one of them changes and not per packet: there a subscriber compares two numbers (`Outbound::takes`).

use pop_proto::control::{LayerWish, SubscriptionStats};
use pop_proto::inbound::Inbound;
use pop_proto::outbound::Outbound;
use pop_schemas::{SubscriptionId, Time};
use slab::Slab;

use super::{Core, Layer, Subscription, Track};

impl Core {
    pub(super) fn set_wish(&mut self, id: SubscriptionId, wish: LayerWish) {
        let Some(&index) = self.subscription_ids.get(&id) else { return };
        let subscription = &mut self.subscriptions[index];
        subscription.wish = wish;
        if let Some(track) = subscription.track {
            give_layer(&mut self.tracks[track], subscription);
            let transport = subscription.transport;
            self.share_soon(transport);
        }
    }

    /// Stops asking for what nobody takes any longer. A layer that is wanted is asked for at once ([`give_layer`]).
    pub(super) fn review_layers(&mut self, track: usize) {
        let Some(track) = self.tracks.get_mut(track) else { return };
        let mut wanted = track.wanted_elsewhere();
        for subscriber in &track.subscribers {
            let outbound = &self.subscriptions[*subscriber].outbound;
            let layers = [outbound.layer(), outbound.wanted_layer()];
            layers.into_iter().flatten().for_each(|layer| wanted |= 1 << layer);
        }
        for (index, layer) in track.layers.iter_mut().enumerate() {
            layer.inbound.set_wanted(track.tap.is_some() || wanted >> index & 1 == 1);
        }
    }

    /// Once a second: what the layers inside a track's streams bring.
    pub(super) fn measure_inside(&mut self, now: Time, track: usize) {
        let Some(track) = self.tracks.get_mut(track) else { return };
        for Layer { inbound, inside, .. } in &mut track.layers {
            if let Some(layering) = inbound.layering() {
                inside.look(now, layering);
            }
        }
    }
}

impl Subscription {
    /// Counters, the layer of its track that is sent now, and whether there is bandwidth for any.
    pub(super) fn stats(&self, track: Option<&Track>) -> SubscriptionStats {
        let inside = self.outbound.target().unwrap_or_default();
        let stats = SubscriptionStats {
            layer: inside.spatial(),
            temporal: inside.temporal(),
            congested: self.is_congested(),
            ..self.outbound.stats()
        };
        match track.zip(self.outbound.layer()).filter(|(track, _)| track.layers.len() > 1) {
            Some((track, layer)) => SubscriptionStats { layer: track.ranks.rank_of(layer), ..stats },
            None => stats,
        }
    }

    /// The client's network has no room for any layer of what is forwarded.
    fn is_congested(&self) -> bool {
        self.track.is_some() && !self.wish.paused && self.granted.is_none()
    }
}

/// Gives every subscriber of a track the layer that it should have now.
pub(super) fn follow_layers(track: &mut Track, subscriptions: &mut Slab<Subscription>) {
    for at in 0..track.subscribers.len() {
        give_layer(track, &mut subscriptions[track.subscribers[at]]);
    }
}

/// Gives a subscriber of a track the layer that it should have now, and asks for the picture that it needs for it.
pub(super) fn give_layer(track: &mut Track, subscription: &mut Subscription) {
    let Subscription { outbound, wish, granted, .. } = subscription;
    let Some(granted) = granted.filter(|_| !wish.paused) else { return outbound.rest() };
    let (spatial_max, temporal_max) = (wish.spatial_max.min(granted.spatial), wish.temporal_max.min(granted.temporal));
    let layer = track.ranks.choose(spatial_max);
    outbound.want_layer(layer);
    // Where the spatial layers are streams of their own, what one stream has inside is its own business.
    let spatial_inside = if track.layers.len() > 1 { u8::MAX } else { spatial_max };
    outbound.want_spatial(spatial_inside, temporal_max);
    let inbound = &mut track.layers[layer].inbound;
    inbound.set_wanted(true);
    if outbound.wants_keyframe().is_some() {
        request_wanted(outbound, inbound);
    }
}

/// Asks for what a subscriber needs of the layer that it wants: while it is shown nothing, pictures that are kept will do.
pub(super) fn request_wanted(outbound: &Outbound, inbound: &mut Inbound) {
    if outbound.layer().is_none() { inbound.request_picture() } else { inbound.request_keyframe() }
}

/// Asks for the picture that a subscriber needs: of the layer that it has, and of the one that it wants.
pub(super) fn request_keyframe(tracks: &mut Slab<Track>, subscription: &Subscription) {
    let Some(track) = subscription.track else { return };
    let (layers, outbound) = (&mut tracks[track].layers, &subscription.outbound);
    if let Some(layer) = outbound.layer() {
        layers[layer].inbound.request_keyframe();
    }
    if let Some(wanted) = outbound.wants_keyframe() {
        request_wanted(outbound, &mut layers[wanted].inbound);
    }
}
