//! What passes to viewers, against hostile publishers: retransmissions, redundant audio, extensions, picture numbers.

mod common;

use common::{Rng, captured, run_mutations};
use pop_proto::control::{Codec, Extension, ExtensionIds};
use pop_proto::header::{CopiedElements, HEADER_LEN_MAX, HeaderLayout, Stamp};
use pop_proto::picture::{PicturePlaces, PictureShift};
use pop_proto::wire::rtcp::{RtcpPacket, RtcpReader};
use pop_proto::wire::{red, rtp, rtx};

#[test]
fn mutated_redundant_audio_yields_a_suffix_or_nothing() {
    let seeds = [
        vec![111, 1, 2, 3, 4, 5, 6, 7],
        [&[0x80 | 111, 0x0f, 0x00, 20, 111][..], &[7; 60]].concat(),
        [&[0x80 | 111, 0x1e, 0x00, 20, 0x80 | 111, 0x0f, 0x00, 30, 111][..], &[7; 90]].concat(),
        [&[0x80 | 111, 0x0f, 0x02, 1, 111][..], &[7; 700]].concat(),
    ];
    run_mutations("red", &seeds, |_, input| match red::primary(input) {
        Ok(primary) => {
            assert!(primary.len() < input.len() && input.ends_with(primary));
            true
        }
        Err(_) => false,
    });
}

#[test]
fn a_mutated_retransmission_becomes_a_packet_that_reads_as_it_was_restored() {
    let mut seeds = captured("rtp", "extensions");
    seeds.extend(captured("codec", "vp8").into_iter().take(4).map(|mut packet| {
        packet.truncate(48);
        packet
    }));
    run_mutations("rtx", &seeds, |_, input| {
        let Ok(view) = rtp::RtpView::parse(input) else { return false };
        let (header_len, marker, timestamp) = (view.header_len(), view.marker(), view.timestamp());
        let elements: Vec<(u8, Vec<u8>)> = view.extensions().map(|(id, value)| (id, value.to_vec())).collect();
        let mut plain = input.to_vec();
        if let Ok(Some((sequence, original))) = rtx::restore(&mut plain, header_len, 0x0102_0304, 96) {
            assert_eq!(sequence.to_be_bytes(), input[header_len..header_len + 2]);
            let view = rtp::RtpView::parse(original).expect("a header that was well formed still is");
            assert_eq!((view.header_len(), view.marker(), view.timestamp()), (header_len, marker, timestamp));
            assert_eq!((view.ssrc(), view.payload_type(), view.sequence()), (0x0102_0304, 96, sequence));
            assert!(view.extensions().eq(elements.iter().map(|(id, value)| (*id, &value[..]))));
            assert_eq!(original[header_len..], input[header_len + 2..]);
        }
        true
    });
}

/// Ids 1 to 9 for a publisher; any ids for a viewer.
fn layout(rng: &mut Rng) -> HeaderLayout {
    let limit = [14, 15, 255][rng.below(3)];
    let ids = Extension::ALL.into_iter().fold(ExtensionIds::NONE, |ids, extension| match rng.below(3) {
        0 => ids,
        _ => ids.with(extension, 1 + rng.below(limit) as u8),
    });
    HeaderLayout::new(&ids, ["", "0", "a-mid-of-16-char", "a mid that is far too long"][rng.below(4)])
}

