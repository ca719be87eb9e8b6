//! Send slots: one train of bytes and one `msghdr` each, in memory that stays where it is until the kernel is done.
//!
//! ```text
//!            acquire            send                 completion
//!   free ----------> caller's ---------> kernel's --------------> free
//!                        |                                          ^
//!                        +------------- release --------------------+
//! ```

use std::io;
use std::ptr;

use crate::address::{self, NAME_LEN};
use crate::backend::{IoConfig, IoStats, TrainId, Transmit, stride};
use crate::clock::monotonic_time;
use crate::control::{self, Control, SEND_CONTROL_LEN};
use crate::memory::Region;
use crate::refusals::Refusals;

/// Datagrams of one `sendmmsg` of a train that is split; also the segments that every kernel takes in a train (`UDP_MAX_SEGMENTS`
/// before Linux 6.9).
const SPLIT_BATCH: usize = 64;

/// The slots of one back end.
pub(crate) struct Slots {
    bytes: Region,
    stride: usize,
    train_len: usize,
    slots: Box<[Slot]>,
    /// The slot used last comes first: its lines are still in the cache.
    free: Vec<u16>,
    /// Where trains are split for now.
    refusals: Refusals,
    /// Messages and vectors of a train that is split.
    split: (Box<[libc::mmsghdr]>, Box<[libc::iovec]>),
}

/// What the kernel reads of one send beside the bytes, and what we want to know at its completion.
struct Slot {
    header: libc::msghdr,
    iov: libc::iovec,
    name: [u8; NAME_LEN],
    control: Control<SEND_CONTROL_LEN>,
    transmit: Option<Transmit>,
}

