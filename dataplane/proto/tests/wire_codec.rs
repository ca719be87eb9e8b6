//! Keyframe starts, in what encoders really make and in payloads written out by hand from the payload formats.

mod common;

use common::{captured, run_mutations};
use pop_proto::codec::is_keyframe_start;
use pop_proto::control::Codec;
use pop_proto::wire::rtp::{RtpView, payload};

const ALL: [(Codec, &str); 6] =
    [(Codec::Vp8, "vp8"), (Codec::Vp9, "vp9"), (Codec::H264, "h264"), (Codec::H265, "h265"), (Codec::Av1, "av1"), (Codec::Opus, "opus")];

/// Longer heads than the captured encoders make: picture ids of both sizes, layers, aggregates, fragments.
const HAND_MADE: [(Codec, &[u8]); 7] = [
    (Codec::Vp8, &[0x90, 0xf0, 0x92, 0x34, 0x01, 0x20, 0x50, 0x10, 0x00, 0x9d, 0x01, 0x2a]),
    (Codec::Vp9, &[0xa8, 0x92, 0x34, 0x00, 0x00, 0xa2, 0x49, 0x83, 0x42]),
    (Codec::H264, &[0x18, 0, 2, 0x09, 0x10, 0, 4, 0x68, 0x42, 0xe0, 0x1f, 0, 6, 0x65, 0x88, 1, 2, 3, 4]),
    (Codec::H264, &[0x7c, 0x85, 0x88, 1, 2, 3, 4]),
    (Codec::H265, &[0x60, 0x01, 0, 3, 0x46, 0x01, 0x30, 0, 4, 0x44, 0x01, 0xc1, 0x72, 0, 4, 0x26, 0x01, 0xaf, 0x15]),
    (Codec::H265, &[0x62, 0x01, 0x93, 0xaf, 1, 2, 3, 4]),
    (Codec::Av1, &[0x18, 0x0a, 0x0b, 0x00, 0x00]),
];

/// Frame numbers in which a keyframe start was seen, and how many packets said so.
fn starts(codec: Codec, file: &str) -> Vec<(u32, usize)> {
    let packets = captured("codec", file);
    let first_timestamp = RtpView::parse(&packets[0]).expect("captured").timestamp();
    let mut starts: Vec<(u32, usize)> = vec![];
    for packet in &packets {
        let view = RtpView::parse(packet).expect("captured");
        if is_keyframe_start(codec, payload(packet, view.header_len()).expect("captured")) {
            let frame = (view.timestamp().wrapping_sub(first_timestamp) + 4_500) / 9_000;
            match starts.last_mut() {
                Some((last, count)) if *last == frame => *count += 1,
                _ => starts.push((frame, 1)),
            }
        }
    }
    starts
}

/// 20 frames, a keyframe every 10.
#[test]
fn real_encoders_start_where_they_were_told_to() {
    for (codec, file) in [(Codec::Vp8, "vp8"), (Codec::Vp9, "vp9"), (Codec::Av1, "av1")] {
        assert_eq!(starts(codec, file), [(0, 1), (10, 1)], "{file}");
    }
    // H.264: parameter sets and the first slice are apart in the first keyframe and together in the second; the many later
    // slices of both are no start.
    assert_eq!(starts(Codec::H264, "h264"), [(0, 2), (10, 1)]);
    // H.265: the parameter sets in an aggregate, then the IDR slice in fragments, twice.
    assert_eq!(starts(Codec::H265, "h265"), [(0, 2), (10, 2)]);
    let packets = captured("codec", "opus");
    assert!(packets.iter().all(|packet| is_keyframe_start(Codec::Opus, &packet[12..])), "audio starts anywhere");
}

fn assert_starts(codec: Codec, payload: &[u8]) {
    assert!(is_keyframe_start(codec, payload), "{payload:02x?}");
    for len in 0..payload.len() {
        // What is cut inside the header decides nothing; a cut behind it may.
        let _ = is_keyframe_start(codec, &payload[..len]);
    }
    assert!(!is_keyframe_start(codec, &[]));
}

