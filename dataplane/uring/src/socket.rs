//! UDP sockets as the packet plane wants them.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// A non-blocking UDP socket on `addr` with queues of the given bytes, ready for a back end.
///
/// * IPv6 is IPv6 only, so that a peer has one address and both families can share a port.
/// * Queues go beyond `net.core.rmem_max` and `wmem_max` when the process may (`CAP_NET_ADMIN`), else up to them.
/// * Datagrams carry "do not fragment" and the kernel's idea of the path MTU is not consulted: a forged ICMP message must not
///   shrink a call's datagrams.
/// * Every datagram reports how many the socket has dropped (`SO_RXQ_OVFL`), once it has dropped any.
pub fn bind_udp(addr: SocketAddr, recv_buffer: usize, send_buffer: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    match addr {
        SocketAddr::V4(_) => set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        }
    }
    let bytes = |len: usize| i32::try_from(len).unwrap_or(i32::MAX);
    if set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes(recv_buffer)).is_err() {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes(recv_buffer))?;
    }
    if set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes(send_buffer)).is_err() {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes(send_buffer))?;
    }
    report_drops(&socket)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Connections that may wait for one listener to accept them; the kernel answers more with SYN cookies or not at all.
const BACKLOG: i32 = 512;

/// A non-blocking TCP listener on `addr`, ready for [`Streams`](crate::Streams). IPv6 is IPv6 only, as for [`bind_udp`]; a port
/// that was used before a restart can be used again at once.
pub fn bind_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    crate::streams::prepare(&socket)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Of a TCP connection the kernel takes at most so many bytes before it can send them (`TCP_NOTSENT_LOWAT`): what is written next
/// is not behind seconds of others.
pub fn limit_unsent(socket: &impl AsFd, len: u32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, i32::try_from(len).unwrap_or(i32::MAX))
}

/// `SO_RXQ_OVFL`: costs nothing until the first drop.
pub(crate) fn report_drops(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)
}

/// `UDP_GRO`: runs of equal datagrams arrive in one buffer, with their length beside them.
pub(crate) fn set_gro(socket: &impl AsFd, on: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, i32::from(on))
}

/// `SO_BUSY_POLL`: a receive that finds nothing looks at the network card itself. `ppoll` does so only where `net.core.busy_poll` is
/// above 0. Without `CAP_NET_ADMIN` it is refused.
pub(crate) fn set_busy_poll(socket: &impl AsFd, duration: Duration) -> io::Result<()> {
    if duration.is_zero() {
        return Ok(());
    }
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, i32::try_from(duration.as_micros()).unwrap_or(i32::MAX))
}

pub(crate) fn set_option(socket: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed and open; the kernel reads `len` bytes of `value`, which lives here.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_can_share_a_port() {
        let v4 = bind_udp(([127, 0, 0, 1], 0).into(), 1 << 20, 1 << 20).expect("IPv4 loopback");
        let port = v4.local_addr().expect("bound").port();
        let any_v6: SocketAddr = (std::net::Ipv6Addr::UNSPECIFIED, port).into();
        assert!(bind_udp(any_v6, 1 << 20, 1 << 20).is_ok(), "an IPv6 socket took the IPv4 port");
    }
}
