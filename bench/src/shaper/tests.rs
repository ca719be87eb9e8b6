use super::packet::tests::udp_packet;
use super::*;
use std::time::Duration;

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 0, 2];
const C: [u8; 4] = [10, 0, 0, 3];

fn network(count: usize, seed: u64, commands: &[&str]) -> Shaper {
    let places = [("a", A), ("b", B), ("c", C)];
    let ends = places[..count].iter().map(|(name, ip)| End { name: (*name).to_owned(), addresses: vec![IpAddr::from(*ip)] });
    let mut shaper = Shaper::new(ends.collect(), seed).expect("good ends");
    for command in commands {
        shaper.command(command).unwrap_or_else(|sentence| panic!("{command}: {sentence}"));
    }
    shaper
}

/// `count` numbered packets of 100 bytes from a to b, one each `gap_us`: arrivals as (number, microseconds).
fn send(shaper: &mut Shaper, count: u32, gap_us: u64) -> Vec<(u32, u64)> {
    let mut seen = Vec::new();
    for number in 0..count {
        let now = Time::from_nanos(u64::from(number) * gap_us * 1_000);
        collect(shaper, now, &mut seen);
        let mut payload = [0; 72];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        shaper.handle_packet(now, 0, &udp_packet(A, B, &payload));
    }
    collect(shaper, Time::from_nanos(u64::MAX), &mut seen);
    assert_eq!(shaper.held(), 0);
    seen
}

fn collect(shaper: &mut Shaper, now: Time, seen: &mut Vec<(u32, u64)>) {
    while let Some(delivery) = shaper.poll(now) {
        assert_eq!(delivery.to, 1);
        let number = delivery.packet[28..32].first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).expect("32 bytes");
        seen.push((number, delivery.due.as_micros()));
    }
}

fn stats(shaper: &Shaper) -> WireStats {
    shaper.stats().find(|(from, to, _)| (*from, *to) == ("a", "b")).expect("it was used").2
}

fn losses(seen: &[(u32, u64)], count: u32) -> Vec<u32> {
    (0..count).filter(|number| !seen.iter().any(|(seen, _)| seen == number)).collect()
}

#[test]
fn a_perfect_wire_delivers_at_once_and_a_delay_is_exact() {
    let mut shaper = network(2, 1, &[]);
    assert_eq!(send(&mut shaper, 3, 10), [(0, 0), (1, 10), (2, 20)]);
    let mut shaper = network(2, 1, &["a>b delay 100ms"]);
    assert_eq!(send(&mut shaper, 3, 10), [(0, 100_000), (1, 100_010), (2, 100_020)]);
}

#[test]
fn a_direction_has_settings_of_its_own() {
    let mut shaper = network(2, 1, &["a-b delay 5ms", "b>a delay 7ms"]);
    shaper.handle_packet(Time::ZERO, 0, &udp_packet(A, B, b"there"));
    shaper.handle_packet(Time::ZERO, 1, &udp_packet(B, A, b"back"));
    assert_eq!(shaper.next_due(), Some(Time::from_millis(5)));
    assert!(shaper.poll(Time::from_nanos(4_999_999)).is_none());
    assert_eq!(shaper.poll(Time::from_millis(5)).map(|delivery| delivery.to), Some(1));
    assert_eq!(shaper.poll(Time::from_millis(7)).map(|delivery| delivery.to), Some(0));
}

#[test]
fn packets_go_to_the_end_that_has_their_address() {
    let mut shaper = network(3, 1, &["* delay 1ms"]);
    shaper.handle_packet(Time::ZERO, 0, &udp_packet(A, C, b"x"));
    assert_eq!(shaper.poll(Time::from_millis(1)).map(|delivery| delivery.to), Some(2));
    for stranger in [[10, 0, 0, 9], [224, 0, 0, 251], A] {
        shaper.handle_packet(Time::ZERO, 0, &udp_packet(A, stranger, b"x"));
    }
    shaper.handle_packet(Time::ZERO, 0, b"no packet");
    assert_eq!((shaper.held(), shaper.unrouted()), (0, 4));
    // Between two ends there is only one place to go.
    let mut cable = network(2, 1, &[]);
    cable.handle_packet(Time::ZERO, 1, &udp_packet(B, [192, 0, 2, 1], b"x"));
    assert_eq!(cable.poll(Time::ZERO).map(|delivery| delivery.to), Some(0));
}

