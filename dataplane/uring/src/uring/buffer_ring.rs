//! Receive buffers that the kernel picks from by itself: a provided buffer ring.
//!
//! ```text
//!            give_back: entry written, then tail + 1
//!   ours  --------------------------------------------->  kernel's
//!      ^                                                      |
//!      +----- take: a completion names the buffer  <----------+
//! ```

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::backend::stride;
use crate::memory::Region;

/// The buffers of one ring. A buffer is ours from its completion until it is given back; only then is it a slice.
pub(super) struct BufferRing {
    entries: Region,
    buffers: Region,
    buffer_len: usize,
    stride: usize,
    count: u16,
    tail: u16,
    ours: Box<[bool]>,
    ours_count: u16,
}

impl BufferRing {
    /// `count` buffers, a power of two, of `buffer_len` bytes each. All are ours until [`register`](Self::register).
    pub(super) fn new(count: u16, buffer_len: usize) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "the kernel masks the tail");
        let stride = stride(buffer_len);
        Ok(Self {
            entries: Region::new(usize::from(count) * size_of::<BufRingEntry>())?,
            buffers: Region::new(usize::from(count) * stride)?.populate(),
            buffer_len,
            stride,
            count,
            tail: 0,
            ours: vec![true; usize::from(count)].into(),
            ours_count: count,
        })
    }

    /// Tells the kernel of the ring and gives it every buffer. `self` must outlive the ring behind `submitter`.
    pub(super) fn register(&mut self, submitter: &Submitter<'_>, group: u16) -> io::Result<()> {
        let address = self.entries.address(0, usize::from(self.count) * size_of::<BufRingEntry>()) as u64;
        // SAFETY: the region holds `count` entries at a page boundary and is unmapped only after the ring is gone
        // (`UringBackend` drops its ring first).
        unsafe { submitter.register_buf_ring_with_flags(address, self.count, group, 0) }?;
        for id in 0..self.count {
            self.give_back(id);
        }
        Ok(())
    }

    /// A completion named buffer `id`: it is ours.
    pub(super) fn take(&mut self, id: u16) {
        let ours = &mut self.ours[usize::from(id)];
        assert!(!*ours, "the kernel completes with buffers that it was given");
        *ours = true;
        self.ours_count += 1;
    }

    /// The first `len` bytes of a buffer that is ours.
    pub(super) fn bytes(&mut self, id: u16, len: usize) -> &mut [u8] {
        assert!(self.ours[usize::from(id)], "a buffer is read between its completion and its return");
        // SAFETY: the buffer is ours: the kernel has no entry for it, so no operation writes it.
        unsafe { self.buffers.slice_mut(usize::from(id) * self.stride, len.min(self.buffer_len)) }
    }

    /// Gives a buffer that is ours to the kernel.
    pub(super) fn give_back(&mut self, id: u16) {
        let ours = &mut self.ours[usize::from(id)];
        assert!(*ours, "a buffer is given back once");
        *ours = false;
        self.ours_count -= 1;
        let address = self.buffers.address(usize::from(id) * self.stride, self.buffer_len) as u64;
        let at = usize::from(self.tail & (self.count - 1)) * size_of::<BufRingEntry>();
        let entry = self.entries.address(at, size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        // SAFETY: `address` checked that the entry lies in the region; it is aligned, zero-initialised, and the kernel does not
        // read it before the tail below says so. The entry's last two bytes, where the first entry keeps the tail, stay as
        // they are.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(self.buffer_len as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.publish_tail();
    }

    fn publish_tail(&self) {
        let base = self.entries.address(0, size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        // SAFETY: `base` is the address of the first entry, in the region and initialised.
        let tail = unsafe { BufRingEntry::tail(base) };
        // SAFETY: the tail is two aligned bytes of the region, which only this thread writes and only atomically; the kernel
        // reads them.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Whether the kernel has a buffer to fill.
    pub(super) fn kernel_has_some(&self) -> bool {
        self.ours_count < self.count
    }
}
