//! Which microphones of a session cross a link that takes a few of them: who is loud now, by the level that each packet carries (RFC 6464).
//!
//! A place is kept until somebody needs it. Where the quietest of those who have one was not loud lately, whoever is clearly louder has it
//! at once, from the first packet on; where all speak, who is louder for a while. So a pause between two words costs nobody a place, nor does
//! a cough.

use std::time::Duration;

use pop_schemas::Time;

use crate::audio_level::{LOUD_LEVEL_MAX, SILENT_LEVEL};

/// Most microphones of one session that a link can be told to take.
pub const LOUDEST_MAX: u8 = 64;

/// A voice counts as loud as it was within this time at least, and at most twice as long: what lies between two sentences.
const HOLD: Duration = Duration::from_secs(1);

/// Who takes a place is louder than who has it by so much, in dB: twice the sound pressure.
const MARGIN: u8 = 6;

/// So many packets more of a microphone are louder than they are not before it takes a place from somebody who speaks: 200 ms of 20 ms each.
const LOUDER_MAX: u8 = 10;

/// The quietest level that takes anybody's place, in -dBov: below are rooms and keyboards, which would take it from each other all the time.
const AUDIBLE_LEVEL_MAX: u8 = 60;

/// How loud a microphone was lately.
#[derive(Clone, Copy, Debug)]
struct Voice {
    /// The loudest level since then, in -dBov, and that of the time before.
    since: Time,
    current: u8,
    before: u8,
}

impl Voice {
    fn new(now: Time, level: u8) -> Voice {
        Voice { since: now, current: level, before: SILENT_LEVEL }
    }

    fn hear(&mut self, now: Time, level: u8) {
        let age = now.since(self.since);
        if age >= HOLD {
            let before = if age < 2 * HOLD { self.current } else { SILENT_LEVEL };
            *self = Voice { before, ..Voice::new(now, level) };
        }
        self.current = self.current.min(level);
    }

    /// The loudest level of lately, also of one that sends nothing any more.
    fn level(&self, now: Time) -> u8 {
        let age = now.since(self.since);
        match () {
            () if age < HOLD => self.current.min(self.before),
            () if age < 2 * HOLD => self.current,
            () => SILENT_LEVEL,
        }
    }
}

struct Place {
    track: usize,
    voice: Voice,
}

/// The places that the microphones of one session have on one link.
pub struct Loudest {
    max: u8,
    places: Vec<Place>,
}

impl Loudest {
    /// Bytes of heap for each track that wants a place, for the memory plan: the list doubles when it grows.
    pub const MEMORY_LEN_PER_TRACK: usize = 2 * size_of::<Place>();

    /// Places for `max` microphones.
    pub fn new(max: u8) -> Loudest {
        Loudest { max: max.min(LOUDEST_MAX), places: Vec::new() }
    }

    /// So many microphones may want a place from now on: nothing allocates after this.
    pub fn make_room(&mut self, tracks: usize) {
        let most = tracks.min(self.max.into());
        self.places.reserve(most.saturating_sub(self.places.len()));
    }

    /// Whether a new packet of `track` crosses. `level` is in -dBov, 127 is silence; `louder` belongs to the track and begins with 0.
    pub fn takes(&mut self, now: Time, track: usize, level: u8, louder: &mut u8) -> bool {
        if let Some(place) = self.places.iter_mut().find(|place| place.track == track) {
            place.voice.hear(now, level);
            return true;
        }
        let new = Place { track, voice: Voice::new(now, level) };
        if self.places.len() < self.max.into() {
            self.places.push(new);
            return true;
        }
        let Some(quietest) = self.places.iter_mut().max_by_key(|place| place.voice.level(now)) else { return false };
        let of_quietest = quietest.voice.level(now);
        let is_louder = level <= AUDIBLE_LEVEL_MAX && level.saturating_add(MARGIN) <= of_quietest;
        *louder = if is_louder { *louder + 1 } else { louder.saturating_sub(1) };
        let takes = is_louder && (of_quietest > LOUD_LEVEL_MAX || *louder >= LOUDER_MAX);
        if takes {
            (*quietest, *louder) = (new, 0);
        }
        takes
    }

    /// Whether `track` has a place.
    pub fn has(&self, track: usize) -> bool {
        self.places.iter().any(|place| place.track == track)
    }

