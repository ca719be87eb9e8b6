//! Transport-wide feedback: what a sender decodes is what arrived, whatever the order, the gaps and the pauses.

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{Rng, run_mutations};
use pop_proto::twcc::{FEEDBACK_LEN_MIN, TwccRecorder};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader};
use pop_schemas::Time;
use rtcp::transport_feedbacks::transport_layer_cc::TransportLayerCc;
use webrtc_util::marshal::Unmarshal;

/// One decoded feedback packet, as a sender sees it.
#[derive(Debug)]
struct Feedback {
    base: u16,
    number: u8,
    /// In 64 ms.
    reference: u32,
    /// Microseconds after the reference time, or lost; one for each sequence number from `base` on.
    arrivals: Vec<Option<i64>>,
}

/// Reads bit by bit what the draft's section 3.1 draws. Shares nothing with the recorder or with `wire::rtcp`.
fn decode(packet: &[u8]) -> Feedback {
    assert_eq!((packet[0], packet[1]), (0x8f, 205));
    assert_eq!(packet.len(), 4 + 4 * usize::from(u16::from_be_bytes([packet[2], packet[3]])), "the length is right");
    let count = usize::from(u16::from_be_bytes([packet[14], packet[15]]));
    let mut symbols = vec![];
    let mut at = 20;
    while symbols.len() < count {
        let bits: Vec<u8> = packet[at..at + 2].iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
        at += 2;
        let number = |bits: &[u8]| bits.iter().fold(0usize, |sum, bit| sum * 2 + usize::from(*bit));
        match (bits[0], bits[1]) {
            (0, _) => {
                let run = number(&bits[3..]);
                assert!(run > 0 && symbols.len() + run <= count, "runs end with the report");
                symbols.extend(std::iter::repeat_n(number(&bits[1..3]), run));
            }
            (1, 0) => symbols.extend(bits[2..].iter().map(|bit| usize::from(*bit))),
            _ => symbols.extend(bits[2..].chunks(2).map(number)),
        }
    }
    assert!(symbols[count..].iter().all(|symbol| *symbol == 0), "a vector's unused symbols are 0");
    symbols.truncate(count);
    let mut time_us = 0;
    let arrivals = symbols
        .iter()
        .map(|symbol| {
            let delta = match symbol {
                0 => return None,
                1 => i64::from(packet[at]),
                2 => i64::from(i16::from_be_bytes([packet[at], packet[at + 1]])),
                _ => panic!("symbol 3 is reserved"),
            };
            at += symbol;
            time_us += 250 * delta;
            Some(time_us)
        })
        .collect();
    assert!(packet.len() - at < 4 && packet[at..].iter().all(|byte| *byte == 0), "only padding is left");
    Feedback {
        base: u16::from_be_bytes([packet[12], packet[13]]),
        number: packet[19],
        reference: u32::from_be_bytes([0, packet[16], packet[17], packet[18]]),
        arrivals,
    }
}

/// Every feedback that is due, each also read by our own reader and by webrtc-rs.
fn drain(recorder: &mut TwccRecorder, now: Time, out: &mut [u8]) -> Vec<Feedback> {
    let mut all = vec![];
    while let Some(len) = recorder.poll_feedback(now, 0x0a, 0x0b, out) {
        assert!(len <= out.len() && len % 4 == 0);
        let packet = &out[..len];
        let feedback = decode(packet);
        let Some(RtcpPacket::TransportCc(ours)) = RtcpReader::new(packet).expect("our reader takes it").next() else { panic!("TWCC") };
        assert_eq!((ours.sender, ours.media, ours.base_sequence), (0x0a, 0x0b, feedback.base));
        assert_eq!((usize::from(ours.status_count), ours.feedback_count), (feedback.arrivals.len(), feedback.number));
        let count = feedback.arrivals.len();
        for (skip, take) in [(0, count), (1, count), (count / 3, count / 2), (count / 2, 1), (count, 9), (0, 0)] {
            let among: Vec<_> = feedback.arrivals.iter().skip(skip).take(take).map(Option::is_some).collect();
            let received = among.iter().filter(|came| **came).count();
            let covered = among.iter().rposition(|came| *came).map_or(0, |last| last + 1);
            assert_eq!(ours.received_among(skip as u16, take as u16), (received as u16, covered as u16), "{take} from {skip} on");
        }
        let theirs = TransportLayerCc::unmarshal(&mut &packet[..]).expect("webrtc-rs reads what we write");
        assert_eq!((theirs.base_sequence_number, theirs.reference_time), (feedback.base, feedback.reference));
        let deltas: Vec<i64> = theirs.recv_deltas.iter().map(|delta| delta.delta).collect();
        let mut previous = 0;
        let expected: Vec<i64> = feedback.arrivals.iter().flatten().map(|time| time - std::mem::replace(&mut previous, *time)).collect();
        assert_eq!(deltas, expected);
        all.push(feedback);
        assert!(all.len() < 1_000, "polling ends");
    }
    all
}

