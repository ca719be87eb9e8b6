//! `pop tune`: lines the cards' queues up with the workers. It prints what it would do, or does it; both tell the way back, which
//! the second also keeps as a script in the state directory.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Serialize;
use serde_json::json;

use crate::cli::{Failure, TuneArgs};
use crate::config::Config;
use crate::doctor::host::{Host, parse_mask, show_list, show_mask};
use crate::doctor::nic::{self, Nic, RING_LEN_WANTED, Settings};
use crate::doctor::{self, system};
use crate::state;

/// In the state directory: what takes back everything that `--apply` did, the newest first.
const UNDO_FILE: &str = "tune-undo.sh";

/// First lines of that script.
const UNDO_HEAD: &str =
    "#!/bin/sh\n# Written by `pop tune --apply`: the way back, the newest change first. Run it as root: it goes when all of it was done.\n";

/// Its last line.
const UNDO_END: &str = "[ -n \"$failed\" ] || rm -f -- \"$0\"\n";

/// One thing to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Step {
    /// What and why, with the former value.
    what: String,
    /// How a shell does it.
    command: String,
    /// How a shell takes it back.
    undo: String,
    #[serde(skip)]
    action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Write { path: String, value: String },
    Run(Vec<String>),
}

impl Step {
    /// A file of the kernel's gets another value.
    fn write(what: String, path: String, value: String, former: &str) -> Step {
        let shell = |value: &str| format!("echo {value} > {path}");
        Step { what, command: shell(&value), undo: shell(former), action: Action::Write { path: path.clone(), value } }
    }

    /// A program is run; its words hold no space.
    fn run(what: String, command: String, undo: String) -> Step {
        let words = command.split(' ').map(str::to_owned).collect();
        Step { what, command, undo, action: Action::Run(words) }
    }

    fn apply(&self, host: &Host) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("`{}` failed: {error}", self.command);
        match &self.action {
            Action::Write { path, value } => host.write(path, value).map_err(|error| failed(&error)),
            Action::Run(_) if !host.is_live() => Err(failed(&"a recorded host runs no programs")),
            Action::Run(words) => {
                let output = Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).output().map_err(|error| failed(&error))?;
                match output.status.success() {
                    true => Ok(()),
                    false => Err(failed(&String::from_utf8_lossy(&output.stderr).trim())),
                }
            }
        }
    }
}

/// Prints the steps, or applies them.
pub fn tune(args: &TuneArgs) -> Result<(), Failure> {
    let config = args.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
    let host = Host::new(args.root.as_deref());
    let workers = config.dataplane.cores.choose(&doctor::cores(&host)).map_err(Failure::Usage)?;
    let cards = cards(args, &config, &host)?;
    let steps = steps(&host, &cards, &workers, config.media.port);
    if args.apply {
        // A script that root will run lies where nobody else writes.
        let folder = state::folder(&config.node).filter(|folder| !host.is_live() || state::is_private(folder));
        if folder.is_none() {
            eprintln!("pop tune: the way back is printed alone: node.state_dir is unset or another user's");
        }
        let undo = folder.map(|folder| folder.join(UNDO_FILE));
        return apply(args, &host, &steps, undo);
    }
    if args.json {
        let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
        println!("{}", json!({ "interfaces": names, "workers": workers, "steps": steps }));
    } else {
        print!("{}", script(&cards, &steps));
    }
    Ok(())
}

fn cards(args: &TuneArgs, config: &Config, host: &Host) -> Result<Vec<Nic>, Failure> {
    if args.interface.is_empty() {
        return Ok(nic::carrying(host, &config.media.addresses));
    }
    let card = |name: &String| {
        let plain = !name.contains('/') && name != "..";
        Nic::read(host, name).filter(|_| plain).ok_or_else(|| Failure::Usage(format!("there is no interface {name:?}: see `ip link`")))
    };
    args.interface.iter().map(card).collect()
}

fn script(cards: &[Nic], steps: &[Step]) -> String {
    let mut lines = String::new();
    match (cards, steps) {
        ([], _) => lines.push_str("# media.addresses are on no network card: nothing to tune; name one with --interface\n"),
        (_, []) => lines.push_str("# nothing to do: the queues line up with the workers\n"),
        _ => {}
    }
    for Step { what, command, .. } in steps {
        lines.push_str(&format!("# {what}\n{command}\n"));
    }
    if !steps.is_empty() {
        lines.push_str("# The way back:\n");
    }
    for step in steps.iter().rev() {
        lines.push_str(&format!("#   {}\n", step.undo));
    }
    lines
}

