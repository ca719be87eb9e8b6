//! The network cards that carry media: queues, interrupts, rings, offloads, and whether they line up with the workers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Finding;
use super::host::{Host, parse_list, parse_mask, show_list};

/// Receive descriptors per queue below which a burst of a millisecond at 10 Gb/s is lost.
const RING_LEN_MIN: u64 = 1_024;

/// Receive descriptors that are asked for where the card has as many: more only fill the cache.
pub(crate) const RING_LEN_WANTED: u64 = 4_096;

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nic {
    /// The interface.
    pub(crate) name: String,
    /// Its driver.
    pub(crate) driver: String,
    /// The NUMA node that it is attached to; `None` on a machine with one.
    pub(crate) numa_node: Option<usize>,
    /// Receive queues, each with the cores of `rps_cpus`.
    pub(crate) rx_queues: Vec<Vec<usize>>,
    /// Transmit queues, each with the cores of `xps_cpus`.
    pub(crate) tx_queues: Vec<Vec<usize>>,
    /// Interrupts of the queues, by queue.
    pub(crate) irqs: Vec<QueueIrq>,
}

/// The interrupt of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueIrq {
    /// Its number.
    pub(crate) number: u32,
    /// The queue.
    pub(crate) queue: usize,
    /// Where it runs.
    pub(crate) cores: Vec<usize>,
}

/// The cards behind `addresses`: the interfaces that have them, or, below a bond, a bridge or a VLAN, its ports.
pub(crate) fn carrying(host: &Host, addresses: &[IpAddr]) -> Vec<Nic> {
    let mut names: Vec<String> = addresses.iter().filter_map(|address| interface_of(host, *address)).collect();
    let mut cards = Vec::new();
    while let Some(name) = names.pop() {
        let place = format!("/sys/class/net/{name}");
        if host.has(&format!("{place}/device")) {
            cards.push(name);
            continue;
        }
        // A stack of virtual interfaces has no loop.
        names.extend(host.list(&place).iter().filter_map(|entry| entry.strip_prefix("lower_")).map(str::to_owned));
    }
    cards.sort();
    cards.dedup();
    cards.iter().filter_map(|name| Nic::read(host, name)).collect()
}

/// The interface whose network holds `address`; none for loopback.
fn interface_of(host: &Host, address: IpAddr) -> Option<String> {
    if address.is_loopback() {
        return None;
    }
    match address {
        IpAddr::V4(address) => {
            // Iface Destination Gateway Flags RefCnt Use Metric Mask ..; each number is the address as this machine stores it.
            let table = host.read("/proc/net/route")?;
            let rows = table.lines().skip(1).filter_map(|line| {
                let fields: Vec<&str> = line.split_ascii_whitespace().collect();
                let number = |i: usize| u32::from_str_radix(fields.get(i)?, 16).ok().map(u32::from_be);
                let (destination, gateway, mask) = (number(1)?, number(2)?, number(7)?);
                (gateway == 0 && mask != 0 && u32::from(address) & mask == destination).then(|| (mask, fields[0].to_owned()))
            });
            rows.max().map(|(_, name)| name)
        }
        IpAddr::V6(address) => {
            let digits = format!("{:032x}", u128::from(address));
            let table = host.read("/proc/net/if_inet6")?;
            let line = table.lines().find(|line| line.starts_with(&digits))?;
            line.split_ascii_whitespace().last().map(str::to_owned)
        }
    }
}

impl Nic {
    /// The card behind an interface; `None` when there is no such interface.
    pub(crate) fn read(host: &Host, name: &str) -> Option<Nic> {
        let place = format!("/sys/class/net/{name}");
        host.number(&format!("{place}/mtu"))?;
        let queues = |kind: &str, file: &str| {
            let names = host.list(&format!("{place}/queues"));
            let cores = |queue: &String| host.read(&format!("{place}/queues/{queue}/{file}")).map_or(Vec::new(), |mask| parse_mask(&mask));
            names.iter().filter(|queue| queue.starts_with(kind)).map(cores).collect()
        };
        Some(Nic {
            name: name.to_owned(),
            driver: host.link_name(&format!("{place}/device/driver")).unwrap_or_else(|| "unknown".to_owned()),
            // The file says -1 where there is one node.
            numa_node: host.number(&format!("{place}/device/numa_node")).map(|node| node as usize),
            rx_queues: queues("rx-", "rps_cpus"),
            tx_queues: queues("tx-", "xps_cpus"),
            irqs: queue_irqs(host, name),
        })
    }
}

