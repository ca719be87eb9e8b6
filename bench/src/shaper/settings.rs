//! What one direction of a wire does to packets, and the words for it.

use std::str::FromStr;
use std::time::Duration;

/// Longest delay, jitter and gap: an answer later than this is no answer.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// Packets in front of a wire with a rate, when nothing else is said: netem's and pfifo's figure.
const QUEUE_LEN: usize = 1_000;

/// One direction of a wire. The default is perfect.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// From the end of a packet's transmission to its arrival.
    pub delay: Duration,
    /// Around the delay. The order stays: a packet waits for the one before it.
    pub jitter: Option<Jitter>,
    /// Which packets vanish.
    pub loss: Loss,
    /// Share of packets that arrive `reorder_gap` later than the others and hold up none.
    pub reorder: f64,
    /// See `reorder`.
    pub reorder_gap: Duration,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// Share of packets with one bit of their payload flipped.
    pub corrupt: f64,
    /// Bits of IP packets per second; `None` is no limit.
    pub rate_bps: Option<u64>,
    /// Packets that wait for the rate, the one in transmission included; what finds the queue full is dropped.
    pub queue_len: usize,
    /// Longest IP packet in bytes; longer ones vanish without a word, as on a path with a black hole.
    pub packet_len_max: Option<usize>,
    /// Nothing passes.
    pub down: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: None,
            loss: Loss::None,
            reorder: 0.0,
            reorder_gap: Duration::ZERO,
            duplicate: 0.0,
            corrupt: 0.0,
            rate_bps: None,
            queue_len: QUEUE_LEN,
            packet_len_max: None,
            down: false,
        }
    }
}

/// How much the delay varies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter {
    /// Half width, standard deviation or mean, as the shape says.
    pub spread: Duration,
    /// The distribution.
    pub shape: JitterShape,
}

/// Distributions of jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JitterShape {
    /// Delay minus `spread` to delay plus `spread`.
    Uniform,
    /// `spread` is the standard deviation; cut off at four of them.
    Normal,
    /// Only later, by `spread` on average, seldom by much more (Pareto with shape 3); cut off at 20 times `spread`.
    Pareto,
}

/// Which packets vanish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// None.
    None,
    /// Each with this probability.
    Random(f64),
    /// Gilbert and Elliott's two states: bursts.
    Gilbert {
        /// From good to bad, per packet.
        enter: f64,
        /// From bad to good, per packet: 1 / the mean length of a burst.
        leave: f64,
        /// In the bad state; nothing is lost in the good one.
        loss: f64,
    },
}

/// One word of a command with its values.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// `clear`: perfect again.
    Clear,
    /// `delay 20ms`
    Delay(Duration),
    /// `jitter 5ms [uniform|normal|pareto]`, `jitter none`
    Jitter(Option<Jitter>),
    /// `loss 5%`, `loss gilbert 1% 25% [100%]`, `loss none`
    Loss(Loss),
    /// `reorder 1% 10ms`
    Reorder(f64, Duration),
    /// `duplicate 1%`
    Duplicate(f64),
    /// `corrupt 1%`
    Corrupt(f64),
    /// `rate 10M`, `rate none`
    Rate(Option<u64>),
    /// `queue 100`: packets
    Queue(usize),
    /// `mtu 1280`, `mtu none`
    PacketLenMax(Option<usize>),
    /// `down`, `up`
    Down(bool),
}