/// Stops at the first step that fails, and tells the way back from those before.
fn apply(args: &TuneArgs, host: &Host, steps: &[Step], undo: Option<PathBuf>) -> Result<(), Failure> {
    let undo = undo.filter(|_| !steps.is_empty()).map(|file| Undo::read(host, file));
    let keep = |steps: &[Step]| undo.as_ref().map_or(Ok(()), |undo| undo.keep(host, steps));
    // Before the first step, so that nothing is done that an early end leaves without its way back.
    keep(steps).map_err(Failure::Other)?;
    let mut failure = None;
    let mut count = 0;
    for step in steps {
        match step.apply(host) {
            Ok(()) => count += 1,
            Err(sentence) => {
                failure = Some(sentence);
                break;
            }
        }
    }
    let done = &steps[..count];
    if let (Some(failed), Err(error)) = (&mut failure, if count < steps.len() { keep(done) } else { Ok(()) }) {
        failed.push_str("; ");
        failed.push_str(&error);
    }
    let kept = undo.filter(|_| !done.is_empty()).map(|undo| undo.file);
    if args.json {
        println!("{}", json!({ "done": done, "error": failure, "undo": kept }));
    } else {
        for step in done {
            println!("{}: {}", step.what, step.command);
        }
        println!("{} of {} steps done{}", done.len(), steps.len(), if done.is_empty() { "" } else { "; the way back:" });
        for step in done.iter().rev() {
            println!("  {}", step.undo);
        }
        if let Some(file) = kept {
            println!("all of it is kept in {}", file.display());
        }
    }
    failure.map_or(Ok(()), |sentence| Err(Failure::Other(sentence)))
}

/// The script of the way back, with what it held before.
struct Undo {
    file: PathBuf,
    /// Commands of earlier calls, a line each; empty without a script.
    former: String,
}

impl Undo {
    fn read(host: &Host, file: PathBuf) -> Undo {
        let text = host.read(&file.to_string_lossy()).unwrap_or_default();
        let former =
            text.lines().filter(|line| !line.starts_with('#') && *line != UNDO_END.trim_end()).map(|line| format!("{line}\n")).collect();
        Undo { file, former }
    }

    /// Puts the way back from `steps` before the former one. With neither there is no script.
    fn keep(&self, host: &Host, steps: &[Step]) -> Result<(), String> {
        let lines: String = steps.iter().rev().map(|step| format!("{} || failed=1\n", step.undo)).collect();
        let path = self.file.to_string_lossy();
        let kept = match lines.is_empty() && self.former.is_empty() {
            true => host.remove(&path),
            false => host.replace(&path, &format!("{UNDO_HEAD}{lines}{}{UNDO_END}", self.former)),
        };
        kept.map_err(|error| format!("the way back cannot be kept in {path}: {error}: run this as root, or set node.state_dir"))
    }
}

/// What differs from a host whose queue i is served by worker i, in the order to change it.
fn steps(host: &Host, cards: &[Nic], workers: &[usize], port: u16) -> Vec<Step> {
    let mut steps = Vec::new();
    if !cards.is_empty() && system::runs_irqbalance(host) {
        let (stop, start) = ("systemctl stop irqbalance".to_owned(), "systemctl start irqbalance".to_owned());
        steps.push(Step::run("irqbalance would move the interrupts again".to_owned(), stop, start));
    }
    for card in cards {
        let settings = Settings::read(host, &card.name);
        steps.extend(channels(card, &settings, workers));
        steps.extend(interrupts(host, card, workers));
        steps.extend(transmit(host, card, workers));
        steps.extend(receive(host, card, workers));
        steps.extend(options(card, &settings));
        steps.extend(rules(host, card, &settings, workers, port));
    }
    steps
}

fn channels(card: &Nic, settings: &Settings, workers: &[usize]) -> Option<Step> {
    let (name, wanted) = (&card.name, workers.len() as u64);
    let (max, now) = settings.channels?;
    if now < wanted && max > now {
        let wanted = wanted.min(max);
        let what = format!("{name}: {wanted} queues for {} workers, formerly {now}; ask `pop tune` again afterwards", workers.len());
        return Some(Step::run(what, format!("ethtool -L {name} combined {wanted}"), format!("ethtool -L {name} combined {now}")));
    }
    (now > wanted && settings.rss_queues.is_none_or(|used| used as u64 != wanted)).then(|| {
        let what = format!("{name}: clients are spread over the workers' {wanted} queues alone, formerly over {now}");
        Step::run(what, format!("ethtool -X {name} equal {wanted}"), format!("ethtool -X {name} default"))
    })
}

fn interrupts(host: &Host, card: &Nic, workers: &[usize]) -> Vec<Step> {
    let mut steps = Vec::new();
    for irq in &card.irqs {
        let Some(core) = workers.get(irq.queue) else { continue };
        if irq.cores == [*core] {
            continue;
        }
        let path = format!("/proc/irq/{}/smp_affinity_list", irq.number);
        let former = host.read(&path).unwrap_or_else(|| show_list(&irq.cores));
        // It moves with the queue's next interrupt.
        if former == core.to_string() {
            continue;
        }
        let what = format!("{}: queue {} to the core of worker {}, formerly {former}", card.name, irq.queue, irq.queue);
        steps.push(Step::write(what, path, core.to_string(), &former));
    }
    steps
}

