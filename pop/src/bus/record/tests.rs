use std::fs;
use std::path::Path;

use pop_proto::control::LayerSsrcs;

use super::*;

const ME: (NodeId, Incarnation) = (NodeId(0x1234_5678_9abc_def0), Incarnation { start: 1_790_000_000_000, nonce: 0xfeed_face_cafe_beef });

fn text(len: usize) -> Box<str> {
    "x".repeat(len).into()
}

fn format(number: u8, format: Format, rtx: Option<u8>) -> PayloadFormat {
    PayloadFormat { number, format, rtx }
}

/// A microphone and a camera with three layers.
fn member() -> Manifest {
    let layer = |quality, height, rid: &str| VideoLayer {
        quality,
        width: height * 16 / 9,
        height,
        bitrate: height * 1_000,
        rid: rid.into(),
        spatial: 1,
    };
    let info = |track, kind, source, mime: &str, mid: &str| TrackInfo {
        track: TrackId(track),
        kind,
        source,
        name: "a camera".into(),
        muted: true,
        width: 1_280,
        height: 720,
        layers: Vec::new(),
        simulcast: false,
        mime: mime.into(),
        mid: mid.into(),
        stream: "camera".into(),
        encryption: -1,
        audio_features: vec![0, 7],
        disable_red: true,
        stereo: true,
        disable_dtx: true,
    };
    let mut video = info(u64::MAX, MediaKind::Video, Source::Camera, "video/VP8", "1");
    video.layers = vec![layer(Quality::Low, 180, "q"), layer(Quality::Medium, 360, "h"), layer(Quality::High, 720, "f")];
    video.simulcast = true;
    Manifest {
        identity: Identity::new("Ānna 7").unwrap(),
        hidden: true,
        kind: Kind::Member,
        name: "Anna".into(),
        metadata: "{\"seat\":7}".into(),
        attributes: [("role".into(), "host".into()), ("empty".into(), "".into())].into(),
        state: MemberState::Joined,
        joined_at_ms: 1_790_000_000_123,
        permissions: Permissions {
            subscribe: true,
            publish: true,
            publish_data: false,
            sources: vec![Source::Camera, Source::Microphone, Source::ScreenShare, Source::ScreenShareAudio, Source::Unknown],
            hidden: true,
            recorder: false,
            update_metadata: true,
        },
        takers: SubscriptionPermission {
            all: false,
            participants: vec![
                (PermissionSubject::Identity(Identity::new("Bob").unwrap()), None),
                (PermissionSubject::Participant(ParticipantId(9)), Some(vec![TrackId(1), TrackId(u64::MAX)])),
                (PermissionSubject::Participant(ParticipantId(0)), Some(Vec::new())),
            ],
        },
        tracks: vec![
            RemoteTrack {
                info: info(1, MediaKind::Audio, Source::Microphone, "audio/opus", "0"),
                codec: Some(Codec::Opus),
                formats: vec![format(111, Format::Opus, None), format(63, Format::Red { block: 111 }, None)],
                rids: Vec::new(),
                ssrcs: Default::default(),
                started: true,
                order: u64::MAX,
                waits: false,
            },
            RemoteTrack {
                info: video,
                codec: Some(Codec::Vp8),
                formats: vec![
                    format(96, Format::Vp8, Some(97)),
                    format(98, Format::Vp9 { profile: 2 }, Some(0)),
                    format(100, Format::H264 { profile: H264Profile::ConstrainedBaseline, packetization_mode: 1 }, None),
                    format(101, Format::H264 { profile: H264Profile::Other { idc: 0x6e, iop: 3 }, packetization_mode: 0 }, None),
                    format(102, Format::H265 { profile: 2, high_tier: true }, None),
                    format(103, Format::Av1 { profile: 1 }, None),
                    format(255, Format::Raw { clock_rate: 90_000 }, None),
                ],
                rids: vec!["q".into(), "h".into(), "f".into()],
                ssrcs: [(Some(1), None), (None, None), (Some(u32::MAX), Some(7)), (None, None)]
                    .map(|(media, rtx)| LayerSsrcs { media, rtx }),
                started: false,
                order: 7,
                waits: true,
            },
        ],
        taking: Taking { everything: false, adaptive: true },
        wishes: Vec::new(),
    }
}