#[test]
fn mutated_extensions_make_headers_that_read_back() {
    let theirs = Extension::ALL.into_iter().enumerate().fold(ExtensionIds::NONE, |ids, (i, extension)| ids.with(extension, 1 + i as u8));
    let mut seeds = captured("rtp", "extensions");
    let packet = |profile: [u8; 2], block: &[u8]| {
        let mut block = block.to_vec();
        block.resize(block.len().next_multiple_of(4), 0);
        [&[0x90, 96][..], &[7; 10], &profile, &(block.len() as u16 / 4).to_be_bytes(), &block, &[9; 20]].concat()
    };
    seeds.push(packet([0xbe, 0xde], &[0x60, 0x85, 0x72, 0xc0, 1, 2, 0x82, 3, 4, 5, 0x90, 3, 0x10, b'0']));
    seeds.push(packet([0x10, 0], &[&[7, 40][..], &[0xc5; 40], &[6, 1, 0x85, 9, 1, 3, 8, 3, 1, 2, 3]].concat()));
    seeds.push(packet([0x10, 0], &[&[7, 200][..], &[0xc5; 200], &[6, 200], &[1; 200]].concat()));
    run_mutations("extensions", &seeds, |rng, input| {
        let Ok(view) = rtp::RtpView::parse(input) else { return false };
        for (_, at, value) in view.extension_places() {
            assert_eq!(&input[at..at + value.len()], value);
        }
        let elements = CopiedElements::find(&view, &theirs);
        elements.frame_number(input);
        let layout = layout(rng);
        let mut out = [0xee; HEADER_LEN_MAX];
        rtp::write_header(&mut out, false, 96, 1, 2, 3);
        let stamp = Stamp { send_time: 0x00ff_ffff, transport_sequence: 0xffff };
        let len = layout.write(&mut out, input, &elements, stamp, 0);
        assert_eq!(len, layout.len(&elements));
        let written = rtp::RtpView::parse(&out[..len]).expect("what we write is well formed");
        assert_eq!(written.header_len(), len);
        for (id, value) in written.extensions() {
            let copied = view.extensions().any(|(_, of_theirs)| of_theirs == value);
            assert!(copied || [&b"0"[..], b"a-mid-of-16-char", &[0xff; 3], &[0xff; 2]].contains(&value), "{id}: {value:?}");
        }
        true
    });
}

#[test]
fn mutated_descriptors_keep_their_picture_numbers_inside_the_payload() {
    let seeds = [
        vec![0x90, 0xf0, 0x92, 0x34, 0x01, 0x20, 0x50, 0x10],
        vec![0x90, 0xc0, 0x12, 0x01, 0x50, 0x10],
        vec![0xa8, 0x92, 0x34, 0x00, 0x00, 0xa2, 0x49],
        vec![0xb8, 0x12, 0x00, 0x02, 0xa2, 0x49],
    ];
    run_mutations("picture numbers", &seeds, |rng, input| {
        let mut found = false;
        for codec in [Codec::Vp8, Codec::Vp9, Codec::H264] {
            let places = PicturePlaces::find(codec, input);
            let Some(before) = places.read(input) else { continue };
            found = true;
            let shift = PictureShift { id: rng.next_u64() as u16, tl0: rng.next_u64() as u8 };
            let mut shifted = input.to_vec();
            places.shift(&mut shifted, shift);
            let after = places.read(&shifted).expect("a shift changes no width");
            assert_eq!(after.id & 0x7f, before.id.wrapping_add(shift.id) & 0x7f);
            assert!(input.iter().zip(&shifted).filter(|(a, b)| a != b).count() <= 3, "two bytes of picture id and TL0PICIDX");
            assert_eq!(PicturePlaces::find(codec, &shifted), places);
        }
        found
    });
}

#[test]
fn mutated_feedback_tells_no_more_packets_than_it_covers() {
    let feedback = |chunks: &[u16], deltas: &[u8]| {
        let count = 20u16;
        let mut body = [&[0; 8][..], &[0, 1], &count.to_be_bytes(), &[0, 0, 1, 0]].concat();
        chunks.iter().for_each(|chunk| body.extend_from_slice(&chunk.to_be_bytes()));
        body.extend_from_slice(deltas);
        body.resize(body.len().next_multiple_of(4), 0);
        [&[0x8f, 205][..], &(body.len() as u16 / 4).to_be_bytes(), &body].concat()
    };
    let received = |bytes: &[u8]| match RtcpReader::new(bytes).ok()?.next()? {
        RtcpPacket::TransportCc(feedback) => {
            Some((feedback.received_among(0, feedback.status_count).0, feedback.status_count, feedback.deltas.len()))
        }
        _ => None,
    };
    let run = feedback(&[0x2000 | 15, 5], &[1; 15]);
    let vectors = feedback(&[0xaaaa, 0xd554, 0], &[1; 20]);
    assert_eq!(received(&run), Some((15, 20, 15)));
    assert_eq!(received(&vectors).map(|(received, ..)| received), Some(13), "7 of 14 small ones, then 6 of 6");
    run_mutations("transport feedback", &[run, vectors], |_, input| {
        let Some((received, covered, deltas_len)) = received(input) else { return false };
        // Each received packet has a delta of one or two bytes.
        assert!(received <= covered && usize::from(received) <= deltas_len && deltas_len <= 2 * usize::from(received));
        true
    });
}