/// The interrupts of the queues: those of the device (`msi_irqs`) whose name ends with a queue's number, as in
/// `mlx5_comp3@pci:0000:17:00.0`, `ice-ens1f0-TxRx-3`, `ens5-Tx-Rx-3`, `virtio2-input.3`.
fn queue_irqs(host: &Host, name: &str) -> Vec<QueueIrq> {
    let of_device: Vec<String> =
        ["device/msi_irqs", "device/../msi_irqs"].iter().flat_map(|folder| host.list(&format!("/sys/class/net/{name}/{folder}"))).collect();
    let table = host.read("/proc/interrupts").unwrap_or_default();
    let mut irqs = BTreeMap::new();
    for line in table.lines() {
        let Some((number, rest)) = line.trim_start().split_once(':') else { continue };
        if !of_device.iter().any(|irq| irq == number) {
            continue;
        }
        let Some(queue) = rest.split_ascii_whitespace().last().and_then(queue_of) else { continue };
        let place = format!("/proc/irq/{number}");
        let cores = ["effective_affinity_list", "smp_affinity_list"].iter().find_map(|file| host.read(&format!("{place}/{file}")));
        let cores = cores.map_or(Vec::new(), |list| parse_list(&list));
        if let Ok(number) = number.parse() {
            // Where receiving and sending have an interrupt each, the receiving one comes first and is the one that counts.
            irqs.entry(queue).or_insert(QueueIrq { number, queue, cores });
        }
    }
    irqs.into_values().collect()
}

/// The queue in an interrupt's name, when it is a queue's.
fn queue_of(action: &str) -> Option<usize> {
    let name = action.split('@').next()?;
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let other = ["async", "misc", "ctrl", "config", "cmd", "pages", "output", "event"].iter().any(|word| stem.contains(word));
    name[stem.len()..].parse().ok().filter(|_| !other && !stem.is_empty())
}

/// What the card can be told to do, as `ethtool` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `ethtool -l`: combined (or else receive) channels that are possible and that are set.
    pub(crate) channels: Option<(u64, u64)>,
    /// `ethtool -x`: how many queues the hash leads to.
    pub(crate) rss_queues: Option<usize>,
    /// `ethtool -g`: receive descriptors per queue that are possible and that are set.
    pub(crate) rx_ring: Option<(u64, u64)>,
    /// `ethtool -k`: features by name.
    pub(crate) features: BTreeMap<String, Feature>,
    /// `ethtool -n IF rx-flow-hash udp4`: ports are part of the hash.
    pub(crate) hashes_ports: Option<bool>,
}

/// A feature of `ethtool -k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    /// It is on.
    pub(crate) on: bool,
    /// The card or its driver leaves no choice.
    pub(crate) fixed: bool,
}

impl Settings {
    /// What `ethtool` says of an interface; empty without it.
    pub(crate) fn read(host: &Host, name: &str) -> Settings {
        let channels = host.ethtool(name, &["-l"]).and_then(|text| pair(&text, "Combined:").or_else(|| pair(&text, "RX:")));
        let rx_ring = host.ethtool(name, &["-g"]).and_then(|text| pair(&text, "RX:"));
        let features = host.ethtool(name, &["-k"]).unwrap_or_default();
        let features = features.lines().filter_map(|line| {
            let (feature, state) = line.trim().split_once(": ")?;
            let feature_state = Feature { on: state.starts_with("on"), fixed: state.contains("[fixed]") };
            (state.starts_with("on") || state.starts_with("off")).then(|| (feature.to_owned(), feature_state))
        });
        let hash = host.ethtool(name, &["-n", "rx-flow-hash", "udp4"]);
        let hashes_ports = hash.map(|text| text.contains("L4 bytes 2 & 3"));
        let rss_queues = host.ethtool(name, &["-x"]).map(|text| led_to(&text)).filter(|queues| *queues > 0);
        Settings { channels, rss_queues, rx_ring, features: features.collect(), hashes_ports }
    }
}

/// Different queues in the table of `ethtool -x`: lines of `   8:      0     1     2`.
fn led_to(text: &str) -> usize {
    let rows = text.lines().filter_map(|line| line.split_once(':')).filter(|(row, _)| row.trim().parse::<usize>().is_ok());
    let queues = rows.flat_map(|(_, queues)| queues.split_ascii_whitespace().filter_map(|queue| queue.parse::<usize>().ok()));
    queues.collect::<std::collections::BTreeSet<_>>().len()
}

