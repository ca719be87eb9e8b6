//! Low-rate UDP whose receipts are as exact as the kernel can tell: when, with which TTL, to which of our addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::address::{self, NAME_LEN};
use crate::control::{Control, messages, put_message};
use crate::slots::empty_header;
use crate::socket::{bind_udp, set_option};

/// Room for `SCM_TIMESTAMPNS` (32), TTL or hop limit (24), packet info (32 or 40), `SO_RXQ_OVFL` (24).
const RECV_CONTROL_LEN: usize = 128;
/// Room for packet info.
const SEND_CONTROL_LEN: usize = 40;

/// A UDP socket with kernel receive timestamps (`SO_TIMESTAMPNS`), TTL (`IP_RECVTTL`, `IPV6_RECVHOPLIMIT`) and destination
/// (`IP_PKTINFO`), so that a socket on a wildcard answers from the address that was asked.
#[derive(Debug)]
pub struct StampedSocket {
    socket: UdpSocket,
    local: SocketAddr,
}

/// One received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampedReceipt {
    /// Bytes of it in the buffer.
    pub len: usize,
    /// It was longer than the buffer.
    pub truncated: bool,
    /// Its sender.
    pub from: SocketAddr,
    /// Which of this host's addresses it was sent to.
    pub to: Option<IpAddr>,
    /// When the kernel got it, on the wall clock, since 1970.
    pub at: Option<Duration>,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
}

impl StampedSocket {
    /// Binds `addr` with queues of `buffer` bytes each.
    pub fn bind(addr: SocketAddr, buffer: usize) -> io::Result<Self> {
        let socket = bind_udp(addr, buffer, buffer)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        let options: [(i32, i32); 2] = match addr {
            SocketAddr::V4(_) => [(libc::IPPROTO_IP, libc::IP_RECVTTL), (libc::IPPROTO_IP, libc::IP_PKTINFO)],
            SocketAddr::V6(_) => [(libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT), (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)],
        };
        for (level, name) in options {
            set_option(&socket, level, name, 1)?;
        }
        Ok(Self { local: socket.local_addr()?, socket })
    }

    /// Where it is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Takes one datagram; `WouldBlock` when there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<StampedReceipt> {
        let mut name = [0u8; NAME_LEN];
        let mut control = Control([0u8; RECV_CONTROL_LEN]);
        let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut header = empty_header();
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = NAME_LEN as libc::socklen_t;
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = RECV_CONTROL_LEN;
        // SAFETY: every pointer of the header is to memory of this function or of the caller's buffer, with its true length, and all
        // of it outlives the call.
        let received = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
        let len = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        let from = address::decode(&name[..(header.msg_namelen as usize).min(NAME_LEN)]);
        let from = from.ok_or_else(|| io::Error::other("a datagram without an address"))?;
        let mut receipt = StampedReceipt { len, truncated: header.msg_flags & libc::MSG_TRUNC != 0, from, to: None, at: None, ttl: None };
        for (level, kind, data) in messages(&control.0[..header.msg_controllen.min(RECV_CONTROL_LEN)]) {
            match (level, kind) {
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => receipt.at = read_time(data),
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    receipt.ttl = data.first_chunk().and_then(|ttl| u8::try_from(i32::from_ne_bytes(*ttl)).ok());
                }
                // `in_pktinfo`: interface, local address, destination. `in6_pktinfo`: destination, interface.
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let octets: Option<&[u8; 4]> = data.get(4..).and_then(|rest| rest.first_chunk());
                    receipt.to = octets.map(|octets| Ipv4Addr::from(*octets).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    receipt.to = data.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into());
                }
                _ => {}
            }
        }
        Ok(receipt)
    }

    /// Sends to `to`, from `local` where given.
    pub fn send(&self, bytes: &[u8], to: SocketAddr, local: Option<IpAddr>) -> io::Result<()> {
        let mut name = [0u8; NAME_LEN];
        let name_len = address::encode(to, &mut name);
        let mut control = Control([0u8; SEND_CONTROL_LEN]);
        let control_len = match local {
            // Interface 0: the route decides.
            Some(IpAddr::V4(ip)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                put_message(&mut control, libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
            }
            Some(IpAddr::V6(ip)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                put_message(&mut control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
            }
            None => 0,
        };
        let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut header = empty_header();
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = name_len;
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        if control_len > 0 {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control_len;
        }
        // SAFETY: every pointer of the header is to memory of this function or of the caller's bytes, with its true length, and all of
        // it outlives the call, which only reads.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for StampedSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

fn read_time(data: &[u8]) -> Option<Duration> {
    let seconds = i64::from_ne_bytes(*data.first_chunk()?);
    let nanos = i64::from_ne_bytes(*data.get(8..)?.first_chunk()?);
    Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?))
}

/// A [`StampedSocket`] that a tokio task awaits.
#[derive(Debug)]
pub struct AsyncStampedSocket {
    socket: AsyncFd<StampedSocket>,
}

impl AsyncStampedSocket {
    /// Registers the socket with the runtime that this is called in. Panics outside of one.
    pub fn new(socket: StampedSocket) -> io::Result<Self> {
        // SAFETY: a `StampedSocket` holds its descriptor open as long as it lives and never changes it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// Sends to `to`, from `local` where given; waits for nothing.
    pub fn send(&self, bytes: &[u8], to: SocketAddr, local: Option<IpAddr>) -> io::Result<()> {
        self.socket.get_ref().send(bytes, to, local)
    }

    /// Waits until [`Self::receive_now`] may have something.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await?.retain_ready();
        Ok(())
    }

    /// Takes one datagram; after `WouldBlock`, [`Self::readable`] waits. Other errors, such as an ICMP error of an earlier send, are
    /// reported once and the socket is well.
    pub fn receive_now(&self, buffer: &mut [u8]) -> io::Result<StampedReceipt> {
        self.socket.try_io(Interest::READABLE, |socket| socket.receive(buffer))
    }

    /// Waits for one datagram.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<StampedReceipt> {
        self.socket.async_io(Interest::READABLE, |socket| socket.receive(buffer)).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[tokio::test]
    async fn a_receipt_says_when_from_where_to_where_and_how_far() {
        for (wildcard, host) in [("0.0.0.0:0", "127.0.0.7"), ("[::]:0", "::1")] {
            let bound = StampedSocket::bind(wildcard.parse().expect("an address"), 1 << 16).expect("a free port");
            let host: IpAddr = host.parse().expect("an address");
            let target = SocketAddr::new(host, bound.local_addr().port());
            let bound = AsyncStampedSocket::new(bound).expect("a runtime");
            let client = StampedSocket::bind(SocketAddr::new(host, 0), 1 << 16).expect("a free port");
            let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            client.send(b"ping", target, None).expect("loopback takes it");
            let mut buffer = [0; 3];
            let receipt = bound.receive(&mut buffer).await.expect("it arrives");
            let at = receipt.at.expect("the kernel tells");
            assert!(at >= before - Duration::from_millis(1) && at < before + Duration::from_secs(5), "{at:?} after {before:?}");
            let expected =
                StampedReceipt { len: 3, truncated: true, from: client.local_addr(), to: Some(host), at: Some(at), ttl: Some(64) };
            assert_eq!(receipt, expected);
            // The answer leaves from the address that was asked, not from the one that the route prefers.
            bound.send(b"pong", receipt.from, receipt.to).expect("loopback takes it");
            let client = AsyncStampedSocket::new(client).expect("a runtime");
            assert_eq!(client.receive(&mut [0; 8]).await.expect("it arrives").from, target);
        }
    }
}