/// Worker i sends on queue i, and no other queue takes its core.
fn transmit(host: &Host, card: &Nic, workers: &[usize]) -> Vec<Step> {
    let mut steps = Vec::new();
    if card.tx_queues.len() < 2 {
        return steps;
    }
    for (queue, cores) in card.tx_queues.iter().enumerate() {
        let wanted = match workers.get(queue) {
            Some(core) => vec![*core],
            None => cores.iter().copied().filter(|core| !workers.contains(core)).collect(),
        };
        let path = format!("/sys/class/net/{}/queues/tx-{queue}/xps_cpus", card.name);
        steps.extend(mask_step(host, path, cores, &wanted, format!("{}: transmit queue {queue}", card.name)));
    }
    steps
}

/// A card with a queue per worker needs no core to hand packets on; one with fewer needs all workers' cores to.
fn receive(host: &Host, card: &Nic, workers: &[usize]) -> Vec<Step> {
    let wanted = if card.rx_queues.len() >= workers.len() { Vec::new() } else { workers.to_vec() };
    let mut steps = Vec::new();
    for (queue, cores) in card.rx_queues.iter().enumerate() {
        let path = format!("/sys/class/net/{}/queues/rx-{queue}/rps_cpus", card.name);
        steps.extend(mask_step(host, path, cores, &wanted, format!("{}: packets of receive queue {queue} handed on", card.name)));
    }
    steps
}

fn mask_step(host: &Host, path: String, now: &[usize], wanted: &[usize], what: String) -> Option<Step> {
    if now == wanted {
        return None;
    }
    let former = host.read(&path)?;
    let shown = |cores: &[usize]| if cores.is_empty() { "no core".to_owned() } else { format!("cores {}", show_list(cores)) };
    let what = format!("{what} to {}, formerly {}", shown(wanted), shown(&parse_mask(&former)));
    Some(Step::write(what, path, show_mask(wanted), &former))
}

fn options(card: &Nic, settings: &Settings) -> Vec<Step> {
    let name = &card.name;
    let mut steps = Vec::new();
    if let Some((max, now)) = settings.rx_ring
        && now < RING_LEN_WANTED.min(max)
    {
        let wanted = RING_LEN_WANTED.min(max);
        let what = format!("{name}: {wanted} receive descriptors per queue, formerly {now}");
        steps.push(Step::run(what, format!("ethtool -G {name} rx {wanted}"), format!("ethtool -G {name} rx {now}")));
    }
    for (feature, option, why) in nic::FEATURES {
        if settings.features.get(feature).is_some_and(|state| !state.on && !state.fixed) {
            let what = format!("{name}: {feature} on; {why}");
            steps.push(Step::run(what, format!("ethtool -K {name} {option} on"), format!("ethtool -K {name} {option} off")));
        }
    }
    if settings.hashes_ports == Some(false) {
        let what = format!("{name}: UDP ports are part of the hash");
        steps.push(Step::run(what, format!("ethtool -N {name} rx-flow-hash udp4 sdfn"), format!("ethtool -N {name} rx-flow-hash udp4 sd")));
    }
    steps
}

/// Worker i has a media port of its own: a card with filters brings that port to its queue, so that no packet changes cores.
fn rules(host: &Host, card: &Nic, settings: &Settings, workers: &[usize], port: u16) -> Vec<Step> {
    let name = &card.name;
    let Some(filters) = settings.features.get("ntuple-filters").filter(|filters| filters.on || !filters.fixed) else { return Vec::new() };
    // Filters that are there are somebody's: ours would be in their places.
    let free = host.ethtool(name, &["-n"]).is_some_and(|rules| rules.contains("Total 0 rules"));
    if port == 0 || card.rx_queues.len() < workers.len() || !free {
        return Vec::new();
    }
    let mut steps = Vec::new();
    if !filters.on {
        steps.push(Step::run(
            format!("{name}: filters on"),
            format!("ethtool -K {name} ntuple on"),
            format!("ethtool -K {name} ntuple off"),
        ));
    }
    for worker in 0..workers.len() {
        for (family, place) in [("udp4", 2 * worker), ("udp6", 2 * worker + 1)] {
            let port = usize::from(port) + worker;
            steps.push(Step::run(
                format!("{name}: media port {port} to the queue of worker {worker}"),
                format!("ethtool -N {name} flow-type {family} dst-port {port} action {worker} loc {place}"),
                format!("ethtool -N {name} delete {place}"),
            ));
        }
    }
    steps
}