fn ms(millis: u64) -> Time {
    Time::from_millis(millis)
}

#[test]
fn a_steady_stream_is_told_every_50_ms_and_a_thin_one_every_100() {
    for (packet_ms, interval_ms) in [(5, 50), (20, 100)] {
        let mut recorder = TwccRecorder::new();
        assert_eq!(recorder.poll_timeout(), None);
        let mut out = [0; 1_200];
        let mut reports = vec![];
        for at in 0..1_000 {
            if at % packet_ms == 0 {
                recorder.record((at / packet_ms) as u16, ms(at));
            }
            reports.extend(drain(&mut recorder, ms(at), &mut out).iter().map(|_| at));
        }
        let gaps: Vec<u64> = reports.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(!gaps.is_empty() && gaps.iter().all(|gap| (interval_ms..=interval_ms + packet_ms).contains(gap)), "{gaps:?}");
    }
}

#[test]
fn nothing_is_told_before_its_time_nor_into_a_buffer_too_short() {
    let mut recorder = TwccRecorder::new();
    recorder.record(1, ms(10));
    assert_eq!(recorder.poll_timeout(), Some(ms(110)));
    assert_eq!(recorder.poll_feedback(ms(109), 1, 2, &mut [0; 1_200]), None);
    assert_eq!(recorder.poll_feedback(ms(110), 1, 2, &mut [0; FEEDBACK_LEN_MIN - 1]), None);
    assert!(recorder.poll_feedback(ms(110), 1, 2, &mut [0; FEEDBACK_LEN_MIN]).is_some());
    assert_eq!(recorder.poll_timeout(), None, "all is told");
    assert_eq!(recorder.poll_feedback(ms(10_000), 1, 2, &mut [0; 1_200]), None);
}

#[test]
fn losses_are_told_as_losses_and_a_late_packet_corrects_them() {
    let mut recorder = TwccRecorder::new();
    let mut out = [0; 1_200];
    for (sequence, at) in [(65_534, 100), (65_535, 101), (2, 110), (3, 111)] {
        recorder.record(sequence, ms(at));
    }
    let first = &drain(&mut recorder, ms(300), &mut out)[0];
    assert_eq!((first.base, first.number, first.reference), (65_534, 0, 1), "100 ms are one reference unit and a bit");
    let ms_of = |time: i64| (64_000 * i64::from(first.reference) + time) / 1_000;
    let told: Vec<_> = first.arrivals.iter().map(|arrival| arrival.map(ms_of)).collect();
    assert_eq!(told, [Some(100), Some(101), None, None, Some(110), Some(111)]);

    recorder.record(1, ms(310));
    recorder.record(4, ms(312));
    let second = &drain(&mut recorder, ms(500), &mut out)[0];
    assert_eq!((second.base, second.number, second.arrivals.len()), (1, 1, 4), "it begins again at the late one");
    assert!(second.arrivals.iter().all(Option::is_some));
}

#[test]
fn the_next_report_begins_with_what_was_lost_between() {
    let mut recorder = TwccRecorder::new();
    let mut out = [0; 1_200];
    recorder.record(10, ms(0));
    assert_eq!(drain(&mut recorder, ms(100), &mut out).len(), 1);
    recorder.record(13, ms(200));
    let report = &drain(&mut recorder, ms(300), &mut out)[0];
    assert_eq!(report.base, 11);
    assert!(matches!(report.arrivals[..], [None, None, Some(_)]));
}

