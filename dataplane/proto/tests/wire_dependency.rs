//! Dependency descriptors: written out by hand from the specification, made as libwebrtc makes them, captured, and broken.

mod common;

use common::svc::{BitWriter, Encoder, Prediction};
use common::{captured, run_mutations};
use pop_proto::codec::is_keyframe_start;
use pop_proto::control::{Codec, Extension, ExtensionIds};
use pop_proto::header::CopiedElements;
use pop_proto::layering::{Layering, Target, TargetSet};
use pop_proto::wire::dependency::{Descriptor, Indication, LayerIds, Malformed, Structure};
use pop_proto::wire::rtp::RtpView;

/// L1T2 of the specification's appendix A: structure with ids from 5, two targets, templates for the keyframe, T1 and T0.
fn l1t2_key() -> Vec<u8> {
    let mut bits = BitWriter::default();
    for (len, value) in [
        (1, 1),
        (1, 1),
        (6, 5),
        (16, 0x1234), // start, end, template, frame
        (1, 1),
        (1, 0),
        (1, 0),
        (1, 0),
        (1, 0), // a structure and nothing else
        (6, 5),
        (5, 1), // ids from 5, two targets
        (2, 0),
        (2, 1),
        (2, 3), // T0, T0, T1
        (2, 2),
        (2, 2),
        (2, 3),
        (2, 2),
        (2, 0),
        (2, 1), // SS, RS, -D
        (1, 0),
        (1, 1),
        (4, 1),
        (1, 0),
        (1, 1),
        (4, 0),
        (1, 0), // none, 2, 1
        (2, 2), // ns(3) = 1 chain is 10
        // ns(1): no bits
        (4, 0),
        (4, 2),
        (4, 1),
        (1, 1),
        (16, 639),
        (16, 359),
    ] {
        bits.put(len, value);
    }
    bits.bytes
}

#[test]
fn a_structure_by_hand_is_read_field_by_field() {
    let mut structure = None;
    let key = Descriptor::parse(&l1t2_key(), &mut structure).unwrap();
    assert!(key.start_of_frame && key.end_of_frame && key.has_structure && key.is_independent);
    assert_eq!((key.frame_number, key.layers, key.active_targets), (0x1234, LayerIds::default(), Some(0b11)));
    assert_eq!([0, 1].map(|target| key.indications.of(target)), [Indication::Switch; 2]);
    let known: &Structure = structure.as_ref().unwrap();
    assert_eq!(known.targets(), [LayerIds::default(), LayerIds { spatial: 0, temporal: 1 }]);
    assert_eq!(known.resolutions(), Some(&[(640, 360)][..]));
    // Three bytes are enough from here on.
    let t1 = Descriptor::parse(&[0x80 | 7, 0x12, 0x35], &mut structure).unwrap();
    assert_eq!((t1.layers.temporal, t1.is_independent, t1.active_targets), (1, false, None));
    assert_eq!([0, 1].map(|target| t1.indications.of(target)), [Indication::NotPresent, Indication::Discardable]);
    let t0 = Descriptor::parse(&[0x40 | 6, 0x12, 0x36], &mut structure).unwrap();
    assert!(!t0.start_of_frame && t0.end_of_frame);
    assert_eq!([0, 1].map(|target| t0.indications.of(target)), [Indication::Required, Indication::Switch]);
}

#[test]
fn a_frame_may_say_everything_for_itself() {
    let mut structure = None;
    Descriptor::parse(&l1t2_key(), &mut structure).unwrap();
    let mut bits = BitWriter::default();
    // T0; active targets 01; custom indications, dependencies 3 and 20 back, and one chain.
    for (len, value) in
        [(2, 3), (6, 6), (16, 9), (1, 0), (1, 1), (3, 7), (2, 0b01), (2, 2), (2, 0), (2, 1), (4, 2), (2, 2), (8, 19), (2, 0), (8, 200)]
    {
        bits.put(len, value);
    }
    let frame = Descriptor::parse(&bits.bytes, &mut structure).unwrap();
    assert_eq!((frame.active_targets, frame.is_independent, frame.has_structure), (Some(1), false, false));
    assert_eq!([0, 1].map(|target| frame.indications.of(target)), [Indication::Switch, Indication::NotPresent]);
    for len in 0..bits.bytes.len() {
        assert!(len == 3 || Descriptor::parse(&bits.bytes[..len], &mut structure).is_err(), "{len} bytes");
    }
}

