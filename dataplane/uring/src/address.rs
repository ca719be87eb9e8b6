//! Socket addresses as the kernel's bytes, written and read without a pointer cast.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Room for an address: `sockaddr_in6` has 28 bytes, and 32 keep what follows aligned.
pub(crate) const NAME_LEN: usize = 32;

const V4_LEN: u32 = 16;
const V6_LEN: u32 = 28;

/// Writes `address` as `sockaddr_in` or `sockaddr_in6` and returns its length.
pub(crate) fn encode(address: SocketAddr, name: &mut [u8; NAME_LEN]) -> u32 {
    name.fill(0);
    name[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            name[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            name[4..8].copy_from_slice(&v4.ip().octets());
            V4_LEN
        }
        SocketAddr::V6(v6) => {
            name[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            name[8..24].copy_from_slice(&v6.ip().octets());
            name[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            V6_LEN
        }
    }
}

/// Reads what the kernel wrote; `None` for another family or too few bytes.
///
/// The flow label is left out, so that one peer is one address whatever label its packets carry.
pub(crate) fn decode(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*name.first_chunk()?);
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    match i32::from(family) {
        libc::AF_INET => {
            let octets: [u8; 4] = *name.get(4..)?.first_chunk()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(octets)), port))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = *name.get(8..)?.first_chunk()?;
            let scope_id = u32::from_ne_bytes(*name.get(24..)?.first_chunk()?);
            Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope_id)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_kernels_form() {
        for text in ["192.0.2.7:3478", "[2001:db8::1]:65535", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().expect("a literal");
            let mut name = [0xff; NAME_LEN];
            let len = encode(address, &mut name) as usize;
            assert_eq!(decode(&name[..len]), Some(address));
            assert_eq!(decode(&name[..len - 13]), None, "{text} cut short");
        }
        assert_eq!(decode(&[0; NAME_LEN]), None);
    }

    #[test]
    fn the_bytes_are_those_of_the_c_structures() {
        assert_eq!(size_of::<libc::sockaddr_in>(), V4_LEN as usize);
        assert_eq!(size_of::<libc::sockaddr_in6>(), V6_LEN as usize);
        assert_eq!(std::mem::offset_of!(libc::sockaddr_in, sin_addr), 4);
        assert_eq!(std::mem::offset_of!(libc::sockaddr_in6, sin6_addr), 8);
        assert_eq!(std::mem::offset_of!(libc::sockaddr_in6, sin6_scope_id), 24);
    }
}
