//! What this kernel gives to this process: tried, not looked up.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::backend::{Backend, BackendKind, IoConfig, Transmit, Wait};
use crate::memory::Region;
use crate::mmsg::MmsgBackend;
use crate::socket::bind_udp;
use crate::uring::{SetupError, UringBackend};
use crate::wake::wake_pair;

/// What the packet plane can use here, and which back end it should take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The kernel's release: `6.1.0-28-amd64`.
    pub kernel: String,
    /// What was tried, in the order of trying.
    pub features: Vec<Feature>,
    /// The back end to use.
    pub backend: BackendKind,
    /// Why, in one sentence that also says what to change for the better.
    pub reason: String,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name: `io_uring_setup`, `udp_gro`, ...
    pub name: &'static str,
    /// Whether it works here.
    pub available: bool,
    /// What was seen, or what is missing and what to change.
    pub detail: String,
}

impl Probe {
    /// The feature of that name.
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }
}

/// Datagrams of the train that the probe sends to itself.
const PROBE_DATAGRAMS: usize = 3;
const PROBE_DATAGRAM_LEN: usize = 200;
/// A datagram to oneself over loopback is there before the send returns; a second is for a machine that swaps.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// Exercises both back ends on loopback sockets of its own and reports what works. It takes a few milliseconds.
///
/// Whatever refuses io_uring (an old kernel, `kernel.io_uring_disabled`, the seccomp filter of a container) leads to
/// [`BackendKind::Mmsg`] with the reason.
pub fn probe() -> Probe {
    let mut features = Vec::new();
    let ring = try_ring(&mut features);
    let sockets = try_sockets(&mut features);
    features.push(memlock());
    let (backend, reason) = match (ring, sockets) {
        (Ok(()), _) => (BackendKind::Uring, "io_uring sent and received on this kernel".to_owned()),
        (Err(why), Ok(())) => (BackendKind::Mmsg, why),
        (Err(why), Err(also)) => (BackendKind::Mmsg, format!("{why}; and the fallback does not work either: {also}")),
    };
    Probe { kernel: kernel_release(), features, backend, reason }
}

fn try_ring(features: &mut Vec<Feature>) -> Result<(), String> {
    /// The steps in the order in which a ring is made; a step after the refused one was not tried.
    const STEPS: [(&str, &str); 4] = [
        ("io_uring_setup", "io_uring_setup"),
        ("registered_files", "IORING_REGISTER_FILES"),
        ("buffer_ring", "IORING_REGISTER_PBUF_RING"),
        ("multishot_recvmsg", "multishot recvmsg"),
    ];
    let outcome = ring_echo();
    let refused_at = match &outcome {
        Ok(_) => STEPS.len(),
        Err(refused) => STEPS.iter().position(|(_, step)| *step == refused.step).unwrap_or(0),
    };
    for (at, (name, _)) in STEPS.into_iter().enumerate() {
        let (available, detail) = match &outcome {
            Ok(flags) if at == 0 => (true, (*flags).to_owned()),
            Ok(_) if at + 1 == STEPS.len() => (true, "a GSO train to a loopback socket came back whole".to_owned()),
            Err(refused) if at == refused_at => (false, explain(refused)),
            Err(_) if at > refused_at => (false, "not tried".to_owned()),
            _ => (true, "accepted".to_owned()),
        };
        features.push(Feature { name, available, detail });
    }
    outcome.map(drop).map_err(|refused| explain(&refused))
}

/// Sends a train to itself through a ring; the flags that the ring was made with.
fn ring_echo() -> Result<&'static str, SetupError> {
    let failed = |step| move |error| SetupError { step, error };
    let (socket, to) = loopback_socket().map_err(failed("socket"))?;
    let (_waker, wake) = wake_pair().map_err(failed("eventfd"))?;
    let mut backend = UringBackend::set_up(vec![socket], wake, &small_config(true))?;
    let received = echo(&mut backend, to).map_err(failed("multishot recvmsg"))?;
    match received == PROBE_DATAGRAMS * PROBE_DATAGRAM_LEN {
        true => Ok(backend.setup_flags()),
        false => Err(SetupError { step: "multishot recvmsg", error: io::Error::other(format!("{received} bytes came back of 600")) }),
    }
}

fn try_sockets(features: &mut Vec<Feature>) -> Result<(), String> {
    let mut first_error = Ok(());
    for (name, gro) in [("udp_segment", false), ("udp_gro", true)] {
        let outcome = mmsg_echo(gro);
        let (available, detail) = match outcome {
            Ok((true, trains)) if gro && trains == 1 => (true, "a run of datagrams arrived in one buffer".to_owned()),
            Ok((true, trains)) if gro => (false, format!("taken, but datagrams arrived in {trains} buffers")),
            Ok((true, _)) => (true, "a train of datagrams left in one call".to_owned()),
            Ok((false, _)) => (false, "refused: trains leave datagram by datagram (UDP_SEGMENT needs Linux 4.18)".to_owned()),
            Err(error) => {
                first_error = first_error.and_then(|()| Err(format!("{name}: {error}")));
                (false, error.to_string())
            }
        };
        features.push(Feature { name, available, detail });
    }
    first_error
}

