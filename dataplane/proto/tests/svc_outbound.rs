//! One viewer of a layered stream, packet by packet: what it gets decodes, its numbers have no holes and none is used twice.

mod common;

use std::collections::BTreeMap;

use common::Rng;
use common::svc::{Encoder, Frame, Prediction};
use pop_proto::DropReason;
use pop_proto::control::{Codec, Extension, ExtensionIds, MediaKind, OpenSubscription, PayloadTypeMap};
use pop_proto::header::{CopiedElements, Stamp};
use pop_proto::history::{Meta, Stored};
use pop_proto::layering::{Layering, Target};
use pop_proto::outbound::{Outbound, Scratch};
use pop_proto::wire::rtp::{self, RtpView};
use pop_schemas::{SubscriptionId, Time, TransportId};

const DESCRIPTOR: u8 = 4;

/// A published packet, as the history holds it.
#[derive(Clone)]
struct Published {
    sequence: u64,
    frame: Frame,
    starts: bool,
    ends: bool,
    packet: Vec<u8>,
}

/// What the viewer got under one number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    header: Vec<u8>,
    payload: Vec<u8>,
}

struct Scene {
    outbound: Outbound,
    layering: Layering,
    scratch: Scratch,
    /// By published sequence: what has come.
    history: BTreeMap<u64, (Meta, Published)>,
    got: BTreeMap<u64, Got>,
    now: Time,
}

impl Scene {
    fn new() -> Scene {
        let mut outbound = Outbound::new(&OpenSubscription {
            subscription: SubscriptionId(1),
            transport: TransportId(1),
            kind: MediaKind::Video,
            ssrc: 7,
            first_sequence: 1_000,
            first_timestamp: 50_000,
            rtx_ssrc: None,
            extensions: ExtensionIds::NONE.with(Extension::DependencyDescriptor, DESCRIPTOR),
            mid: "0".into(),
        });
        outbound.switch_source(Some(0), &[PayloadTypeMap { from: 96, to: 100, rtx: None, unwrap_red: false }]);
        Scene {
            outbound,
            layering: Layering::default(),
            scratch: Scratch::default(),
            history: BTreeMap::new(),
            got: BTreeMap::new(),
            now: Time::ZERO,
        }
    }

    /// A packet comes from the publisher and is forwarded.
    fn arrive(&mut self, published: &Published) -> Result<u64, DropReason> {
        let view = RtpView::parse(&published.packet).unwrap();
        let ids = ExtensionIds::NONE.with(Extension::DependencyDescriptor, DESCRIPTOR);
        let elements = CopiedElements::find(&view, &ids);
        let header_len = view.header_len();
        let read = self.layering.read(
            published.sequence,
            Codec::Av1,
            elements.descriptor(&published.packet),
            &published.packet[header_len..],
            view.marker(),
        );
        let meta = Meta {
            timestamp: view.timestamp(),
            payload_type: 96,
            marker: view.marker(),
            keyframe_start: read.keyframe_start == Some(true),
            header_len: header_len as u16,
            len: published.packet.len() as u16,
            elements,
            layers: read.layers,
            ..Meta::default()
        };
        self.history.insert(published.sequence, (meta, published.clone()));
        let stored = Stored { meta, packet: &published.packet };
        if !self.outbound.takes(0, meta.keyframe_start) {
            return Err(DropReason::WaitingForKeyframe);
        }
        let first = self.outbound.forward(self.now, 0, published.sequence, &stored, |_, _| None);
        let again = self.outbound.forward(self.now, 0, published.sequence, &stored, |_, _| None);
        assert_eq!(first, again, "a packet that waits for the next train is asked about twice");
        let written = self.outbound.write(&first?, &stored, Stamp::default(), &mut self.scratch);
        self.outbound.count_sent(written.payload.len(), false);
        let got = Got { header: written.header.to_vec(), payload: written.payload.to_vec() };
        let before = self.got.insert(written.index, got.clone());
        assert!(before.is_none_or(|before| before == got), "two packets under number {}", written.index);
        Ok(written.index)
    }

