//! Ends TCP connections of this host by sock_diag(7): of an address that it is about to lose.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use crate::interface::Netlink;

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;

/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID_LEN: usize = 48;

/// Before it in `struct inet_diag_msg`: family, state, timer, retransmissions.
const MESSAGE_HEAD_LEN: usize = 4;

/// The states (linux/tcp_states.h) in which somebody at the other end waits: established, not quite so, and closed by the other end alone.
const STATES: u32 = 1 << 1 | 1 << 3 | 1 << 8;

/// A socket of sock_diag.
#[derive(Debug)]
pub struct DiagSocket(Netlink);

impl DiagSocket {
    /// Opens the socket. What ends connections needs `CAP_NET_ADMIN`.
    pub fn open() -> io::Result<Self> {
        Ok(Self(Netlink::open(libc::NETLINK_SOCK_DIAG)?))
    }

    /// Ends each TCP connection of this network namespace whose own address is `address`: its program finds it aborted, and its other end
    /// is told by a reset, while the host still has the address. Returns how many.
    ///
    /// # Errors
    ///
    /// `Unsupported` by a kernel without `CONFIG_INET_DIAG_DESTROY`. The connections before were ended.
    pub fn reset_connections(&mut self, address: IpAddr) -> io::Result<usize> {
        let mut count = 0;
        // A connection of IPv4 may be one of an IPv6 socket.
        for family in [libc::AF_INET, libc::AF_INET6].map(|family| family as u8) {
            let request = request(family, STATES, &[0; ID_LEN]);
            let found = self.0.dump(BY_FAMILY, &request, |kind, body| (kind == BY_FAMILY).then(|| read_connection(body)).flatten())?;
            for (_, id) in found.iter().filter(|(own, _)| *own == address) {
                match self.0.ask(DESTROY, libc::NLM_F_ACK as u16, &self::request(family, STATES, id), |_, _| {}) {
                    Ok(()) => count += 1,
                    // It has ended meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(count)
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; ID_LEN]) -> Vec<u8> {
    let mut body = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend_from_slice(&states.to_ne_bytes());
    body.extend_from_slice(id);
    body
}

/// The own address of a connection and the kernel's name for it, of a `struct inet_diag_msg`.
fn read_connection(body: &[u8]) -> Option<(IpAddr, [u8; ID_LEN])> {
    let id: [u8; ID_LEN] = *body.get(MESSAGE_HEAD_LEN..)?.first_chunk()?;
    let octets: [u8; 16] = *id.get(4..)?.first_chunk()?;
    let own = match i32::from(*body.first()?) {
        libc::AF_INET => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(octets)).to_canonical(),
        _ => return None,
    };
    Some((own, id))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_connections_of_an_address_end_and_those_of_another_do_not() {
        let mut diag = DiagSocket::open().expect("sock_diag");
        let connect = |address: &str| {
            let listener = TcpListener::bind((address, 0)).expect("loopback");
            let client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
            (client, listener.accept().expect("a connection").0)
        };
        // Nobody else has these.
        let (mut client, mut server) = connect("127.93.0.80");
        let (other, _there) = connect("127.93.0.81");
        assert_eq!(diag.reset_connections("127.93.0.82".parse().expect("an address")).expect("none"), 0);
        match diag.reset_connections("127.93.0.80".parse().expect("an address")) {
            Ok(count) => assert_eq!(count, 1),
            // Who runs the test may not, or its kernel cannot.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => return,
            Err(error) => panic!("{error}"),
        }
        assert_eq!(client.read(&mut [0]).expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(server.read(&mut [0]).expect_err("it is over").kind(), io::ErrorKind::ConnectionAborted);
        other.set_nonblocking(true).expect("an option");
        assert_eq!((&other).read(&mut [0]).expect_err("nothing yet").kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_answer_that_ends_early_is_no_connection() {
        let mut body = vec![libc::AF_INET as u8, 1, 0, 0];
        body.extend_from_slice(&request(0, 0, &[7; ID_LEN])[8..]);
        assert_eq!(read_connection(&body), Some((IpAddr::from([7; 4]), [7; ID_LEN])));
        (0..body.len()).for_each(|len| assert_eq!(read_connection(&body[..len]), None, "{len} bytes"));
    }
}
