//! What each client's network takes, and who gets it: once a second a client is judged by what it told, and while it has a bound its
//! sections share it.
//!
//! ```text
//! transport-wide feedback, else reports; REMB -> Told -> Allowance -+-> share: a rank for each section, or nothing: congested
//! Wish, Forward of a client with a bound ---------------------------+
//! ```
//! A client without a bound costs nothing of this but the judgement.

use std::time::Duration;

use pop_proto::allocation::{Demand, Grant, Step, allocate};
use pop_proto::allowance::{Allowance, Told};
use pop_proto::control::{LayerWish, MediaKind, SubscriptionStats};
use pop_proto::wire::rtcp::TransportCc;
use pop_schemas::Time;
use slab::Slab;

use super::{Core, Endpoint, Subscription, Track, give_layer};

/// Bytes of an RTP header of ours with its extensions, about.
const HEADER_LEN: u64 = 20;

/// Sections that share anew in one tick at most, and the rest of the last client's: a millisecond of the core. The others wait.
const SHARED_PER_TICK_MAX: usize = 1_024;

/// An estimate (REMB) that is older than this says nothing: browsers send one a second.
const REMB_AGE_MAX: Duration = Duration::from_secs(3);

/// What is known of the way to a client.
#[derive(Default)]
pub(super) struct Downstream {
    pub(super) allowance: Allowance,
    /// By transport-wide feedback, since the start.
    pub(super) feedback: Tally,
    /// The first transport-wide number that no feedback has told of.
    told_until: u16,
    /// By report blocks, since the start.
    reports: Tally,
    remb: Option<(Time, u64)>,
    /// When it was judged last, and what was sent until then; `None` before the first time.
    judged: Option<(Time, Sent)>,
    /// What the sections that were closed had been sent.
    closed: Sent,
    feedback_judged: Tally,
    reports_judged: Tally,
    /// In `Core::sharing`.
    is_sharing: bool,
}

/// What was sent to a client.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    packets: u64,
    /// With RTP headers.
    bytes: u64,
}

impl Sent {
    fn add(&mut self, stats: &SubscriptionStats) {
        self.packets += stats.packets;
        self.bytes += stats.bytes + stats.packets * HEADER_LEN;
    }
}

/// Packets that a client has told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) received: u64,
    pub(super) lost: u64,
}

impl Tally {
    fn add(&mut self, received: u64, lost: u64) {
        self.received += received;
        self.lost += lost;
    }

    /// What came to it since `before`, which becomes it.
    fn take_since(self, before: &mut Tally) -> Tally {
        let Tally { received, lost } = std::mem::replace(before, self);
        Tally { received: self.received - received, lost: self.lost - lost }
    }

    fn total(self) -> u64 {
        self.received + self.lost
    }
}

/// Where a section stood when a report block about it came.
#[derive(Clone, Copy)]
pub(super) struct Reported {
    /// Sent to it, retransmissions excluded.
    pub(super) packets: u64,
    /// As the client tells.
    pub(super) highest_sequence: u32,
}

impl Reported {
    /// What was sent since `before`, and how much of it the client did not get. What the publisher lost is a hole in the numbers for the
    /// client, too, and no fault of its network.
    pub(super) fn lost_since(&self, before: &Reported, fraction_lost: u8) -> (u64, u64) {
        let sent = self.packets - before.packets;
        // A client that makes up numbers would slow down itself alone.
        let numbers = u64::from(self.highest_sequence.wrapping_sub(before.highest_sequence));
        let holes = numbers.saturating_sub(sent);
        (sent, (numbers * u64::from(fraction_lost) / 256).saturating_sub(holes).min(sent))
    }
}

impl Downstream {
    /// Takes transport-wide feedback; `next` is the next number that would be sent. Each number counts once. Of a client that came from
    /// another node it tells of that one's numbers, too: what was not sent here was not lost here.
    pub(super) fn handle_feedback(&mut self, feedback: &TransportCc<'_>, next: u16) {
        let untold = next.wrapping_sub(self.told_until);
        let ahead = feedback.base_sequence.wrapping_sub(self.told_until);
        let (skip, ahead) = if ahead < untold { (0, ahead) } else { (ahead.wrapping_neg(), 0) };
        let take = feedback.status_count.saturating_sub(skip).min(untold - ahead);
        let (received, covered) = feedback.received_among(skip, take);
        if covered > 0 {
            self.told_until = self.told_until.wrapping_add(ahead + covered);
            self.feedback.add(received.into(), (covered - received).into());
        }
    }

    /// Takes what a report block tells of a section: of so many packets so many were lost on the way to this client.
    pub(super) fn handle_report(&mut self, expected: u64, lost: u64) {
        self.reports.add(expected.saturating_sub(lost), lost);
    }

    /// Takes an estimate in bit/s.
    pub(super) fn handle_remb(&mut self, now: Time, bitrate: u64) {
        self.remb = Some((now, bitrate));
    }

    /// Takes the last figures of a section that is closed: what it was sent was sent.
    pub(super) fn close_section(&mut self, stats: &SubscriptionStats) {
        self.closed.add(stats);
    }

