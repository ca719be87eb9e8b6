//! Two links over a bad wire, in fake time and by seed: what comes, comes once, unchanged, and in time.

mod common;

use std::time::Duration;

use common::{Net, Wire, keys_of, open_link, open_link_abroad, open_link_later};
use pop_relay::{
    RelayDrop,
    link::{Ask, Clock, DATAGRAM_LEN_WRITTEN_MAX, FrameRef, Incoming, Link, SourceRoute, TRANSIT_OVERHEAD, Way},
};
use pop_schemas::{NodeId, Time};

const SECOND: Duration = Duration::from_secs(1);
const BAD: Wire = Wire { twice_permille: 10, late_permille: 30, flipped_permille: 3, ..Wire::GOOD };

#[test]
fn audio_comes_in_time_over_a_wire_that_loses_doubles_reorders_and_corrupts() {
    for (loss_permille, needed) in [(20, 0.999), (100, 0.98)] {
        let (mut sent, mut in_time, mut video_sent, mut video_came) = (0, 0, 0, 0);
        let (mut repair_ms, mut bytes, mut media_bytes) = (Vec::new(), 0, 0);
        for seed in 0..6 {
            let mut net = Net::new(seed, Wire { loss_permille, ..BAD }, [1, 1]);
            net.run(SECOND);
            net.talk(20 * SECOND, 1_100);
            net.run(SECOND);
            for from in 0..2 {
                let audio = net.delivered(from, 0..3);
                let video = net.delivered(from, 10..12);
                (sent, in_time) = (sent + audio.0, in_time + audio.1);
                (video_sent, video_came) = (video_sent + video.0, video_came + video.2);
                let stats = net.ends[from].link.stats();
                repair_ms.extend(net.repair_times_ms(from));
                (bytes, media_bytes) = (bytes + stats.bytes_out, media_bytes + stats.media_bytes_out);
                assert!((60_000..75_000).contains(&stats.rtt_us), "seed {seed}: {stats:?}");
                assert!(stats.lost > 0 && stats.repaired > 0 && stats.repairs_out > 0 && stats.refused > 0, "seed {seed}: {stats:?}");
                assert!(net.ends[from].drops.contains_key(&RelayDrop::NotAuthentic));
                assert!(net.ends[from].drops.contains_key(&RelayDrop::Replayed));
                let told = usize::from(net.ends[from].link.loss_out_permille());
                assert!(told > loss_permille / 4 && told < loss_permille * 3, "seed {seed}: {told} of 1,000 at {loss_permille}");
            }
        }
        let (audio, video) = (in_time as f64 / sent as f64, video_came as f64 / video_sent as f64);
        repair_ms.sort_unstable();
        let (p50, p99) = (repair_ms[repair_ms.len() / 2], repair_ms[repair_ms.len() * 99 / 100]);
        println!("seeds 0..6, loss {loss_permille} of 1,000: audio in time {audio:.5} of {sent}, video {video:.5} of {video_sent}");
        println!("  repaired after ms: p50 {p50}, p99 {p99}; not RTP: {:.3} of the bytes", 1.0 - media_bytes as f64 / bytes as f64);
        assert!(audio >= needed && video >= needed, "loss {loss_permille}: {audio} {video}");
    }
}

#[test]
fn a_machine_that_has_no_time_is_no_bottleneck() {
    for (turn_ms_max, seeds) in [(20, 0..3), (60, 3..10), (90, 10..20)] {
        for seed in seeds {
            let mut net = Net::new(seed, Wire::GOOD, [1, 1]);
            net.turn_ms_max = turn_ms_max;
            for second in 0..60 {
                // 0.3 Mb/s.
                net.talk(SECOND, 150);
                let limits = [0, 1].map(|end| net.ends[end].link.limit());
                assert_eq!(limits, [None; 2], "seed {seed}, second {second}, a turn each {turn_ms_max} ms at most");
            }
        }
    }
}

