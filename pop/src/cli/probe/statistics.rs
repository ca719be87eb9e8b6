//! Of round trips: minimum, mean, maximum, deviation, loss.

use std::time::Duration;

use serde_json::{Value, json};

use super::target::Target;
use super::{Sample, milliseconds};

/// What came back of what was sent.
#[derive(Debug)]
pub(super) struct Statistics {
    sent: u32,
    samples: Vec<Sample>,
    /// Why STAMP could not tell the two ways apart.
    unsplit: Option<&'static str>,
}

impl Statistics {
    /// Room for `count` samples.
    pub(super) fn new(count: u32) -> Statistics {
        Statistics { sent: 0, samples: Vec::with_capacity((count as usize).min(4_096)), unsplit: None }
    }

    pub(super) fn count_sent(&mut self) {
        self.sent += 1;
    }

    pub(super) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    pub(super) fn set_unsplit(&mut self, reason: &'static str) {
        self.unsplit = Some(reason);
    }

    pub(super) fn sent(&self) -> u32 {
        self.sent
    }

    pub(super) fn received(&self) -> u32 {
        self.samples.len() as u32
    }

    pub(super) fn min(&self) -> Option<Duration> {
        self.samples.iter().map(|sample| sample.rtt).min()
    }

    fn max(&self) -> Option<Duration> {
        self.samples.iter().map(|sample| sample.rtt).max()
    }

    /// Mean and standard deviation, as `ping` has them.
    fn spread(&self) -> Option<(Duration, Duration)> {
        let count = self.samples.len() as f64;
        let seconds = || self.samples.iter().map(|sample| sample.rtt.as_secs_f64());
        let mean = seconds().sum::<f64>() / count;
        let variance = seconds().map(|s| (s - mean) * (s - mean)).sum::<f64>() / count;
        (!self.samples.is_empty()).then(|| (Duration::from_secs_f64(mean), Duration::from_secs_f64(variance.sqrt())))
    }

    fn loss_percent(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { 100.0 * f64::from(self.sent - self.received()) / f64::from(self.sent) }
    }

    /// The closing lines of one target.
    pub(super) fn summary(&self, label: &str, method: &str) -> String {
        let mut text = format!("--- {label} {method} statistics ---\n");
        text += &format!("{} sent, {} received, {:.1}% loss\n", self.sent, self.received(), self.loss_percent());
        if let (Some(min), Some(max), Some((mean, deviation))) = (self.min(), self.max(), self.spread()) {
            let [min, mean, max, deviation] = [min, mean, max, deviation].map(milliseconds);
            text += &format!("rtt min/avg/max/mdev = {min}/{mean}/{max}/{deviation} ms\n");
        }
        if let Some(reason) = self.unsplit {
            text += &format!("forward and back are not told apart: {reason}\n");
        }
        text
    }

    /// One target's part of the report.
    pub(super) fn to_json(&self, target: &Target) -> Value {
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let rtt = self.spread().map(|(mean, deviation)| {
            let bound = |bound: Option<Duration>| bound.map(ms);
            json!({ "min": bound(self.min()), "avg": ms(mean), "max": bound(self.max()), "mdev": ms(deviation) })
        });
        let sample = |sample: &Sample| {
            let split = sample.stamp.and_then(|stamp| stamp.split);
            json!({
                "sequence": sample.sequence,
                "rtt_ms": ms(sample.rtt),
                "ttl": sample.stamp.map(|stamp| stamp.ttl),
                "forward_ms": split.map(|split| split.forward_nanos as f64 / 1e6),
                "back_ms": split.map(|split| split.back_nanos as f64 / 1e6),
                "error_ms": split.map(|split| ms(split.error)),
            })
        };
        json!({
            "target": target.text,
            "name": target.name,
            "address": target.address(),
            "method": target.method.name(),
            "sent": self.sent,
            "received": self.received(),
            "loss_percent": self.loss_percent(),
            "rtt_ms": rtt,
            "samples": self.samples.iter().map(sample).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_are_pings() {
        let mut statistics = Statistics::new(4);
        for (sequence, ms) in [1u64, 2, 3].into_iter().enumerate() {
            statistics.count_sent();
            statistics.add(Sample { sequence: sequence as u32, rtt: Duration::from_millis(ms), stamp: None });
        }
        statistics.count_sent();
        assert_eq!(
            statistics.summary("fra", "stun"),
            "--- fra stun statistics ---\n4 sent, 3 received, 25.0% loss\nrtt min/avg/max/mdev = 1.000/2.000/3.000/0.816 ms\n"
        );
        assert_eq!(Statistics::new(1).summary("x", "ice"), "--- x ice statistics ---\n0 sent, 0 received, 0.0% loss\n");
    }
}
