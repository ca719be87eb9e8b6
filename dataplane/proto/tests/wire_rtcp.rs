//! RTCP: what is read, what is written (held against webrtc-rs's parser), and what hostile counts do.

mod common;

use common::{Rng, captured, run_mutations};
use pop_proto::DropReason;
use pop_proto::wire::rtcp::{FirEntry, ReportBlock, RtcpPacket, RtcpReader, RtcpWriter, SenderInfo};
use rtcp::{
    goodbye::Goodbye,
    payload_feedbacks::picture_loss_indication::PictureLossIndication,
    receiver_report::ReceiverReport,
    sender_report::SenderReport,
    source_description::{SdesType, SourceDescription},
    transport_feedbacks::transport_layer_nack::TransportLayerNack,
};

const INFO: SenderInfo = SenderInfo { ssrc: 0x1111_1111, ntp: 0xe6b2_a5c1_8000_0000, rtp_timestamp: 90_000, packets: 100, octets: 123_456 };

fn block(ssrc: u32) -> ReportBlock {
    ReportBlock {
        ssrc,
        fraction_lost: 12,
        cumulative_lost: -3,
        highest_sequence: 0x1_ffff,
        jitter: 16,
        last_sr: 0xa5c1_8000,
        delay_since_last_sr: 0x1_0000,
    }
}

fn read(bytes: &[u8]) -> Vec<RtcpPacket<'_>> {
    RtcpReader::new(bytes).unwrap_or_else(|_| panic!("{bytes:02x?} is well formed")).collect()
}

fn assert_malformed(bytes: &[u8]) {
    assert_eq!(RtcpReader::new(bytes).err(), Some(DropReason::RtcpMalformed), "{bytes:02x?}");
}

#[test]
fn compounds_of_browsers_are_read() {
    let compounds = captured("rtcp", "browser");
    let [RtcpPacket::SenderReport { info, blocks }, RtcpPacket::Sdes] = read(&compounds[0])[..] else { panic!("SR, SDES") };
    assert_eq!(info, INFO);
    let expected = ReportBlock { cumulative_lost: 3, ..block(0x2222_2222) };
    assert_eq!(blocks.iter().collect::<Vec<_>>(), [expected]);

    let [RtcpPacket::ReceiverReport { ssrc: 0x1111_1111, blocks }] = read(&compounds[1])[..] else { panic!("RR") };
    let blocks: Vec<_> = blocks.iter().collect();
    assert_eq!((blocks[0].cumulative_lost, blocks[1].cumulative_lost), (-1, 0x7f_ffff));
    assert_eq!((blocks[1].fraction_lost, blocks[1].highest_sequence, blocks[1].jitter), (255, 0xffff, 255));

    let [RtcpPacket::ReceiverReport { .. }, RtcpPacket::Nack { sender: 0x1111_1111, media: 0x2222_2222, sequences }] =
        read(&compounds[2])[..]
    else {
        panic!("RR, NACK")
    };
    assert_eq!(sequences.iter().collect::<Vec<_>>(), [0x0fff, 0x1000, 0x100f, 0xffff, 0, 1]);

    assert!(matches!(read(&compounds[3])[..], [RtcpPacket::Pli { sender: 0x1111_1111, media: 0x2222_2222 }]));
    let [RtcpPacket::Fir { sender: 0x1111_1111, entries }] = read(&compounds[4])[..] else { panic!("FIR") };
    let expected = [FirEntry { ssrc: 0x2222_2222, sequence: 1 }, FirEntry { ssrc: 0x3333_3333, sequence: 2 }];
    assert_eq!(entries.iter().collect::<Vec<_>>(), expected);

    let [RtcpPacket::Remb { sender: 0x1111_1111, bitrate, sources }] = read(&compounds[5])[..] else { panic!("REMB") };
    assert_eq!((bitrate, sources.iter().collect::<Vec<_>>()), (2_500_000, vec![0x2222_2222, 0x3333_3333]));

    let [RtcpPacket::Bye { sources }] = read(&compounds[6])[..] else { panic!("BYE") };
    assert_eq!(sources.iter().collect::<Vec<_>>(), [0x1111_1111]);
    assert!(matches!(read(&compounds[7])[..], [RtcpPacket::Bye { .. }]));
    assert!(matches!(read(&compounds[8])[..], [RtcpPacket::Unknown { packet_type: 207, format: 0 }]));
    assert!(matches!(read(&compounds[9])[..], [RtcpPacket::Unknown { packet_type: 204, format: 0 }]));

    for compound in captured("rtcp", "ffmpeg") {
        assert!(matches!(read(&compound)[..], [RtcpPacket::SenderReport { .. }]));
    }
}

