//! A mesh of many PoPs: `POP_SIM_POPS=300` and `POP_SIM_SECONDS=3600` for a large one (`scripts/test --long mesh`).

use pop_sim::{OverlayFigures, OverlayWorld};

fn asked(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn ways_between_many_pops_are_nearly_the_best_ones_while_paths_fail() {
    let (pops, seconds) = (asked("POP_SIM_POPS", 30), asked("POP_SIM_SECONDS", 600));
    let deciders = 4.min(pops);
    let began = std::time::Instant::now();
    let figures = OverlayWorld::new(1, pops as usize, deciders as usize).run(seconds);
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