/// `key` of the maximums and of the current settings.
fn pair(text: &str, key: &str) -> Option<(u64, u64)> {
    let values: Vec<u64> = text.lines().filter_map(|line| line.trim().strip_prefix(key)?.trim().parse().ok()).collect();
    match values.as_slice() {
        [max, now] => Some((*max, *now)),
        _ => None,
    }
}

/// Judges the cards for workers on `workers`.
pub(super) fn findings(host: &Host, cards: &[Nic], workers: &[usize]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for card in cards {
        let settings = Settings::read(host, &card.name);
        findings.extend([queues(card, workers), interrupts(card, workers), transmit(card, workers)]);
        findings.extend(steering(card, workers));
        findings.extend(numa(host, card, workers));
        findings.extend(offloads(card, &settings));
        findings.extend(ring(card, &settings));
        findings.extend(hash(card, &settings));
    }
    findings
}

fn queues(card: &Nic, workers: &[usize]) -> Finding {
    let (name, count) = (format!("{} queues", card.name), card.rx_queues.len());
    let found = format!("{count} receive, {} transmit, driver {}", card.tx_queues.len(), card.driver);
    if count >= workers.len() {
        return Finding::ok(name, found);
    }
    Finding::warn(name, found, format!("{} workers share them: give the card a queue per worker", workers.len()))
        .why("a queue is one core's work: workers without one wait for another core's interrupts")
        .command(format!("ethtool -L {} combined {}", card.name, workers.len()))
}

/// Queue i belongs on the core of worker i: what the interrupt has brought into the cache is what the worker reads.
fn interrupts(card: &Nic, workers: &[usize]) -> Finding {
    let name = format!("{} interrupts", card.name);
    if card.irqs.is_empty() {
        return Finding::ok(name, "none per queue: the card (or the hypervisor) chooses");
    }
    let astray: Vec<usize> =
        card.irqs.iter().filter(|irq| workers.get(irq.queue).is_some_and(|core| irq.cores != [*core])).map(|irq| irq.queue).collect();
    if astray.is_empty() {
        return Finding::ok(name, format!("the queues' run on the workers' cores {}", show_list(workers)));
    }
    let now: Vec<String> =
        card.irqs.iter().take(workers.len()).map(|irq| format!("queue {} on {}", irq.queue, show_list(&irq.cores))).collect();
    Finding::warn(name, now.join(", "), format!("put queue i on the core of worker i: {}", show_list(workers)))
        .why("packets that one core takes from the card and another serves cross the cache twice")
        .command(format!("pop tune --apply --interface {}", card.name))
}

fn transmit(card: &Nic, workers: &[usize]) -> Finding {
    let name = format!("{} transmit", card.name);
    if card.tx_queues.len() < 2 {
        return Finding::ok(name, "one queue: nothing to choose");
    }
    let astray = card.tx_queues.iter().zip(workers).any(|(cores, core)| cores != &[*core]);
    if !astray {
        return Finding::ok(name, "each worker has its queue (XPS)");
    }
    Finding::warn(name, "workers share transmit queues (XPS)", "give worker i transmit queue i")
        .why("a queue that two cores send on is a lock between them")
        .command(format!("pop tune --apply --interface {}", card.name))
}

fn steering(card: &Nic, workers: &[usize]) -> Option<Finding> {
    let name = format!("{} RPS", card.name);
    let on: Vec<usize> = (0..card.rx_queues.len()).filter(|queue| !card.rx_queues[*queue].is_empty()).collect();
    if card.rx_queues.len() < workers.len() || on.is_empty() {
        return None;
    }
    let finding = Finding::warn(name, format!("on for queues {}", show_list(&on)), "turn it off: the card has a queue per worker");
    Some(
        finding
            .why("each packet is handed to another core by an interrupt between cores")
            .command(format!("pop tune --apply --interface {}", card.name)),
    )
}

fn numa(host: &Host, card: &Nic, workers: &[usize]) -> Option<Finding> {
    let (name, node) = (format!("{} NUMA node", card.name), card.numa_node?);
    let local = host.read(&format!("/sys/devices/system/node/node{node}/cpulist")).map(|list| parse_list(&list))?;
    let far: Vec<usize> = workers.iter().copied().filter(|core| !local.contains(core)).collect();
    if far.is_empty() {
        return Some(Finding::ok(name, format!("{node}, and so are the workers")));
    }
    let found = format!("{node} (cores {}), workers on {} are elsewhere", show_list(&local), show_list(&far));
    let finding = Finding::warn(name, found, format!("choose dataplane.cores from {}", show_list(&local)));
    Some(finding.why("each packet crosses between the sockets' memories"))
}