#[test]
fn an_end_that_stands_still_now_and_then_is_no_bottleneck() {
    for seed in 0..10 {
        let mut net = Net::new(seed, Wire::GOOD, [1, 1]);
        net.talk(SECOND, 150);
        for time in 0..60 {
            let end = (seed ^ time) as usize % 2;
            net.stand_still(end, Duration::from_millis(215 + (97 * time + 31 * seed) % 285));
            net.talk(SECOND, 150);
            let limits = [0, 1].map(|end| net.ends[end].link.limit());
            assert_eq!(limits, [None; 2], "seed {seed}, time {time}");
        }
        assert_eq!(net.ends[0].link.loss_out_permille(), 0, "nothing was lost on the way");
    }
}

#[test]
fn without_loss_everything_comes_once_and_nothing_is_repaired() {
    let mut net = Net::new(7, Wire::GOOD, [1, 1]);
    net.talk(5 * SECOND, 1_100);
    net.run(SECOND);
    for from in 0..2 {
        let (sent, in_time, _) = net.delivered(from, 0..20);
        assert_eq!(sent, in_time);
        let stats = net.ends[from].link.stats();
        assert_eq!((stats.lost, stats.repairs_out, stats.refused), (0, 0, 0));
        assert_eq!(stats.mtu, 1_472);
    }
}

#[test]
fn a_rekey_loses_nothing_however_late_the_other_end_hears_of_it() {
    for late_ms in [0, 20, 700] {
        let mut net = Net::new(8, Wire::GOOD, [1, 1]);
        net.talk(SECOND, 1_100);
        for generation in 1..4 {
            for end in [0, 1] {
                let (now, link) = (net.now, &mut net.ends[end].link);
                link.rekey(now, generation, &keys_of(end, generation), &keys_of(1 - end, generation));
                net.talk(Duration::from_millis(late_ms), 1_100);
            }
            net.talk(SECOND, 1_100);
            assert_eq!(net.ends.each_ref().map(|end| end.link.generation()), [generation; 2], "{late_ms} ms late");
        }
        net.run(SECOND);
        for from in 0..2 {
            let (sent, in_time, _) = net.delivered(from, 0..20);
            assert_eq!(sent, in_time, "{late_ms} ms late");
            assert!(net.ends[from].drops.is_empty(), "{late_ms} ms late: {:?}", net.ends[from].drops);
        }
    }
}

#[test]
fn a_link_that_is_opened_while_keys_are_changed_carries_when_both_ends_have_them() {
    for late_ms in [0, 20, 700] {
        let mut net = Net::new(23, Wire::GOOD, [1, 1]);
        let now = net.now;
        net.ends[0].link = open_link_later(0, 4, now);
        net.ends[1].link = open_link_later(1, 3, now);
        net.talk(Duration::from_millis(late_ms), 1_100);
        let now = net.now;
        net.ends[1].link.rekey(now, 4, &keys_of(1, 4), &keys_of(0, 4));
        net.run(SECOND);
        net.ends.iter_mut().for_each(|end| end.drops.clear());
        let before = [0, 1].map(|from| net.delivered(from, 0..20));
        net.talk(SECOND, 1_100);
        net.run(SECOND);
        for (from, (sent_before, in_time_before, _)) in before.into_iter().enumerate() {
            let (sent, in_time, _) = net.delivered(from, 0..20);
            assert_eq!(sent - sent_before, in_time - in_time_before, "{late_ms} ms late");
            assert!(sent > sent_before && net.ends[from].drops.is_empty(), "{late_ms} ms late: {:?}", net.ends[from].drops);
        }
        assert_eq!(net.ends.each_ref().map(|end| end.link.generation()), [4; 2], "{late_ms} ms late");
    }
}

/// Both ends step to `generation`, the second one 5 ms after the first: the control link is up.
fn rekey(net: &mut Net, generation: u32) {
    for end in [0, 1] {
        let (now, link) = (net.now, &mut net.ends[end].link);
        link.rekey(now, generation, &keys_of(end, generation), &keys_of(1 - end, generation));
        net.talk(Duration::from_millis(5), 1_100);
    }
}

