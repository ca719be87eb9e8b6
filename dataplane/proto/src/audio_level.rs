//! How loud a microphone is, from the level that each of its packets carries (RFC 6464).

use std::time::Duration;

use pop_schemas::Time;

/// A microphone is told of this often while it is loud: LiveKit's clients show who speaks at this pace.
pub const LEVEL_INTERVAL: Duration = Duration::from_millis(400);

/// The quietest level that counts as loud, in -dBov: what LiveKit calls an active level.
pub const LOUD_LEVEL_MAX: u8 = 35;

/// Silence, in -dBov.
pub const SILENT_LEVEL: u8 = 127;

/// Media time of one packet when its neighbours do not tell: what browsers send.
const PACKET_TICKS_USUAL: u32 = 960;

/// The longest packet of Opus, 120 ms (RFC 7587 section 4.2). A larger step of the timestamp is a pause (DTX), not sound.
const PACKET_TICKS_MAX: u32 = 5_760;

/// Opus and RED count at 48 kHz, whatever they carry.
const TICKS_PER_S: u128 = 48_000;

/// The levels of one interval.
#[derive(Clone, Debug)]
pub struct AudioLevels {
    /// When the interval began; `None` before the first look.
    since: Option<Time>,
    loudest: u8,
    loud_ticks: u32,
    last_timestamp: Option<u32>,
    /// The last interval was told as loud.
    is_loud: bool,
}

/// What is told of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loudness {
    /// The loudest level, in -dBov; 127 when it fell silent.
    pub level: u8,
    /// Share of the interval that was loud, in percent; at least 1 unless it fell silent.
    pub active_percent: u8,
}

impl AudioLevels {
    /// A microphone that has not been heard.
    pub fn new() -> AudioLevels {
        AudioLevels { since: None, loudest: SILENT_LEVEL, loud_ticks: 0, last_timestamp: None, is_loud: false }
    }

    /// Takes a packet's level in -dBov: the low seven bits of the extension (RFC 6464 section 3). Its bit for voice is not asked:
    /// browsers' detectors differ, and LiveKit's servers do not either.
    #[inline]
    pub fn record(&mut self, timestamp: u32, level: u8) {
        let level = level & 0x7f;
        // Late, repeated and first packets, and those behind a pause, tell no length.
        let step = self.last_timestamp.replace(timestamp).map_or(0, |last| timestamp.wrapping_sub(last));
        if level <= LOUD_LEVEL_MAX {
            let ticks = if (1..=PACKET_TICKS_MAX).contains(&step) { step } else { PACKET_TICKS_USUAL };
            // A flood under one claimed length is no more than loud.
            self.loud_ticks = self.loud_ticks.saturating_add(ticks);
            self.loudest = self.loudest.min(level);
        }
    }

    /// What to tell now: of each loud interval, and once of the first that is silent again.
    pub fn poll(&mut self, now: Time) -> Option<Loudness> {
        let elapsed = now.since(*self.since.get_or_insert(now));
        if elapsed < LEVEL_INTERVAL {
            return None;
        }
        let was_loud = std::mem::replace(&mut self.is_loud, self.loud_ticks > 0);
        let ticks = elapsed.as_micros() * TICKS_PER_S / 1_000_000;
        let percent = u128::from(self.loud_ticks) * 100 / ticks;
        let loudness = Loudness { level: self.loudest, active_percent: percent.clamp(u128::from(self.is_loud), 100) as u8 };
        (self.since, self.loudest, self.loud_ticks) = (Some(now), SILENT_LEVEL, 0);
        (self.is_loud || was_loud).then_some(loudness)
    }
}

impl Default for AudioLevels {
    fn default() -> AudioLevels {
        AudioLevels::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands in one level each 20 ms, polls each 10 ms; `None` is a packet that is not sent. Returns what was told, and when.
    fn told(levels: impl IntoIterator<Item = Option<u8>>) -> Vec<(u64, u8, u8)> {
        let (mut meter, mut told) = (AudioLevels::new(), Vec::new());
        for (packet, level) in levels.into_iter().enumerate() {
            let at = 20 * packet as u64;
            if let Some(level) = level {
                meter.record(960 * packet as u32, level);
            }
            for at in [at, at + 10] {
                told.extend(meter.poll(Time::from_millis(at)).map(|l| (at, l.level, l.active_percent)));
            }
        }
        told
    }

    #[test]
    fn a_voice_is_told_each_interval_and_its_end_once() {
        let voice = [Some(30), Some(20), Some(34), Some(60)].into_iter().cycle().take(60);
        let told = told(voice.chain([Some(90); 60]));
        assert_eq!(told.iter().map(|t| t.0).collect::<Vec<_>>(), [400, 800, 1_200, 1_600]);
        assert!(told[..3].iter().all(|(_, level, active)| *level == 20 && (70..=80).contains(active)), "{told:?}");
        assert_eq!((told[3].1, told[3].2), (127, 0));
    }

    #[test]
    fn silence_and_quiet_rooms_are_not_told_at_all() {
        assert_eq!(told([Some(127); 200]), []);
        assert_eq!(told([Some(LOUD_LEVEL_MAX + 1); 200]), []);
        assert_eq!(told([None; 200]), []);
    }

    #[test]
    fn under_dtx_a_share_is_one_of_time_and_not_of_packets() {
        // 100 ms of voice, then nothing but a comfort packet each 400 ms.
        let silence = |packets: usize| (0..packets).map(|at| (at % 20 == 10).then_some(127));
        let told = told([Some(10); 5].into_iter().chain(silence(80)));
        assert_eq!(told, [(400, 10, 25), (800, 127, 0)]);
    }

    #[test]
    fn a_microphone_that_stops_sending_falls_silent() {
        assert_eq!(told([Some(10); 20].into_iter().chain([None; 60])), [(400, 10, 100), (800, 127, 0)]);
    }

    #[test]
    fn one_loud_packet_after_a_pause_is_a_packet_long() {
        let told = told([None; 19].into_iter().chain([Some(5)]).chain([None; 60]));
        assert_eq!(told, [(400, 5, 5), (800, 127, 0)]);
    }

    #[test]
    fn a_flood_is_no_more_than_loud() {
        let mut meter = AudioLevels::new();
        meter.poll(Time::ZERO);
        (0..1_000_000u32).for_each(|packet| meter.record(packet.wrapping_mul(PACKET_TICKS_MAX), 0));
        assert_eq!(meter.poll(Time::from_millis(400)), Some(Loudness { level: 0, active_percent: 100 }));
    }

    #[test]
    fn the_voice_bit_and_wrapping_timestamps_change_nothing() {
        let mut meter = AudioLevels::new();
        assert_eq!(meter.poll(Time::ZERO), None);
        for at in 0..20u32 {
            meter.record(0u32.wrapping_sub(9_600).wrapping_add(960 * at), 0x80 | 12);
        }
        assert_eq!(meter.poll(Time::from_millis(400)), Some(Loudness { level: 12, active_percent: 100 }));
    }
}