impl Slots {
    pub(crate) fn new(config: &IoConfig) -> io::Result<Self> {
        let stride = stride(config.train_len as usize);
        let empty = || Slot {
            header: empty_header(),
            iov: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            name: [0; NAME_LEN],
            control: Control([0; SEND_CONTROL_LEN]),
            transmit: None,
        };
        Ok(Self {
            bytes: Region::new(stride * usize::from(config.trains))?,
            stride,
            train_len: config.train_len as usize,
            slots: (0..config.trains).map(|_| empty()).collect(),
            free: (0..config.trains).rev().collect(),
            refusals: Refusals::new(),
            split: (
                (0..SPLIT_BATCH).map(|_| libc::mmsghdr { msg_hdr: empty_header(), msg_len: 0 }).collect(),
                (0..SPLIT_BATCH).map(|_| libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }).collect(),
            ),
        })
    }

    pub(crate) fn acquire(&mut self) -> Option<TrainId> {
        self.free.pop().map(TrainId)
    }

    pub(crate) fn release(&mut self, id: TrainId) {
        self.free.push(id.0);
    }

    pub(crate) fn train(&mut self, id: &TrainId) -> &mut [u8] {
        let at = usize::from(id.0) * self.stride;
        // SAFETY: the kernel only ever reads a train, and this one is the caller's, so not even that.
        unsafe { self.bytes.slice_mut(at, self.train_len) }
    }

    /// Writes the slot's header for `transmit` and returns the slot's index; from here on the slot is the kernel's.
    ///
    /// Panics when `transmit` does not fit the slot: the caller wrote the train and knows its length.
    pub(crate) fn prepare(&mut self, id: TrainId, transmit: Transmit) -> u16 {
        assert!(transmit.len <= self.train_len, "a train fits its slot");
        assert!(transmit.segment != Some(0), "a segment has a length");
        let base = self.bytes.address(usize::from(id.0) * self.stride, transmit.len);
        let slot = &mut self.slots[usize::from(id.0)];
        slot.iov = libc::iovec { iov_base: base.cast(), iov_len: transmit.len };
        slot.header.msg_namelen = address::encode(transmit.to, &mut slot.name);
        slot.header.msg_name = (&raw mut slot.name).cast();
        slot.header.msg_iov = &raw mut slot.iov;
        slot.header.msg_iovlen = 1;
        match train_segment(&transmit) {
            Some(segment) => {
                control::encode_segment(segment, &mut slot.control);
                slot.header.msg_control = (&raw mut slot.control).cast();
                slot.header.msg_controllen = SEND_CONTROL_LEN as _;
            }
            None => {
                slot.header.msg_control = ptr::null_mut();
                slot.header.msg_controllen = 0;
            }
        }
        slot.transmit = Some(transmit);
        id.0
    }

    /// The prepared header: valid and unchanged until [`complete`](Self::complete) of this slot, because only `prepare`,
    /// which takes the slot's id, writes it, and the box that holds it never moves or shrinks.
    pub(crate) fn header(&self, index: u16) -> *const libc::msghdr {
        &raw const self.slots[usize::from(index)].header
    }

    /// Gives a slot back whose socket is gone, and counts what it held.
    pub(crate) fn fail(&mut self, id: TrainId, transmit: &Transmit, stats: &mut IoStats) {
        stats.sends_failed += datagrams(transmit);
        self.release(id);
    }

    /// A turn begins.
    pub(crate) fn begin_turn(&mut self) {
        self.refusals.begin_turn(monotonic_time);
    }

    /// Whether what goes this way has to go [`now`](Self::send_split): the kernel refused a train here a moment ago.
    pub(crate) fn must_split(&self, transmit: &Transmit) -> bool {
        self.refusals.holds(transmit.socket, transmit.to)
    }

    /// Sends the slot at once, datagram by datagram, and frees it. Single datagrams on the same way go by it too, so that none
    /// overtakes another.
    pub(crate) fn send_split(&mut self, id: TrainId, transmit: Transmit, fd: i32, stats: &mut IoStats) {
        let index = self.prepare(id, transmit);
        self.slots[usize::from(index)].transmit = None;
        stats.trains_split += u64::from(train_segment(&transmit).is_some());
        self.send_by_segment(index, fd, &transmit, stats);
        self.free.push(index);
    }

    /// The index of the socket that a prepared slot leaves by.
    pub(crate) fn socket(&self, index: u16) -> Option<u16> {
        self.slots[usize::from(index)].transmit.map(|transmit| transmit.socket)
    }

    /// A copy of the prepared header, for a call that takes an array of them.
    pub(crate) fn header_copy(&self, index: u16) -> libc::msghdr {
        self.slots[usize::from(index)].header
    }

    /// The kernel is done with the slot: `result` is what `sendmsg` returned. Counts, and frees the slot.
    ///
    /// `fd` is the descriptor of its socket, for a train that must leave in another way after all; -1 when the socket is gone.
    pub(crate) fn complete(&mut self, index: u16, result: io::Result<usize>, fd: i32, stats: &mut IoStats) {
        let slot = &mut self.slots[usize::from(index)];
        let Some(transmit) = slot.transmit.take() else {
            unreachable!("only a prepared slot is submitted, and it completes once");
        };
        match result.map_err(|error| error.raw_os_error().unwrap_or_default()) {
            Ok(_) => count_sent(&transmit, stats),
            Err(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if train_segment(&transmit).is_some() => {
                stats.gso_refused += 1;
                let taken = self.send_by_segment(index, fd, &transmit, stats);
                // It was the train that was refused, and not its datagrams or its number of them: so will be the next one.
                if taken && datagrams(&transmit) <= SPLIT_BATCH as u64 {
                    self.refusals.note(transmit.socket, transmit.to, monotonic_time());
                }
            }
            // The error is an ICMP message about an earlier datagram; reading it cleared it, and this train never left.
            Err(errno @ libc::ECONNREFUSED) => match slot.send_now(fd, stats) {
                true => count_sent(&transmit, stats),
                false => count_failed(datagrams(&transmit), errno, stats),
            },
            Err(errno) => count_failed(datagrams(&transmit), errno, stats),
        }
        self.free.push(index);
    }

    /// Sends a prepared slot datagram by datagram: the kernel refuses it as a train because there is no checksum offload on the way
    /// (`EIO`), or because a segment is above the path MTU (`EINVAL` or `EMSGSIZE`, by kernel) or there are too many of them (`EINVAL`). What is refused again is
    /// counted, and what a full socket does not take. Whether any datagram was taken.
    fn send_by_segment(&mut self, index: u16, fd: i32, transmit: &Transmit, stats: &mut IoStats) -> bool {
        let slot = &self.slots[usize::from(index)];
        let base = self.bytes.address(usize::from(index) * self.stride, transmit.len);
        let segment = train_segment(transmit).map_or(transmit.len, usize::from);
        let count = datagrams(transmit) as usize;
        let (messages, vectors) = &mut self.split;
        let (mut done, mut taken, mut is_retry) = (0, false, false);
        while done < count {
            let batch = SPLIT_BATCH.min(count - done);
            for (at, (message, vector)) in messages.iter_mut().zip(vectors.iter_mut()).take(batch).enumerate() {
                let start = (done + at) * segment;
                *vector = libc::iovec { iov_base: base.wrapping_add(start).cast(), iov_len: segment.min(transmit.len - start) };
                message.msg_hdr = slot.header;
                message.msg_hdr.msg_iov = &raw mut *vector;
                message.msg_hdr.msg_control = ptr::null_mut();
                message.msg_hdr.msg_controllen = 0;
            }
            stats.syscalls += 1;
            // SAFETY: the first `batch` messages were just pointed at the slot's name, at vectors of their own and at bytes inside
            // the region; all are borrowed here, and the kernel is done with them when the call returns.
            let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), batch as u32, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            if let Ok(sent) = usize::try_from(sent) {
                let bytes: usize = vectors[..sent].iter().map(|vector| vector.iov_len).sum();
                stats.datagrams_sent += sent as u64;
                stats.bytes_sent += bytes as u64;
                (done, taken, is_retry) = (done + sent, taken || sent > 0, false);
                continue;
            }
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or_default();
            match errno {
                // An ICMP message about an earlier datagram, once: reading it cleared it.
                libc::EINTR | libc::ECONNREFUSED if !is_retry => is_retry = true,
                // What refuses the first datagram refuses all, unless it is its length; a full socket takes the rest no more than this one.
                _ if (!taken && errno != libc::EMSGSIZE) || errno == libc::EAGAIN => {
                    count_failed((count - done) as u64, errno, stats);
                    break;
                }
                _ => {
                    count_failed(1, errno, stats);
                    (done, is_retry) = (done + 1, false);
                }
            }
        }
        taken
    }
}

