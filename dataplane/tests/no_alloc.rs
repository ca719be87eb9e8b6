//! After start, no packet costs an allocation, whatever its path through the core.

mod common;

use std::time::Duration;

use common::{PWD, Rig, vp8};
use pop_uring::alloc::{CountingAllocator, thread_allocations};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Drains the core without keeping anything.
fn drain(rig: &mut Rig) -> usize {
    let mut sent = 0;
    while rig.transmit().is_some() {
        sent += 1;
    }
    while rig.core.poll_tap().is_some() {}
    while rig.core.poll_event().is_some() {}
    sent
}

#[test]
fn media_repairs_reports_checks_and_drops_allocate_nothing() {
    let mut rig = Rig::new();
    let publisher = rig.publisher(1);
    let mut viewers: Vec<_> = (2..12).map(|id| rig.viewer(id, 1)).collect();
    rig.command(pop_proto::Command::Tap { track: pop_schemas::TrackId(1), tap: Some(1) });

    // Everything that a client would allocate is made first.
    let mut datagrams = Vec::new();
    for index in 0..4_000u64 {
        if index % 50 != 7 {
            datagrams.push((publisher.path, publisher.packet(1, index, &vp8(index % 300 == 0, 1_000))));
        }
        if index % 20 == 0 {
            datagrams.push((publisher.path, publisher.check(PWD)));
            let viewer = &mut viewers[(index / 20) as usize % 10];
            let (path, ssrc) = (viewer.path, viewer.id as u32);
            datagrams.push((path, viewer.rtcp(|c| c.nack(0, ssrc, [index as u16 + 98]))));
            datagrams.push((path, viewer.rtcp(|c| c.pli(0, ssrc))));
            datagrams.push((path, vec![0x80; 40]));
            datagrams.push((path, vec![0x80, 200, 0, 1]));
            datagrams.push((publisher.path, vec![0; 30]));
        }
    }
    let run = |rig: &mut Rig, datagrams: &mut [(pop_proto::control::Path, Vec<u8>)]| {
        let mut sent = 0;
        for (path, datagram) in datagrams {
            rig.core.handle_datagram(rig.now, *path, datagram);
            rig.now = rig.now + Duration::from_millis(1);
            rig.core.handle_timeout(rig.now);
            sent += drain(rig);
        }
        sent
    };
    let half = datagrams.len() / 2;
    run(&mut rig, &mut datagrams[..half]);
    let before = thread_allocations();
    assert!(before > 0, "the counter counts");
    let sent = run(&mut rig, &mut datagrams[half..]);
    let allocations = thread_allocations() - before;
    assert!(sent > 15_000, "{sent} sends");
    assert_eq!(allocations, 0, "over {sent} sends");
    assert!(rig.core.counters().retransmitted_packets > 50, "{:?}", rig.core.counters());
    assert!(rig.core.counters().rtcp_nack_out > 30);
}