impl Change {
    /// Reads words such as `delay 20ms loss 1%`.
    pub(super) fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let mut words = Words { words: text.split_whitespace().collect(), at: 0 };
        let mut changes = Vec::new();
        while let Some(word) = words.take() {
            changes.push(Self::parse(word, &mut words)?);
        }
        Ok(changes)
    }

    fn parse(word: &str, words: &mut Words<'_>) -> Result<Self, String> {
        Ok(match word {
            "clear" => Self::Clear,
            "down" => Self::Down(true),
            "up" => Self::Down(false),
            "delay" => Self::Delay(words.value(word, duration)?),
            "jitter" if words.take_if("none") => Self::Jitter(None),
            "jitter" => {
                let spread = words.value(word, duration)?;
                let shapes = [("uniform", JitterShape::Uniform), ("normal", JitterShape::Normal), ("pareto", JitterShape::Pareto)];
                let shape = shapes.into_iter().find(|(name, _)| words.take_if(name)).map_or(JitterShape::Uniform, |(_, shape)| shape);
                Self::Jitter(Some(Jitter { spread, shape }))
            }
            "loss" if words.take_if("none") => Self::Loss(Loss::None),
            "loss" if words.take_if("gilbert") => {
                let (enter, leave) = (words.value(word, share)?, words.value(word, share)?);
                Self::Loss(Loss::Gilbert { enter, leave, loss: words.take_next(share).unwrap_or(1.0) })
            }
            "loss" => Self::Loss(Loss::Random(words.value(word, share)?)),
            "reorder" => Self::Reorder(words.value(word, share)?, words.value(word, duration)?),
            "duplicate" => Self::Duplicate(words.value(word, share)?),
            "corrupt" => Self::Corrupt(words.value(word, share)?),
            "rate" if words.take_if("none") => Self::Rate(None),
            "rate" => Self::Rate(Some(words.value(word, rate)?)),
            "queue" => Self::Queue(words.value(word, count)?),
            "mtu" if words.take_if("none") => Self::PacketLenMax(None),
            "mtu" => Self::PacketLenMax(Some(words.value(word, count)?)),
            _ => {
                return Err(format!(
                    "{word:?} is none of delay, jitter, loss, reorder, duplicate, corrupt, rate, queue, mtu, down, up, clear"
                ));
            }
        })
    }
}

impl Settings {
    /// Changes one thing and leaves the rest.
    pub(super) fn apply(&mut self, change: &Change) {
        match *change {
            Change::Clear => *self = Self::default(),
            Change::Delay(delay) => self.delay = delay,
            Change::Jitter(jitter) => self.jitter = jitter,
            Change::Loss(loss) => self.loss = loss,
            Change::Reorder(share, gap) => (self.reorder, self.reorder_gap) = (share, gap),
            Change::Duplicate(share) => self.duplicate = share,
            Change::Corrupt(share) => self.corrupt = share,
            Change::Rate(rate) => self.rate_bps = rate,
            Change::Queue(len) => self.queue_len = len,
            Change::PacketLenMax(len) => self.packet_len_max = len,
            Change::Down(down) => self.down = down,
        }
    }
}

struct Words<'a> {
    words: Vec<&'a str>,
    at: usize,
}

impl<'a> Words<'a> {
    fn take(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    fn take_if(&mut self, word: &str) -> bool {
        let found = self.words.get(self.at) == Some(&word);
        self.at += usize::from(found);
        found
    }

    fn take_next<T>(&mut self, read: fn(&str) -> Option<T>) -> Option<T> {
        let value = read(self.words.get(self.at)?)?;
        self.at += 1;
        Some(value)
    }

    fn value<T>(&mut self, of: &str, read: fn(&str) -> Option<T>) -> Result<T, String> {
        let text = self.take().ok_or_else(|| format!("{of} lacks a value"))?;
        read(text).ok_or_else(|| format!("{of} cannot be {text:?}: values are 20ms, 5%, 10M (bits/s) or a number of packets or bytes"))
    }
}

/// A finite number that is not negative. `f64` alone would take "inf" and "-1".
fn number(text: &str) -> Option<f64> {
    f64::from_str(text).ok().filter(|number| number.is_finite() && *number >= 0.0)
}

fn with_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    units.iter().find_map(|(unit, factor)| Some(number(text.strip_suffix(unit)?)? * factor))
}

fn duration(text: &str) -> Option<Duration> {
    let seconds = with_unit(text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)])?;
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| *duration <= DELAY_MAX)
}

fn share(text: &str) -> Option<f64> {
    with_unit(text, &[("%", 0.01)]).filter(|share| *share <= 1.0)
}

fn rate(text: &str) -> Option<u64> {
    let bps = with_unit(text, &[("k", 1e3), ("M", 1e6), ("G", 1e9)])?;
    // Slower, and a single packet takes longer than any test.
    (1_000.0..=1e12).contains(&bps).then_some(bps as u64)
}

fn count(text: &str) -> Option<usize> {
    text.parse().ok().filter(|count| (1..=65_535).contains(count))
}
