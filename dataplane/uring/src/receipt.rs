//! What the kernel says of a received buffer, judged the same way whichever call it came by.

use std::net::SocketAddr;

use crate::address;
use crate::backend::IoStats;
use crate::control;

/// The kernel's report about one buffer.
pub(crate) struct Receipt<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) control: &'a [u8],
    /// Payload bytes in the buffer.
    pub(crate) len: usize,
    /// `MSG_TRUNC`: the payload was longer.
    pub(crate) truncated: bool,
}

/// What of the buffer goes to the caller.
pub(crate) struct Accepted {
    pub(crate) from: SocketAddr,
    pub(crate) len: usize,
    pub(crate) segment: usize,
}

impl Receipt<'_> {
    /// Counts the buffer and says what of it is whole; `None` when nothing is.
    ///
    /// `drops_seen` is the socket's drop counter as of the receipt before this.
    pub(crate) fn accept(&self, drops_seen: &mut u32, stats: &mut IoStats) -> Option<Accepted> {
        let report = control::decode(self.control);
        if let Some(dropped) = report.dropped {
            stats.kernel_drops += u64::from(dropped.wrapping_sub(*drops_seen));
            *drops_seen = dropped;
        }
        let segment = report.segment.filter(|segment| *segment > 0).unwrap_or(self.len.max(1));
        let mut len = self.len;
        if self.truncated {
            stats.truncated += 1;
            // Half a datagram is none; of a GRO run, the datagrams that came whole are good.
            len = report.segment.map_or(0, |_| len - len % segment);
            if len == 0 {
                return None;
            }
        }
        let Some(from) = address::decode(self.name) else {
            stats.receive_errors += 1;
            return None;
        };
        stats.trains_received += 1;
        stats.datagrams_received += len.div_ceil(segment).max(1) as u64;
        stats.bytes_received += len as u64;
        Some(Accepted { from, len, segment })
    }
}

/// Whether `errno` on a receive says that the socket, not a peer or a moment, is at fault: receiving again would spin.
pub(crate) fn ends_reception(errno: i32) -> bool {
    matches!(errno, libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::EOPNOTSUPP | libc::EFAULT | libc::ENOSYS)
}