fn assert_no_start(codec: Codec, payload: &[u8]) {
    assert!(!is_keyframe_start(codec, payload), "{payload:02x?}");
}

#[test]
fn vp8_starts_with_partition_zero_of_a_key_frame() {
    assert_starts(Codec::Vp8, &[0x10, 0x00]);
    assert_starts(Codec::Vp8, &[0x90, 0x80, 0x11, 0x50]); // 7-bit picture id.
    assert_starts(Codec::Vp8, &[0x90, 0x80, 0x92, 0x34, 0x50]); // 15 bits.
    assert_starts(Codec::Vp8, &[0x90, 0xe0, 0x92, 0x34, 0x01, 0x20, 0x50]); // With TL0PICIDX and TID.
    assert_starts(Codec::Vp8, &[0x90, 0x30, 0x21, 0x50]); // TID and KEYIDX share a byte.
    assert_no_start(Codec::Vp8, &[0x10, 0x01]); // Inter frame.
    assert_no_start(Codec::Vp8, &[0x00, 0x00]); // Not the start of a partition.
    assert_no_start(Codec::Vp8, &[0x11, 0x00]); // Start of partition 1.
    for cut in 1..7 {
        assert_no_start(Codec::Vp8, &[0x90, 0xf0, 0x92, 0x34, 0x01, 0x20, 0x50][..cut.min(6)]);
    }
}

#[test]
fn vp9_starts_with_the_lowest_layer_of_a_key_picture() {
    assert_starts(Codec::Vp9, &[0x08, 0xa2]);
    assert_starts(Codec::Vp9, &[0x88, 0x12, 0xa2]); // 7-bit picture id.
    assert_starts(Codec::Vp9, &[0xa8, 0x92, 0x34, 0x00, 0x00, 0xa2]); // 15 bits, layers, TL0PICIDX.
    assert_no_start(Codec::Vp9, &[0x48, 0xa6]); // Inter-picture predicted.
    assert_no_start(Codec::Vp9, &[0x00, 0xa2]); // Not the beginning.
    assert_no_start(Codec::Vp9, &[0xa8, 0x92, 0x34, 0x03, 0x00, 0xa2]); // Spatial layer 1 of the same key picture.
    assert_no_start(Codec::Vp9, &[0x08]); // A descriptor and no picture.
    for cut in 1..4 {
        assert_no_start(Codec::Vp9, &[0xa8, 0x92, 0x34, 0x00][..cut]);
    }
}

#[test]
fn h264_starts_with_parameter_sets_or_the_first_idr_slice() {
    assert_starts(Codec::H264, &[0x67, 0x42, 0xe0, 0x1f]);
    assert_starts(Codec::H264, &[0x65, 0x88]);
    assert_starts(Codec::H264, &[0x18, 0, 2, 0x09, 0x10, 0, 4, 0x67, 0x42, 0xe0, 0x1f]); // Delimiter, then SPS.
    assert_starts(Codec::H264, &[0x7c, 0x85, 0x88]); // FU-A, start, IDR.
    assert_starts(Codec::H264, &[0x7c, 0x87, 0x42]); // FU-A, start, SPS.
    assert_no_start(Codec::H264, &[0x65, 0x30]); // first_mb_in_slice is not 0.
    assert_no_start(Codec::H264, &[0x41, 0x88]); // Inter slice.
    assert_no_start(Codec::H264, &[0x68, 0xce]); // PPS alone.
    assert_no_start(Codec::H264, &[0x7c, 0x05, 0x88]); // FU-A, middle.
    assert_no_start(Codec::H264, &[0x7c, 0x45, 0x88]); // FU-A, end.
    assert_no_start(Codec::H264, &[0x7c, 0x81, 0x88]); // FU-A, start of an inter slice.
    assert_no_start(Codec::H264, &[0x18, 0, 2, 0x09, 0x10, 0, 9, 0x67, 0x42]); // A unit longer than the packet.
    assert_no_start(Codec::H264, &[0x18, 0, 0, 0, 4, 0x67, 0x42, 0xe0, 0x1f]); // An empty unit.
    assert_no_start(Codec::H264, &[0x18, 0]);
    assert_no_start(Codec::H264, &[0x7c]);
    assert_no_start(Codec::H264, &[0x65]);
}

