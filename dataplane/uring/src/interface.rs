//! Addresses that a process lends to an interface by rtnetlink(7), and frames that tell its neighbours by packet(7).

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// The kernel answers within microseconds, unless somebody else holds its lock on interfaces.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Dumps come in pieces of at most 32 KiB.
const ANSWER_LEN_MAX: usize = 65_536;

/// Dumps that something changed in are begun anew so often.
const DUMPS_MAX: usize = 8;

/// Connections that may wait for a listener to accept them.
const BACKLOG: i32 = 1_024;

/// Of `struct nlmsghdr`.
const HEAD_LEN: usize = 16;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's index.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its subnet's prefix.
    pub prefix: u8,
    /// It has no end.
    pub is_permanent: bool,
}

impl InterfaceAddress {
    /// Whether `address` is in its subnet.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        let differ = match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => u128::from(own.to_bits() ^ other.to_bits()) << 96,
            (IpAddr::V6(own), IpAddr::V6(other)) => own.to_bits() ^ other.to_bits(),
            _ => return false,
        };
        differ.leading_zeros() >= u32::from(self.prefix)
    }
}

/// An Ethernet interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// It is up and has a carrier.
    pub is_up: bool,
}

/// A socket of rtnetlink.
#[derive(Debug)]
pub struct RouteSocket(Netlink);

impl RouteSocket {
    /// Opens the socket. What changes addresses needs `CAP_NET_ADMIN`.
    pub fn open() -> io::Result<Self> {
        Ok(Self(Netlink::open(libc::NETLINK_ROUTE)?))
    }

    /// All addresses of all interfaces of this network namespace.
    pub fn addresses(&mut self) -> io::Result<Vec<InterfaceAddress>> {
        self.0.dump(libc::RTM_GETADDR, &[0; 8], |kind, body| (kind == libc::RTM_NEWADDR).then(|| read_address(body)).flatten())
    }

    /// The interface of that index.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when it is not Ethernet: nobody there could be told where an address is.
    pub fn interface(&mut self, index: u32) -> io::Result<Interface> {
        let mut interface = None;
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        self.0.ask(libc::RTM_GETLINK, libc::NLM_F_ACK as u16, &body, |kind, body| {
            if kind == libc::RTM_NEWLINK {
                interface = read_interface(body).filter(|interface| interface.index == index);
            }
        })?;
        interface.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the interface is not Ethernet"))
    }

    /// Gives the interface an address that is its own alone (/32, /128) and goes by itself after `lifetime_s` seconds; if it has it, the
    /// time begins anew. It is never chosen as the source of a connection.
    pub fn lend(&mut self, index: u32, address: IpAddr, lifetime_s: u32) -> io::Result<()> {
        let mut body = address_body(index, address);
        // Without detection of duplicates, which would take a second of IPv6: who had the address before may still have it.
        let flags = libc::IFA_F_NOPREFIXROUTE | if address.is_ipv6() { libc::IFA_F_NODAD } else { 0 };
        put_attribute(&mut body, libc::IFA_FLAGS, &flags.to_ne_bytes());
        // Preferred for no time, valid for some; the kernel fills in when it was made.
        let times = [0, lifetime_s, 0, 0].map(u32::to_ne_bytes);
        put_attribute(&mut body, libc::IFA_CACHEINFO, times.as_flattened());
        let flags = (libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        self.0.ask(libc::RTM_NEWADDR, flags, &body, |_, _| {})
    }

    /// Takes such an address away.
    ///
    /// # Errors
    ///
    /// `AddrNotAvailable` when it is not there, and neither when the interface is not.
    pub fn take_back(&mut self, index: u32, address: IpAddr) -> io::Result<()> {
        let outcome = self.0.ask(libc::RTM_DELADDR, libc::NLM_F_ACK as u16, &address_body(index, address), |_, _| {});
        match outcome {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(io::ErrorKind::AddrNotAvailable.into()),
            outcome => outcome,
        }
    }
}

/// A socket of netlink(7): questions are answered before the next is asked.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    answer: Box<[u8]>,
}