fn addresses() -> Vec<IpAddr> {
    ["192.0.2.80", "2001:db8::80"].map(|address| address.parse().expect("an address")).into()
}

fn local(manifest: Option<Manifest>) -> LocalRecord {
    LocalRecord { participant: ParticipantId(u64::MAX - 1), version: Version { epoch: 3, counter: u32::MAX }, manifest }
}

fn encode(manifest: Option<Manifest>) -> Vec<u8> {
    encode_participant(ME.0, ME.1, &local(manifest), SCHEMA).expect("it is bounded")
}

#[test]
fn a_record_comes_back_as_it_was() {
    let audience =
        Manifest::new(Identity::new("viewer").unwrap(), Kind::Viewer, Permissions { sources: Vec::new(), ..member().permissions });
    for (what, manifest) in [
        ("a member with two tracks", Some(member())),
        ("with wishes", Some(watching())),
        ("a viewer", Some(audience)),
        ("a tombstone", None),
    ] {
        let bytes = encode(manifest.clone());
        println!("{what}: {} bytes", bytes.len());
        let Written { incarnation, record } = decode_participant(&bytes).expect("we wrote it");
        assert_eq!((record.key.node, incarnation), (ME.0.0, ME.1));
        assert_eq!((record.key.participant, record.version, record.manifest), (ParticipantId(u64::MAX - 1), local(None).version, manifest));
    }
}

/// The same, who wants what others publish in so many ways.
fn watching() -> Manifest {
    let wish = |track, quality, height, fps, priority| Wish { track: TrackId(track), quality, height, fps, priority };
    let wishes = vec![
        wish(1, Quality::Off, 0, 0, 255),
        wish(u64::MAX, Quality::High, u32::MAX, u16::MAX, 1),
        wish(7, Quality::Low, 180, 15, 2),
        wish(8, Quality::Medium, 0, 0, 0),
    ];
    Manifest { wishes, ..member() }
}

/// What version 0 makes of it: it has none of them.
fn without_news(mut manifest: Manifest) -> Manifest {
    manifest.wishes.clear();
    manifest.tracks.iter_mut().for_each(|track| (track.waits, track.ssrcs) = (false, Default::default()));
    manifest
}

/// The record `name` as the writer of `version` made it, which is what is `written` now too. `POP_GOLDEN_WRITE=1` writes it anew: right
/// only before the version's first release; those of the versions before never change.
fn golden(version: u8, name: &str, written: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/bus/v{version}/{name}.hex"));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    if std::env::var_os("POP_GOLDEN_WRITE").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
        fs::write(&path, hex(written)).expect("it can be written");
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(hex(written), text, "{}: a writer of this version still writes it", path.display());
    let digits = text.trim();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal")).collect()
}

#[test]
fn golden_records_of_both_versions_are_read_and_written() {
    for version in [0, SCHEMA] {
        // Who wishes nothing is written as before there were wishes.
        let wishes = (version == SCHEMA).then_some(("member_wishes", Some(watching())));
        for (name, manifest) in [("member", Some(member())), ("tombstone", None)].into_iter().chain(wishes) {
            let written = encode_participant(ME.0, ME.1, &local(manifest.clone()), version).expect("it is bounded");
            let read = decode_participant(&golden(version, name, &written)).expect("we wrote it").record.manifest;
            assert_eq!(read, if version == 0 { manifest.map(without_news) } else { manifest }, "version {version}, {name}");
        }
        let record = NodeRecord {
            name: "fra1".into(),
            pop: "fra".into(),
            node: ME.0,
            incarnation: ME.1,
            mesh: Some("192.0.2.1:7890".parse().expect("an address")),
            release: "0.1.0".into(),
            load: 250,
            capacity: 400,
            draining: true,
            // A node of version 0 knows of none, and one of version 1 that has none writes what that one did.
            vips: Vec::new(),
        };
        assert_eq!(decode_node(&golden(version, "node", &encode_node(&record, 7))).expect("we wrote it"), (record.clone(), 7));
        if version == SCHEMA {
            let record = NodeRecord { vips: addresses(), ..record };
            assert_eq!(decode_node(&golden(version, "node_vips", &encode_node(&record, 7))).expect("we wrote it"), (record, 7));
        }
        let beat = Beat { incarnation: ME.1, counter: 7 };
        assert_eq!(decode_beat(&golden(version, "beat", &encode_beat(beat))), Ok(beat));
        let digest = Digest { incarnation: ME.1, sum: Sum { count: 3, hash: 1 << 60 } };
        assert_eq!(decode_digest(&golden(version, "digest", &encode_digest(digest))), Ok(digest));
    }
}