impl Slot {
    /// `sendmsg` without waiting: whether the kernel took it.
    fn send_now(&mut self, fd: i32, stats: &mut IoStats) -> bool {
        stats.syscalls += 1;
        // SAFETY: `prepare` pointed the header at this slot's name, vector and control, which are borrowed here, and at bytes
        // inside the region; the kernel only reads them, and is done when the call returns.
        let sent = unsafe { libc::sendmsg(fd, &raw const self.header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        sent >= 0
    }
}

/// The segment size, when there is more than one segment: a train of one needs no GSO.
fn train_segment(transmit: &Transmit) -> Option<u16> {
    transmit.segment.filter(|segment| usize::from(*segment) < transmit.len)
}

fn datagrams(transmit: &Transmit) -> u64 {
    train_segment(transmit).map_or(1, |segment| transmit.len.div_ceil(usize::from(segment)) as u64)
}

fn count_failed(datagrams: u64, errno: i32, stats: &mut IoStats) {
    stats.sends_failed += datagrams;
    // EBADF: its socket was removed while it was on its way, and nobody has to act on that.
    if errno != libc::EBADF {
        stats.send_errno = errno;
    }
}

fn count_sent(transmit: &Transmit, stats: &mut IoStats) {
    stats.trains_sent += 1;
    stats.datagrams_sent += datagrams(transmit);
    stats.bytes_sent += transmit.len as u64;
}

/// A header that points nowhere.
pub(crate) fn empty_header() -> libc::msghdr {
    // SAFETY: `msghdr` is plain integers and raw pointers, for which zero is a value. (Some C libraries hide padding fields in
    // it, so that it cannot be written as a literal.)
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn slots() -> Slots {
        Slots::new(&IoConfig { trains: 2, train_len: 1_000, ..IoConfig::default() }).expect("memory")
    }

    fn transmit(len: usize, segment: Option<u16>) -> Transmit {
        Transmit { socket: 0, to: ([127, 0, 0, 1], 9).into(), len, segment }
    }

    #[test]
    fn a_slot_comes_back_after_completion_and_after_release() {
        let mut slots = slots();
        let mut stats = IoStats::default();
        let first = slots.acquire().expect("two are free");
        let second = slots.acquire().expect("one is free");
        assert!(slots.acquire().is_none());
        let index = slots.prepare(first, transmit(1_000, Some(300)));
        assert!(slots.acquire().is_none());
        slots.complete(index, Ok(1_000), -1, &mut stats);
        assert_eq!((stats.trains_sent, stats.datagrams_sent, stats.bytes_sent), (1, 4, 1_000));
        slots.release(second);
        assert_eq!([slots.acquire().is_some(), slots.acquire().is_some(), slots.acquire().is_some()], [true, true, false]);
    }

    #[test]
    fn a_train_of_one_segment_is_a_plain_datagram() {
        let mut slots = slots();
        let id = slots.acquire().expect("free");
        let index = slots.prepare(id, transmit(300, Some(300)));
        assert_eq!(slots.slots[usize::from(index)].header.msg_controllen, 0);
    }

    #[test]
    fn a_refused_train_is_split_and_the_next_one_is_not_tried_as_a_train() {
        let receiver = std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("loopback");
        let sender = std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("loopback");
        let to = receiver.local_addr().expect("bound");
        let train = Transmit { to, ..transmit(1_000, Some(300)) };
        for errno in [libc::EIO, libc::EINVAL] {
            let (mut slots, mut stats) = (slots(), IoStats::default());
            let id = slots.acquire().expect("free");
            assert!(!slots.must_split(&train));
            let index = slots.prepare(id, train);
            slots.complete(index, Err(io::Error::from_raw_os_error(errno)), sender.as_raw_fd(), &mut stats);
            assert!(slots.must_split(&train));
            let id = slots.acquire().expect("free again");
            slots.send_split(id, train, sender.as_raw_fd(), &mut stats);
            assert_eq!((stats.gso_refused, stats.trains_split, stats.datagrams_sent, stats.bytes_sent), (1, 1, 8, 2_000));
            assert_eq!((stats.sends_failed, stats.syscalls), (0, 2));
            let lens: Vec<usize> = (0..8).map(|_| receiver.recv(&mut [0; 1_000]).expect("loopback")).collect();
            assert_eq!(lens, [300, 300, 300, 100].repeat(2));
            assert!(slots.acquire().is_some() && slots.acquire().is_some());
        }
    }

    #[test]
    fn a_destination_that_takes_nothing_is_no_reason_to_split() {
        let sender = std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("loopback");
        let nowhere = Transmit { to: ([127, 0, 0, 1], 0).into(), ..transmit(1_000, Some(300)) };
        let (mut slots, mut stats) = (slots(), IoStats::default());
        let id = slots.acquire().expect("free");
        let index = slots.prepare(id, nowhere);
        slots.complete(index, Err(io::Error::from_raw_os_error(libc::EINVAL)), sender.as_raw_fd(), &mut stats);
        assert!(!slots.must_split(&nowhere), "port 0 takes no single datagram either");
        assert_eq!((stats.sends_failed, stats.send_errno, stats.syscalls), (4, libc::EINVAL, 1));
    }

    #[test]
    #[should_panic(expected = "a train fits its slot")]
    fn a_train_longer_than_its_slot_is_a_bug() {
        let mut slots = slots();
        let id = slots.acquire().expect("free");
        slots.prepare(id, transmit(1_001, None));
    }
}
