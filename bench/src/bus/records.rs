//! How many bytes the record has by which a member can be taken over: what a node writes on the bus, each time something of it changes.

use std::fmt;

use pop::bus::{SCHEMA, encode_participant};
use pop_proto::control::{Codec, LayerSsrcs, MediaKind};
use pop_schemas::{Identity, Incarnation, NodeId, ParticipantId, TrackId};
use pop_session::member::{Permissions, Quality, Source, TrackInfo, VideoLayer};
use pop_session::presence::{LocalRecord, Manifest, RemoteTrack, Version, Wish};
use pop_session::{Format, H264Profile, Kind, PayloadFormat};
use serde::Serialize;

/// Ids are drawn from 64 bits, and texts of clients are about so long.
const ID: u64 = 0x7dab_b39f_0000_0001;

/// One kind of member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct RecordBytes {
    member: &'static str,
    bytes: usize,
}

impl fmt::Display for RecordBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} bytes in the record of a member: {}", self.bytes, self.member)
    }
}

/// Each kind, as a browser with livekit-client is one.
pub(super) fn measure() -> Result<Vec<RecordBytes>, String> {
    let (microphone, camera, screen) = (microphone(), camera(), screen());
    let wishes: Vec<_> = (0..10).map(|n| wish(TrackId(ID + n))).collect();
    let kinds = [
        ("who only watches", vec![], vec![]),
        ("microphone", vec![microphone.clone()], vec![]),
        ("microphone, camera of 3 layers", vec![microphone.clone(), camera.clone()], vec![]),
        ("microphone, camera of 3 layers, screen of 2", vec![microphone.clone(), camera.clone(), screen], vec![]),
        ("microphone, camera of 3 layers; watches 10 others, all that there is", vec![microphone.clone(), camera.clone()], vec![]),
        ("microphone, camera of 3 layers; watches 10 others, each in its size", vec![microphone, camera], wishes),
    ];
    kinds.into_iter().map(|(member, tracks, wishes)| Ok(RecordBytes { member, bytes: encoded(tracks, wishes)? })).collect()
}

fn encoded(tracks: Vec<RemoteTrack>, wishes: Vec<Wish>) -> Result<usize, String> {
    let identity = Identity::new("participant-1f3a").map_err(|error| error.to_string())?;
    let manifest = Manifest {
        name: "Anna Example".into(),
        joined_at_ms: 1_790_000_000_123,
        tracks,
        wishes,
        ..Manifest::new(identity, Kind::Member, Permissions::PUBLISHER)
    };
    let version = Version { epoch: 0, counter: 12 };
    let record = LocalRecord { participant: ParticipantId(ID), version, manifest: Some(manifest) };
    let incarnation = Incarnation { start: 1_790_000_000_000, nonce: ID };
    encode_participant(NodeId(ID), incarnation, &record, SCHEMA).map(|bytes| bytes.len()).map_err(|error| format!("{error:?}"))
}

fn wish(track: TrackId) -> Wish {
    Wish { track, quality: Quality::High, height: 360, fps: 0, priority: u8::MAX }
}

fn microphone() -> RemoteTrack {
    let formats = vec![format(111, Format::Opus, None), format(63, Format::Red { block: 111 }, None)];
    let info = info(MediaKind::Audio, Source::Microphone, "audio/red", "2");
    RemoteTrack { codec: Some(Codec::Opus), formats, started: true, order: 1_790_000_000_123_456, ..RemoteTrack::new(info) }
}

fn camera() -> RemoteTrack {
    let layers = vec![
        layer(Quality::Low, 320, 160_000, "q"),
        layer(Quality::Medium, 640, 450_000, "h"),
        layer(Quality::High, 1_280, 1_700_000, "f"),
    ];
    video(Source::Camera, "3", layers)
}

fn screen() -> RemoteTrack {
    video(Source::ScreenShare, "4", vec![layer(Quality::Low, 960, 150_000, "q"), layer(Quality::High, 1_920, 2_500_000, "h")])
}

fn video(source: Source, mid: &str, layers: Vec<VideoLayer>) -> RemoteTrack {
    let (width, height) = layers.last().map_or((0, 0), |layer| (layer.width, layer.height));
    let rids: Vec<_> = layers.iter().map(|layer| layer.rid.clone()).collect();
    let mut track =
        RemoteTrack::new(TrackInfo { width, height, layers, simulcast: true, ..info(MediaKind::Video, source, "video/VP8", mid) });
    for place in 0..rids.len() {
        track.ssrcs[place] = LayerSsrcs { media: Some(0x1234_5678), rtx: Some(0x8765_4321) };
    }
    RemoteTrack { codec: Some(Codec::Vp8), formats: formats(), rids, started: true, order: 1_790_000_000_123_456, ..track }
}

/// What Chromium has to send pictures in, as far as `pop` takes it.
fn formats() -> Vec<PayloadFormat> {
    let h264 = |profile, packetization_mode| Format::H264 { profile, packetization_mode };
    let of = [
        Format::Vp8,
        Format::Vp9 { profile: 0 },
        Format::Vp9 { profile: 2 },
        h264(H264Profile::Baseline, 1),
        h264(H264Profile::Baseline, 0),
        h264(H264Profile::ConstrainedBaseline, 1),
        h264(H264Profile::ConstrainedBaseline, 0),
        h264(H264Profile::Main, 1),
        h264(H264Profile::Main, 0),
        Format::Av1 { profile: 0 },
    ];
    (96..).step_by(2).zip(of).map(|(number, of)| format(number, of, Some(number + 1))).collect()
}

fn format(number: u8, format: Format, rtx: Option<u8>) -> PayloadFormat {
    PayloadFormat { number, format, rtx }
}

fn layer(quality: Quality, width: u32, bitrate: u32, rid: &str) -> VideoLayer {
    VideoLayer { quality, width, height: width * 9 / 16, bitrate, rid: rid.into(), spatial: 0 }
}

fn info(kind: MediaKind, source: Source, mime: &str, mid: &str) -> TrackInfo {
    TrackInfo {
        track: TrackId(ID),
        kind,
        source,
        name: "".into(),
        muted: false,
        width: 0,
        height: 0,
        layers: Vec::new(),
        simulcast: false,
        mime: mime.into(),
        mid: mid.into(),
        stream: "camera".into(),
        encryption: 0,
        audio_features: Vec::new(),
        disable_red: false,
        stereo: false,
        disable_dtx: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it costs to be taken over is paid by every node of the PoP at each change: more is a decision, not an accident.
    #[test]
    fn a_record_is_no_longer_than_a_resume_needs() {
        let kinds = measure().expect("all are bounded");
        for kind in &kinds {
            println!("{kind}");
        }
        let bytes: Vec<_> = kinds.iter().map(|kind| kind.bytes).collect();
        let [audience, audio, call, screen, watching, fitting] = bytes[..] else { panic!("{kinds:?}") };
        assert!(audience <= 192 && audio <= 384 && call <= 896 && screen <= 1_280, "{kinds:?}");
        assert_eq!(watching, call, "whom it watches its client tells when it is back");
        assert!(fitting <= call + 10 * 16 + 32, "16 bytes for each track that it does not want as it is: {kinds:?}");
    }
}