    /// Judges what was told since the last time; the first time there is nothing to compare with.
    fn judge(&mut self, now: Time, sent: Sent) {
        let feedback = self.feedback.take_since(&mut self.feedback_judged);
        let reports = self.reports.take_since(&mut self.reports_judged);
        let Some((at, before)) = self.judged.replace((now, sent)) else { return };
        let (packets, bytes) = (sent.packets - before.packets, sent.bytes - before.bytes);
        let elapsed_us = now.since(at).as_micros().max(1) as u64;
        // Feedback is newer, where the extension was negotiated for what is sent, and not for sound alone.
        let tally = if 2 * feedback.total() >= packets || reports.total() == 0 { feedback } else { reports };
        let told = Told {
            sent: bytes.saturating_mul(8_000_000) / elapsed_us,
            expected: tally.total(),
            lost: tally.lost,
            remb: self.remb.filter(|(at, _)| now.since(*at) < REMB_AGE_MAX).map(|(_, bitrate)| bitrate),
        };
        self.allowance.handle_second(now, &told);
    }
}

impl Core {
    /// Once a second: what does this client's network take?
    pub(super) fn judge_bandwidth(&mut self, now: Time, index: usize) {
        let transport = &mut self.transports[index];
        let mut sent = transport.downstream.closed;
        transport.subscriptions.iter().for_each(|section| sent.add(&self.subscriptions[*section].outbound.stats()));
        let before = transport.downstream.allowance.limit();
        transport.downstream.judge(now, sent);
        if before.is_some() || transport.downstream.allowance.limit().is_some() {
            self.mark_sharing(index);
        }
    }

    /// The sections of a client with a bound have something else to share at the next tick.
    pub(super) fn share_soon(&mut self, transport: usize) {
        if self.transports[transport].downstream.allowance.limit().is_some() {
            self.mark_sharing(transport);
        }
    }

    fn mark_sharing(&mut self, index: usize) {
        if !std::mem::replace(&mut self.transports[index].downstream.is_sharing, true) {
            self.sharing.push_back(index);
        }
    }

    /// Shares what each of the marked clients may be sent.
    pub(super) fn share_bandwidth(&mut self, now: Time) {
        let mut left = SHARED_PER_TICK_MAX;
        while left > 0
            && let Some(index) = self.sharing.pop_front()
        {
            self.transports[index].downstream.is_sharing = false;
            left = left.saturating_sub(1 + self.transports[index].subscriptions.len());
            self.share(now, index);
        }
    }

    fn share(&mut self, now: Time, index: usize) {
        let Core { transports, tracks, subscriptions, demands, .. } = self;
        let transport = &transports[index];
        let Some(mut room) = transport.downstream.allowance.limit() else {
            // All of them: one that is paused now, or whose track brings nothing yet, must not remember the bound.
            for &section in &transport.subscriptions {
                grant(tracks, &mut subscriptions[section], Some(Grant::ALL));
            }
            return;
        };
        demands.clear();
        for &section in &transport.subscriptions {
            let subscription = &subscriptions[section];
            let wish = &subscription.wish;
            let Some(track) = subscription.track.map(|track| &tracks[track]).filter(|_| !wish.paused) else { continue };
            if track.layers[0].inbound.kind() == MediaKind::Audio {
                room = room.saturating_sub(track.ranks.steps(now, 0).map(|step| step.rate).sum());
                continue;
            }
            let mut demand = Demand::new(section, wish.priority, subscription.granted);
            track.push_steps(now, wish, &mut demand);
            demands.extend(Some(demand).filter(Demand::has_steps));
        }
        // A route's receiver is the operator's: it is never left without anything.
        let may_stop = matches!(transport.endpoint, Endpoint::Ice(_)) && transport.downstream.allowance.may_stop();
        allocate(room, may_stop, demands);
        for Demand { section, granted, .. } in demands {
            grant(tracks, &mut subscriptions[*section], *granted);
        }
    }
}

fn grant(tracks: &mut Slab<Track>, subscription: &mut Subscription, granted: Option<Grant>) {
    if std::mem::replace(&mut subscription.granted, granted) != granted
        && let Some(track) = subscription.track
    {
        give_layer(&mut tracks[track], subscription);
    }
}