impl Netlink {
    /// `protocol` is one of `NETLINK_*`.
    pub(crate) fn open(protocol: i32) -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, sequence: 0, answer: vec![0; ANSWER_LEN_MAX].into() })
    }

    /// All that there is of something, of one moment: what changed meanwhile is asked for anew.
    pub(crate) fn dump<T>(&mut self, kind: u16, body: &[u8], take: impl Fn(u16, &[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        let mut tries = 0;
        loop {
            let mut all = Vec::new();
            tries += 1;
            match self.ask(kind, libc::NLM_F_DUMP as u16, body, |kind, body| all.extend(take(kind, body))) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < DUMPS_MAX => {}
                outcome => return outcome.map(|()| all),
            }
        }
    }

    /// Sends one request and hands out what the answer is made of.
    ///
    /// # Errors
    ///
    /// The kernel's; `Interrupted` when what was dumped changed meanwhile.
    pub(crate) fn ask(&mut self, kind: u16, flags: u16, body: &[u8], mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::with_capacity(HEAD_LEN + body.len());
        request.extend_from_slice(&((HEAD_LEN + body.len()) as u32).to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        request.extend_from_slice(&self.sequence.to_ne_bytes());
        request.extend_from_slice(&[0; 4]);
        request.extend_from_slice(body);
        self.socket.send(&request)?;
        let mut is_torn = false;
        loop {
            let len = (&self.socket).read(&mut self.answer)?;
            let mut rest = &self.answer[..len];
            while !rest.is_empty() {
                let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is malformed");
                let message = take_message(&mut rest).ok_or_else(malformed)?;
                // Of a question before this one, whose answer was too late.
                if message.sequence != self.sequence {
                    continue;
                }
                is_torn |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR => return outcome_of(message.body).ok_or_else(malformed)?,
                    // A dump that fails ends so, too.
                    libc::NLMSG_DONE if is_torn => return Err(io::ErrorKind::Interrupted.into()),
                    libc::NLMSG_DONE => return outcome_of(message.body).unwrap_or(Ok(())),
                    _ => take(message.kind, message.body),
                }
            }
        }
    }
}

/// What the number at the beginning of an answer's end says; `None` where there is none.
fn outcome_of(body: &[u8]) -> Option<io::Result<()>> {
    let code = i32::from_ne_bytes(*body.first_chunk()?);
    Some(if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) })
}

/// A message of the kernel.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The next of several; `None` when its length is beyond what there is.
fn take_message<'a>(rest: &mut &'a [u8]) -> Option<Message<'a>> {
    let len = u32_at(rest, 0)? as usize;
    let message = Message { kind: u16_at(rest, 4)?, flags: u16_at(rest, 6)?, sequence: u32_at(rest, 8)?, body: rest.get(HEAD_LEN..len)? };
    *rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some(message)
}

/// The value of an attribute, of those that follow a message's own head.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (len, kind) = (usize::from(u16_at(rest, 0)?), u16_at(rest, 2)?);
        let value = rest.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

fn put_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// `struct ifaddrmsg` and the address.
fn address_body(index: u32, address: IpAddr) -> Vec<u8> {
    let (family, prefix, octets) = match address {
        IpAddr::V4(address) => (libc::AF_INET, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, 128, address.octets().to_vec()),
    };
    let mut body = vec![family as u8, prefix, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    put_attribute(&mut body, libc::IFA_LOCAL, &octets);
    put_attribute(&mut body, libc::IFA_ADDRESS, &octets);
    body
}

/// `struct ifaddrmsg` and its attributes; `None` for what is neither IPv4 nor IPv6.
fn read_address(body: &[u8]) -> Option<InterfaceAddress> {
    let (&[family, prefix, flags, _], attributes) = (body.first_chunk()?, body.get(8..)?);
    // On a point-to-point interface the other one is the peer's.
    let octets = attribute(attributes, libc::IFA_LOCAL).or_else(|| attribute(attributes, libc::IFA_ADDRESS))?;
    let address = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)),
        _ => return None,
    };
    let is_permanent = u32::from(flags) & libc::IFA_F_PERMANENT != 0;
    Some(InterfaceAddress { interface: u32_at(body, 4)?, address, prefix, is_permanent })
}

