//! What padding costs and saves: two sides of one run, whose packets differ in length by a byte within a frame.

use serde_json::{Map, Value, json};

use super::timeline::Pace;
use crate::measured::{Repeats, Run};

/// By pace: packets that may be padded beside those that may not, and the ratios of their prices. Below 1: padding pays.
pub(super) fn compare(padded: &[(Pace, Repeats)], plain: &[(Pace, Repeats)]) -> Value {
    let compared = padded.iter().zip(plain).map(|((pace, padded), (_, plain))| {
        let (padded, plain) = (padded.middle(), plain.middle());
        let ratio = |of: fn(&Run) -> Option<f64>| of(padded).zip(of(plain)).map(|(padded, plain)| padded / plain);
        let (cpu, bytes) = (ratio(|run| run.figures.cpu_ns_per_packet), ratio(|run| run.evidence("bytes_per_packet")));
        let or_nan = |ratio: Option<f64>| ratio.unwrap_or(f64::NAN);
        eprintln!("padding   {}: {:.3} of the CPU per packet, {:.4} of the bytes", pace.spread.name(), or_nan(cpu), or_nan(bytes));
        let told = json!({"padded": side(padded), "plain": side(plain), "cpu_ratio": cpu, "bytes_ratio": bytes});
        (pace.spread.name().to_owned(), told)
    });
    Value::Object(compared.collect::<Map<_, _>>())
}

fn side(run: &Run) -> Value {
    json!({
        "cpu_ns_per_packet": run.figures.cpu_ns_per_packet, "floor_ratio": run.figures.floor_ratio, "loss": run.figures.loss,
        "train_packets": run.figures.train_packets, "bytes_per_packet": run.evidence("bytes_per_packet"),
        "padding_bytes_per_packet": run.evidence("padding_bytes_per_packet"), "authenticated": run.evidence("authenticated"),
    })
}
