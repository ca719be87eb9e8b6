//! Nanoseconds of one thread per frame: a link's sealing and opening, beside a copy of the same packet behind a raw struct.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pop_relay::control::VERSION;
use pop_relay::frame::{FrameKind, HEAD_LEN, Head, OVERHEAD};
use pop_relay::keys::KEYS_LEN;
use pop_relay::link::{FrameRef, Incoming, Link, LinkConfig, WRITE_MARGIN};
use pop_relay::seal::{Opener, Sealer};
use pop_schemas::Time;
use serde::Serialize;

/// Frames per pass: enough that the packets of a pass do not stay in the first-level cache, as in a fan-out.
const FRAMES: usize = 2_048;

/// What packets of one length cost. Each figure is the fastest of the passes, since other work on the machine only ever slows one down.
#[derive(Debug, Serialize)]
pub(super) struct Frames {
    packet_len: usize,
    /// UDP payload of a packet behind a raw struct, and on a link.
    raw_bytes: usize,
    bytes: usize,
    /// A raw struct is written and the packet copied behind it.
    raw_copy_ns: f64,
    /// The head alone.
    head_ns: f64,
    /// Head, sealed payload and tag.
    seal_ns: f64,
    /// All that a link does to send a packet.
    write_ns: f64,
    /// The head is read and checked.
    read_head_ns: f64,
    /// The same, and the payload opened.
    unseal_ns: f64,
    /// All that a link does with a datagram that came.
    open_ns: f64,
    /// Folds what was made.
    checksum: String,
}

impl Frames {
    pub(super) fn summarize(&self) {
        let Frames { packet_len, raw_bytes, bytes, raw_copy_ns, head_ns, seal_ns, write_ns, read_head_ns, unseal_ns, open_ns, checksum } =
            self;
        eprintln!(
            "frame     {packet_len:>5} B: raw copy {raw_copy_ns:.0} ns and {raw_bytes} B; seal {seal_ns:.0} ns (head {head_ns:.1}) and {bytes} B, \
             write {write_ns:.0}; unseal {unseal_ns:.0} (head {read_head_ns:.1}), open {open_ns:.0}; checksum {checksum}"
        );
    }
}

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
    let (mut fastest, mut checksum) = (f64::INFINITY, 0);
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

fn head(at: usize) -> Head {
    let alias = at as u16;
    Head { version: VERSION, kind: FrameKind::Media, phase: false, association: 0x0903, alias, layer: 1, epoch: 2, counter: at as u64 }
}

/// Packets of `len` bytes, in so many passes over them.
pub(super) fn measure(len: usize, passes: usize) -> Frames {
    let (now, keys) = (Time::from_millis(1_000), [7; KEYS_LEN]);
    let packets: Vec<Vec<u8>> = (0..FRAMES).map(|at| (0..len).map(|i| (i * 31 + at) as u8).collect()).collect();
    let mut datagrams = vec![vec![0; len + WRITE_MARGIN]; FRAMES];
    let (raw_copy_ns, _) = best(passes, |at| {
        let raw = RawHead { kinds: [1, 0], names: [0x0903, at as u16], layers: [1, 2], counter: at as u64 };
        let datagram = black_box(&mut datagrams[at]);
        datagram[..HEAD_LEN].copy_from_slice(&black_box(raw).bytes());
        datagram[HEAD_LEN..HEAD_LEN + len].copy_from_slice(&packets[at]);
        digest(&datagram[..HEAD_LEN + len])
    });
    let (head_ns, _) = best(passes, |at| {
        datagrams[at][..HEAD_LEN].copy_from_slice(&black_box(head(at)).bytes());
        u64::from(datagrams[at][8])
    });
    let mut sealer = Sealer::new(&keys, 0);
    let (seal_ns, _) = best(passes, |at| {
        let sealed = sealer.seal(head(at), &packets[at], &[], black_box(&mut datagrams[at])).expect("it fits");
        digest(&datagrams[at][..sealed])
    });
    let mut writer = link(now, keys);
    let (write_ns, written) = best(passes, |at| {
        let sealed = write(&mut writer, now, at, &packets[at], black_box(&mut datagrams[at]));
        digest(&datagrams[at][..sealed])
    });
    let (read_head_ns, _) = best(passes, |at| Head::read(black_box(&datagrams[at][..len + OVERHEAD])).map_or(0, |head| head.counter));

    // Each pass opens what was written anew: nothing opens twice.
    let (mut open_ns, mut unseal_ns, mut opened) = (f64::INFINITY, f64::INFINITY, 0);
    let (mut writer, mut reader, mut opener) = (link(now, keys), link(now, keys), Opener::new(&keys, 0));
    for _ in 0..passes {
        for (at, packet) in packets.iter().enumerate() {
            write(&mut writer, now, at, packet, &mut datagrams[at]);
        }
        let mut copies: Vec<Vec<u8>> = datagrams.iter().map(|datagram| datagram[..len + OVERHEAD].to_vec()).collect();
        let mut again = copies.clone();
        let (ns, checksum) = best(1, |at| match reader.open(now, black_box(&mut copies[at])) {
            Ok(Incoming::Media(media)) => digest(media.payload),
            _ => unreachable!("a link opens what the other wrote"),
        });
        (open_ns, opened) = (open_ns.min(ns), checksum);
        let (ns, _) = best(1, |at| {
            let head = Head::read(&again[at]).expect("it has a head");
            opener.open(now, &head, black_box(&mut again[at])).expect("it is authentic") as u64
        });
        unseal_ns = unseal_ns.min(ns);
    }
    Frames {
        packet_len: len,
        raw_bytes: HEAD_LEN + len,
        bytes: OVERHEAD + len,
        raw_copy_ns,
        head_ns,
        seal_ns,
        write_ns,
        read_head_ns,
        unseal_ns,
        open_ns,
        checksum: format!("{:016x}", written ^ opened),
    }
}

fn link(now: Time, keys: [u8; KEYS_LEN]) -> Link {
    let playout = Duration::from_millis(150);
    Link::new(
        &LinkConfig {
            version: VERSION,
            remote_association: 0x0903,
            is_abroad: false,
            measures: true,
            generation: 0,
            send: keys,
            receive: keys,
            playout,
        },
        now,
    )
}

fn write(link: &mut Link, now: Time, at: usize, packet: &[u8], datagram: &mut [u8]) -> usize {
    link.write_media(now, &FrameRef::new(at as u16, 1, 2, at as u64), packet, datagram).expect("it fits").first
}
