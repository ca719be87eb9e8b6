//! What clients of rooms send, mutated: join requests, messages, and the offers inside both. Nothing panics, and every answer has the
//! sections of its offer.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use livekit_protocol as proto;
use pop::signal::livekit::{Digest, digest_join_request, digest_message};
use prost::Message as _;
use proto::signal_request::Message as Say;

/// Mutated inputs of each kind.
const INPUTS: u32 = if cfg!(debug_assertions) { 30_000 } else { 300_000 };

const SEED: u64 = 0x5eed_1a4e;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn offers() -> Vec<proto::SessionDescription> {
    let names = ["livekit-chromium-join", "livekit-chromium-publish", "livekit-firefox-join", "livekit-firefox-publish"];
    let read = |name| std::fs::read_to_string(format!("{}/tests/corpus/sdp/{name}.sdp", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let offer = |(id, name)| proto::SessionDescription { r#type: "offer".to_owned(), sdp: read(name), id, ..Default::default() };
    (1..).zip(names).map(offer).collect()
}

fn add_track() -> proto::AddTrackRequest {
    let layer = |quality, rid: &str| proto::VideoLayer { quality, rid: rid.to_owned(), width: 320, height: 180, ..Default::default() };
    let layers = vec![layer(0, "q"), layer(1, "h"), layer(2, "f")];
    let codec = proto::SimulcastCodec { codec: "vp8".to_owned(), cid: "c".to_owned(), layers: layers.clone(), ..Default::default() };
    proto::AddTrackRequest {
        cid: "a03a89f6-544d-4ec3-96f9-b3234020a6e2".to_owned(),
        name: "camera".to_owned(),
        r#type: 1,
        source: 1,
        width: 1_280,
        height: 720,
        layers,
        simulcast_codecs: vec![codec],
        ..Default::default()
    }
}

fn sync_state() -> proto::SyncState {
    let track = proto::TrackInfo { sid: "TR_00000000000000ab".to_owned(), ..Default::default() };
    proto::SyncState {
        subscription: Some(proto::UpdateSubscription {
            track_sids: vec!["TR_00000000000000aa".to_owned()],
            participant_tracks: vec![proto::ParticipantTracks::default()],
            ..Default::default()
        }),
        publish_tracks: vec![proto::TrackPublishedResponse { cid: "c".to_owned(), track: Some(track) }],
        datachannel_receive_states: vec![proto::DataChannelReceiveState { publisher_sid: "PA_00000000000000aa".to_owned(), last_seq: 9 }],
        ..Default::default()
    }
}

fn messages() -> Vec<Vec<u8>> {
    let mut said: Vec<_> = offers().into_iter().map(Say::Offer).collect();
    let permission = proto::TrackPermission { participant_identity: "bob".to_owned(), all_tracks: true, ..Default::default() };
    said.extend([
        Say::AddTrack(add_track()),
        Say::SyncState(sync_state()),
        Say::Mute(proto::MuteTrackRequest { sid: "TR_00000000000000ab".to_owned(), muted: true }),
        Say::TrackSetting(proto::UpdateTrackSettings {
            track_sids: vec!["TR_00000000000000ab".to_owned()],
            width: 640,
            ..Default::default()
        }),
        Say::SubscriptionPermission(proto::SubscriptionPermission { all_participants: false, track_permissions: vec![permission] }),
        Say::UpdateMetadata(proto::UpdateParticipantMetadata {
            name: "ann".to_owned(),
            attributes: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        }),
        Say::PingReq(proto::Ping { timestamp: 1, rtt: 2 }),
        Say::Simulate(proto::SimulateScenario { scenario: Some(proto::simulate_scenario::Scenario::Migration(true)) }),
        Say::Trickle(proto::TrickleRequest { candidate_init: "{}".to_owned(), ..Default::default() }),
    ]);
    said.into_iter().map(|message| proto::SignalRequest { message: Some(message) }.encode_to_vec()).collect()
}

fn join_requests() -> Vec<Vec<u8>> {
    let join = |offer: Option<proto::SessionDescription>| proto::JoinRequest {
        client_info: Some(proto::ClientInfo { sdk: 1, version: "2.23.0".to_owned(), protocol: 16, ..Default::default() }),
        connection_settings: Some(proto::ConnectionSettings { auto_subscribe: true, ..Default::default() }),
        add_track_requests: vec![add_track()],
        sync_state: Some(sync_state()),
        publisher_offer: offer,
        ..Default::default()
    };
    offers().into_iter().map(Some).chain([None]).map(|offer| join(offer).encode_to_vec()).collect()
}

/// Bytes changed, cut out, doubled, or taken from another seed; text inside stays as long as its field says in half of the cases.
fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let (at, len) = (random.below(bytes.len()), 1 + random.below(64));
        match random.below(6) {
            0 | 1 => bytes[at] = random.next() as u8,
            2 => bytes[at] ^= 1 << random.below(8),
            // The same length: the fields around it go on being read.
            3 => {
                let from = random.below(other.len());
                let len = len.min(bytes.len() - at).min(other.len() - from);
                bytes[at..at + len].copy_from_slice(&other[from..from + len]);
            }
            4 => drop(bytes.drain(at..(at + len).min(bytes.len()))),
            _ => {
                let copy = bytes[at..(at + len).min(bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    bytes
}

struct Count {
    read: u32,
    answered: u32,
}

impl Count {
    fn note(&mut self, digest: &Digest) {
        self.read += u32::from(*digest != Digest::Refused);
        let Digest::Answered(answer) = digest else { return };
        self.answered += 1;
        assert!(answer.starts_with("v=0\r\n") && answer.ends_with("\r\n"), "{answer}");
        assert_eq!(answer.matches("a=end-of-candidates").count(), 1, "the first section has the candidates: {answer}");
        let sections: Vec<_> = answer.split("\r\nm=").skip(1).collect();
        for section in &sections {
            assert!(section.contains("a=ice-ufrag:") || section.contains("a=inactive"), "{section}");
        }
    }
}

/// `wrap` puts an offer into a seed's place, with lengths that are right.
fn run(kind: &str, seeds: &[Vec<u8>], wrap: impl Fn(proto::SessionDescription) -> Vec<u8>, digest: impl Fn(&[u8]) -> Digest) {
    let mut random = Random(SEED);
    let mut count = Count { read: 0, answered: 0 };
    for seed in seeds {
        assert_ne!(digest(seed), Digest::Refused, "{kind}: a seed is refused");
    }
    let offers = offers();
    for i in 0..INPUTS {
        let other = random.below(1 << 16);
        // Bytes of the whole break a length more often than not, so half of the inputs have only a text inside changed.
        let input = if i % 2 == 0 {
            mutate(&mut random, &seeds[i as usize % seeds.len()], &seeds[other % seeds.len()])
        } else {
            let (offer, other) = (&offers[i as usize / 2 % offers.len()], &offers[other % offers.len()]);
            let text = mutate(&mut random, offer.sdp.as_bytes(), other.sdp.as_bytes());
            wrap(proto::SessionDescription { sdp: String::from_utf8_lossy(&text).into_owned(), ..offer.clone() })
        };
        count.note(&digest(&input));
    }
    let share = |part: u32| 100.0 * f64::from(part) / f64::from(INPUTS);
    println!(
        "{kind}: seed {SEED:#x}, {INPUTS} inputs, {:.0} % past the bounds and the parser, {:.0} % with an offer that was answered",
        share(count.read),
        share(count.answered)
    );
    assert!(share(count.read) >= 30.0 && share(count.answered) >= 15.0, "the mutations are too coarse");
}

#[test]
fn mutated_messages_end_in_nothing_worse_than_an_answer() {
    let wrap = |offer| proto::SignalRequest { message: Some(Say::Offer(offer)) }.encode_to_vec();
    run("messages", &messages(), wrap, digest_message);
}

#[test]
fn mutated_join_requests_end_in_nothing_worse_than_an_answer() {
    let wrap = |offer| proto::JoinRequest { publisher_offer: Some(offer), ..Default::default() }.encode_to_vec();
    run("join requests", &join_requests(), wrap, |bytes| {
        let wrapped = proto::WrappedJoinRequest { compression: 0, join_request: bytes.to_vec() };
        digest_join_request(&URL_SAFE.encode(wrapped.encode_to_vec()))
    });
}

#[test]
fn noise_is_no_join_request() {
    let mut random = Random(SEED);
    for len in 0..2_000 {
        let noise: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        digest_join_request(&URL_SAFE.encode(&noise));
        let gzip = proto::WrappedJoinRequest { compression: 1, join_request: noise };
        assert_eq!(digest_join_request(&URL_SAFE.encode(gzip.encode_to_vec())), Digest::Refused);
    }
}