#[test]
fn h265_starts_with_parameter_sets_or_the_first_slice_of_a_random_access_picture() {
    assert_starts(Codec::H265, &[0x40, 0x01, 0x0c]); // VPS.
    assert_starts(Codec::H265, &[0x42, 0x01, 0x01]); // SPS.
    assert_starts(Codec::H265, &[0x26, 0x01, 0xaf]); // IDR_W_RADL.
    assert_starts(Codec::H265, &[0x28, 0x01, 0xaf]); // IDR_N_LP.
    assert_starts(Codec::H265, &[0x2a, 0x01, 0xaf]); // CRA.
    assert_starts(Codec::H265, &[0x20, 0x01, 0xaf]); // BLA_W_LP.
    assert_starts(Codec::H265, &[0x60, 0x01, 0, 3, 0x46, 0x01, 0x30, 0, 3, 0x40, 0x01, 0x0c]); // Aggregate: delimiter, VPS.
    assert_starts(Codec::H265, &[0x62, 0x01, 0x94, 0xaf]); // Fragment, start, IDR_N_LP.
    assert_no_start(Codec::H265, &[0x28, 0x01, 0x2f]); // first_slice_segment_in_pic_flag is not set.
    assert_no_start(Codec::H265, &[0x02, 0x01, 0xd0]); // Trailing picture.
    assert_no_start(Codec::H265, &[0x2c, 0x01, 0xd0]); // Reserved.
    assert_no_start(Codec::H265, &[0x44, 0x01, 0xc1]); // PPS alone.
    assert_no_start(Codec::H265, &[0x46, 0x01, 0x30]); // Delimiter.
    assert_no_start(Codec::H265, &[0x62, 0x01, 0x14, 0xaf]); // Fragment, middle.
    assert_no_start(Codec::H265, &[0x62, 0x01, 0x54, 0xaf]); // Fragment, end.
    assert_no_start(Codec::H265, &[0x62, 0x01, 0x81, 0xd0]); // Fragment, start of a trailing picture.
    assert_no_start(Codec::H265, &[0x60, 0x01, 0, 9, 0x40, 0x01]); // A unit longer than the packet.
    assert_no_start(Codec::H265, &[0x60, 0x01, 0, 1, 0x40]); // A unit without its header.
    assert_no_start(Codec::H265, &[0x60, 0x01, 0]);
    assert_no_start(Codec::H265, &[0x62, 0x01]);
    assert_no_start(Codec::H265, &[0x26]);
}

#[test]
fn av1_starts_with_a_new_coded_video_sequence() {
    assert_starts(Codec::Av1, &[0x68, 0x0e, 0x08]);
    assert_starts(Codec::Av1, &[0x08, 0x0a]);
    assert_no_start(Codec::Av1, &[0x60, 0x0e, 0x08]); // N is not set.
    assert_no_start(Codec::Av1, &[0x88, 0x0e, 0x08]); // N with Z contradicts itself.
    assert_no_start(Codec::Av1, &[0x08]); // No element.
}

#[test]
fn mutated_payloads_decide_without_a_panic() {
    for (codec, file) in ALL {
        // Heads only: mutations behind the payload header change nothing that is read.
        let heads = captured("codec", file).into_iter().map(|packet| packet[12..packet.len().min(12 + 24)].to_vec());
        let mut seeds: Vec<Vec<u8>> = heads.filter(|head| is_keyframe_start(codec, head)).take(8).collect();
        seeds.extend(HAND_MADE.iter().filter(|(of, _)| *of == codec).map(|(_, head)| head.to_vec()));
        run_mutations(file, &seeds, |_, input| {
            // Every codec reads every input: a publisher chooses the payload type.
            ALL.iter().filter(|(other, _)| is_keyframe_start(*other, input)).any(|(other, _)| *other == codec)
        });
    }
}