    /// The track crosses no longer.
    pub fn leave(&mut self, track: usize) {
        self.places.retain(|place| place.track != track);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Microphones that each have a packet every 20 ms.
    struct Room {
        loudest: Loudest,
        louder: Vec<u8>,
        now: Time,
    }

    impl Room {
        fn new(max: u8, tracks: usize) -> Room {
            let mut loudest = Loudest::new(max);
            loudest.make_room(tracks);
            Room { loudest, louder: vec![0; tracks], now: Time::from_millis(1_000) }
        }

        /// One packet of each; `None`: it sends nothing. Who crosses.
        fn packet(&mut self, levels: &[Option<u8>]) -> Vec<usize> {
            self.now = self.now + Duration::from_millis(20);
            let Room { loudest, louder, now } = self;
            let heard = levels.iter().enumerate().filter_map(|(track, level)| Some((track, (*level)?)));
            heard.filter(|(track, level)| loudest.takes(*now, *track, *level, &mut louder[*track])).map(|(track, _)| track).collect()
        }

        /// The same packets for so long; who crossed with the last, and after how many milliseconds that was so.
        fn talk(&mut self, ms: u64, levels: &[Option<u8>]) -> (Vec<usize>, u64) {
            let crossed: Vec<_> = (0..ms / 20).map(|_| self.packet(levels)).collect();
            let last = crossed.last().expect("some time").clone();
            let since = crossed.iter().rposition(|who| *who != last).map_or(0, |at| at + 1);
            (last, 20 * since as u64)
        }
    }

    #[test]
    fn while_there_are_places_everybody_crosses_the_silent_too() {
        let mut room = Room::new(3, 3);
        assert_eq!(room.talk(5_000, &[Some(127), Some(20), Some(70)]), (vec![0, 1, 2], 0));
    }

    #[test]
    fn who_begins_to_speak_has_the_place_of_somebody_silent_with_the_first_packet() {
        let mut room = Room::new(2, 5);
        assert_eq!(room.talk(1_000, &[Some(127), Some(80), Some(70), Some(90), Some(127)]).0, [0, 1], "who was first");
        assert_eq!(room.packet(&[Some(127), Some(80), Some(70), Some(25), Some(127)]), [0, 1, 3], "0 had its packet before");
        assert_eq!(room.packet(&[Some(127), Some(80), Some(70), Some(25), Some(30)]), [1, 3, 4], "and 1");
        assert_eq!(room.talk(1_000, &[Some(127), Some(80), Some(70), Some(25), Some(30)]), (vec![3, 4], 0));
        // A quiet voice is more than none.
        let mut room = Room::new(1, 2);
        assert_eq!(room.talk(1_000, &[Some(75), Some(100)]).0, [0]);
        assert_eq!(room.packet(&[None, Some(45)]), [1]);
    }

    #[test]
    fn who_speaks_keeps_the_place_through_a_pause_and_not_for_ever() {
        let mut room = Room::new(2, 3);
        room.talk(3_000, &[Some(25), Some(25), Some(100)]);
        assert_eq!(room.talk(960, &[Some(90), Some(25), Some(25)]).0, [0, 1]);
        assert_eq!(room.talk(100, &[Some(25), Some(25), Some(25)]).0, [0, 1]);
        let (who, after) = room.talk(3_000, &[Some(90), Some(25), Some(25)]);
        assert!(who == [1, 2] && (1_000..=2_000).contains(&after), "{who:?} after {after} ms");
        // Nor does who sends nothing any more.
        let (who, after) = room.talk(3_000, &[Some(25), None, Some(25)]);
        assert!(who == [0, 2] && (1_000..=2_000).contains(&after), "{who:?} after {after} ms");
    }

    #[test]
    fn where_all_speak_a_much_louder_one_takes_the_place_of_the_quietest_and_a_cough_or_an_equal_none() {
        let mut room = Room::new(2, 3);
        room.talk(2_000, &[Some(20), Some(30), Some(100)]);
        assert_eq!(room.talk(10_000, &[Some(20), Some(30), Some(25)]), (vec![0, 1], 0), "5 dB louder");
        for _ in 0..5 {
            assert_eq!(room.talk(100, &[Some(20), Some(30), Some(5)]), (vec![0, 1], 0), "a cough");
            assert_eq!(room.talk(500, &[Some(20), Some(30), Some(100)]).0, [0, 1]);
        }
        let (who, after) = room.talk(1_000, &[Some(20), Some(30), Some(15)]);
        assert!(who == [0, 2] && (100..=300).contains(&after), "{who:?} after {after} ms");
        // The other has to be that much louder, too, to have it back.
        assert_eq!(room.talk(5_000, &[Some(20), Some(16), Some(15)]), (vec![0, 2], 0));
    }

    #[test]
    fn rooms_and_keyboards_take_places_from_nobody() {
        let mut room = Room::new(2, 4);
        room.talk(1_000, &[Some(100); 4]);
        for _ in 0..100 {
            assert_eq!(room.talk(60, &[Some(100), Some(100), Some(61), Some(75)]).0, [0, 1]);
            assert_eq!(room.talk(60, &[Some(100), Some(100), Some(75), Some(61)]).0, [0, 1]);
        }
    }

    #[test]
    fn a_place_that_was_left_is_free() {
        let mut room = Room::new(1, 2);
        assert_eq!(room.talk(1_000, &[Some(10), Some(10)]).0, [0]);
        assert!(room.loudest.has(0) && !room.loudest.has(1));
        room.loudest.leave(0);
        assert_eq!(room.packet(&[None, Some(127)]), [1]);
    }
}