#[test]
fn transport_feedback_is_split_into_chunks_and_deltas() {
    let compounds = captured("rtcp", "browser");
    let feedback = |compound: &[u8]| match read(compound)[0] {
        RtcpPacket::TransportCc(feedback) => {
            (feedback.base_sequence, feedback.status_count, feedback.chunks.len(), feedback.deltas.to_vec())
        }
        ref other => panic!("{other:?}"),
    };
    assert_eq!(feedback(&compounds[10]), (153, 1, 1, vec![0x94]));
    assert_eq!(feedback(&compounds[11]), (372, 6, 2, vec![0x1f, 0xfe, 0x1f, 0x9a, 0xd0, 0, 0xd0, 0]));
    let [RtcpPacket::TransportCc(padded), RtcpPacket::Pli { .. }] = read(&compounds[12])[..] else { panic!("TWCC, PLI") };
    assert_eq!((padded.reference_time, padded.feedback_count), (0x3d_e802, 23));
}

/// Row 7 of the attack table, and every other count that can lie.
#[test]
fn counts_that_do_not_fit_are_malformed() {
    let compounds = captured("rtcp", "browser");
    for compound in &compounds {
        for len in 0..4 {
            assert_malformed(&compound[..len]);
        }
        // A cut at a packet's end leaves a shorter compound; every other cut is an overrun.
        let ends: Vec<_> = packet_ends(compound);
        for len in (4..compound.len()).filter(|len| !ends.contains(len)) {
            assert_malformed(&compound[..len]);
        }
    }
    let changed = |index: usize, at: usize, value: u8| {
        let mut compound = compounds[index].clone();
        compound[at] = value;
        compound
    };
    assert_malformed(&changed(0, 0, 0x82)); // More report blocks than there are.
    assert_malformed(&changed(0, 0, 0x41)); // Version 1.
    assert_malformed(&changed(5, 16, 3)); // REMB counts three sources and has two.
    assert_malformed(&changed(5, 16, 1));
    assert_malformed(&changed(5, 16, 255));
    assert_malformed(&changed(5, 17, 0xff)); // REMB exponent that shifts the mantissa out.
    assert_malformed(&changed(6, 0, 0x9f)); // BYE of 31 sources.
    assert_malformed(&changed(6, 8, 9)); // BYE reason past its packet.
    assert_malformed(&changed(10, 15, 0)); // Feedback for no packet.
    assert_malformed(&changed(10, 15, 9)); // Feedback that needs chunks it does not have.
    for reserved in [0x60, 0xf0] {
        // Symbol 3 in a run and in a vector, with more bytes behind it than any delta needs.
        let mut feedback = vec![0x8f, 205, 0, 6, 0, 0, 0, 1, 0, 0, 0, 2, 0, 9, 0, 1, 0, 0, 0, 0, reserved, 1, 0, 0, 0, 0, 0, 0];
        assert_malformed(&feedback);
        feedback[20] ^= 0x40;
        assert_eq!(read(&feedback).len(), 1, "symbol 1 is fine");
    }
    assert_malformed(&changed(11, 21, 6)); // A run whose deltas are not there.
    assert_malformed(&changed(10, 23, 0)); // Padding of nothing.
    assert_malformed(&changed(10, 23, 21)); // Padding longer than the body.
    assert_malformed(&[0x81, 205, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]); // NACK for nothing.
    assert_malformed(&[0x84, 206, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]); // Half a FIR entry.
    assert_malformed(&[0x81, 206, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]); // PLI with a parameter.
}