#[test]
fn the_largest_record_that_a_member_may_have_fits() {
    let mut manifest = member();
    manifest.metadata = text(OPAQUE_LEN_MAX);
    manifest.attributes = (0..1_024u32).map(|i| (format!("{i:032}").into(), text(32))).collect();
    manifest.tracks = vec![manifest.tracks[1].clone(); 32];
    let bytes = encode(Some(manifest.clone()));
    assert!(bytes.len() > 128 << 10, "it is a large one: {}", bytes.len());
    assert_eq!(decode_participant(&bytes).expect("we wrote it").record.manifest, Some(manifest));
}

#[test]
fn what_is_beyond_a_bound_is_neither_written_nor_read() {
    let beyond: [fn(&mut Manifest); 10] = [
        |manifest| manifest.name = text(TEXT_LEN_MAX + 1),
        |manifest| manifest.metadata = text(OPAQUE_LEN_MAX + 1),
        |manifest| drop(manifest.attributes.insert("a".into(), text(OPAQUE_LEN_MAX))),
        |manifest| manifest.tracks = vec![manifest.tracks[0].clone(); TRACKS_MAX + 1],
        |manifest| manifest.tracks[1].info.layers = vec![VideoLayer::default(); LAYERS_MAX + 1],
        |manifest| manifest.tracks[1].rids = vec!["r".into(); LAYERS_MAX + 1],
        |manifest| manifest.tracks[1].formats = vec![manifest.tracks[1].formats[0]; FORMATS_MAX + 1],
        |manifest| manifest.takers.participants = vec![manifest.takers.participants[0].clone(); TAKERS_MAX + 1],
        |manifest| manifest.tracks[0].info.stream = text(TEXT_LEN_MAX + 1),
        |manifest| manifest.wishes = vec![watching().wishes[0]; WISHES_MAX + 1],
    ];
    for (i, change) in beyond.into_iter().enumerate() {
        let mut manifest = member();
        change(&mut manifest);
        assert_eq!(encode_participant(ME.0, ME.1, &local(Some(manifest.clone())), SCHEMA), Err(RecordError::TooLarge), "case {i}");
        // A node that has no such bound.
        let mut builder = FlatBufferBuilder::new();
        let manifest = Some(write_manifest(&mut builder, &manifest, SCHEMA));
        let root = fb::Participant::create(&mut builder, &fb::ParticipantArgs { manifest, ..Default::default() });
        assert!(decode_participant(&finish(builder, root)).is_err(), "case {i}");
    }
    assert_eq!(decode_participant(&vec![0; RECORD_LEN_MAX + 1]).err(), Some(RecordError::TooLarge));
}

#[test]
fn small_records_come_back_as_they_were() {
    let record = NodeRecord {
        name: "a".into(),
        pop: "fra".into(),
        node: ME.0,
        incarnation: ME.1,
        mesh: Some("[fd00::1]:7890".parse().unwrap()),
        release: "0.1.0".into(),
        load: 999,
        capacity: 2_000,
        draining: true,
        vips: addresses(),
    };
    assert_eq!(decode_node(&encode_node(&record, 7)), Ok((record, 7)));
    let beat = Beat { incarnation: ME.1, counter: 9 };
    assert_eq!(decode_beat(&encode_beat(beat)), Ok(beat));
    let digest = Digest { incarnation: ME.1, sum: Sum { count: 3, hash: u64::MAX } };
    assert_eq!(decode_digest(&encode_digest(digest)), Ok(digest));
}