impl Track {
    /// What a section could get of the track, the lowest first: the lowest layer at its lowest frame rate, then each layer whole.
    fn push_steps(&self, now: Time, wish: &LayerWish, demand: &mut Demand) {
        let mut steps = self.ranks.steps(now, wish.spatial_max).peekable();
        let Some(lowest) = steps.peek() else { return };
        let inside = &self.layers[self.ranks.layer_at(lowest.grant.spatial)].inside;
        if self.layers.len() > 1 {
            let spatial = lowest.grant.spatial;
            inside.lowest().into_iter().for_each(|step| demand.push(Step { grant: Grant { spatial, ..step.grant }, ..step }));
            for step in steps {
                let inside = &self.layers[self.ranks.layer_at(step.grant.spatial)].inside;
                demand.push(Step { rate: inside.up_to_temporal(wish.temporal_max).unwrap_or(step.rate), ..step });
            }
            return;
        }
        inside.lowest().into_iter().chain(inside.steps(wish.spatial_max, wish.temporal_max)).for_each(|step| demand.push(step));
        if !demand.has_steps() {
            steps.for_each(|step| demand.push(step));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_came_from_the_publisher_is_no_loss_of_the_clients() {
        let at = |packets, highest_sequence| Reported { packets, highest_sequence };
        let before = at(1_000, 0xffff_fff0);
        assert_eq!(at(1_100, 0x54).lost_since(&before, 64), (100, 25), "a quarter of 100");
        assert_eq!(at(1_075, 0x54).lost_since(&before, 64), (75, 0), "which never came");
        assert_eq!(at(1_075, 0x54).lost_since(&before, 128), (75, 25), "and as many on the way");
        assert_eq!(at(1_010, 5).lost_since(&before, 255), (10, 9));
        assert_eq!(before.lost_since(&before, 255), (0, 0));
        assert_eq!(at(1_010, 0xffff_ff00).lost_since(&before, 255), (10, 0), "a number that goes back");
    }

    /// Feedback of `(came, how many)` from number `base` on, while `next` is the next number that is sent.
    fn tell(downstream: &mut Downstream, next: u16, base: u16, runs: &[(bool, u16)]) {
        let chunks: Vec<_> = runs.iter().map(|(came, run)| (u16::from(*came) << 13 | run).to_be_bytes()).collect();
        let status_count = runs.iter().map(|(_, run)| run).sum();
        let (sender, media, reference_time, feedback_count) = (1, 2, 0, 0);
        let feedback =
            TransportCc { sender, media, base_sequence: base, status_count, reference_time, feedback_count, chunks: &chunks, deltas: &[] };
        downstream.handle_feedback(&feedback, next);
    }

    #[test]
    fn what_another_node_sent_to_a_client_is_not_lost_here() {
        let mut downstream = Downstream::default();
        // It had 5,000 packets there, and tells of everything since.
        tell(&mut downstream, 20, 0, &[(true, 10), (false, 4_950), (true, 40)]);
        assert_eq!(downstream.feedback, Tally { received: 10, lost: 0 }, "and what follows may be on the way");
        tell(&mut downstream, 40, 10, &[(true, 5), (false, 5), (true, 10), (false, 4_930), (true, 40)]);
        assert_eq!(downstream.feedback, Tally { received: 25, lost: 5 });
        tell(&mut downstream, 40, 10, &[(true, 5), (false, 5), (true, 10)]);
        tell(&mut downstream, 40, 4_960, &[(true, 40)]);
        assert_eq!(downstream.feedback, Tally { received: 25, lost: 5 }, "each counts once");
        // One that had 40,000 there.
        let mut downstream = Downstream::default();
        tell(&mut downstream, 12, 40_000, &[(true, 1), (false, 8_000), (false, 8_000), (false, 8_000), (false, 1_535), (true, 10)]);
        assert_eq!(downstream.feedback, Tally { received: 10, lost: 0 });
        // Over the end of the numbers.
        let mut downstream = Downstream { told_until: 65_530, ..Downstream::default() };
        tell(&mut downstream, 10, 65_532, &[(true, 3), (false, 2), (true, 5)]);
        assert_eq!(downstream.feedback, Tally { received: 8, lost: 2 }, "a feedback before it was lost, and tells nothing");
        assert_eq!(downstream.told_until, 6);
    }

    #[test]
    fn feedback_about_sound_alone_does_not_hide_what_reports_tell_of_pictures() {
        let second = |feedback: (u16, u16), report: (u64, u64)| {
            let mut downstream = Downstream::default();
            downstream.judge(Time::ZERO, Sent::default());
            tell(&mut downstream, 200, 0, &[(false, feedback.1), (true, feedback.0)]);
            downstream.handle_report(report.0, report.1);
            downstream.judge(Time::from_millis(1_000), Sent { packets: 200, bytes: 200_000 });
            downstream.allowance.limit()
        };
        assert_eq!(second((50, 0), (200, 60)), Some(1_120_000), "30 % of 1.6 Mbit/s are lost");
        assert_eq!(second((50, 50), (0, 0)), Some(800_000));
        assert_eq!(second((190, 5), (200, 60)), None, "reports are of before");
    }

    #[test]
    fn the_first_second_of_a_client_is_not_measured_against_the_uptime() {
        let mut downstream = Downstream::default();
        tell(&mut downstream, 100, 0, &[(false, 30), (true, 70)]);
        downstream.judge(Time::from_millis(86_400_000), Sent { packets: 100, bytes: 100_000 });
        assert_eq!(downstream.allowance.limit(), None);
        tell(&mut downstream, 200, 100, &[(false, 30), (true, 70)]);
        downstream.judge(Time::from_millis(86_401_000), Sent { packets: 200, bytes: 200_000 });
        assert_eq!(downstream.allowance.limit(), Some(560_000), "30 % of 0.8 Mbit/s are lost");
    }
}