#[test]
fn media_crosses_again_after_an_outage_of_several_key_steps() {
    for cut in [[true, true], [true, false], [false, true]] {
        for steps in [2, 3] {
            let mut net = Net::new(15, Wire::GOOD, [1, 1]);
            net.talk(SECOND, 1_100);
            net.cut = cut;
            for generation in 1..=steps {
                net.run(120 * SECOND);
                rekey(&mut net, generation);
            }
            net.run(SECOND);
            net.cut = [false; 2];
            net.run(SECOND);
            let before = [0, 1].map(|from| net.delivered(from, 0..20));
            net.talk(SECOND, 1_100);
            net.run(SECOND);
            for (from, before) in before.iter().enumerate() {
                let (sent, in_time, _) = net.delivered(from, 0..20);
                let (sent, in_time) = (sent - before.0, in_time - before.1);
                assert!(sent > 0 && in_time == sent, "{cut:?}, {steps} steps: {in_time} of {sent} of end {from} came");
            }
            assert_eq!(net.ends.each_ref().map(|end| end.link.generation()), [steps; 2], "{cut:?}");
        }
    }
}

#[test]
fn the_way_that_is_left_carries_everything_while_the_other_is_cut_however_often_keys_step() {
    let mut net = Net::new(16, Wire::GOOD, [1, 1]);
    net.talk(SECOND, 1_100);
    net.cut = [false, true];
    for generation in 1..=3 {
        net.run(120 * SECOND);
        // What is under way in the moment of a step may need the keys of before.
        rekey(&mut net, generation);
        net.run(SECOND);
        let before = net.delivered(0, 0..20);
        net.talk(SECOND, 1_100);
        net.run(SECOND);
        let (sent, in_time, _) = net.delivered(0, 0..20);
        assert!(sent > before.0 && in_time - before.1 == sent - before.0, "generation {generation}");
    }
}

#[test]
fn packets_that_do_not_fit_the_path_are_split_and_joined() {
    for mtu in [1_200, 1_280] {
        for loss_permille in [0, 20] {
            let mut net = Net::new(9, Wire { mtu, loss_permille, ..Wire::GOOD }, [1, 1]);
            net.talk(10 * SECOND, 1_260);
            net.run(SECOND);
            for from in 0..2 {
                let (sent, _, came) = net.delivered(from, 0..20);
                let needed = if loss_permille == 0 { 1.0 } else { 0.998 };
                assert!(came as f64 >= sent as f64 * needed, "mtu {mtu}, loss {loss_permille}: {came} of {sent}");
                assert_eq!(net.ends[from].link.mtu(), mtu);
            }
        }
    }
}

#[test]
fn a_path_that_narrows_is_noticed_while_media_flows() {
    let mut net = Net::new(10, Wire::GOOD, [1, 1]);
    net.talk(2 * SECOND, 1_350);
    assert_eq!(net.ends[0].link.mtu(), 1_472);
    net.wire.mtu = 1_280;
    net.talk(3 * SECOND, 1_350);
    assert_eq!(net.ends[0].link.mtu(), 1_280);
    net.run(SECOND);
    let before = net.delivered(0, 10..11);
    net.talk(2 * SECOND, 1_350);
    net.run(SECOND);
    let after = net.delivered(0, 10..11);
    assert_eq!(after.0 - before.0, after.2 - before.2, "what is sent after it comes");
}

#[test]
fn an_idle_link_beats_ten_times_a_second_and_a_busy_one_twenty_times() {
    let mut net = Net::new(11, Wire::GOOD, [1, 1]);
    net.run(10 * SECOND);
    let before = net.ends[0].datagrams.len();
    net.run(10 * SECOND);
    let idle = net.ends[0].datagrams.len() - before;
    assert!((95..=106).contains(&idle), "{idle} in 10 s, probes of the path included");
    let (before, media) = (net.ends[0].datagrams.len(), 500);
    for _ in 0..media {
        net.send(0, 1, 100, false);
        net.run(Duration::from_millis(20));
    }
    let busy = net.ends[0].datagrams.len() - before - media;
    assert!((190..=215).contains(&busy), "{busy} in 10 s");
}

