//! What a worker's core alone costs per packet that leaves. No sockets, no kernel, fake time, real keys.
//!
//! ```text
//! packets of a turn, protected before the clock runs -> handle_datagram -> ticks of 10 ms -> poll_transmit into 64 send slots
//! ```
//! As a test it is small and looks at what it did. To measure, give other figures, on a build with optimisation:
//! `POP_CORE_COST="tracks=10 subscribers=200 turns=300" cargo test --release -p pop-dataplane --test core_cost -- --nocapture`; for
//! counts that repeat to the last instruction run the program under `valgrind --tool=callgrind --toggle-collect='*timed_*'`.

mod common;

use std::hint::black_box;
use std::time::Duration;

use common::{CONSENT, Client, MID_EXTENSION, Packet, Rig, TWCC_EXTENSION, protect, vp8};
use pop_dataplane::core::Core;
use pop_dataplane::limits::WorkerLimits;
use pop_proto::Command;
use pop_proto::control::{
    Codec, Extension, ExtensionIds, MediaKind, OpenSubscription, OpenTrack, OpenTransport, PayloadType, PayloadTypeMap, SrtpProfile,
};
use pop_schemas::{SubscriptionId, TrackId, TransportId};
use pop_uring::thread_cpu_time;

/// Send slots, as a worker has them.
const SLOTS: usize = 64;
/// Turns before the clock runs.
const WARM_UP: u64 = 60;
/// Turns between two checks of everybody, within the consent of a client.
const TURNS_PER_CHECK: u64 = 100;
const TICK: Duration = Duration::from_millis(10);
const SEND_TIME_EXTENSION: u8 = 5;
const LEVEL_EXTENSION: u8 = 8;
/// Id of the first subscriber; publishers have those below.
const FIRST_SUBSCRIBER: u64 = 1_000;

/// What is run.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Each of another client.
    tracks: u64,
    /// Clients that take all of them.
    subscribers: u64,
    audio: u64,
    /// Packets of each track in a turn.
    packets: u64,
    /// Bytes of a payload.
    payload: u64,
    turns: u64,
    /// MiB that are walked through between two turns, as a kernel that sends between them does.
    cold: u64,
    /// Of a hundred subscribers so many have AES128_CM_HMAC_SHA1_80.
    cm_percent: u64,
}

const SMALL: Shape = Shape { tracks: 3, subscribers: 8, audio: 0, packets: 6, payload: 1_072, turns: 30, cold: 0, cm_percent: 0 };

impl Shape {
    /// As the environment says.
    fn chosen() -> Shape {
        let mut shape = SMALL;
        for (name, value) in std::env::var("POP_CORE_COST").unwrap_or_default().split_whitespace().filter_map(|pair| pair.split_once('=')) {
            let field = match name {
                "tracks" => &mut shape.tracks,
                "subscribers" => &mut shape.subscribers,
                "audio" => &mut shape.audio,
                "packets" => &mut shape.packets,
                "payload" => &mut shape.payload,
                "turns" => &mut shape.turns,
                "cold" => &mut shape.cold,
                "cm_percent" => &mut shape.cm_percent,
                _ => panic!("{name} is not a figure of a shape"),
            };
            *field = value.parse().expect("a number");
        }
        shape
    }

    fn kind(&self) -> MediaKind {
        if self.audio == 0 { MediaKind::Video } else { MediaKind::Audio }
    }

    /// 30 frames a second, of audio 50.
    fn interval(&self) -> Duration {
        Duration::from_millis(if self.audio == 0 { 33 } else { 20 })
    }
}

/// What left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    packets: u64,
    trains: u64,
    /// Folds the tag of every train, so that nothing can be left out.
    checksum: u64,
}

struct Bench {
    rig: Rig,
    publishers: Vec<Client>,
    slots: Vec<Vec<u8>>,
    totals: Totals,
}

impl Bench {
    fn new(shape: &Shape) -> Bench {
        let limits = WorkerLimits {
            transports: (shape.tracks + shape.subscribers) as u32,
            tracks: shape.tracks as u32,
            subscriptions: (shape.tracks * shape.subscribers) as u32,
            ..WorkerLimits::default()
        };
        let mut rig = Rig { core: Core::new(limits, CONSENT), ..Rig::new() };
        let ids = common::open_transport(0).extensions.with(Extension::AudioLevel, LEVEL_EXTENSION);
        let open = |id| OpenTransport { extensions: ids, ..common::open_transport(id) };
        let codec = if shape.audio == 0 { Codec::Vp8 } else { Codec::Opus };
        let publishers = (1..=shape.tracks)
            .map(|id| {
                let client = rig.connect_with(open(id));
                let payload_types = vec![PayloadType { number: 96, codec, rtx: None }];
                rig.command(Command::OpenTrack(Box::new(OpenTrack { kind: shape.kind(), payload_types, ..Rig::track(id) })));
                client
            })
            .collect();
        for id in FIRST_SUBSCRIBER..FIRST_SUBSCRIBER + shape.subscribers {
            rig.profile = if id % 100 < shape.cm_percent { SrtpProfile::Aes128CmSha1_80 } else { SrtpProfile::AeadAes128Gcm };
            rig.connect_with(open(id));
            (1..=shape.tracks).for_each(|track| subscribe(&mut rig, shape, id, track));
        }
        Bench { rig, publishers, slots: vec![vec![0; 65_535]; SLOTS], totals: Totals::default() }
    }

