//! What was sent, so that a repair can be asked of the caller's history: names only, no packets.

use std::collections::VecDeque;

use super::FrameRef;

/// Packets that a link remembers. At 20,000 a second it is 200 ms: the playout budget and a round trip within Europe.
const SENT_MAX: usize = 4_096;
/// Datagrams whose repair waits. Of more, the last asked for are not repaired.
const REPAIRS_MAX: usize = 512;

/// A ring of names by serial number, and which serial number a counter begins at.
pub(super) struct Sent {
    ring: Box<[FrameRef]>,
    /// By `counter % SENT_MAX`: the serial number of its first packet.
    first: Box<[u32]>,
    /// Serial number of the next; the ring's place is its remainder.
    serial: u32,
    repairs: VecDeque<u64>,
    /// How many packets of the first of `repairs` were given out.
    place: u8,
}

impl Sent {
    pub(super) const MEMORY_LEN: usize = SENT_MAX * (size_of::<FrameRef>() + 4) + REPAIRS_MAX * 8;

    pub(super) fn new() -> Sent {
        // No datagram has this counter, so an empty place is no packet of any.
        let none = FrameRef { counter: u64::MAX, ..FrameRef::default() };
        Sent {
            ring: vec![none; SENT_MAX].into(),
            first: vec![0; SENT_MAX].into(),
            serial: 0,
            repairs: VecDeque::with_capacity(REPAIRS_MAX),
            place: 0,
        }
    }

    /// Remembers a packet; those of one datagram follow each other.
    pub(super) fn push(&mut self, frame: FrameRef) {
        if frame.place == 0 {
            self.first[frame.counter as usize % SENT_MAX] = self.serial;
        }
        self.ring[self.serial as usize % SENT_MAX] = frame;
        self.serial = self.serial.wrapping_add(1);
    }

    /// A datagram is to be repaired, if it is remembered.
    pub(super) fn ask(&mut self, counter: u64) {
        if self.repairs.len() < REPAIRS_MAX && self.find(counter, 0).is_some() {
            self.repairs.push_back(counter);
        }
    }

    /// What was sent from one counter to another is to be sent again: the last of it, if it is too much.
    pub(super) fn ask_from(&mut self, from: u64, to: u64) {
        (from.max(to.saturating_sub(REPAIRS_MAX as u64))..to).for_each(|counter| self.ask(counter));
    }

    fn find(&self, counter: u64, place: u8) -> Option<FrameRef> {
        let serial = self.first[counter as usize % SENT_MAX].wrapping_add(u32::from(place));
        Some(self.ring[serial as usize % SENT_MAX]).filter(|frame| frame.counter == counter && frame.place == place)
    }

    /// The next packet whose repair is to be written.
    pub(super) fn next_repair(&mut self) -> Option<FrameRef> {
        loop {
            let counter = *self.repairs.front()?;
            let found = self.find(counter, self.place);
            self.place += 1;
            if found.is_none_or(|frame| self.place >= frame.count) {
                self.repairs.pop_front();
                self.place = 0;
            }
            if found.is_some() {
                return found;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(sent: &mut Sent, counter: u64, count: u8) {
        for place in 0..count {
            sent.push(FrameRef { counter, place, count, ..FrameRef::new(1, 0, 0, counter * 100 + u64::from(place)) });
        }
    }

    #[test]
    fn repairs_name_each_packet_of_what_was_lost_and_nothing_that_left_the_ring() {
        let mut sent = Sent::new();
        push(&mut sent, 0, 1);
        push(&mut sent, 3, 3);
        sent.ask(0);
        sent.ask(1);
        sent.ask(3);
        let names: Vec<_> = std::iter::from_fn(|| sent.next_repair()).map(|frame| frame.sequence).collect();
        assert_eq!(names, [0, 300, 301, 302]);
        for counter in 4..4 + SENT_MAX as u64 {
            push(&mut sent, counter, 1);
        }
        sent.ask(3);
        assert_eq!(sent.next_repair(), None);
    }

    #[test]
    fn waiting_repairs_are_bounded() {
        let mut sent = Sent::new();
        for counter in 0..SENT_MAX as u64 {
            push(&mut sent, counter, 1);
        }
        (0..SENT_MAX as u64).for_each(|counter| sent.ask(counter));
        assert_eq!(std::iter::from_fn(|| sent.next_repair()).count(), REPAIRS_MAX);
    }
}