#[test]
fn small_packets_of_a_turn_share_a_datagram() {
    let mut net = Net::new(12, Wire::GOOD, [1, 1]);
    net.run(SECOND);
    let before = net.ends[0].datagrams.len();
    (0..8).for_each(|alias| net.send(0, alias, 100, true));
    assert_eq!(net.ends[0].datagrams.len(), before, "they wait for the end of the turn");
    net.step();
    assert_eq!(net.ends[0].datagrams.len(), before + 1);
    assert_eq!(net.ends[0].datagrams[before], 32 + 8 * (6 + 100));
    (0..40).for_each(|alias| net.send(0, alias, 100, true));
    net.run(SECOND);
    assert_eq!(net.delivered(0, 0..40), (48, 48, 48));
}

fn pass<'a>(now: Time, to: &'a mut Link, out: &'a mut [u8], len: usize) -> Result<Incoming<'a>, RelayDrop> {
    to.open(now, &mut out[..len])
}

#[test]
fn asks_and_clocks_come_as_they_were_told_the_clock_older_by_the_way() {
    let mut net = Net::new(13, Wire::GOOD, [1, 1]);
    net.run(2 * SECOND);
    let now = net.now;
    let [a, b] = &mut net.ends;
    let mut out = [0; DATAGRAM_LEN_WRITTEN_MAX];
    let ask = Ask { alias: 7, wanted: 0b101, keyframes: 0b100 };
    let len = a.link.write_ask(&ask, &mut out).expect("it fits");
    assert!(matches!(pass(now, &mut b.link, &mut out, len), Ok(Incoming::Ask(came)) if came == ask));
    let clock = Clock {
        alias: 7,
        layer: 2,
        ntp: 1 << 40,
        rtp_timestamp: 90_000,
        age: Duration::from_millis(5),
        ended: true,
        paused: false,
        rank: 255,
        rate_kbps: 600,
    };
    let len = a.link.write_clock(&clock, &mut out).expect("it fits");
    let Ok(Incoming::Clock(came)) = pass(now, &mut b.link, &mut out, len) else { panic!("a clock is a clock") };
    assert!((Duration::from_millis(34)..Duration::from_millis(38)).contains(&came.age), "{:?}", came.age);
    assert_eq!(Clock { age: clock.age, ..came }, clock);
}

#[test]
fn what_is_carried_for_another_link_takes_40_bytes_more_and_cannot_be_read() {
    let mut net = Net::new(16, Wire::GOOD, [1, 1]);
    net.run(2 * SECOND);
    let now = net.now;
    let [a, b] = &mut net.ends;
    // Of another link, whose far end is node 7.
    let (mut ours, mut theirs) = (open_link(0, 1, now), open_link(1, 1, now));
    let (mut sealed, mut out) = ([0; DATAGRAM_LEN_WRITTEN_MAX], [0; DATAGRAM_LEN_WRITTEN_MAX]);
    let len = ours.write_media(now, &FrameRef::new(1, 0, 0, 5), &[7; 1_000], &mut sealed).expect("it fits").first;
    let route = SourceRoute::through_one(NodeId(7), 2);
    let wrapped = a.link.write_transit(route, &sealed[..len], &mut out).expect("it fits");
    assert_eq!(wrapped, len + TRANSIT_OVERHEAD);
    assert_eq!(a.link.stats().transit_bytes_out, wrapped as u64);
    let Ok(Incoming::Transit(transit)) = pass(now, &mut b.link, &mut out, wrapped) else { panic!("a transit is a transit") };
    assert_eq!((transit.route, &*transit.datagram), (route, &sealed[..len]), "sealed, as it was");
    assert!(transit.datagram.windows(8).all(|bytes| bytes != [7; 8]));
    let mut came = transit.datagram.to_vec();
    assert!(matches!(theirs.open(now, &mut came), Ok(Incoming::Media(media)) if media.payload == [7; 1_000]));
    assert_eq!(b.link.stats().transit_bytes_in, wrapped as u64);
    // As long as the path takes, and no longer.
    assert_eq!(a.link.transit_len_max(), 1_432);
    assert!(a.link.write_transit(route, &[0; 1_432], &mut out).is_ok());
    assert_eq!(a.link.write_transit(route, &[0; 1_433], &mut out), Err(RelayDrop::TooLarge));
}