#[test]
fn duplicates_keep_their_first_arrival() {
    let mut recorder = TwccRecorder::new();
    recorder.record(1, ms(64));
    recorder.record(1, ms(99));
    let reports = drain(&mut recorder, ms(500), &mut [0; 1_200]);
    assert_eq!(reports[0].arrivals, [Some(0)]);
}

#[test]
fn a_pause_longer_than_a_delta_begins_another_report() {
    let mut recorder = TwccRecorder::new();
    recorder.record(1, ms(0));
    recorder.record(2, ms(8_191));
    recorder.record(3, ms(16_384));
    let reports = drain(&mut recorder, ms(20_000), &mut [0; 1_200]);
    let bases: Vec<_> = reports.iter().map(|report| (report.base, report.arrivals.len(), report.number)).collect();
    assert_eq!(bases, [(1, 2, 0), (3, 1, 1)], "8,191 ms fit 16 bits of 250 us, 8,193 ms do not");
}

#[test]
fn a_jump_in_the_numbers_costs_one_ring_and_a_report_every_5_ms() {
    let mut recorder = TwccRecorder::new();
    let mut out = [0; 1_200];
    let mut reports = 0;
    for packet in 0..1_000u64 {
        let now = Time::from_nanos(packet * 100_000);
        recorder.record((packet * 30_000) as u16, now);
        reports += drain(&mut recorder, now, &mut out).len();
    }
    assert!((1..=40).contains(&reports), "100 ms of jumps made {reports} reports");
}

#[test]
fn reports_continue_when_the_24_bits_of_time_wrap() {
    let wrap = Duration::from_millis(64) * (1 << 24);
    let mut recorder = TwccRecorder::new();
    for (sequence, before_us) in [(1u16, 2_000i64), (2, 1_000), (3, 0), (4, -1_000), (5, -70_000)] {
        let start = Time::ZERO + wrap;
        recorder.record(sequence, Time::from_nanos(start.as_nanos().wrapping_add_signed(-before_us * 1_000)));
    }
    let reports = drain(&mut recorder, Time::ZERO + wrap + Duration::from_secs(1), &mut [0; 1_200]);
    assert_eq!((reports.len(), reports[0].reference), (1, 0xff_ffff));
    let first = reports[0].arrivals[0].expect("it came");
    let after_first: Vec<_> = reports[0].arrivals.iter().flatten().map(|time| time - first).collect();
    // Tick 0, the packet at the wrap, is told 250 us late.
    assert_eq!(after_first, [0, 1_000, 2_250, 3_000, 72_000]);
}

/// Random streams: rates, losses, bursts of loss, reordering, duplicates, pauses, small buffers. Each packet that came within the
/// ring's reach is told once at least, at its time; nothing is told that did not come.
#[test]
fn any_pattern_of_arrivals_decodes_to_the_same_arrivals() {
    let seed = 0x7477_6363;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let mut told_total = 0;
    for _ in 0..400 {
        told_total += run_pattern(&mut rng);
    }
    println!("{told_total} arrivals told");
    assert!(told_total > 100_000);
}

