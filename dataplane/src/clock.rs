//! The one place of the packet plane that reads clocks.

use std::time::{Duration, Instant, SystemTime};

use pop_schemas::Time;

/// The process's start, on the monotonic and on the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall: SystemTime,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Clock {
        Clock { start: Instant::now(), wall: SystemTime::now() }
    }

    /// Time since the start.
    pub fn now(&self) -> Time {
        // 584 years fit.
        Time::from_nanos(self.start.elapsed().as_nanos() as u64)
    }

    /// The wall clock now, as it is set, as a duration since 1970.
    pub fn wall_now() -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    /// The wall clock at `time`, as a duration since 1970; steps of the wall clock after the start are not followed.
    pub fn wall(&self, time: Time) -> Duration {
        self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + Duration::from_nanos(time.as_nanos())
    }
}