#[test]
fn what_is_lost_of_others_is_no_loss_of_the_link_that_carries_it() {
    let mut net = Net::new(19, Wire::GOOD, [1, 1]);
    net.run(2 * SECOND);
    let (mut out, route) = ([0; DATAGRAM_LEN_WRITTEN_MAX], SourceRoute::through_one(NodeId(7), 2));
    // Its own way is another one than its path, which is cut: four of five datagrams are lost.
    for _ in 0..40 {
        for _ in 0..4 {
            net.ends[0].link.write_transit(route, &[7; 100], &mut out).expect("it fits");
        }
        net.run(SECOND / 20);
    }
    let [a, b] = &net.ends;
    assert_eq!((b.link.stats().lost, a.link.limit()), (0, None));
    assert_eq!(a.link.stats().bytes_out - a.link.stats().transit_bytes_out, b.link.stats().bytes_in);
}

#[test]
fn a_blip_in_which_nothing_comes_is_no_bottleneck() {
    for blip_ms in [300, 700, 1_500] {
        let mut net = Net::new(20, Wire::GOOD, [1, 1]);
        net.talk(10 * SECOND, 1_100);
        net.wire.loss_permille = 1_000;
        net.talk(Duration::from_millis(blip_ms), 1_100);
        net.wire.loss_permille = 0;
        for _ in 0..20 {
            net.talk(SECOND / 10, 1_100);
            assert_eq!([0, 1].map(|end| net.ends[end].link.limit()), [None; 2], "{blip_ms} ms");
        }
    }
}

#[test]
fn a_link_between_pops_rests_while_no_media_goes_and_wakes_with_it() {
    for (is_abroad, has_backup) in [(false, false), (true, false), (true, true)] {
        let mut net = Net::new(18, Wire::GOOD, [1, 1]);
        let now = net.now;
        if is_abroad {
            net.ends.iter_mut().enumerate().for_each(|(end, of)| of.link = open_link_abroad(end, now));
        }
        if has_backup {
            net.ends.iter_mut().for_each(|end| end.link.route(now, Way::Direct, Some(Way::Via(3))));
        }
        let in_ten_seconds = |net: &mut Net| {
            let before = net.ends.each_ref().map(|end| end.link.stats().datagrams_out);
            net.run(10 * SECOND);
            [0, 1].map(|end| net.ends[end].link.stats().datagrams_out - before[end])
        };
        net.run(10 * SECOND);
        let first = in_ten_seconds(&mut net);
        net.run(15 * SECOND);
        let later = in_ten_seconds(&mut net);
        // Inside a PoP the heartbeat tells whether a node lives; between PoPs it measures the path, or echoes do.
        let [at_first, in_the_end] = match (is_abroad, has_backup) {
            (false, _) => [95..110, 95..110],
            (true, false) => [95..110, 38..45],
            (true, true) => [11..20, 11..15],
        };
        assert!(first.iter().all(|count| at_first.contains(count)), "{first:?}");
        assert!(later.iter().all(|count| in_the_end.contains(count)), "{later:?}");
        let before = net.ends.each_ref().map(|end| end.link.stats().datagrams_in);
        net.talk(SECOND / 10, 100);
        net.run(SECOND / 2);
        let came = [0, 1].map(|end| net.ends[end].link.stats().datagrams_in - before[end]);
        assert!(came.iter().all(|count| *count >= 9), "20 a second, at once: {came:?}");
    }
}