    /// The viewer asks for a number. Returns whether it got it.
    fn ask(&mut self, index: u64) -> bool {
        let Some(sequence) = self.outbound.published_sequence(index as u16) else { return false };
        let Some((meta, published)) = self.history.get(&sequence) else { return false };
        let stored = Stored { meta: *meta, packet: &published.packet };
        let Ok(repair) = self.outbound.repair(sequence, &stored) else { return false };
        let written = self.outbound.write(&repair, &stored, Stamp::default(), &mut self.scratch);
        assert_eq!(written.index, index, "the packet that was asked for");
        let got = Got { header: written.header.to_vec(), payload: written.payload.to_vec() };
        let before = self.got.insert(index, got.clone());
        assert!(before.is_none_or(|before| before == got), "two packets under number {index}");
        true
    }

    /// Numbers of the frames that came whole, in the order of the packets, and whether the marker stood on their last one.
    fn frames(&self) -> Vec<(u16, bool)> {
        let mut frames: Vec<(u16, bool)> = Vec::new();
        let mut open: Option<(u64, u16)> = None;
        for (index, got) in &self.got {
            if got.payload.is_empty() {
                continue;
            }
            let view = RtpView::parse(&got.header).unwrap();
            let descriptor = view.extension(DESCRIPTOR).expect("it passes");
            let number = u16::from_be_bytes([descriptor[1], descriptor[2]]);
            let in_order = open.is_some_and(|open| open == (*index, number));
            if descriptor[0] & 0x80 != 0 || in_order {
                open = Some((index + 1, number));
                if descriptor[0] & 0x40 != 0 {
                    frames.push((number, view.marker()));
                    open = None;
                }
            }
        }
        frames
    }
}

/// The packets of a picture: 1 to 4 for each frame.
fn packets(rng: &mut Rng, next: &mut u64, frames: &[Frame]) -> Vec<Published> {
    let mut packets = Vec::new();
    for frame in frames {
        let len = 1 + rng.below(4);
        for at in 0..len {
            let (starts, ends) = (at == 0, at + 1 == len);
            let descriptor = frame.descriptor(starts, ends);
            let mut packet = vec![0; 12];
            rtp::write_header(&mut packet, frame.is_last && ends, 96, *next as u16, 3_000 * frame.picture, 1);
            packet[0] |= 0x10;
            packet.extend_from_slice(&[0x10, 0, 0, 0, DESCRIPTOR, descriptor.len() as u8]);
            packet.extend_from_slice(&descriptor);
            packet.resize(packet.len().next_multiple_of(4), 0);
            let words = (packet.len() / 4 - 4) as u16;
            packet[14..16].copy_from_slice(&words.to_be_bytes());
            packet.extend_from_slice(&next.to_be_bytes());
            packets.push(Published { sequence: *next, frame: frame.clone(), starts, ends, packet });
            *next += 1;
        }
    }
    packets
}

/// Runs `pictures` without loss under a wish; returns how many frames of each spatial and temporal layer came.
fn count(scene: &mut Scene, encoder: &mut Encoder, next: &mut u64, pictures: usize) -> BTreeMap<(u8, u8), usize> {
    let mut rng = Rng::new(1);
    let mut counts = BTreeMap::new();
    for _ in 0..pictures {
        let frames = encoder.picture();
        for published in packets(&mut rng, next, &frames) {
            if scene.arrive(&published).is_ok() && published.ends {
                *counts.entry((published.frame.spatial, published.frame.temporal)).or_default() += 1;
            }
        }
    }
    counts
}

