//! The memory plan is what a worker takes when it is filled to its limits.

mod common;

use common::{CONSENT, MID_EXTENSION, Packet, Rig, TWCC_EXTENSION, open_transport, protect, vp8};
use pop_dataplane::core::Core;
use pop_dataplane::limits::{TRACKS_PER_TRANSPORT_MAX, WorkerLimits, core_plan};
use pop_proto::Command;
use pop_proto::control::{Codec, Extension, ExtensionIds, OpenSubscription, OpenTrack, OpenTransport, PayloadType, PayloadTypeMap};
use pop_proto::srtp::KEY_OBJECT_LEN_MAX;
use pop_proto::wire::rtcp::SenderInfo;
use pop_schemas::{SubscriptionId, TrackId, TransportId};
use pop_uring::alloc::{CountingAllocator, thread_bytes};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const TRANSPORTS: u64 = 16;
const TRACKS: u64 = TRACKS_PER_TRANSPORT_MAX as u64;
/// Sections of each transport.
const SECTIONS: u64 = 64;

fn limits() -> WorkerLimits {
    WorkerLimits {
        transports: TRANSPORTS as u32,
        tracks: (TRANSPORTS * TRACKS) as u32,
        subscriptions: (TRANSPORTS * SECTIONS) as u32,
        packets: 4_096,
        ..WorkerLimits::default()
    }
}

/// A worker that has no room for anybody or anything more.
fn fill() -> Rig {
    let mut rig = Rig { core: Core::new(limits(), CONSENT), ..Rig::new() };
    let ids = ExtensionIds::NONE.with(Extension::Mid, MID_EXTENSION).with(Extension::TransportCc, TWCC_EXTENSION);
    for id in 1..=TRANSPORTS {
        let mut client = rig.connect_with(OpenTransport { extensions: ids, ..open_transport(id) });
        for track in id * 100..id * 100 + TRACKS {
            let rtx_ssrc = 1 << 20 | track as u32;
            rig.command(Command::OpenTrack(Box::new(OpenTrack {
                transport: TransportId(id),
                rtx_ssrc: Some(rtx_ssrc),
                payload_types: vec![PayloadType { number: 96, codec: Codec::Vp8, rtx: Some(97) }],
                ..Rig::track(track)
            })));
            // Each stream has its replay windows.
            for (ssrc, payload_type) in [(track as u32, 96), (rtx_ssrc, 97)] {
                let payload = [&[0, 0][..], &vp8(true, 100)].concat();
                let media = Packet { ssrc, payload_type, index: 1, timestamp: 0, elements: &[], payload: &payload };
                let media = protect(&client, &media);
                rig.receive(&client, media);
                let info = SenderInfo { ssrc, ntp: 1, rtp_timestamp: 1, packets: 1, octets: 1 };
                let report = client.rtcp(|c| c.sender_report(&info, &[]));
                rig.receive(&client, report);
            }
        }
        for section in id * 1_000..id * 1_000 + SECTIONS {
            let open = OpenSubscription { transport: TransportId(id), ..Rig::subscription(section) };
            rig.command(Command::OpenSubscription(Box::new(open)));
            rig.command(Command::Forward {
                subscription: SubscriptionId(section),
                track: Some(TrackId(id * 100)),
                payload_types: vec![PayloadTypeMap { from: 96, to: 102, rtx: None, unwrap_red: false }],
            });
        }
        while rig.core.poll_event().is_some() {}
        while rig.transmit().is_some() {}
    }
    rig
}

#[test]
fn the_plan_of_a_core_is_what_it_takes_when_it_is_full() {
    let Rig { core, .. } = fill();
    let before = thread_bytes();
    drop(core);
    let taken = before - thread_bytes();
    // The ciphers' objects are aws-lc's, which the allocator does not see; srtp's tests measure them.
    let ciphers = TRANSPORTS as i64 * 4 * KEY_OBJECT_LEN_MAX as i64;
    let plan = core_plan(&limits());
    let planned = plan.iter().map(|term| term.bytes() as i64).sum::<i64>() - ciphers;
    assert!((planned - taken).abs() <= planned * 3 / 100, "planned {planned}, taken {taken}: {plan:?}");
}