#[test]
fn a_node_with_more_service_addresses_than_one_may_have_is_refused() {
    let of = |count: u32| NodeRecord {
        name: "a".into(),
        pop: "fra".into(),
        node: ME.0,
        incarnation: ME.1,
        mesh: None,
        release: "0.1.0".into(),
        load: 0,
        capacity: 0,
        draining: false,
        vips: (0..count).map(|last| IpAddr::V4((0xc000_0200 + last).into())).collect(),
    };
    let most = of(VIPS_MAX as u32);
    assert_eq!(decode_node(&encode_node(&most, 1)), Ok((most, 1)));
    assert_eq!(decode_node(&encode_node(&of(VIPS_MAX as u32 + 1), 1)), Err(RecordError::TooLarge));
}

#[test]
fn pages_hold_everything_once() {
    let bytes = encode(Some(member()));
    let ids: Vec<u64> = (1..=2_000).collect();
    let (mut from, mut seen, mut pages) = (1, 0, 0);
    loop {
        let rest = ids.iter().skip_while(|&&id| id < from).map(|&id| (ParticipantId(id), bytes.as_slice()));
        let page = decode_page(&encode_page(ME.1, rest)).expect("we wrote it");
        (seen, pages) = (seen + page.records.len(), pages + 1);
        match page.next {
            Some(next) => from = next.0,
            None => break,
        }
    }
    assert_eq!(seen, 2_000);
    assert!(pages > 1 && pages < 100, "{pages} pages");
    assert!(decode_page(&encode_page(ME.1, std::iter::empty())).expect("we wrote it").records.is_empty());
}

/// xorshift64*: the run is the same each time.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[test]
fn mutated_records_are_refused_or_bounded_and_never_panic() {
    let node = NodeRecord {
        name: "a".into(),
        pop: "fra".into(),
        node: ME.0,
        incarnation: ME.1,
        mesh: Some("10.0.0.1:7890".parse().unwrap()),
        release: "0.1.0".into(),
        load: 1,
        capacity: 2,
        draining: false,
        vips: addresses(),
    };
    let record = encode(Some(watching()));
    let seeds = [
        record.clone(),
        encode(None),
        encode_node(&node, 1),
        encode_beat(Beat { incarnation: ME.1, counter: 1 }),
        encode_page(ME.1, [(ParticipantId(1), record.as_slice()), (ParticipantId(2), record.as_slice())].into_iter()),
    ];
    let (mut state, mut read, mut verified) = (0x5eed_u64, 0u32, 0u32);
    let rounds = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
    for round in 0..rounds {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..1 + random(&mut state) % 3 {
            let at = random(&mut state) as usize % bytes.len();
            match random(&mut state) % 4 {
                0 => bytes[at] ^= 1 << (random(&mut state) % 8),
                1 => bytes[at] = random(&mut state) as u8,
                2 if bytes.len() > 8 => bytes.truncate(at.max(4)),
                _ => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(&mut state) as usize % 5],
            }
        }
        verified += u32::from(flatbuffers::root_with_opts::<fb::Participant<'_>>(&verifier(TABLES_MAX), &bytes).is_ok());
        let results = [
            decode_participant(&bytes).is_ok_and(|written| written.record.manifest.is_none_or(|manifest| is_bounded(&manifest))),
            decode_node(&bytes).is_ok(),
            decode_beat(&bytes).is_ok(),
            decode_digest(&bytes).is_ok(),
            decode_page(&bytes).is_ok(),
        ];
        if let Ok(Written { record: Record { manifest: Some(manifest), .. }, .. }) = decode_participant(&bytes) {
            assert!(is_bounded(&manifest), "a record beyond the bounds was read");
        }
        read += u32::from(results.contains(&true));
    }
    let share = |count: u32| 100.0 * f64::from(count) / rounds as f64;
    println!("{rounds} mutations: {:.1} % pass the verifier as participants, {:.1} % are read as something", share(verified), share(read));
    assert!(share(verified) >= 8.0 && share(read) >= 40.0, "the mutations are too coarse");
}
