//! Seeds in which packets cross links as they should. `POP_SIM_SEEDS=N` tries so many, `POP_SIM_SEEDS=A..B` those.

use std::ops::Range;

use pop_sim::{LinkFigures, Links};

const SEEDS: Range<u64> = 0..60;

fn seeds() -> Range<u64> {
    let Ok(asked) = std::env::var("POP_SIM_SEEDS") else { return SEEDS };
    let (from, to) = asked.split_once("..").unwrap_or(("0", &asked));
    let number = |text: &str| text.parse().expect("POP_SIM_SEEDS is a number, or two with .. between");
    number(from)..number(to)
}

#[test]
fn whatever_links_do_each_viewer_gets_each_packet_at_most_once_and_from_the_tracks_node() {
    let mut all = LinkFigures::default();
    for seed in seeds() {
        println!("POP_SIM_SEEDS={seed}..{}", seed + 1);
        all += Links::new(seed).run();
    }
    println!("{all:?}");
    if seeds() == SEEDS {
        let said = [all.delivered, all.crossed, all.repairs, all.lost, all.twice, all.flipped, all.restarts, all.viewers];
        assert!(said.iter().all(|times| *times > 50), "the seeds must lead everywhere: {all:?}");
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    let run = || format!("{:?}", Links::new(7).run());
    assert_eq!(run(), run());
}