#[test]
fn a_link_that_is_carried_writes_what_the_carriers_take_and_finds_out_how_much_that_is() {
    let mut net = Net::new(17, Wire::GOOD, [1, 1]);
    net.talk(2 * SECOND, 1_100);
    // The wire is the way through two others now, whose second hop is narrow. Without a backup nothing but the way is taken.
    net.wire.mtu = 1_300;
    for end in &mut net.ends {
        end.link.route(net.now, Way::Via(3), None);
        end.link.set_len_max(net.now, 3, 1_432);
        end.datagrams.clear();
        assert_eq!((end.link.ways().first, end.link.mtu()), (Way::Via(3), 1_160));
    }
    net.talk(SECOND / 100, 1_400);
    assert!(net.ends.iter().all(|end| end.datagrams.iter().all(|len| *len <= 1_280)), "what is probed is 1,200 and 1,280 first");
    net.talk(5 * SECOND, 1_200);
    net.run(SECOND);
    assert_eq!([0, 1].map(|end| net.ends[end].link.mtu()), [1_280; 2]);
    assert!(net.ends.iter().all(|end| end.datagrams.iter().all(|len| *len <= 1_432)));
    for from in 0..2 {
        let (sent, in_time, _) = net.delivered(from, 0..20);
        assert_eq!(sent, in_time, "nothing but probes was too long");
    }
    let now = net.now;
    net.ends[0].link.route(now, Way::Direct, None);
    assert_eq!(net.ends[0].link.mtu(), 1_472, "the direct path is as it was");
    net.ends[0].link.route(now, Way::Via(3), None);
    assert_eq!(net.ends[0].link.mtu(), 1_280, "that of the carrier, too");
    net.ends[0].link.route(now, Way::Via(4), None);
    assert_eq!(net.ends[0].link.mtu(), 1_160, "of another carrier nothing is known");
}

/// One turn of `link` with the packets `sequences`, each full of its number.
fn turn(link: &mut Link, now: Time, sequences: std::ops::Range<u8>) -> Vec<u8> {
    let mut out = [0; DATAGRAM_LEN_WRITTEN_MAX];
    for sequence in sequences {
        link.bundle_media(now, &FrameRef::new(1, 0, 0, sequence.into()), &[sequence; 20], &mut out).expect("it fits");
    }
    let len = link.poll_transmit(now, &mut out).expect("the end of the turn");
    out[..len].to_vec()
}

/// The packets of a datagram.
fn came(link: &mut Link, now: Time, mut datagram: Vec<u8>) -> Result<Vec<u8>, RelayDrop> {
    Ok(match link.open(now, &mut datagram)? {
        Incoming::Media(media) => vec![media.payload[0]],
        Incoming::Bundle(bundle) => bundle.map(|media| media.payload[0]).collect(),
        _ => Vec::new(),
    })
}

#[test]
fn an_original_that_comes_after_its_repair_delivers_only_what_was_not_repaired() {
    for (packets, repaired) in [(1, 1), (3, 2), (3, 3)] {
        let now = Time::from_millis(1_000);
        let (mut a, mut b) = (open_link(0, 1, now), open_link(1, 1, now));
        let first = turn(&mut a, now, 0..1);
        let late = turn(&mut a, now, 10..10 + packets);
        let last = turn(&mut a, now, 1..2);
        assert_eq!(came(&mut b, now, first), Ok(vec![0]));
        assert_eq!(came(&mut b, now, last), Ok(vec![1]));
        let now = now + Duration::from_millis(20);
        let ask = turn(&mut b, now, 0..0);
        assert_eq!(came(&mut a, now, ask), Ok(Vec::new()));
        for sequence in 10..10 + repaired {
            let frame = a.next_repair().expect("each packet of it");
            assert_eq!(frame.sequence, u64::from(sequence));
            for expected in [Ok(vec![sequence]), Err(RelayDrop::Late)] {
                let mut out = [0; DATAGRAM_LEN_WRITTEN_MAX];
                let len = a.write_repair(now, &frame, &[sequence; 20], &mut out).expect("it fits");
                assert_eq!(came(&mut b, now, out[..len].to_vec()), expected, "repaired once");
            }
        }
        let rest: Vec<u8> = (10 + repaired..10 + packets).collect();
        let expected = if rest.is_empty() { Err(RelayDrop::Replayed) } else { Ok(rest) };
        assert_eq!(came(&mut b, now, late), expected);
    }
}

#[test]
fn versions_0_and_1_understand_each_other() {
    let mut net = Net::new(14, Wire { loss_permille: 20, ..Wire::GOOD }, [0, 1]);
    net.talk(5 * SECOND, 1_100);
    net.run(SECOND);
    for from in 0..2 {
        let (sent, _, came) = net.delivered(from, 0..20);
        assert!(came as f64 >= sent as f64 * 0.998, "{came} of {sent}");
        assert!(net.ends[from].drops.keys().all(|reason| *reason == RelayDrop::Late), "{:?}", net.ends[from].drops);
    }
}