/// `struct ifinfomsg` and its attributes; `None` for what is not Ethernet.
fn read_interface(body: &[u8]) -> Option<Interface> {
    let attributes = body.get(16..).filter(|_| u16_at(body, 2) == Some(libc::ARPHRD_ETHER))?;
    let name = attribute(attributes, libc::IFLA_IFNAME)?;
    let name = String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned();
    let mac = attribute(attributes, libc::IFLA_ADDRESS)?.try_into().ok()?;
    let needed = (libc::IFF_UP | libc::IFF_LOWER_UP) as u32;
    Some(Interface { index: u32_at(body, 4)?, name, mac, is_up: u32_at(body, 8)? & needed == needed })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A packet socket that sends whole Ethernet frames and receives nothing.
#[derive(Debug)]
pub struct FrameSocket {
    socket: Socket,
}

impl FrameSocket {
    /// Opens the socket. It needs `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        // Protocol 0: no frame is copied to it.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Sends a frame, its Ethernet header included, by the interface of that index.
    pub fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        let interface = i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: interface,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let to_len = size_of_val(&to) as libc::socklen_t;
        // SAFETY: the descriptor is open, the kernel reads `frame.len()` bytes of `frame` and `to_len` bytes of `to`, which both live
        // longer than the call, and writes nothing.
        let sent = unsafe { libc::sendto(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), to_len) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A non-blocking TCP listener on an address that need not be this host's yet.
pub fn bind_tcp_foreign(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str, prefix: u8) -> InterfaceAddress {
        InterfaceAddress { interface: 1, address: address.parse().expect("an address"), prefix, is_permanent: true }
    }

    #[test]
    fn what_is_on_link_has_the_prefix() {
        let is_on_link = |of: InterfaceAddress, address: &str| of.is_on_link(address.parse().expect("an address"));
        assert!(is_on_link(of("192.0.2.1", 24), "192.0.2.255"));
        assert!(!is_on_link(of("192.0.2.1", 25), "192.0.2.255"));
        assert!(is_on_link(of("192.0.2.1", 32), "192.0.2.1") && !is_on_link(of("192.0.2.1", 32), "192.0.2.0"));
        assert!(is_on_link(of("192.0.2.1", 0), "10.0.0.1") && !is_on_link(of("192.0.2.1", 0), "2001:db8::1"));
        assert!(is_on_link(of("2001:db8::1", 64), "2001:db8::ffff") && !is_on_link(of("2001:db8::1", 128), "2001:db8::"));
    }

    #[test]
    fn the_kernel_tells_of_loopback() {
        let mut route = RouteSocket::open().expect("netlink");
        let all = route.addresses().expect("a dump");
        let loopback = all.iter().find(|of| of.address == IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("127.0.0.1");
        assert_eq!((loopback.prefix, loopback.is_permanent), (8, true));
        // It has no neighbours.
        assert_eq!(route.interface(loopback.interface).expect_err("it is not Ethernet").kind(), io::ErrorKind::InvalidInput);
        assert_eq!(route.interface(u32::MAX >> 1).expect_err("there is none").raw_os_error(), Some(libc::ENODEV));
        assert_eq!(route.addresses().expect("another dump").len(), all.len(), "what an answer left over is not the next one's");
    }

    /// A netlink socket whose kernel is this test, and has answered already.
    fn answered(messages: &[(i32, i32, &[u8])]) -> (Netlink, Socket) {
        let (socket, kernel) = Socket::pair(Domain::UNIX, Type::DGRAM, None).expect("a pair");
        for (kind, flags, body) in messages {
            let mut message = ((HEAD_LEN + body.len()) as u32).to_ne_bytes().to_vec();
            message.extend([*kind as u16, *flags as u16].map(u16::to_ne_bytes).as_flattened());
            message.extend_from_slice(&1u32.to_ne_bytes());
            message.extend_from_slice(&[0; 4]);
            message.extend_from_slice(body);
            kernel.send(&message).expect("it fits");
        }
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket's option");
        (Netlink { socket, sequence: 0, answer: vec![0; ANSWER_LEN_MAX].into() }, kernel)
    }

    #[test]
    fn a_dump_that_failed_or_changed_meanwhile_is_no_dump() {
        let (part, done) = (i32::from(libc::RTM_NEWADDR), libc::NLMSG_DONE);
        let (multi, torn) = (libc::NLM_F_MULTI, libc::NLM_F_MULTI | libc::NLM_F_DUMP_INTR);
        let ask = |messages: &[(i32, i32, &[u8])]| {
            let (mut parts, (mut netlink, _kernel)) = (0, answered(messages));
            netlink.ask(libc::RTM_GETADDR, libc::NLM_F_DUMP as u16, &[0; 8], |_, _| parts += 1).map(|()| parts)
        };
        assert_eq!(ask(&[(part, multi, &[0; 8]), (part, multi, &[0; 8]), (done, multi, &[0; 4])]).expect("a dump"), 2);
        let failed = ask(&[(part, multi, &[0; 8]), (done, multi, &(-libc::ENOBUFS).to_ne_bytes())]);
        assert_eq!(failed.expect_err("half of it").raw_os_error(), Some(libc::ENOBUFS));
        for messages in [[(part, torn, &[0; 8][..]), (done, multi, &[0; 4])], [(part, multi, &[0; 8][..]), (done, torn, &[0; 4])]] {
            assert_eq!(ask(&messages).expect_err("of two moments").kind(), io::ErrorKind::Interrupted);
        }
    }

    #[test]
    fn an_answer_that_ends_early_is_no_answer() {
        let mut body = address_body(7, "192.0.2.9".parse().expect("an address"));
        put_attribute(&mut body, libc::IFA_FLAGS, &[0; 4]);
        let whole = read_address(&body).expect("it is whole");
        assert_eq!((whole.interface, whole.address.to_string(), whole.prefix), (7, "192.0.2.9".to_owned(), 32));
        for len in 0..16 {
            assert_eq!(read_address(&body[..len]), None, "{len} bytes");
        }
        for len in [0u16, 3, 9, u16::MAX] {
            let mut bad = body.clone();
            bad[8..10].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(read_address(&bad), None, "an attribute of {len} bytes");
        }
        for (len, is_whole) in [(0u32, false), (15, false), (16, true), (20, true), (21, false), (u32::MAX, false)] {
            let mut bytes = [0; 20];
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(take_message(&mut &bytes[..]).is_some(), is_whole, "a message of {len} bytes");
        }
    }
}