#[test]
fn what_does_not_fit_leaves_the_structure_as_it_was() {
    let mut structure = None;
    assert_eq!(Descriptor::parse(&[0x80, 0, 1], &mut structure), Err(Malformed::UnknownTemplate), "no keyframe yet");
    let whole = l1t2_key();
    for len in 0..whole.len() {
        assert!(Descriptor::parse(&whole[..len], &mut structure).is_err(), "{len} bytes");
        assert_eq!(structure, None);
    }
    Descriptor::parse(&whole, &mut structure).unwrap();
    let before = structure.clone();
    assert_eq!(Descriptor::parse(&[0x80 | 8, 0, 1], &mut structure), Err(Malformed::UnknownTemplate), "three templates");
    let mut other = whole.clone();
    other[0] = 0xc0 | 40;
    assert_eq!(Descriptor::parse(&other, &mut structure), Err(Malformed::UnknownTemplate), "a template that its own structure has not");
    // Layers without end, spatial and temporal, and templates without end.
    for next in [1, 2, 0] {
        let mut bits = BitWriter::default();
        [(8, 0xc0), (16, 1), (5, 0x10), (11, 0)].into_iter().for_each(|(len, value)| bits.put(len, value));
        (0..900).for_each(|_| bits.put(2, next));
        assert_eq!(Descriptor::parse(&bits.bytes, &mut structure), Err(Malformed::TooMany), "{next}");
    }
    // Dependencies without end.
    let mut bits = BitWriter::default();
    [(8, 0xc0 | 5), (16, 1), (5, 0b00010)].into_iter().for_each(|(len, value)| bits.put(len, value));
    (0..400).for_each(|_| bits.put(6, 0b01_0000));
    assert_eq!(Descriptor::parse(&bits.bytes, &mut structure), Err(Malformed::TooMany));
    assert_eq!(structure, before);
}

#[test]
fn every_layer_of_an_encoder_is_read_as_it_was_made() {
    for (spatial, temporal, prediction) in [
        (1, 1, Prediction::Full),
        (1, 3, Prediction::Full),
        (2, 2, Prediction::Key),
        (3, 3, Prediction::Full),
        (3, 3, Prediction::Key),
        (4, 3, Prediction::Full),
    ] {
        let mut encoder = Encoder::new(spatial, temporal, prediction);
        let mut structure = None;
        for picture in 0..50 {
            encoder.key_wanted |= picture == 20;
            for frame in encoder.picture() {
                let read = Descriptor::parse(&frame.descriptor(true, false), &mut structure).unwrap();
                assert_eq!((read.frame_number, read.layers.spatial, read.layers.temporal), (frame.number, frame.spatial, frame.temporal));
                assert_eq!(read.is_independent, frame.dependencies.is_empty());
                assert_eq!(read.has_structure, frame.is_key && frame.spatial == 0);
                let targets = structure.as_ref().unwrap().targets().to_vec();
                assert_eq!(targets.len(), usize::from(spatial * temporal));
                for (index, target) in targets.iter().enumerate() {
                    let is_present = read.indications.of(index) != Indication::NotPresent;
                    let is_below = frame.temporal <= target.temporal && frame.spatial <= target.spatial;
                    let belongs = is_below && (frame.spatial == target.spatial || frame.is_key || prediction == Prediction::Full);
                    assert_eq!(is_present, belongs, "{frame:?} {target:?}");
                }
            }
        }
    }
}

