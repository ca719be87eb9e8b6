//! UDP datagrams with a forged source, for tests and bench: what an attacker on the path can send.

use std::io;
use std::net::{SocketAddrV4, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// A raw IPv4 socket that sends UDP datagrams from any source address and port. It needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct RawUdp {
    socket: Socket,
}

impl RawUdp {
    /// Opens the socket.
    pub fn new() -> io::Result<Self> {
        // IPPROTO_RAW sends what it is given, IP header included, and receives nothing.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        Ok(Self { socket })
    }

    /// Sends `payload` (at most 65,507 bytes, and no more than the MTU) as if it came from `from`.
    pub fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
        let packet = ip_packet(from, to, payload)?;
        self.socket.send_to(&packet, &to.into()).map(drop)
    }

    /// The socket for a [`Backend`](crate::Backend) without GRO, whose sends are then whole packets as [`ip_packet`] writes them; of the
    /// destination the address counts.
    pub fn into_socket(self) -> UdpSocket {
        self.socket.into()
    }
}

/// IPv4 (20 bytes) and UDP (8 bytes) headers before the payload. The kernel fills in the IP checksum, and a UDP checksum of zero
/// means "none" (RFC 768).
///
/// # Errors
///
/// `InvalidInput` for a payload of more than 65,507 bytes.
pub fn ip_packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<Vec<u8>> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "the payload does not fit an IPv4 packet");
    let total_len = u16::try_from(28 + payload.len()).map_err(too_long)?;
    let udp_len = total_len - 20;
    let mut packet = Vec::with_capacity(usize::from(total_len));
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&total_len.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    packet.extend_from_slice(&from.port().to_be_bytes());
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet.extend_from_slice(&udp_len.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    Ok(packet)
}