fn packet_ends(compound: &[u8]) -> Vec<usize> {
    let mut ends = vec![];
    let mut at = 0;
    while at < compound.len() {
        at += 4 + 4 * usize::from(u16::from_be_bytes([compound[at + 2], compound[at + 3]]));
        ends.push(at);
    }
    ends
}

/// Everything behind the first packet of `bytes`, and the first as webrtc-rs reads it.
fn oracle<P: webrtc_util::marshal::Unmarshal>(bytes: &mut &[u8]) -> P {
    let end = packet_ends(bytes)[0];
    let (mut first, rest) = bytes.split_at(end);
    *bytes = rest;
    P::unmarshal(&mut first).expect("webrtc-rs reads what we write")
}

#[test]
fn written_compounds_are_read_by_another_implementation() {
    let mut out = [0; 1_200];
    let mut compound = RtcpWriter::new(&mut out);
    let missing = [5, 6, 22, 23, 65_535, 65_535, 0, 15];
    let fits = (|| {
        compound.sender_report(&INFO, &[block(7), block(8)])?.sdes_cname(INFO.ssrc, "pop@node")?.receiver_report(1, &[block(9)])?;
        compound.nack(1, 2, missing)?.pli(1, 2)?.bye(&[1, 2])?;
        Some(compound.len())
    })();
    let len = fits.expect("1,200 bytes are enough");
    let mut rest = &out[..len];

    let report: SenderReport = oracle(&mut rest);
    assert_eq!((report.ssrc, report.ntp_time, report.rtp_time), (INFO.ssrc, INFO.ntp, INFO.rtp_timestamp));
    assert_eq!((report.packet_count, report.octet_count), (INFO.packets, INFO.octets));
    let first = &report.reports[0];
    assert_eq!((first.ssrc, first.fraction_lost, first.total_lost), (7, 12, 0xff_fffd));
    assert_eq!((first.last_sequence_number, first.jitter, first.last_sender_report, first.delay), (0x1_ffff, 16, 0xa5c1_8000, 0x1_0000));
    assert_eq!(report.reports[1].ssrc, 8);

    let description: SourceDescription = oracle(&mut rest);
    let item = &description.chunks[0].items[0];
    assert_eq!((description.chunks[0].source, item.sdes_type, &item.text[..]), (INFO.ssrc, SdesType::SdesCname, &b"pop@node"[..]));

    let report: ReceiverReport = oracle(&mut rest);
    assert_eq!((report.ssrc, report.reports[0].ssrc), (1, 9));

    let nack: TransportLayerNack = oracle(&mut rest);
    let asked: Vec<u16> = nack.nacks.iter().flat_map(|pair| pair.packet_list()).collect();
    assert_eq!((nack.sender_ssrc, nack.media_ssrc, nack.nacks.len()), (1, 2, 3), "22 is 17 after 5; 0 and 15 are near 65,535");
    assert_eq!(asked, [5, 6, 22, 23, 65_535, 0, 15]);

    let pli: PictureLossIndication = oracle(&mut rest);
    assert_eq!((pli.sender_ssrc, pli.media_ssrc), (1, 2));
    let bye: Goodbye = oracle(&mut rest);
    assert_eq!(bye.sources, [1, 2]);
    assert!(rest.is_empty());
    assert_eq!(read(&out[..len]).len(), 6, "and by our own reader");
}

#[test]
fn cnames_of_every_length_end_with_a_null() {
    for len in 0..=255 {
        let mut out = [0xff; 300];
        let cname = "x".repeat(len);
        let written = RtcpWriter::new(&mut out).sdes_cname(1, &cname).expect("it fits").len();
        assert_eq!(out[10 + len], 0, "{len}");
        let description: SourceDescription = oracle(&mut &out[..written]);
        assert_eq!(description.chunks[0].items[0].text, cname);
    }
    assert!(RtcpWriter::new(&mut [0; 400]).sdes_cname(1, &"x".repeat(256)).is_none());
}