fn run_pattern(rng: &mut Rng) -> usize {
    let mut recorder = TwccRecorder::new();
    let mut out = vec![0; FEEDBACK_LEN_MIN + rng.below(1_200)];
    let first = rng.below(65_536) as u64 + (1 << 20);
    let gap_us = [100, 700, 4_000, 20_000][rng.below(4)];
    let (loss, reorder) = ([0, 3, 20, 60][rng.below(4)], [0, 5, 40][rng.below(3)]);
    let mut now_us = rng.below(1 << 40) as u64;
    let mut sent: Vec<(u64, u64)> = vec![];
    let mut next = first;
    for _ in 0..600 {
        now_us += rng.below(2 * gap_us) as u64;
        if rng.one_in(150) {
            now_us += rng.below(20_000_000) as u64;
        }
        if rng.one_in(100) {
            next += rng.below(700) as u64;
        }
        if rng.below(100) >= loss {
            let delay = if rng.below(100) < reorder { rng.below(30_000) as u64 } else { 0 };
            sent.push((next, now_us + delay));
            if rng.one_in(20) {
                sent.push((next, now_us + delay + 500));
            }
        }
        next += 1;
    }
    sent.sort_by_key(|(_, arrival)| *arrival);

    let mut came: BTreeMap<u64, u64> = BTreeMap::new();
    let mut truth: BTreeMap<u64, u64> = BTreeMap::new();
    let mut told: BTreeMap<u64, i64> = BTreeMap::new();
    let mut number = 0u8;
    let mut newest = 0;
    let mut overwritten = 0;
    let mut take = |told: &mut BTreeMap<u64, i64>, reports: Vec<Feedback>, newest: u64, now_us: u64| {
        for report in reports {
            assert_eq!(report.number, number, "feedback is numbered without a gap");
            number = number.wrapping_add(1);
            assert!(report.arrivals.last().is_some_and(Option::is_some), "a report ends with a packet that came");
            let base = newest - u64::from((newest as u16).wrapping_sub(report.base));
            for (sequence, arrival) in (base..).zip(&report.arrivals) {
                let Some(after_reference) = arrival else { continue };
                // The 24 bits come round every 12 days: the one nearest to now is meant.
                let cycle = 64_000 << 24;
                let time = i64::from(report.reference) * 64_000 + after_reference;
                let cycles = (now_us as i64 - time + cycle / 2).div_euclid(cycle);
                told.insert(sequence, time + cycles * cycle);
            }
        }
    };
    let mut end_us = 0;
    for (sequence, arrival_us) in sent {
        while let Some(due) = recorder.poll_timeout().filter(|due| due.as_micros() <= arrival_us) {
            take(&mut told, drain(&mut recorder, due, &mut out), newest, due.as_micros());
            assert!(recorder.poll_timeout() > Some(due) || recorder.poll_timeout().is_none(), "what is due is told");
        }
        if sequence + 1_024 > newest {
            came.entry(sequence).or_insert(arrival_us);
            truth.entry(sequence).or_insert(arrival_us);
        }
        newest = newest.max(sequence);
        // What a jump pushes out of the ring before its report was due is lost to feedback, by design.
        let untold: Vec<u64> = came.range(..(newest + 1).saturating_sub(1_024)).map(|(sequence, _)| *sequence).collect();
        for sequence in untold {
            overwritten += usize::from(!told.contains_key(&sequence));
            came.remove(&sequence);
        }
        recorder.record(sequence as u16, Time::from_nanos(arrival_us * 1_000));
        end_us = arrival_us + 1_000_000;
    }
    take(&mut told, drain(&mut recorder, Time::from_nanos(end_us * 1_000), &mut out), newest, end_us);

    for (sequence, time) in &told {
        let arrival_us = *truth.get(sequence).unwrap_or_else(|| panic!("{sequence} was told and never came"));
        assert!((arrival_us as i64 - time).abs() <= 250, "{sequence}: came at {arrival_us}, told {time}");
    }
    for sequence in came.keys() {
        assert!(told.contains_key(sequence), "{sequence} came and was never told");
    }
    assert!(overwritten <= truth.len() / 2, "{overwritten} of {}", truth.len());
    told.len()
}

/// The recorder's state under a hostile publisher: the input is a script of numbers and pauses, and the recorder lives on from
/// input to input.
#[test]
fn mutated_scripts_never_break_the_recorder() {
    let mut rng = Rng::new(1);
    let seeds: Vec<Vec<u8>> = (0..16)
        .map(|start: u16| {
            (0..12u16).flat_map(|step| [((start << 12) + step).to_be_bytes().to_vec(), vec![rng.next_u64() as u8]].concat()).collect()
        })
        .collect();
    let mut recorder = TwccRecorder::new();
    let mut now = Time::ZERO;
    let mut out = [0; 1_200];
    run_mutations("twcc", &seeds, |_, input| {
        let mut told = 0;
        for step in input.chunks_exact(3) {
            // Up to 65 ms each, and now and then 16 s.
            now = now + Duration::from_micros(if step[2] == 255 { 16_000_000 } else { u64::from(step[2]) * u64::from(step[2]) });
            recorder.record(u16::from_be_bytes([step[0], step[1]]), now);
            while let Some(len) = recorder.poll_feedback(now, 1, 2, &mut out) {
                told += 1;
                assert!(RtcpReader::new(&out[..len]).is_ok(), "{:02x?}", &out[..len]);
            }
            assert!(recorder.poll_timeout().is_none_or(|due| due > now));
        }
        told > 0
    });
}