/// Features that the packet path lives on, with what is lost without them.
pub(crate) const FEATURES: [(&str, &str, &str); 4] = [
    ("generic-receive-offload", "gro", "without it each datagram is received alone: 490 ns instead of 186"),
    ("generic-segmentation-offload", "gso", "without it each datagram is sent alone: 2,000 ns instead of 140"),
    ("tx-udp-segmentation", "tx-udp-segmentation", "without it a train is cut by the CPU: 410 ns per datagram instead of 96"),
    ("rx-checksumming", "rx", "without it the CPU sums each byte, and datagrams are not joined"),
];

fn offloads(card: &Nic, settings: &Settings) -> Vec<Finding> {
    let name = format!("{} offloads", card.name);
    if settings.features.is_empty() {
        let finding = Finding::warn(name, "not known: ethtool is not installed, or refuses", "install ethtool, and ask again");
        return vec![finding.command("apt-get install ethtool")];
    }
    let state = |feature: &str| settings.features.get(feature);
    let off: Vec<_> = FEATURES.iter().filter(|(feature, ..)| state(feature).is_some_and(|state| !state.on)).collect();
    if off.is_empty() {
        let forwarding = state("rx-udp-gro-forwarding").map_or("unknown", |state| if state.on { "on" } else { "off" });
        return vec![Finding::ok(name, format!("GRO, GSO and UDP segmentation are on (rx-udp-gro-forwarding {forwarding})"))];
    }
    off.iter()
        .map(|(feature, option, why)| {
            let name = format!("{} {feature}", card.name);
            match state(feature) {
                Some(Feature { fixed: true, .. }) => Finding::ok(name, format!("off, and this card has none: {why}")),
                _ => Finding::warn(name, "off", "turn it on").why(*why).command(format!("ethtool -K {} {option} on", card.name)),
            }
        })
        .collect()
}

fn ring(card: &Nic, settings: &Settings) -> Option<Finding> {
    let (max, now) = settings.rx_ring?;
    let (name, found) = (format!("{} ring", card.name), format!("{now} of {max} receive descriptors per queue"));
    if now >= RING_LEN_MIN.min(max) {
        return Some(Finding::ok(name, found));
    }
    let finding = Finding::warn(name, found, "raise it");
    Some(finding.why("a burst of more packets than descriptors is lost before the kernel sees it").command(format!(
        "ethtool -G {} rx {}",
        card.name,
        max.min(RING_LEN_WANTED)
    )))
}

fn hash(card: &Nic, settings: &Settings) -> Option<Finding> {
    let name = format!("{} RSS", card.name);
    Some(match settings.hashes_ports? {
        true => Finding::ok(name, "UDP ports are part of the hash"),
        false => Finding::warn(name, "UDP ports are not part of the hash", "hash them")
            .why("all clients behind one address, and every one-to-one test, end on one queue")
            .command(format!("ethtool -N {} rx-flow-hash udp4 sdfn", card.name)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_known_by_the_name_of_its_interrupt() {
        for (action, queue) in [
            ("mlx5_comp3@pci:0000:17:00.0", Some(3)),
            ("mlx5_async0@pci:0000:17:00.0", None),
            ("ice-ens1f0-TxRx-12", Some(12)),
            ("ice-0000:18:00.0:misc", None),
            ("i40e-ens2-TxRx-0", Some(0)),
            ("ens5-Tx-Rx-7", Some(7)),
            ("virtio2-input.0", Some(0)),
            ("virtio2-output.0", None),
            ("virtio2-config", None),
            ("7", None),
            ("", None),
        ] {
            assert_eq!(queue_of(action), queue, "{action}");
        }
    }

    #[test]
    fn what_ethtool_says_twice_is_maximum_and_setting() {
        let text = "Ring parameters for a:\nPre-set maximums:\nRX:\t\t8192\nRX Mini:\tn/a\nTX:\t\t8192\nCurrent hardware settings:\nRX:\t\t1024\nTX:\t\t1024\n";
        assert_eq!(pair(text, "RX:"), Some((8_192, 1_024)));
        assert_eq!(pair("RX: n/a", "RX:"), None);
    }
}