#[test]
fn a_late_structure_or_mask_changes_nothing() {
    let mut encoder = Encoder::new(2, 1, Prediction::Full);
    let old = encoder.picture();
    encoder.key_wanted = true;
    let new = encoder.picture();
    let mut layering = Layering::default();
    let mut read =
        |sequence, frame: &common::svc::Frame| layering.read(sequence, Codec::Vp9, Some(&frame.descriptor(true, true)), &[0; 50], false);
    assert_eq!(read(10, &new[0]).keyframe_start, Some(true));
    let late = read(5, &old[0]);
    assert_eq!((late.keyframe_start, late.layers.is_known(), late.malformed), (Some(true), false, false));
    assert!(!read(6, &old[1]).layers.is_known(), "another structure's template");
    assert!(read(11, &new[1]).layers.present.has(Target::new(1, 0)));
}

#[test]
fn vp8_and_vp9_tell_their_layers_without_a_descriptor() {
    let mut layering = Layering::default();
    let mut vp8 = |temporal: u8, sync: bool, key: bool| {
        let payload = [0x90, 0xe0, 0x80, 7, 3, temporal << 6 | u8::from(sync) << 5, u8::from(!key), 9];
        layering.read(1, Codec::Vp8, None, &payload, true).layers
    };
    let key = vp8(0, false, true);
    assert!(key.is_known() && key.is_independent() && key.switch.has(Target::new(0, 2)) && key.starts() && key.ends());
    assert_eq!(key.active.iter().collect::<Vec<_>>(), [Target::new(0, 0)]);
    let sync = vp8(2, true, false);
    assert!(sync.is_independent() && !sync.present.has(Target::new(0, 1)) && sync.present.has(Target::new(0, 2)));
    assert_eq!(sync.active.iter().count(), 3);
    assert!(vp8(1, false, false).switch.is_empty());

    let mut layering = Layering::default();
    // Flexible mode, three spatial layers in the key picture's structure.
    let key = layering.read(1, Codec::Vp9, None, &[0xba, 0x92, 0x34, 0x00, 0x40, 1], false).layers;
    assert!(key.is_independent() && key.switch.has(Target::new(2, 0)) && key.active.has(Target::new(2, 0)));
    let upper = layering.read(2, Codec::Vp9, None, &[0xb4, 0x92, 0x34, 0x23, 1], true).layers;
    assert_eq!((upper.spatial(), upper.temporal(), upper.starts(), upper.ends()), (1, 1, false, true));
    assert!(!upper.present.has(Target::new(0, 1)) && upper.present.has(Target::new(2, 2)) && upper.active.has(Target::new(2, 1)));
    for cut in 0..4 {
        assert!(!Layering::default().read(1, Codec::Vp9, None, &[0xba, 0x92, 0x34, 0x00][..cut], false).layers.is_known());
    }
}

/// What Chromium numbered the descriptor with.
const CAPTURED: ExtensionIds = ExtensionIds::NONE.with(Extension::DependencyDescriptor, 12);

/// Packets of `file`, and each one's descriptor and payload.
fn captured_layers(file: &str) -> Vec<(Vec<u8>, Vec<u8>, bool)> {
    let packets = captured("layers", file).into_iter().map(|packet| {
        let view = RtpView::parse(&packet).expect("captured");
        let descriptor = CopiedElements::find(&view, &CAPTURED).descriptor(&packet).expect("each has one").to_vec();
        (descriptor, packet[view.header_len()..].to_vec(), view.marker())
    });
    packets.collect()
}

