//! Many UDP sockets on one thread: the clients of the load, and the floor's sinks, so that both cost the sender the same.
//!
//! Every socket takes GRO, so the kernel hands a loopback train over uncut; that stands for a network card that cuts trains
//! (USO). They are polled, not waited for: the sender's core does not pay for waking the receiver.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use pop_uring::{Backend, IoConfig, MmsgBackend, Received, Transmit, Wait, WakeReceiver, bind_udp, wake_pair};

/// Sockets that one back end drives.
const GROUP_LEN: usize = 64;

/// Queue of one client, in bytes: 50 ms of a 100 Mb/s stream with the kernel's bookkeeping.
pub(crate) const SOCKET_QUEUE_LEN: usize = 2 << 20;

/// Clients' sockets by index.
pub(crate) struct Groups {
    backends: Vec<MmsgBackend>,
    /// Whose turn it is in [`Groups::sweep_next`].
    next: usize,
}

/// The receiver that a back end wants, of a waker that nobody has.
pub(crate) fn no_wakes() -> io::Result<WakeReceiver> {
    Ok(wake_pair()?.1)
}

/// `count` sockets on `address` with queues of `queue_len` bytes, to be handed to [`Groups::new`].
pub(crate) fn bind_clients(address: IpAddr, count: usize, queue_len: usize) -> io::Result<Vec<UdpSocket>> {
    let address = SocketAddr::from((address, 0));
    (0..count).map(|_| bind_udp(address, queue_len, SOCKET_QUEUE_LEN)).collect()
}

impl Groups {
    /// Takes the sockets; a client's index is its place in the list.
    pub(crate) fn new(sockets: Vec<UdpSocket>) -> io::Result<Groups> {
        let config = IoConfig { recv_buffers: 64, trains: 64, train_len: 2_048, ..IoConfig::default() };
        let mut sockets = sockets.into_iter();
        let mut backends = Vec::new();
        loop {
            let group: Vec<UdpSocket> = sockets.by_ref().take(GROUP_LEN).collect();
            if group.is_empty() {
                return Ok(Groups { backends, next: 0 });
            }
            backends.push(MmsgBackend::new(group, no_wakes()?, &config)?);
        }
    }

    /// Sends what is queued and hands everything that has arrived to `take`, with the client's index.
    pub(crate) fn sweep(&mut self, mut take: impl FnMut(usize, Received<'_>)) -> io::Result<()> {
        (0..self.backends.len()).try_for_each(|_| self.sweep_next(&mut take))
    }

    /// The same for one group of clients, each in its turn: whoever has packets to send on time has less to wait for.
    pub(crate) fn sweep_next(&mut self, mut take: impl FnMut(usize, Received<'_>)) -> io::Result<()> {
        let group = self.next % self.backends.len().max(1);
        self.next = group + 1;
        let Some(backend) = self.backends.get_mut(group) else { return Ok(()) };
        backend.turn(Wait::No)?;
        while let Some(received) = backend.receive() {
            take(group * GROUP_LEN + usize::from(received.socket), received);
        }
        Ok(())
    }

    /// Queues the datagram that `fill` writes, from `client` to `to`; it leaves with the next [`flush`](Self::flush) or sweep.
    /// `false` when the client's group has no slot left.
    pub(crate) fn send(&mut self, client: usize, to: SocketAddr, fill: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let backend = &mut self.backends[client / GROUP_LEN];
        let Some(id) = backend.acquire() else { return false };
        let len = fill(backend.train(&id));
        backend.send(id, Transmit { socket: (client % GROUP_LEN) as u16, to, len, segment: None });
        true
    }

    /// Sends what `client`'s group has queued. What arrived meanwhile stays for the next sweep.
    pub(crate) fn flush(&mut self, client: usize) -> io::Result<()> {
        self.backends[client / GROUP_LEN].turn(Wait::No)
    }

    /// Datagrams that the kernel dropped because a client's queue was full.
    pub(crate) fn kernel_drops(&self) -> u64 {
        self.backends.iter().map(|backend| backend.stats().kernel_drops).sum()
    }
}