#[test]
fn the_seed_decides_everything_and_jitter_does_not_change_what_is_lost() {
    let words = "a-b loss 10% jitter 1ms delay 5ms duplicate 5% reorder 5% 3ms";
    let once = send(&mut network(2, 7, &[words]), 500, 100);
    assert_eq!(once, send(&mut network(2, 7, &[words]), 500, 100));
    assert_ne!(once, send(&mut network(2, 8, &[words]), 500, 100));
    let calm = send(&mut network(2, 7, &["a-b loss 10%"]), 500, 100);
    assert_eq!(losses(&calm, 500), losses(&once, 500));
    // Two directions share no sequence.
    let mut both = network(2, 7, &["a-b loss 50%"]);
    let mut lost = |wire: usize| -> Vec<bool> { (0..64).map(|_| both.wires[wire].carry(Time::ZERO, 100).iter().count() == 0).collect() };
    assert_ne!(lost(1), lost(2));
}

#[test]
fn random_loss_has_the_share_that_was_asked_for() {
    let mut shaper = network(2, 3, &["a>b loss 5%"]);
    let seen = send(&mut shaper, 20_000, 10);
    let lost = losses(&seen, 20_000).len();
    // Six standard deviations of the binomial are 185.
    assert!((815..=1_185).contains(&lost), "{lost} of 20,000");
    assert_eq!(stats(&shaper).lost as usize, lost);
}

#[test]
fn gilbert_loss_comes_in_bursts_of_the_mean_length() {
    // Share 1 % / (1 % + 25 %) = 3.85 %, bursts of 4.
    let mut shaper = network(2, 3, &["a>b loss gilbert 1% 25%"]);
    let lost = losses(&send(&mut shaper, 40_000, 10), 40_000);
    let bursts = 1 + lost.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    let (share, len) = (lost.len() as f64 / 40_000.0, lost.len() as f64 / bursts as f64);
    assert!((0.03..0.047).contains(&share), "{share}");
    assert!((3.4..4.6).contains(&len), "{len}");
}

#[test]
fn jitter_keeps_the_order_and_its_spread() {
    for (words, least, most) in [("uniform", 9_000, 11_000), ("normal", 6_000, 14_000), ("pareto", 10_000, 30_000)] {
        let mut shaper = network(2, 5, &[&format!("a>b delay 10ms jitter 1ms {words}")]);
        // Far enough apart that none waits for another.
        let seen = send(&mut shaper, 4_000, 100_000);
        let delays: Vec<u64> = seen.iter().map(|(number, at)| at - u64::from(*number) * 100_000).collect();
        assert!(delays.iter().all(|delay| (least..=most).contains(delay)), "{words}");
        let mean = delays.iter().sum::<u64>() as f64 / 4_000.0;
        let expected = if words == "pareto" { 11_000.0 } else { 10_000.0 };
        assert!((mean - expected).abs() < 150.0, "{words}: {mean}");
        // Close together, the order stays.
        let seen = send(&mut shaper, 1_000, 10);
        assert!(seen.is_sorted(), "{words}");
    }
}

#[test]
fn a_reordered_packet_is_late_alone() {
    let mut shaper = network(2, 2, &["a>b delay 10ms reorder 10% 5ms"]);
    let seen = send(&mut shaper, 1_000, 1_000);
    let late = seen.iter().filter(|(number, at)| *at == u64::from(*number) * 1_000 + 15_000).count();
    let in_time = seen.iter().filter(|(number, at)| *at == u64::from(*number) * 1_000 + 10_000).count();
    assert_eq!((late + in_time, late as u64), (1_000, stats(&shaper).reordered));
    assert!((50..150).contains(&late), "{late}");
}

#[test]
fn duplicates_arrive_twice_and_corruption_flips_one_bit() {
    let mut shaper = network(2, 2, &["a>b duplicate 100%"]);
    assert_eq!(send(&mut shaper, 2, 10), [(0, 0), (0, 0), (1, 10), (1, 10)]);
    assert_eq!((stats(&shaper).duplicated, stats(&shaper).delivered), (2, 4));
    let mut shaper = network(2, 2, &["a>b corrupt 100%"]);
    let packet = udp_packet(A, B, b"payload");
    shaper.handle_packet(Time::ZERO, 0, &packet);
    let hurt = shaper.poll(Time::ZERO).expect("it is due").packet;
    assert_eq!(hurt[28..].iter().zip(&packet[28..]).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>(), 1);
}