    /// Nobody is to be taken for gone.
    fn check_all(&mut self, shape: &Shape) {
        for id in (1..=shape.tracks).chain(FIRST_SUBSCRIBER..FIRST_SUBSCRIBER + shape.subscribers) {
            let path = pop_proto::control::Path { socket: 0, remote: ([127, 0, 0, 1], 20_000 + id as u16).into() };
            self.rig.core.handle_datagram(self.rig.now, path, &mut common::check(id, common::PWD));
            while self.rig.transmit().is_some() {}
        }
    }

    /// The datagrams of one turn, each with its publisher.
    fn make_turn(&self, shape: &Shape, turn: u64) -> Vec<(usize, Vec<u8>)> {
        let payload = vp8(turn == 0, shape.payload as usize);
        let of_track = |(at, client): (usize, &Client)| {
            let payload = &payload;
            let packets = (0..shape.packets).map(|packet| {
                let index = turn * shape.packets + packet;
                let sequence = (index as u16).to_be_bytes();
                let element: (u8, &[u8]) = if shape.audio == 0 { (TWCC_EXTENSION, &sequence) } else { (LEVEL_EXTENSION, &[20]) };
                let timestamp = 3_000 * turn as u32;
                let media = Packet { ssrc: client.id as u32, payload_type: 96, index, timestamp, elements: &[element], payload };
                (at, protect(client, &media))
            });
            packets.collect::<Vec<_>>()
        };
        self.publishers.iter().enumerate().flat_map(of_track).collect()
    }

    // Never inlined, for callgrind's --toggle-collect.
    #[inline(never)]
    fn timed_turn(&mut self, datagrams: &mut [(usize, Vec<u8>)]) {
        for (publisher, datagram) in datagrams {
            self.rig.core.handle_datagram(self.rig.now, self.publishers[*publisher].path, datagram);
            if self.rig.core.must_drain() {
                self.drain();
            }
        }
        self.timed_tick();
    }

    #[inline(never)]
    fn timed_tick(&mut self) {
        self.rig.core.handle_timeout(self.rig.now);
        self.drain();
    }

    fn drain(&mut self) {
        while self.rig.core.poll_event().is_some() {}
        loop {
            let slot = &mut self.slots[self.totals.trains as usize % SLOTS];
            let Some(transmit) = self.rig.core.poll_transmit(self.rig.now, slot) else { return };
            self.totals.trains += 1;
            self.totals.packets += transmit.segment.map_or(1, |segment| transmit.len.div_ceil(usize::from(segment)) as u64);
            let tag = slot[transmit.len - 8..transmit.len].try_into().expect("eight bytes");
            self.totals.checksum = self.totals.checksum.rotate_left(1) ^ u64::from_le_bytes(tag);
        }
    }
}

fn subscribe(rig: &mut Rig, shape: &Shape, id: u64, track: u64) {
    let ids = ExtensionIds::NONE
        .with(Extension::Mid, MID_EXTENSION)
        .with(Extension::TransportCc, TWCC_EXTENSION)
        .with(Extension::AbsSendTime, SEND_TIME_EXTENSION)
        .with(Extension::AudioLevel, LEVEL_EXTENSION);
    let subscription = SubscriptionId(id * 1_000 + track);
    rig.command(Command::OpenSubscription(Box::new(OpenSubscription {
        subscription,
        transport: TransportId(id),
        kind: shape.kind(),
        ssrc: track as u32,
        rtx_ssrc: Some(1 << 31 | track as u32),
        extensions: ids,
        mid: track.to_string().into(),
        ..Rig::subscription(id)
    })));
    let payload_types = vec![PayloadTypeMap { from: 96, to: 102, rtx: Some(103), unwrap_red: false }];
    rig.command(Command::Forward { subscription, track: Some(TrackId(track)), payload_types });
}

/// Runs it; returns what left in the measured turns, and the CPU time that it took.
fn run(shape: &Shape) -> (Totals, Duration) {
    let mut bench = Bench::new(shape);
    let mut walked = vec![1u8; (shape.cold as usize) << 20];
    let (mut spent, mut before) = (Duration::ZERO, Totals::default());
    for turn in 0..WARM_UP + shape.turns {
        if turn == WARM_UP {
            (spent, before) = (Duration::ZERO, bench.totals);
        }
        if turn % TURNS_PER_CHECK == 0 {
            bench.check_all(shape);
        }
        let mut datagrams = bench.make_turn(shape, turn);
        walked.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
        black_box(&walked);
        let start = thread_cpu_time();
        bench.timed_turn(&mut datagrams);
        let end = bench.rig.now + shape.interval();
        while bench.rig.now + TICK < end {
            bench.rig.now = bench.rig.now + TICK;
            bench.timed_tick();
        }
        spent += thread_cpu_time() - start;
        bench.rig.now = end;
    }
    let Totals { packets, trains, checksum } = bench.totals;
    (Totals { packets: packets - before.packets, trains: trains - before.trains, checksum }, spent)
}

#[test]
fn every_subscriber_gets_one_train_of_a_turn_and_it_can_be_told_what_that_costs() {
    let shape = Shape::chosen();
    let (totals, spent) = run(&shape);
    let media = shape.tracks * shape.subscribers * shape.packets * shape.turns;
    println!("{shape:?}: {:.1} ns of CPU per packet, {totals:?}", spent.as_nanos() as f64 / totals.packets as f64);
    assert!(totals.packets >= media, "{totals:?} of {media}");
    // Tracks of equal packets share a train, and reports are few.
    assert!(totals.trains < 2 * shape.subscribers * shape.turns + shape.turns * 20, "{totals:?}");
}
