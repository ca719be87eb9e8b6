//! RTP views against hostile packets.

mod common;

use common::{captured, run_mutations};
use pop_proto::wire::{Protocol, demux, rtp};

#[test]
fn captured_packets_read_as_they_were_sent() {
    let packets = captured("codec", "vp8");
    let views: Vec<_> = packets.iter().map(|packet| rtp::RtpView::parse(packet).expect("ffmpeg sends well-formed RTP")).collect();
    assert!(packets.iter().all(|packet| demux(packet) == Ok(Protocol::Rtp)));
    for pair in views.windows(2) {
        assert_eq!(pair[1].sequence(), pair[0].sequence().wrapping_add(1));
        assert_eq!(pair[1].ssrc(), pair[0].ssrc());
        assert_eq!(pair[0].marker(), pair[1].timestamp() != pair[0].timestamp(), "the marker ends a frame");
    }
    assert_eq!(views.iter().filter(|view| view.marker()).count(), 20, "2 s of 10 frames/s");
}

#[test]
fn extensions_of_browsers_are_found() {
    let packets = captured("rtp", "extensions");
    let view = |index: usize| rtp::RtpView::parse(&packets[index]).unwrap();
    assert_eq!((view(0).transport_sequence(3), view(0).extension(4)), (Some(7), Some(&b"0"[..])));
    assert_eq!((view(1).transport_sequence(3), view(1).extension(4)), (Some(8), Some(&b"1"[..])));
    assert_eq!((view(2).extension(1), view(2).transport_sequence(3)), (Some(&[0x85][..]), Some(9)));
    assert_eq!((view(3).extension(4), view(3).extension(5)), (Some(&b"video0"[..]), Some(&[][..])));
    assert_eq!((view(3).extension(12), view(4).extension(13)), (Some(&[0x80, 0, 0xff][..]), None));
    assert_eq!(rtp::payload(&packets[5], view(5).header_len()), Ok(&[0x90, 0x80, 0x80][..]));
    assert_eq!(rtp::payload(&packets[6], view(6).header_len()), Ok(&[][..]));
}

#[test]
fn mutated_packets_stay_inside_their_bounds() {
    let mut seeds = captured("rtp", "extensions");
    // Whole video packets would spend nearly every mutation on the payload, which this view never reads.
    seeds.extend(["vp8", "opus"].iter().flat_map(|file| captured("codec", file).into_iter().take(4)).map(|mut packet| {
        packet.truncate(40);
        packet
    }));
    run_mutations("rtp", &seeds, |_, input| {
        let Ok(view) = rtp::RtpView::parse(input) else { return false };
        assert!((12..=input.len()).contains(&view.header_len()));
        let extensions_len: usize = view
            .extensions()
            .map(|(id, value)| {
                assert!(id != 0, "padding is no element");
                value.len() + 1
            })
            .sum();
        assert!(extensions_len <= view.header_len() - 12);
        for id in 0..=255 {
            assert!(view.extension(id).is_none_or(|value| input.as_ptr_range().contains(&value.as_ptr()) || value.is_empty()));
        }
        if let Ok(payload) = rtp::payload(input, view.header_len()) {
            assert!(payload.len() <= input.len() - view.header_len());
        }
        true
    });
}