#[test]
fn a_viewer_gets_the_frames_of_its_target_and_no_others() {
    for prediction in [Prediction::Full, Prediction::Key] {
        for (spatial, temporal) in (0..3).flat_map(|s| (0..3).map(move |t| (s, t))) {
            let (mut scene, mut encoder, mut next) = (Scene::new(), Encoder::new(3, 3, prediction), 100);
            scene.outbound.want_spatial(spatial, temporal);
            let counts = count(&mut scene, &mut encoder, &mut next, 40);
            let of_temporal = [10, 10, 20];
            for s in 0..3 {
                for t in 0..3 {
                    let expected = match prediction {
                        _ if s > spatial || t > temporal => 0,
                        Prediction::Key if s < spatial => usize::from(t == 0),
                        _ => of_temporal[usize::from(t)],
                    };
                    assert_eq!(
                        counts.get(&(s, t)).copied().unwrap_or(0),
                        expected,
                        "{prediction:?}: ({s}, {t}) for ({spatial}, {temporal})"
                    );
                }
            }
            assert_eq!(scene.outbound.target(), Some(Target::new(spatial, temporal)));
            let numbers: Vec<u64> = scene.got.keys().copied().collect();
            assert!(numbers.iter().copied().eq(1_000..1_000 + numbers.len() as u64), "no holes");
            let marked = scene.frames().iter().filter(|(_, marker)| *marker).count();
            assert_eq!(marked, of_temporal[..=usize::from(temporal)].iter().sum::<usize>(), "one marker for each picture");
        }
    }
}

#[test]
fn a_lower_target_is_taken_at_the_next_picture_when_it_is_built_on() {
    let (mut scene, mut encoder, mut next) = (Scene::new(), Encoder::new(3, 3, Prediction::Full), 100);
    count(&mut scene, &mut encoder, &mut next, 6);
    scene.outbound.want_spatial(0, 0);
    assert_eq!(scene.outbound.wants_keyframe(), None, "it has all of it");
    let counts = count(&mut scene, &mut encoder, &mut next, 40);
    assert_eq!(counts, [((0, 0), 10)].into());
}

#[test]
fn a_lower_spatial_layer_that_was_left_out_waits_for_a_keyframe_and_fewer_pictures_do_not() {
    let (mut scene, mut encoder, mut next) = (Scene::new(), Encoder::new(3, 3, Prediction::Key), 100);
    count(&mut scene, &mut encoder, &mut next, 6);
    scene.outbound.want_spatial(0, 0);
    assert_eq!(scene.outbound.wants_keyframe(), Some(0));
    let counts = count(&mut scene, &mut encoder, &mut next, 40);
    assert_eq!(counts, [((2, 0), 10)].into());
    encoder.key_wanted = true;
    let counts = count(&mut scene, &mut encoder, &mut next, 40);
    assert_eq!(counts, [((0, 0), 10)].into());
    assert_eq!(scene.outbound.wants_keyframe(), None);
}

#[test]
fn a_higher_spatial_layer_waits_for_a_keyframe_and_more_pictures_for_a_switching_point() {
    for prediction in [Prediction::Full, Prediction::Key] {
        let (mut scene, mut encoder, mut next) = (Scene::new(), Encoder::new(3, 3, prediction), 100);
        scene.outbound.want_spatial(0, 0);
        count(&mut scene, &mut encoder, &mut next, 6);
        scene.outbound.want_spatial(2, 2);
        let counts = count(&mut scene, &mut encoder, &mut next, 40);
        assert_eq!(counts.keys().map(|(spatial, _)| *spatial).max(), Some(0), "{prediction:?}");
        assert!(counts[&(0, 2)] >= 18, "{prediction:?}: {counts:?}");
        assert_eq!(scene.outbound.wants_keyframe(), Some(0));
        encoder.key_wanted = true;
        let counts = count(&mut scene, &mut encoder, &mut next, 40);
        assert_eq!((counts[&(2, 0)], counts[&(2, 2)]), (10, 20), "{prediction:?}");
        assert_eq!(scene.outbound.wants_keyframe(), None);
    }
}