#[test]
fn what_is_too_long_is_refused_and_takes_no_counter() {
    let now = Time::from_millis(1);
    let mut link = open_link(0, 1, now);
    let frame = FrameRef::new(1, 0, 0, 0);
    let mut out = [0; 4_000];
    assert_eq!(link.write_media(now, &frame, &[0; 2_241], &mut out), Err(RelayDrop::TooLarge));
    assert_eq!(link.write_media(now, &frame, &[0; 100], &mut out[..131]), Err(RelayDrop::TooLarge));
    assert!(link.write_media(now, &frame, &[0; 100], &mut out[..132]).is_ok());
    assert_eq!(link.stats().datagrams_out, 1);
}

/// What came of a link whose round trip is 250 ms, where a repair within 150 ms is none.
struct Long {
    /// Shares that came in time.
    audio: f64,
    video: f64,
    /// Parity in the bytes that were sent without it, and the rest that is not RTP.
    parity: f64,
    heads: f64,
}

/// Both ends of `version` talk for a minute, by each of four seeds, after ten seconds in which they learn what is lost.
fn talk_far(wire: Wire, versions: [u8; 2]) -> Long {
    let (mut audio, mut video) = ((0, 0), (0, 0));
    let (mut bytes, mut parity_bytes, mut media_bytes) = (0, 0, 0);
    for seed in 0..4 {
        let mut net = Net::new(seed, Wire { delay: Duration::from_millis(125), ..wire }, versions);
        net.run(SECOND);
        net.talk(10 * SECOND, 1_100);
        net.run(SECOND);
        let figures = |net: &Net, from: usize| (net.delivered(from, 0..3), net.delivered(from, 10..12), net.ends[from].link.stats());
        let before = [0, 1].map(|from| figures(&net, from));
        net.talk(60 * SECOND, 1_100);
        net.run(SECOND);
        for (from, before) in before.iter().enumerate() {
            let after = figures(&net, from);
            audio = (audio.0 + after.0.0 - before.0.0, audio.1 + after.0.1 - before.0.1);
            video = (video.0 + after.1.0 - before.1.0, video.1 + after.1.1 - before.1.1);
            parity_bytes += after.2.parity_bytes_out - before.2.parity_bytes_out;
            bytes += after.2.bytes_out - before.2.bytes_out;
            media_bytes += after.2.media_bytes_out - before.2.media_bytes_out;
            assert_eq!(after.2.repairs_out, 0, "none would be in time");
            assert!(net.ends[from].drops.keys().all(|reason| *reason == RelayDrop::Replayed), "{:?}", net.ends[from].drops);
        }
    }
    let bytes = (bytes - parity_bytes) as f64;
    let share = |(sent, in_time): (usize, usize)| in_time as f64 / sent as f64;
    Long { audio: share(audio), video: share(video), parity: parity_bytes as f64 / bytes, heads: 1.0 - media_bytes as f64 / bytes }
}

#[test]
fn over_a_long_way_parity_brings_back_in_time_what_no_repair_would() {
    println!("rtt 250 ms, playout 150 ms    loss  parity/bytes  not RTP else  audio late or lost  video late or lost");
    for (loss_permille, burst, needed, overhead_max) in
        [(0, 1, [1.0; 2], 0.0), (20, 1, [0.999, 0.997], 0.25), (50, 1, [0.999, 0.996], 0.45), (10, 3, [0.99, 0.98], 0.5)]
    {
        let wire = Wire { loss_permille, burst, ..Wire::GOOD };
        let [with, without] = [[1, 1], [0, 0]].map(|versions| talk_far(wire, versions));
        for (name, Long { audio, video, parity, heads }) in [("with parity", &with), ("without", &without)] {
            println!(
                "{name:<12} bursts of {burst}     {:>5.1} %  {:>10.1} %  {:>10.1} %  {:>16.3} %  {:>16.3} %",
                (loss_permille * burst) as f64 / 10.0,
                parity * 100.0,
                heads * 100.0,
                (1.0 - audio) * 100.0,
                (1.0 - video) * 100.0
            );
        }
        assert!(with.audio >= needed[0] && with.video >= needed[1] && with.parity <= overhead_max);
        assert_eq!(without.parity, 0.0, "a peer of the version before gets none");
        let lost = (loss_permille * burst) as f64 / 1e3;
        assert!((without.audio - (1.0 - lost)).abs() < lost / 3.0 + 1e-9, "{}", without.audio);
    }
}