/// Sends a train to itself by `sendmmsg`: whether it left as a train, and in how many buffers it arrived.
fn mmsg_echo(gro: bool) -> io::Result<(bool, u64)> {
    let (socket, to) = loopback_socket()?;
    let (_waker, wake) = wake_pair()?;
    let mut backend = MmsgBackend::new(vec![socket], wake, &small_config(gro))?;
    let received = echo(&mut backend, to)?;
    if received != PROBE_DATAGRAMS * PROBE_DATAGRAM_LEN {
        return Err(io::Error::other(format!("{received} bytes came back of 600")));
    }
    let stats = backend.stats();
    Ok((stats.gso_refused == 0, stats.trains_received))
}

fn echo(backend: &mut impl Backend, to: SocketAddr) -> io::Result<usize> {
    let len = PROBE_DATAGRAMS * PROBE_DATAGRAM_LEN;
    let id = backend.acquire().ok_or_else(|| io::Error::other("no send slot"))?;
    (&mut backend.train(&id)[..len]).write_all(&[0x70; PROBE_DATAGRAMS * PROBE_DATAGRAM_LEN])?;
    backend.send(id, Transmit { socket: 0, to, len, segment: Some(PROBE_DATAGRAM_LEN as u16) });
    let start = Instant::now();
    let mut received = 0;
    while received < len && start.elapsed() < PROBE_PATIENCE {
        backend.turn(Wait::AtMost(Duration::from_millis(50)))?;
        while let Some(datagrams) = backend.receive() {
            received += datagrams.bytes.len();
        }
    }
    Ok(received)
}

fn loopback_socket() -> io::Result<(UdpSocket, SocketAddr)> {
    let bind = |ip: &str| bind_udp(SocketAddr::new(ip.parse().map_err(io::Error::other)?, 0), 1 << 16, 1 << 16);
    let socket = bind("127.0.0.1").or_else(|_| bind("::1"))?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

fn small_config(gro: bool) -> IoConfig {
    IoConfig { recv_buffers: 8, recv_buffer_len: 4_096, trains: 2, train_len: 4_096, gro, sockets: 1, busy_poll: Duration::ZERO }
}

/// The refusal in words, and what to change.
fn explain(refused: &SetupError) -> String {
    let SetupError { step, error } = refused;
    let setup = *step == "io_uring_setup";
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) if setup && io_uring_disabled() > 0 => "io_uring is off: set kernel.io_uring_disabled=0",
        Some(libc::EPERM | libc::EACCES) if setup => {
            "io_uring is forbidden to this process: allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp filter \
             (systemd: SystemCallFilter, containers: seccomp profile)"
        }
        Some(libc::ENOSYS) if setup => {
            "io_uring is missing: use a kernel with CONFIG_IO_URING, or allow io_uring_setup, io_uring_enter and \
             io_uring_register in the seccomp filter of this process"
        }
        Some(libc::ENOMEM) => "no memory for the ring: raise the locked-memory limit (LimitMEMLOCK=infinity) or the memory limit",
        Some(libc::EMFILE | libc::ENFILE) => "too many open files: raise LimitNOFILE",
        Some(libc::EINVAL) => "this kernel does not know it: Linux 6.1 is the least that io_uring is used with here",
        _ => "unexpected",
    };
    format!("{advice} ({step}: {error})")
}

fn io_uring_disabled() -> u32 {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The buffers are ordinary memory; only kernels before 5.12 count a ring against the limit. A worker still wants to lock.
fn memlock() -> Feature {
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = line.and_then(|line| line.split_whitespace().next()).unwrap_or("unknown");
    let available = Region::new(IoConfig::default().memory_len()).is_ok();
    Feature { name: "memlock", available, detail: format!("locked-memory limit (soft, bytes): {soft}; rings do not count against it") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_change() {
        let said = |step, errno| explain(&SetupError { step, error: io::Error::from_raw_os_error(errno) });
        assert!(said("io_uring_setup", libc::ENOSYS).contains("CONFIG_IO_URING"));
        assert!(said("io_uring_setup", libc::EPERM).contains("io_uring"));
        assert!(said("io_uring_setup", libc::ENOMEM).contains("LimitMEMLOCK"));
        assert!(said("IORING_REGISTER_PBUF_RING", libc::EINVAL).contains("Linux 6.1"));
    }
}