/// A long run with losses that are repaired late, reordering, wishes at random and a viewer that asks for what it misses.
fn storm(seed: u64, prediction: Prediction) -> (usize, usize) {
    let mut rng = Rng::new(seed);
    let (mut scene, mut encoder, mut next) = (Scene::new(), Encoder::new(3, 3, prediction), 65_000);
    let mut late: Vec<(usize, Published)> = Vec::new();
    let mut dependencies = BTreeMap::new();
    let (mut time, mut last_key) = (0, 0);
    for picture in 0..400 {
        if rng.one_in(10) {
            let (spatial, temporal) = (rng.below(4) as u8, rng.below(4) as u8);
            scene.outbound.want_spatial(spatial, temporal);
        }
        // Apart, as the requests for them are: of two structures ago nothing can be read.
        let asked = rng.one_in(60) || (scene.outbound.wants_keyframe().is_some() && rng.one_in(5));
        if asked && picture >= last_key + 15 {
            (encoder.key_wanted, last_key) = (true, picture);
        }
        let frames = encoder.picture();
        frames.iter().for_each(|frame| {
            dependencies.insert(frame.number, frame.dependencies.clone());
        });
        for published in packets(&mut rng, &mut next, &frames) {
            time += 1;
            // A source begins with the first picture, and without a structure nothing is known: see the next test.
            let brings_structure = published.starts && published.frame.is_key && published.frame.spatial == 0;
            if picture > 0 && !brings_structure && rng.one_in(12) {
                late.push((time + 1 + rng.below(40), published));
            } else {
                let _ = scene.arrive(&published);
            }
            while let Some(at) = late.iter().position(|(at, _)| *at <= time) {
                let _ = scene.arrive(&late.swap_remove(at).1);
            }
            if rng.one_in(4)
                && let Some(newest) = scene.got.keys().last().copied()
            {
                scene.ask(newest - rng.below(30).min((newest - 1_000) as usize) as u64);
            }
        }
    }
    for (_, published) in late.drain(..) {
        let _ = scene.arrive(&published);
    }
    let newest = *scene.got.keys().last().unwrap();
    let holes: Vec<u64> = (1_000..newest).filter(|index| !scene.got.contains_key(index)).collect();
    assert_eq!(holes, [], "everything came, so nothing is missing (seed {seed})");
    let fillers = scene.got.values().filter(|got| got.payload.is_empty()).count();
    let frames = scene.frames();
    let decoded = frames.iter().fold(std::collections::BTreeSet::new(), |mut decoded, (number, _)| {
        // Only what is whole is decoded, and this long a run of numbers does not come twice.
        assert!(dependencies[number].iter().all(|needed| decoded.contains(needed)), "frame {number} cannot be decoded (seed {seed})");
        decoded.insert(*number);
        decoded
    });
    (decoded.len(), fillers)
}

#[test]
fn until_a_lost_structure_comes_everything_passes_and_then_the_target_again() {
    let (mut scene, mut encoder, mut next) = (Scene::new(), Encoder::new(3, 3, Prediction::Full), 100);
    scene.outbound.want_spatial(0, 2);
    count(&mut scene, &mut encoder, &mut next, 6);
    encoder.key_wanted = true;
    let (mut rng, mut lost) = (Rng::new(1), None);
    let mut upper = [0; 2];
    for picture in 0..20 {
        if picture == 4 {
            assert!(scene.arrive(lost.as_ref().unwrap()).is_ok(), "its number was kept");
        }
        for published in packets(&mut rng, &mut next, &encoder.picture()) {
            if published.starts && published.frame.is_key && published.frame.spatial == 0 {
                lost = Some(published);
                continue;
            }
            upper[usize::from(picture >= 4)] += usize::from(scene.arrive(&published).is_ok() && published.frame.spatial > 0);
        }
    }
    assert!(upper[0] > 8 && upper[1] == 0, "{upper:?}");
    let newest = *scene.got.keys().last().unwrap();
    assert!((1_000..newest).all(|index| scene.got.contains_key(&index)), "no holes");
}

#[test]
fn under_loss_reordering_and_changing_wishes_every_frame_decodes_and_no_number_is_used_twice() {
    for prediction in [Prediction::Full, Prediction::Key] {
        let (mut decoded, mut fillers) = (0, 0);
        for seed in 0..40 {
            let (frames, empty) = storm(seed, prediction);
            decoded += frames;
            fillers += empty;
        }
        println!("{prediction:?}: {decoded} frames decoded, {fillers} numbers filled");
        assert!(decoded > 8_000 && fillers > 20, "{prediction:?}: {decoded} frames, {fillers} fillers");
    }
}
