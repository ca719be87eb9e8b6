//! What the service manager is told (sd_notify(3)): one datagram per message to the socket that `NOTIFY_SOCKET` names.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use pop_uring::monotonic_time;

/// Tells the service manager how the node is; silent when none has asked. Cheap to clone.
#[derive(Clone, Default)]
pub struct Notifier {
    target: Option<Arc<Target>>,
}

struct Target {
    socket: UnixDatagram,
    address: SocketAddr,
    /// How often the manager wants to hear that the node lives, when it does.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// From the environment that systemd gives. The variables stay: no other process is started that could take them for its own.
    ///
    /// # Errors
    ///
    /// A sentence, when the manager wants to be told and cannot be.
    pub fn from_environment() -> Result<Self, String> {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(place) = text("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let address = address(&place).map_err(|error| format!("NOTIFY_SOCKET={place} cannot be used: {error}"))?;
        let socket = UnixDatagram::unbound().map_err(|error| format!("no socket for the service manager: {error}"))?;
        // A manager that does not read must not hold the node up.
        socket.set_nonblocking(true).map_err(|error| format!("no socket for the service manager: {error}"))?;
        let ours = text("WATCHDOG_PID").is_none_or(|id| id == std::process::id().to_string());
        let watchdog = text("WATCHDOG_USEC").filter(|_| ours).and_then(|usec| usec.parse().ok()).filter(|usec| *usec > 0);
        let watchdog = watchdog.map(Duration::from_micros);
        Ok(Self { target: Some(Arc::new(Target { socket, address, watchdog })) })
    }

    /// How often the manager wants [`Self::alive`]; it ends the process when that does not come.
    pub fn watchdog(&self) -> Option<Duration> {
        self.target.as_ref()?.watchdog
    }

    /// The node serves, or has ended a reload.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// A reload begins; [`Self::ready`] ends it.
    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_time().as_micros()));
    }

    /// The node ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// One line for `systemctl status`.
    pub fn status(&self, line: &str) {
        self.send(&format!("STATUS={}", line.replace('\n', " ")));
    }

    /// Every part of the node has moved since the last time.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, message: &str) {
        if let Some(target) = &self.target
            && let Err(error) = target.socket.send_to_addr(message.as_bytes(), &target.address)
        {
            tracing::warn!(%error, "the service manager cannot be told {message:?}");
        }
    }
}

/// A path, or after `@` a name of the abstract namespace.
fn address(place: &str) -> io::Result<SocketAddr> {
    match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None if place.starts_with('/') => SocketAddr::from_pathname(place),
        None => Err(io::Error::new(io::ErrorKind::Unsupported, "it is neither a path nor @name")),
    }
}