#[test]
fn what_does_not_fit_leaves_the_compound_as_it_was() {
    for room in 0..28 {
        let mut out = vec![0; 8 + room];
        let mut compound = RtcpWriter::new(&mut out);
        assert!(compound.receiver_report(1, &[]).is_some());
        assert!(compound.sender_report(&INFO, &[]).is_none(), "{room} bytes");
        assert_eq!(compound.len(), 8);
        assert_eq!(read(&out[..8]).len(), 1);
    }
}

#[test]
fn the_32nd_report_block_goes_into_another_report() {
    let blocks: Vec<_> = (0..70).map(block).collect();
    let mut out = [0; 2_000];
    let len = RtcpWriter::new(&mut out).sender_report(&INFO, &blocks).expect("it fits").len();
    let read_back: Vec<_> = read(&out[..len])
        .into_iter()
        .flat_map(|packet| match packet {
            RtcpPacket::SenderReport { blocks, .. } | RtcpPacket::ReceiverReport { blocks, .. } => blocks.iter().collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(read_back, blocks);
    assert!(RtcpWriter::new(&mut out[..len - 1]).sender_report(&INFO, &blocks).is_none());
}

#[test]
fn losses_beyond_24_bits_are_clamped() {
    let mut out = [0; 64];
    let far = ReportBlock { cumulative_lost: i32::MAX, ..block(1) };
    let len = RtcpWriter::new(&mut out).receiver_report(1, &[far]).expect("it fits").len();
    let [RtcpPacket::ReceiverReport { blocks, .. }] = read(&out[..len])[..] else { panic!("RR") };
    assert_eq!(blocks.iter().next().map(|block| block.cumulative_lost), Some(0x7f_ffff));
}

#[test]
fn any_sorted_list_survives_nack_packing() {
    let seed = 0x6e61_636b;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..10_000 {
        let mut sequence = rng.next_u64() as u16;
        let list: Vec<u16> = (0..1 + rng.below(60))
            .map(|_| {
                let gap_max = if rng.one_in(4) { 100 } else { 3 };
                sequence = sequence.wrapping_add(1 + rng.below(gap_max) as u16);
                sequence
            })
            .collect();
        let mut out = [0; 1_200];
        let len = RtcpWriter::new(&mut out).nack(1, 2, list.iter().copied()).expect("60 pairs fit").len();
        let [RtcpPacket::Nack { sequences, .. }] = read(&out[..len])[..] else { panic!("NACK") };
        assert_eq!(sequences.iter().collect::<Vec<_>>(), list);
    }
    assert!(RtcpWriter::new(&mut []).nack(1, 2, []).is_some_and(|compound| compound.is_empty()), "nothing is missing");
}

/// The first check of the reader: version, and a length inside the datagram.
fn first_header_fits(input: &[u8]) -> bool {
    matches!(input, [first, _, l0, l1, body @ ..] if first >> 6 == 2 && 4 * usize::from(u16::from_be_bytes([*l0, *l1])) <= body.len())
}

#[test]
fn mutated_compounds_never_panic_and_lists_stay_bounded() {
    let seeds: Vec<_> = ["browser", "ffmpeg"].iter().flat_map(|file| captured("rtcp", file)).collect();
    run_mutations("rtcp", &seeds, |_, input| {
        let Ok(reader) = RtcpReader::new(input) else { return first_header_fits(input) };
        let mut packets = 0;
        for packet in reader {
            packets += 1;
            let items = match packet {
                RtcpPacket::SenderReport { blocks, .. } | RtcpPacket::ReceiverReport { blocks, .. } => blocks.iter().count(),
                RtcpPacket::Bye { sources } | RtcpPacket::Remb { sources, .. } => sources.iter().count(),
                RtcpPacket::Nack { sequences, .. } => sequences.iter().count() / 17,
                RtcpPacket::Fir { entries, .. } => entries.iter().count(),
                RtcpPacket::TransportCc(feedback) => feedback.chunks.len() + feedback.deltas.len() / 4,
                RtcpPacket::Sdes | RtcpPacket::Pli { .. } | RtcpPacket::Unknown { .. } => 0,
            };
            assert!(items <= input.len() / 4);
        }
        assert!((1..=input.len() / 4).contains(&packets), "the reader ends where its check ended");
        true
    });
}
