//! The probe, with io_uring and without it.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::Duration;

use pop_uring::{BackendKind, IoConfig, RawUdp, UringBackend, bind_udp, probe, refuse_io_uring, wake_pair};

#[test]
fn a_working_ring_is_chosen_and_every_feature_named() {
    let probe = probe();
    for name in ["io_uring_setup", "registered_files", "buffer_ring", "multishot_recvmsg", "udp_segment", "udp_gro", "memlock"] {
        let feature = probe.feature(name).unwrap_or_else(|| panic!("no {name} in {probe:#?}"));
        assert!(feature.available, "{feature:?}");
        assert!(!feature.detail.is_empty());
    }
    assert_eq!(probe.backend, BackendKind::Uring, "{}", probe.reason);
}

#[test]
fn a_seccomp_filter_leads_to_the_fallback_and_the_reason_says_what_to_change() {
    for (errno, advice) in [(libc::ENOSYS, "CONFIG_IO_URING"), (libc::EPERM, "seccomp"), (libc::ENOMEM, "LimitMEMLOCK")] {
        // A filter cannot be taken off a thread again.
        let checked = thread::spawn(move || {
            refuse_io_uring(errno).expect("a seccomp filter");
            let socket = bind_udp((Ipv4Addr::LOCALHOST, 0).into(), 65_536, 65_536).expect("loopback");
            let (_waker, wake) = wake_pair().expect("an eventfd");
            assert!(UringBackend::new(vec![socket], wake, &IoConfig::default()).is_err());
            let probe = probe();
            assert_eq!(probe.backend, BackendKind::Mmsg);
            assert!(probe.reason.contains(advice), "{errno}: {}", probe.reason);
            assert!(!probe.feature("io_uring_setup").expect("tried").available);
            assert!(probe.feature("udp_segment").expect("tried").available);
        });
        checked.join().expect("the checks hold");
    }
}

#[test]
fn a_raw_socket_speaks_for_any_address() {
    let victim = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    victim.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, victim.local_addr().expect("bound").port());
    let forged = SocketAddrV4::new(Ipv4Addr::new(127, 66, 6, 6), 666);
    RawUdp::new().expect("CAP_NET_RAW").send(forged, to, b"trust me").expect("loopback");
    let mut buffer = [0; 16];
    let (len, from) = victim.recv_from(&mut buffer).expect("the forged datagram");
    assert_eq!((&buffer[..len], from), (&b"trust me"[..], forged.into()));
}
