//! The JSON of a case: the same keys at its top level from case to case and from release to release, `null` where a case has none.

use serde::Serialize;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::results::{now_utc, spoken_command};

/// The figures that people compare.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// Different packets that arrived, a second.
    pub(crate) packets_per_second: Option<f64>,
    /// CPU time of the server's packet threads per such packet, kernel included.
    pub(crate) cpu_ns_per_packet: Option<f64>,
    /// 1 - arrived / expected.
    pub(crate) loss: Option<f64>,
    /// CPU time of the floor program per packet over that of the server: 1 would be a server that costs nothing. `None` also when the
    /// floor was off.
    pub(crate) floor_ratio: Option<f64>,
    /// Heap allocations of the packet threads over arrived packets.
    pub(crate) allocations_per_packet: Option<f64>,
    /// From the intended time of sending to arrival.
    pub(crate) latency_us: Option<LatencyUs>,
    /// Packets of one train as it left the server.
    pub(crate) train_packets: Option<TrainPackets>,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct LatencyUs {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// Packets of one GSO train.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct TrainPackets {
    pub(crate) mean: f64,
    pub(crate) p50: u32,
    pub(crate) p99: u32,
}

/// One JSON object: `case`, `commit`, `command`, `measured` (UTC), the figures, then `machine`, `config`, and what is the case's own under `detail`.
pub(crate) fn case_json(case: &'static str, figures: &Figures, machine: &Machine, config: Value, detail: impl Serialize) -> Value {
    let mut object = json!({
        "case": case, "commit": machine.commit, "command": spoken_command(std::env::args()), "measured": now_utc(),
    });
    let parts = [json!(figures), json!({"machine": machine, "config": config, "detail": json!(detail)})];
    if let Value::Object(all) = &mut object {
        all.extend(parts.into_iter().filter_map(|part| if let Value::Object(keys) = part { Some(keys) } else { None }).flatten());
    }
    object
}