#[test]
fn a_rate_spaces_packets_and_a_full_queue_drops() {
    // 100 bytes at 800 kbit/s are 1 ms.
    let mut shaper = network(2, 2, &["a>b rate 800k queue 3 delay 1ms"]);
    assert_eq!(send(&mut shaper, 5, 0), [(0, 2_000), (1, 3_000), (2, 4_000)]);
    assert_eq!(stats(&shaper).queue_full, 2);
    // What the rate can carry, passes without a queue.
    let mut shaper = network(2, 2, &["a>b rate 800k queue 1"]);
    assert_eq!(send(&mut shaper, 50, 1_000).len(), 50);
}

#[test]
fn a_black_hole_and_a_cut_wire_take_packets_in_silence() {
    let mut shaper = network(2, 2, &["a>b mtu 99"]);
    assert!(send(&mut shaper, 2, 10).is_empty());
    assert_eq!(stats(&shaper).too_long, 2);
    shaper.command("a-b mtu none down").expect("a command");
    assert!(send(&mut shaper, 2, 10).is_empty());
    assert_eq!(stats(&shaper).lost, 2);
    shaper.command("a-b up").expect("a command");
    assert_eq!(send(&mut shaper, 2, 10).len(), 2);
}

#[test]
fn a_change_at_run_time_keeps_the_order_and_the_rest() {
    let mut shaper = network(2, 2, &["a>b delay 50ms mtu 1000"]);
    shaper.handle_packet(Time::ZERO, 0, &udp_packet(A, B, b"slow"));
    shaper.command("a>b delay 1ms").expect("a command");
    shaper.handle_packet(Time::ZERO, 0, &udp_packet(A, B, b"fast"));
    let order: Vec<Vec<u8>> =
        std::iter::from_fn(|| shaper.poll(Time::from_millis(50)).map(|delivery| delivery.packet[28..].to_vec())).collect();
    assert_eq!(order, [b"slow", b"fast"]);
    assert_eq!(shaper.wires[1].settings.packet_len_max, Some(1_000));
    shaper.command("* clear").expect("a command");
    assert_eq!(shaper.wires[1].settings, Settings::default());
}

#[test]
fn memory_is_bounded_and_used_again() {
    let mut shaper = network(2, 2, &["a>b delay 1s"]);
    let packet = udp_packet(A, B, b"x");
    for _ in 0..PACKETS_MAX + 10 {
        shaper.handle_packet(Time::ZERO, 0, &packet);
    }
    assert_eq!((shaper.held(), stats(&shaper).no_room), (PACKETS_MAX, 10));
    while shaper.poll(Time::from_millis(1_000)).is_some() {}
    for _ in 0..10 {
        shaper.handle_packet(Time::from_millis(1_000), 0, &packet);
    }
    assert_eq!(shaper.slots.len(), PACKETS_MAX);
}

#[test]
fn commands_say_what_is_wrong_and_change_nothing() {
    let mut shaper = network(3, 2, &["a-b delay 5ms"]);
    for (line, word) in [
        ("", "which wires"),
        ("a-b", "which wires"),
        ("ab delay 1ms", "no pair"),
        ("a-x delay 1ms", "\"x\""),
        ("a-a delay 1ms", "same"),
        ("a-b delay", "lacks a value"),
        ("a-b delay 5", "\"5\""),
        ("a-b delay -5ms", "\"-5ms\""),
        ("a-b delay infs", "\"infs\""),
        ("a-b delay 61s", "\"61s\""),
        ("a-b loss 101%", "\"101%\""),
        ("a-b loss gilbert 1%", "lacks a value"),
        ("a-b rate 10", "\"10\""),
        ("a-b queue 0", "\"0\""),
        ("a-b delay 9ms speed 1", "\"speed\""),
    ] {
        let sentence = shaper.command(line).expect_err(line);
        assert!(sentence.contains(word), "{line}: {sentence}");
    }
    assert_eq!(shaper.wires[1].settings.delay, Duration::from_millis(5));
    shaper.command("a>* loss 1%").expect("a command");
    let losses: Vec<bool> = shaper.wires.iter().map(|wire| wire.settings.loss != Loss::None).collect();
    assert_eq!(losses, [false, true, true, false, false, false, false, false, false]);
}

#[test]
fn ends_that_cannot_be_told_apart_are_refused() {
    let end = |name: &str, ip| End { name: name.to_owned(), addresses: vec![IpAddr::from(ip)] };
    for (ends, word) in [
        (vec![end("a", A)], "two ends"),
        (vec![end("a", A), end("a", B)], "called a"),
        (vec![end("a", A), end("b", A)], "10.0.0.1"),
        (vec![end("a-b", A), end("b", B)], "letters"),
    ] {
        let sentence = Shaper::new(ends, 1).expect_err(word);
        assert!(sentence.contains(word), "{sentence}");
    }
}
