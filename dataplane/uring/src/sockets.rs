//! The sockets of one back end by index, with room for those that come while it runs.
//!
//! An index is used again, a key is not: what the kernel still holds of a socket that is gone (a receive that ends, a send that
//! completes, a datagram that waits to be read) carries the old key and touches nothing of the socket that has the index now.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, RawFd};

use crate::socket::{report_drops, set_gro};

/// A socket's index and how many had the index before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketKey {
    pub(crate) index: u16,
    pub(crate) generation: u32,
}

struct Slot {
    socket: Option<UdpSocket>,
    generation: u32,
    /// The socket's drop counter as of its last datagram.
    drops_seen: u32,
}

pub(crate) struct Sockets {
    slots: Box<[Slot]>,
    gro: bool,
}

impl Sockets {
    /// `sockets` at the first indexes and room for `room` in all.
    pub(crate) fn new(sockets: Vec<UdpSocket>, room: u16, gro: bool) -> io::Result<Self> {
        let free = || Slot { socket: None, generation: 0, drops_seen: 0 };
        let mut all = Self { slots: (0..room).map(|_| free()).collect(), gro };
        for (index, socket) in (0..room).zip(sockets) {
            all.insert(index, socket)?;
        }
        Ok(all)
    }

    /// Puts `socket`, prepared for datagrams, at a free index.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an index that is taken or beyond the room; what the kernel refuses of the socket's options.
    pub(crate) fn insert(&mut self, index: u16, socket: UdpSocket) -> io::Result<SocketKey> {
        let refuse = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("socket {index}: {what}"));
        let room = self.slots.len();
        let slot = self.slots.get_mut(usize::from(index)).ok_or_else(|| refuse(&format!("the back end has room for {room}")))?;
        if slot.socket.is_some() {
            return Err(refuse("the index is taken"));
        }
        socket.set_nonblocking(true)?;
        report_drops(&socket)?;
        // No socket has it unless it was told, and a raw one (bench) does not even take the word.
        if self.gro {
            set_gro(&socket, true)?;
        }
        slot.socket = Some(socket);
        slot.drops_seen = 0;
        Ok(SocketKey { index, generation: slot.generation })
    }

    /// Takes a socket out; its key is over.
    pub(crate) fn remove(&mut self, index: u16) -> Option<(SocketKey, UdpSocket)> {
        let slot = self.slots.get_mut(usize::from(index))?;
        let socket = slot.socket.take()?;
        let key = SocketKey { index, generation: slot.generation };
        slot.generation = slot.generation.wrapping_add(1);
        Some((key, socket))
    }

    /// The key of the socket that has the index now.
    pub(crate) fn key(&self, index: u16) -> Option<SocketKey> {
        let slot = self.slots.get(usize::from(index))?;
        slot.socket.as_ref().map(|_| SocketKey { index, generation: slot.generation })
    }

    /// The key's descriptor; -1, which every call refuses with `EBADF`, when its socket is gone.
    pub(crate) fn fd(&self, key: SocketKey) -> RawFd {
        let slot = self.slots.get(usize::from(key.index)).filter(|slot| slot.generation == key.generation);
        slot.and_then(|slot| slot.socket.as_ref()).map_or(-1, AsRawFd::as_raw_fd)
    }

    /// The drop counter of the key's socket; `None` when it is gone.
    pub(crate) fn drops_seen(&mut self, key: SocketKey) -> Option<&mut u32> {
        let slot = self.slots.get_mut(usize::from(key.index))?;
        (slot.socket.is_some() && slot.generation == key.generation).then_some(&mut slot.drops_seen)
    }

    /// Every index with its descriptor, -1 where there is no socket.
    pub(crate) fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.slots.iter().map(|slot| slot.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd))
    }

    /// One more than the highest index in use.
    pub(crate) fn end(&self) -> usize {
        self.slots.iter().rposition(|slot| slot.socket.is_some()).map_or(0, |last| last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind_udp;

    fn socket() -> UdpSocket {
        bind_udp(([127, 0, 0, 1], 0).into(), 4_096, 4_096).expect("loopback")
    }

    #[test]
    fn the_key_of_a_socket_that_is_gone_finds_nothing_at_its_index() {
        let mut sockets = Sockets::new(vec![socket()], 3, true).expect("options");
        let before = sockets.insert(1, socket()).expect("free");
        assert!(sockets.fd(before) >= 0 && sockets.drops_seen(before).is_some());
        assert!(sockets.remove(1).is_some_and(|(key, _)| key == before));
        assert!(sockets.remove(1).is_none() && sockets.key(1).is_none());
        let after = sockets.insert(1, socket()).expect("free again");
        assert_ne!(before, after);
        assert_eq!((sockets.fd(before), sockets.drops_seen(before)), (-1, None));
        assert!(sockets.fd(after) >= 0);
    }

    #[test]
    fn an_index_that_is_taken_or_beyond_the_room_is_refused_by_name() {
        let mut sockets = Sockets::new(vec![socket()], 2, true).expect("options");
        assert!(sockets.insert(0, socket()).expect_err("taken").to_string().contains("is taken"));
        assert!(sockets.insert(2, socket()).expect_err("beyond").to_string().contains("room for 2"));
        assert_eq!(sockets.end(), 1);
        sockets.insert(1, socket()).expect("room");
        assert_eq!(sockets.end(), 2);
    }
}