#[test]
fn parity_over_a_wire_that_reorders_and_doubles_brings_nothing_twice_and_a_peer_of_the_version_before_gets_none() {
    let wire = Wire { loss_permille: 30, ..BAD };
    let Long { audio, video, parity, .. } = talk_far_bad(wire, [1, 1]);
    assert!(audio > 0.995 && video > 0.99 && parity > 0.0, "{audio} {video} {parity}");
    assert_eq!(talk_far_bad(wire, [0, 1]).parity, 0.0);
}

/// [`talk_far`] over a wire of which more than losses is told.
fn talk_far_bad(wire: Wire, versions: [u8; 2]) -> Long {
    let mut net = Net::new(5, Wire { delay: Duration::from_millis(125), ..wire }, versions);
    net.run(SECOND);
    net.talk(10 * SECOND, 1_100);
    net.run(SECOND);
    let before = (net.delivered(0, 0..3), net.delivered(0, 10..12));
    net.talk(30 * SECOND, 1_100);
    net.run(SECOND);
    let (audio, video) = (net.delivered(0, 0..3), net.delivered(0, 10..12));
    let stats = net.ends[0].link.stats();
    Long {
        audio: (audio.1 - before.0.1) as f64 / (audio.0 - before.0.0) as f64,
        video: (video.1 - before.1.1) as f64 / (video.0 - before.1.0) as f64,
        parity: stats.parity_bytes_out as f64 / stats.bytes_out as f64,
        heads: 0.0,
    }
}

#[test]
fn parity_begins_where_a_repair_comes_too_late_and_ends_with_the_loss() {
    let mut net = Net::new(3, Wire { loss_permille: 30, delay: Duration::from_millis(60), ..Wire::GOOD }, [1, 1]);
    net.talk(10 * SECOND, 1_100);
    assert_eq!([0, 1].map(|end| net.ends[end].link.stats().parities_out), [0; 2], "a repair within 130 ms is in time");
    net.wire.delay = Duration::from_millis(125);
    net.talk(20 * SECOND, 1_100);
    let during = [0, 1].map(|end| net.ends[end].link.stats());
    assert!(during.iter().all(|stats| stats.parities_out > 200 && stats.recovered > 80), "{during:?}");
    net.wire.loss_permille = 0;
    net.talk(40 * SECOND, 1_100);
    let before = [0, 1].map(|end| net.ends[end].link.stats().parities_out);
    net.talk(5 * SECOND, 1_100);
    assert_eq!([0, 1].map(|end| net.ends[end].link.stats().parities_out), before, "nothing is lost any more");
    assert_eq!(net.ends[0].link.audio_parity_percent(), 0);
}

#[test]
fn over_a_long_and_narrow_way_long_packets_go_as_halves_and_have_parity_too() {
    let wire = Wire { loss_permille: 30, mtu: 1_200, delay: Duration::from_millis(125), ..Wire::GOOD };
    let mut net = Net::new(4, wire, [1, 1]);
    net.talk(12 * SECOND, 1_155);
    net.run(SECOND);
    let before = net.delivered(0, 10..12);
    net.talk(30 * SECOND, 1_155);
    net.run(SECOND);
    let after = net.delivered(0, 10..12);
    let share = (after.1 - before.1) as f64 / (after.0 - before.0) as f64;
    assert!(share > 0.99, "{share}");
    assert!(net.ends[0].datagrams.iter().filter(|len| **len > 1_200).count() < 100, "nothing but probes of the path is too long");
}
