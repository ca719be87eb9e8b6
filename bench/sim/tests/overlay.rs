//! A mesh of many PoPs: `POP_SIM_POPS=300` and `POP_SIM_SECONDS=3600` for a large one, `POP_SIM_SAMPLED=100` and
//! `POP_SIM_DECIDERS=10` for the sessions whose packets are sent and the PoPs between which, and `POP_SIM_SESSIONS=20000` and
//! `POP_SIM_SESSION_SECONDS=300` for what they share (`scripts/test --long mesh`).

use pop_sim::{OverlayFigures, OverlayWorld, PacketFigures, SpansFigures, SpansWorld};

fn asked(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn ways_between_many_pops_are_nearly_the_best_ones_while_paths_fail() {
    let (pops, seconds) = (asked("POP_SIM_POPS", 30), asked("POP_SIM_SECONDS", 600));
    let deciders = 4.min(pops);
    let began = std::time::Instant::now();
    let figures = OverlayWorld::new(1, pops as usize, deciders as usize, 0).run(seconds);
    let OverlayFigures { choices, good, dead, regrets_us, outages_s, changes, troubles, .. } = &figures;
    let percent = |part: u64| 100.0 * part as f64 / *choices as f64;
    let regret = |share| OverlayFigures::share(regrets_us, share) as f64 / 1_000.0;
    let outage = |share| OverlayFigures::share(outages_s, share);
    println!(
        "{pops} PoPs, {seconds} s, {troubles} troubles, {:.0} s of a core: {choices} choices, {:.2} % as good as the best, {:.3} % dead; regret p50 {:.2} ms, \
         p99 {:.2} ms, p99.9 {:.2} ms; {} outages, p50 {} s, p99 {} s, longest {} s; {:.2} changes per destination and hour; \
         {:.1} kbit/s told per PoP",
        began.elapsed().as_secs_f64(),
        percent(*good),
        percent(*dead),
        regret(0.5),
        regret(0.99),
        regret(0.999),
        outages_s.len(),
        outage(0.5),
        outage(0.99),
        outage(1.0),
        *changes as f64 * 3_600.0 / f64::from(seconds) / f64::from(deciders) / f64::from(pops - 1),
        figures.control_kbps(),
    );
    assert!(*troubles > 10 && outages_s.len() > 3, "something has to happen");
    assert!(percent(*good) > 95.0, "{:.2} % of the choices are as good as the best", percent(*good));
    assert!(percent(*dead) < 0.5, "{:.3} % of the choices arrive nowhere", percent(*dead));
    // Two seconds until a path is gone, one until it is decided, and where the second path is the one that failed what is told of it.
    assert!(outage(0.99) <= 8, "an outage of {} s", outage(0.99));
}

#[test]
fn packets_of_sessions_go_on_by_another_way_soon_after_one_is_cut_and_none_comes_twice() {
    let (pops, seconds) = (asked("POP_SIM_POPS", 30), asked("POP_SIM_SECONDS", 600));
    let (sampled, deciders) = (asked("POP_SIM_SAMPLED", 10), asked("POP_SIM_DECIDERS", 4).min(pops));
    let began = std::time::Instant::now();
    let OverlayFigures { troubles, packets, .. } = OverlayWorld::new(1, pops as usize, deciders as usize, sampled as usize).run(seconds);
    println!("{pops} PoPs, {seconds} s, {troubles} troubles, {:.0} s of a core, {:.1} GiB", began.elapsed().as_secs_f64(), memory_gib());
    tell_of(&packets);
    let PacketFigures { sent, lost, late, twice, circles, foreign, over_others, gaps_failed_ms, gaps_better_ms, .. } = &packets;
    assert!(*over_others > 100 && gaps_failed_ms.len() > 20 && !gaps_better_ms.is_empty(), "packets have to take detours: {packets:?}");
    assert_eq!((*twice, *circles, *foreign), (0, 0, 0), "each packet comes once, as it was");
    // Where a way is cut each 10 s, and each of few links is on it.
    assert!(*lost as f64 <= 0.02 * *sent as f64 && *late as f64 <= 0.01 * *sent as f64, "{lost} lost and {late} late of {sent}");
    // Three echoes, the other end's word of it, and a path around half the world.
    let [gap, longest, better] =
        [(gaps_failed_ms, 0.5), (gaps_failed_ms, 0.95), (gaps_better_ms, 0.5)].map(|(list, of)| OverlayFigures::share(list, of));
    assert!(gap <= 500 && longest <= 1_000, "a pause of {gap} ms, or {longest} ms, when a way fails");
    assert!(better <= 100, "a pause of {better} ms when another way is better");
}

fn tell_of(packets: &PacketFigures) {
    let PacketFigures { sessions, pairs, sent, lost, late, cut_off, twice, circles, over_others, doubled, .. } = packets;
    let PacketFigures { missed, repaired, recovered, datagrams, bytes, .. } = packets;
    let percent = |part: u64| 100.0 * part as f64 / (*sent).max(1) as f64;
    println!(
        "packets of {sessions} sessions between {pairs} pairs of PoPs: {sent} sent, {lost} lost ({:.4} %), {late} late ({:.4} %), {twice} twice, \
         {circles} circles; {:.1} % over a third PoP, {:.2} % by two ways; {cut_off} more while a PoP was cut off",
        percent(*lost),
        percent(*late),
        percent(*over_others),
        percent(*doubled),
    );
    for (what, gaps) in [("a way failed", &packets.gaps_failed_ms), ("another was better", &packets.gaps_better_ms)] {
        let share = |share| OverlayFigures::share(gaps, share);
        let (p50, p90, p99, longest) = (share(0.5), share(0.9), share(0.99), share(1.0));
        println!("longest pause when {what}, {} times: p50 {p50} ms, p90 {p90} ms, p99 {p99} ms, longest {longest} ms", gaps.len());
    }
    println!(
        "{datagrams} datagrams with {bytes} bytes on these links, echoes, feedback, repairs and parity among them; {missed} did not come, \
         {repaired} were repaired, and parity brought back {recovered}"
    );
}

#[test]
fn those_who_share_a_session_know_each_other_soon_though_pops_fail_and_return() {
    let (pops, sessions, seconds) = (asked("POP_SIM_POPS", 30), asked("POP_SIM_SESSIONS", 1_000), asked("POP_SIM_SESSION_SECONDS", 150));
    let began = std::time::Instant::now();
    let figures = SpansWorld::new(1, pops as usize, sessions as usize).run(u64::from(seconds));
    let SpansFigures { known_ms, never, leaks, rendezvous, presence, meets, sessions: of_pops, burst_bytes, failures, joins, .. } =
        &figures;
    println!(
        "{pops} PoPs, {sessions} sessions, {seconds} s, {failures} failures of PoPs, {joins} joins, {:.0} s of a core, {:.1} GiB",
        began.elapsed().as_secs_f64(),
        memory_gib()
    );
    for (after, list) in known_ms {
        let share = |share| OverlayFigures::share(list, share);
        let (p50, p99, longest) = (share(0.5), share(0.99), share(1.0));
        println!("{after:?}: {} learned of another PoP, p50 {p50} ms, p99 {p99} ms, longest {longest} ms", list.len());
    }
    println!("{never} never, {leaks} records where the certificate has not the key");
    for (what, sent) in [("who meets whom", rendezvous), ("people", presence)] {
        let mut sent = sent.clone();
        sent.sort_unstable();
        let per_second = |sum: u64| sum as f64 / f64::from(seconds);
        let [median, most] = [0.5, 1.0].map(|share| OverlayFigures::share(&sent, share));
        let of =
            |sent: pop_sim::Sent| format!("{:.1} kbit/s in {:.1} messages/s", per_second(sent.bytes) / 125.0, per_second(sent.messages));
        println!("told of {what}: the median PoP {}, the most {}", of(median), of(most));
    }
    let spread = |list: &[u64]| format!("median {}, most {}", OverlayFigures::share(list, 0.5), OverlayFigures::share(list, 1.0));
    println!(
        "who meets others at a PoP: {}; sessions of a PoP: {}; at most {burst_bytes} bytes in one turn",
        spread(meets),
        spread(of_pops)
    );
    assert!(*failures > 3 && *joins > 100, "something has to happen");
    assert_eq!((*never, *leaks), (0, 0), "all that share a session know each other, and nobody else");
    // Two seconds and a half until a PoP is gone, a look, and a round trip to where they meet now, and one to each other.
    assert!(known_ms.values().all(|list| OverlayFigures::share(list, 1.0) <= 6_000), "someone took longer");
}

/// The most that this process had.
fn memory_gib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / f64::from(1 << 20)
}
