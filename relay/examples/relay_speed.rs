//! Nanoseconds per frame of a link, on one thread: `cargo run --release -p pop-relay --example relay_speed [PASSES]`.
//!
//! Beside writing and opening stand the head alone, in place against a raw struct of the same bytes, and the seal alone. Each figure is the
//! fastest of the passes, since other work on the machine only ever slows a pass down; the checksum shows that the work was done.
// The crate has no clock, but a measurement needs one.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

use std::{env, hint::black_box, process::ExitCode, time::Duration, time::Instant};

use pop_relay::{
    frame::{FrameKind, HEAD_LEN, Head, OVERHEAD},
    keys::KEYS_LEN,
    link::{FrameRef, Incoming, Link, LinkConfig, WRITE_MARGIN},
    seal::{Opener, Sealer},
};
use pop_schemas::Time;

/// Frames per pass: enough that the packets of a pass do not stay in the first-level cache, as in a fan-out.
const FRAMES: usize = 2_048;

/// What a head would be without a schema.
#[derive(Clone, Copy)]
struct RawHead {
    kinds: [u8; 2],
    names: [u16; 2],
    layers: [u8; 2],
    counter: u64,
}

impl RawHead {
    fn bytes(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..2].copy_from_slice(&self.kinds);
        bytes[2..4].copy_from_slice(&self.names[0].to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.names[1].to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.layers);
        bytes[8..].copy_from_slice(&self.counter.to_ne_bytes());
        bytes
    }
}

/// The fastest pass of `run` over all frames, in ns per frame, and what it made.
fn best(passes: usize, mut run: impl FnMut(usize) -> u64) -> (f64, u64) {
    let mut fastest = f64::INFINITY;
    let mut checksum = 0;
    for _ in 0..passes {
        let start = Instant::now();
        checksum = (0..FRAMES).fold(0, |sum: u64, at| sum.rotate_left(1) ^ run(at));
        fastest = fastest.min(start.elapsed().as_nanos() as f64 / FRAMES as f64);
    }
    (fastest, checksum)
}

fn digest(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.last_chunk().expect("a datagram has eight bytes")) ^ bytes.len() as u64
}

fn measure(len: usize, passes: usize) {
    let now = Time::from_millis(1_000);
    let keys = [7; KEYS_LEN];
    let config = || LinkConfig {
        version: 1,
        remote_association: 0x0903,
        generation: 0,
        send: keys,
        receive: keys,
        playout: Duration::from_millis(150),
    };
    let packets: Vec<Vec<u8>> = (0..FRAMES).map(|at| (0..len).map(|i| (i * 31 + at) as u8).collect()).collect();
    let mut datagrams = vec![vec![0; len + WRITE_MARGIN]; FRAMES];
    let head = |at: usize| Head {
        version: 1,
        kind: FrameKind::Media,
        phase: false,
        association: 0x0903,
        alias: at as u16,
        layer: 1,
        epoch: 2,
        counter: at as u64,
    };

    let (write_head, _) = best(passes, |at| {
        datagrams[at][..HEAD_LEN].copy_from_slice(&black_box(head(at)).bytes());
        u64::from(datagrams[at][8])
    });
    let (write_raw, _) = best(passes, |at| {
        let raw = RawHead { kinds: [1, 0], names: [0x0903, at as u16], layers: [1, 2], counter: at as u64 };
        datagrams[at][..HEAD_LEN].copy_from_slice(&black_box(raw).bytes());
        u64::from(datagrams[at][8])
    });
    let (read_head, _) = best(passes, |at| Head::read(black_box(&datagrams[at][..len + OVERHEAD])).map_or(0, |head| head.counter));

    let mut sealer = Sealer::new(&keys, 0);
    let (seal, _) = best(passes, |at| {
        let sealed = sealer.seal(head(at), &packets[at], &[], black_box(&mut datagrams[at])).expect("it fits");
        digest(&datagrams[at][..sealed])
    });
    let mut writer = Link::new(&config(), now);
    let (write, written) = best(passes, |at| {
        let frame = FrameRef::new(at as u16, 1, 2, at as u64);
        let sealed = writer.write_media(now, &frame, &packets[at], black_box(&mut datagrams[at])).expect("it fits").first;
        digest(&datagrams[at][..sealed])
    });

    // Each pass opens what was written anew: nothing opens twice.
    let (mut open, mut open_seal) = (f64::INFINITY, f64::INFINITY);
    let mut opened = 0;
    let (mut writer, mut reader, mut opener) = (Link::new(&config(), now), Link::new(&config(), now), Opener::new(&keys, 0));
    for _ in 0..passes {
        for (at, packet) in packets.iter().enumerate() {
            writer.write_media(now, &FrameRef::new(at as u16, 1, 2, at as u64), packet, &mut datagrams[at]).expect("it fits");
        }
        let mut copies: Vec<Vec<u8>> = datagrams.iter().map(|datagram| datagram[..len + OVERHEAD].to_vec()).collect();
        let mut again = copies.clone();
        let (ns, checksum) = best(1, |at| match reader.open(now, black_box(&mut copies[at])) {
            Ok(Incoming::Media(media)) => digest(media.payload),
            _ => panic!("it is media"),
        });
        (open, opened) = (open.min(ns), checksum);
        let (ns, _) = best(1, |at| {
            let head = Head::read(&again[at]).expect("it has a head");
            opener.open(now, &head, black_box(&mut again[at])).expect("it is authentic") as u64
        });
        open_seal = open_seal.min(ns);
    }
    println!(
        "{len:>5} B  head: write {write_head:.1} ns (raw struct {write_raw:.1}), read and check {read_head:.1}  |  write {write:.0} ns, of it seal {seal:.0}  \
         |  open {open:.0} ns, of it unseal {open_seal:.0}  |  {OVERHEAD} B over UDP, checksum {:016x}",
        written ^ opened
    );
}

fn main() -> ExitCode {
    let passes = match env::args().nth(1).map(|text| text.parse()) {
        None => 21,
        Some(Ok(passes @ 1..)) => passes,
        Some(_) => {
            eprintln!("usage: relay_speed [PASSES], a number from 1");
            return ExitCode::from(2);
        }
    };
    // Opus, and a packet of video that still goes whole at the base MTU.
    for len in [100, 1_100] {
        measure(len, passes);
    }
    ExitCode::SUCCESS
}