#[test]
fn chromium_describes_the_layers_that_it_was_told_to_make() {
    for (codec, file, spatial, temporal) in [
        (Codec::Vp8, "vp8_l1t3", 1, 3),
        (Codec::H264, "h264_l1t3", 1, 3),
        (Codec::Vp9, "vp9_l3t3_key", 3, 3),
        (Codec::Av1, "av1_l3t3", 3, 3),
        (Codec::Av1, "av1_l3t3_key", 3, 3),
    ] {
        let mut layering = Layering::default();
        let (mut starts, mut seen) = (0, TargetSet::NONE);
        for (sequence, (descriptor, payload, marker)) in captured_layers(file).iter().enumerate() {
            let read = layering.read(sequence as u64, codec, Some(descriptor), payload, *marker);
            let layers = read.layers;
            assert!(layers.is_known() && !read.malformed, "{file}: packet {sequence}");
            assert!(!marker || layers.ends(), "{file}: packet {sequence}");
            assert_eq!(layers.active.iter().count(), spatial * temporal, "{file}");
            starts += usize::from(read.keyframe_start == Some(true));
            // H.264's parameter sets and its picture are two starts to the eye and one frame to the descriptor.
            assert!(codec == Codec::H264 || read.keyframe_start == Some(is_keyframe_start(codec, payload)), "{file}: packet {sequence}");
            seen = seen.with(Target::new(layers.spatial(), layers.temporal()));
            // Its own layers' target is the lowest that the frame belongs to, and it belongs to itself.
            assert!(layers.present.has(Target::new(layers.spatial(), layers.temporal())), "{file}: packet {sequence}");
            assert!(layers.present.iter().all(|target| target.spatial() >= layers.spatial() && target.temporal() >= layers.temporal()));
            if codec == Codec::Vp9 {
                // The payload descriptor's word for it: SID and TID behind a picture id of 15 bits.
                assert_eq!((payload[3] >> 1 & 7, payload[3] >> 5), (layers.spatial(), layers.temporal()), "{file}: packet {sequence}");
            }
        }
        assert_eq!(seen, layering.active(), "{file}: each layer came");
        assert!(starts >= 1, "{file}");
        let sizes: Vec<u16> = layering.resolutions().unwrap_or_default().iter().map(|(width, _)| *width).collect();
        assert!(spatial == 1 || sizes == [320, 640, 1_280], "{file}: {sizes:?}");
    }
}

/// Captured descriptors, and made ones.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![l1t2_key(), vec![0x80 | 7, 0x12, 0x35]];
    for file in ["vp8_l1t3", "h264_l1t3", "vp9_l3t3_key", "av1_l3t3"] {
        seeds.extend(captured_layers(file).into_iter().map(|(descriptor, _, _)| descriptor).take(4));
    }
    for prediction in [Prediction::Full, Prediction::Key] {
        let mut encoder = Encoder::new(3, 3, prediction);
        seeds.extend((0..5).flat_map(|_| encoder.picture()).map(|frame| frame.descriptor(true, true)));
    }
    seeds
}

#[test]
fn mutated_descriptors_are_read_within_their_bounds() {
    let mut held = None;
    Descriptor::parse(&Encoder::new(3, 3, Prediction::Full).picture()[0].descriptor(true, true), &mut held).unwrap();
    run_mutations("dependency descriptor", &seeds(), |_, input| {
        let mut structure = held.clone();
        let Ok(read) = Descriptor::parse(input, &mut structure) else {
            assert_eq!(structure, held);
            return false;
        };
        let structure = structure.expect("without one nothing is read");
        assert!(read.has_structure || Some(&structure) == held.as_ref());
        assert!(structure.targets().iter().all(|target| target.spatial < 4 && target.temporal < 8));
        assert!(structure.resolutions().is_none_or(|all| all.len() <= 4));
        true
    });
}

#[test]
fn mutated_payload_descriptors_of_layers_never_panic() {
    let seeds = [
        vec![0x90, 0xe0, 0x80, 7, 3, 0x60, 1, 9],
        vec![0x90, 0xa0, 7, 0x40, 1, 9],
        vec![0xba, 0x92, 0x34, 0x00, 0x40, 1],
        vec![0xa8, 0x12, 0x35, 7, 1, 0x18, 0, 0],
    ];
    let mut layering = Layering::default();
    let mut sequence = 0;
    run_mutations("layers of payload descriptors", &seeds, |_, input| {
        sequence += 1;
        let known = [Codec::Vp8, Codec::Vp9].map(|codec| layering.read(sequence, codec, None, input, false).layers.is_known());
        assert!(layering.targets().count() <= 32);
        known.contains(&true)
    });
}
