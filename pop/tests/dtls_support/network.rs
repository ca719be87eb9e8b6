//! A network of two ends in virtual time.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::ends::{End, Report};

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// From the first end to the second.
    There,
    /// From the second end to the first.
    Back,
}

/// One way of the link.
const DELAY: Duration = Duration::from_millis(2);

/// What became of both ends.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) first: Option<Report>,
    pub(crate) second: Option<Report>,
    pub(crate) elapsed: Duration,
    /// Every datagram that was sent, in order.
    pub(crate) sent: Vec<(Way, Vec<u8>)>,
}

impl Outcome {
    /// Both ends have the same keys; answers the profile.
    pub(crate) fn agreed(&self) -> u16 {
        match (&self.first, &self.second) {
            (Some(Report::Keys(profile, material)), Some(Report::Keys(other, others))) if profile == other && material == others => {
                *profile
            }
            _ => panic!("no agreement: {:?} {:?} after {:?}", self.first, self.second, self.elapsed),
        }
    }
}

/// Carries datagrams until both ends have reported or `patience` is over. `fate` gets the way and the number of a datagram on
/// it, and answers after which extra delays it arrives: none is a loss, two are a duplicate.
pub(crate) async fn run(
    first: &mut End,
    second: &mut End,
    patience: Duration,
    mut fate: impl FnMut(Way, usize, &[u8]) -> Vec<Duration>,
) -> Outcome {
    let begin = Instant::now();
    let mut outcome = Outcome { first: None, second: None, elapsed: Duration::ZERO, sent: Vec::new() };
    let mut flying: Vec<(Instant, usize, Way, Vec<u8>)> = Vec::new();
    let mut counts = [0, 0];
    let mut order = 0;
    while outcome.first.is_none() || outcome.second.is_none() {
        let next = flying.iter().map(|f| (f.0, f.1)).min();
        let wake = next.map_or(begin + patience, |next| next.0.min(begin + patience));
        let (way, report) = tokio::select! {
            biased;
            Some(report) = first.from.recv() => (Way::There, report),
            Some(report) = second.from.recv() => (Way::Back, report),
            () = sleep_until(wake) => {
                if Instant::now() >= begin + patience {
                    break;
                }
                let at = flying.iter().position(|f| Some((f.0, f.1)) == next).expect("it is the earliest");
                let (_, _, way, datagram) = flying.swap_remove(at);
                // A refused datagram is one of the cases.
                let _ = match way {
                    Way::There => second.deliver(&datagram),
                    Way::Back => first.deliver(&datagram),
                };
                continue;
            }
        };
        match report {
            Report::Send(datagram) => {
                let count = &mut counts[way as usize];
                for extra in fate(way, *count, &datagram) {
                    order += 1;
                    flying.push((Instant::now() + DELAY + extra, order, way, datagram.clone()));
                }
                *count += 1;
                outcome.sent.push((way, datagram));
            }
            report if way == Way::There => outcome.first = Some(report),
            report => outcome.second = Some(report),
        }
    }
    outcome.elapsed = begin.elapsed();
    outcome
}

/// Everything arrives once.
pub(crate) fn reliable(_: Way, _: usize, _: &[u8]) -> Vec<Duration> {
    vec![Duration::ZERO]
}
