//! HTTP connections with bounds: how many, how long a handshake, a request and its answer may take, what one client address may
//! take of them, and an orderly end.

mod sources;
mod stall;

use std::future::{Future, ready};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use sources::{Guest, SourceLimits, Sources};

use crate::config;
use stall::StallGuard;

/// Largest request body, in bytes. Browsers' offers with every codec and 20 sections stay below 40 KB.
pub const BODY_LEN_MAX: usize = 64 * 1_024;

/// Largest request head that is buffered, in bytes. A client of a room puts a token (8 KB) and its first offer, compressed, into the
/// URL, which hyper takes up to 65,534 bytes of.
const HEAD_LEN_MAX: usize = 64 * 1_024;

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request head may take to arrive, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may take from its head to its answer, body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How long open requests may take to end after the stop.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How long to wait when the process has no file descriptor left: an immediate retry would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub trait Listen: Send + 'static {
    /// A connection as it comes.
    type Accepted: Send + 'static;

    /// A connection that HTTP is spoken on.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, with its address when it has one.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Accepted, Option<SocketAddr>)>> + Send;

    /// What comes before HTTP. Runs beside the other connections, for at most 10 s.
    fn establish(&self, accepted: Self::Accepted) -> impl Future<Output = io::Result<Self::Stream>> + Send + 'static;
}

impl Listen for TcpListener {
    type Accepted = TcpStream;
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<SocketAddr>)> {
        let (stream, remote) = TcpListener::accept(self).await?;
        // An answer is one small write; waiting for more only delays it.
        stream.set_nodelay(true)?;
        Ok((stream, Some(remote)))
    }

    fn establish(&self, stream: TcpStream) -> impl Future<Output = io::Result<TcpStream>> + Send + 'static {
        ready(Ok(stream))
    }
}

/// Binds `address`; the error says what to change. `key` is the config key that holds it.
pub async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => format!("{key} {address} is taken by another process: stop it, or set {key} to another port"),
        io::ErrorKind::AddrNotAvailable => format!("{key} {address} is no address of this host: set {key} to one of `ip address`"),
        io::ErrorKind::PermissionDenied => {
            format!("{key} {address} needs CAP_NET_BIND_SERVICE: run as root, grant it, or set {key} to a port from 1024 on")
        }
        _ => format!("{key} {address} cannot be bound: {error}"),
    })
}

/// Binds `address` of `http.vip`, which this host need not have yet.
pub fn bind_vip(address: SocketAddr) -> Result<TcpListener, String> {
    let bound = pop_uring::bind_tcp_foreign(address).and_then(TcpListener::from_std);
    bound.map_err(|error| format!("http.vip {address} cannot be bound: {error}"))
}

/// The operator's unix socket: mode 0600, and only this user and root are heard. Removed when dropped.
#[derive(Debug)]
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    user: u32,
    /// Held as long as the socket: the kernel frees it however this process ends, so a socket without it is dead.
    _lock: std::fs::File,
}

impl SocketFile {
    /// Makes the socket at `path`. A dead node's socket is replaced; a living node's, or anything else there, is an error that
    /// says what to change.
    pub fn bind(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make_folder(folder)?;
        }
        let lock_path = path.with_extension("lock");
        let refused = |what: &Path, error: &io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                format!("{} cannot be made by this user: run as its folder's owner, or set admin.socket to another path", what.display())
            }
            _ => format!("{} cannot be made: {error}: set admin.socket to another path", what.display()),
        };
        let lock = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|error| refused(&lock_path, &error))?;
        if lock.try_lock().is_err() {
            return Err(format!("another node is alive at {shown}: stop it, or set admin.socket to another path"));
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                return Err(format!("{shown} is there and is no socket: remove it, or set admin.socket to another path"));
            }
            Ok(_) => std::fs::remove_file(path).map_err(|error| refused(path, &error))?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(|error| refused(path, &error))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|error| refused(path, &error))?;
        Ok(Self { listener, path: path.to_owned(), user: config::user_id(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Its absence only saves the next client a refused connection; the next node would replace it.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listen for SocketFile {
    type Accepted = UnixStream;
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<SocketAddr>)> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            // The mode is set just after the socket appears; whoever slipped in before is not heard.
            if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == self.user) {
                return Ok((stream, None));
            }
        }
    }

    fn establish(&self, stream: UnixStream) -> impl Future<Output = io::Result<UnixStream>> + Send + 'static {
        ready(Ok(stream))
    }
}

/// Makes the socket's folder when its parent is there: private, except in `/run`, where operators look.
fn make_folder(folder: &Path) -> Result<(), String> {
    use std::os::unix::fs::DirBuilderExt;
    let shown = folder.display();
    let mode = if folder.starts_with("/run") { 0o755 } else { 0o700 };
    match std::fs::DirBuilder::new().mode(mode).create(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder == config::private_folder() => check_private(folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(format!("the socket's folder {shown} cannot be made: {error}: make it, or set admin.socket to another path")),
    }
}

/// Refuses a folder where somebody else could put a socket in our place: among the temporary files anybody may make any name.
fn check_private(folder: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let shown = folder.display();
    // Of the link itself, when it is one: where it leads to is its maker's choice.
    let found = std::fs::symlink_metadata(folder).map_err(|error| format!("the socket's folder {shown} cannot be looked at: {error}"))?;
    if found.is_dir() && found.uid() == config::user_id() && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(format!("the socket's folder {shown} is not this user's alone: remove it, or set admin.socket to another path"))
}

/// Bounds on every request of `router`: the body's length, the time to the answer, and how often one client address may ask.
pub fn bounded(router: Router) -> Router {
    router.layer(DefaultBodyLimit::max(BODY_LEN_MAX)).layer(middleware::from_fn(in_time))
}

async fn in_time(request: Request, next: Next) -> Response {
    let guest = request.extensions().get::<Arc<Guest>>();
    if guest.is_some_and(|guest| !guest.may_ask(Instant::now())) {
        let headers = [(RETRY_AFTER, "1"), (CONNECTION, "close")];
        return (StatusCode::TOO_MANY_REQUESTS, headers, "too many requests from this address: try again in 1 s\n").into_response();
    }
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request took longer than 15 s\n").into_response(),
    }
}

/// Answers connections of `listener` with `router` until `stop` turns true, then gives open requests 2 s. At most
/// `connections_max` connections are open; the next ones wait in the kernel's queue. What `sources` does not admit is closed at once.
pub async fn serve(
    listener: impl Listen,
    router: Router,
    connections_max: usize,
    sources: Option<Arc<Sources>>,
    mut stop: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => continue,
            accepted = next => accepted,
        };
        match accepted {
            Ok((accepted, remote)) => {
                let guest = match (&sources, remote) {
                    (Some(sources), Some(remote)) => match sources.admit(Instant::now(), remote) {
                        Some(guest) => Some(Arc::new(guest)),
                        None => continue,
                    },
                    _ => None,
                };
                let established = tokio::time::timeout(HANDSHAKE_TIMEOUT, listener.establish(accepted));
                let (router, stop) = (router.clone(), stop.clone());
                let place = Arc::new(Place { _permit: permit, _guest: guest.clone() });
                connections.spawn(async move {
                    // An error is the client's: noise, another protocol, or silence.
                    if let Ok(Ok(stream)) = established.await {
                        answer(stream, Client { remote, guest, place }, router, stop).await;
                    }
                });
            }
            // The client gave up, or descriptors ran out; both pass.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    // What is still open after the grace is cut by dropping the set.
    let _ = tokio::time::timeout(STOP_GRACE, ended).await;
}

/// Answers one connection that no listener took, as [`serve`] does.
pub async fn answer_one<S>(stream: S, router: Router, permit: OwnedSemaphorePermit, stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = Arc::new(Place { _permit: permit, _guest: None });
    answer(stream, Client { remote: None, guest: None, place }, router, stop).await;
}

/// Ends when `stop` is true or nobody can set it any longer. Its own function, because the value that `wait_for` lends is a lock.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stopped| *stopped).await;
}

/// The place of a connection among those of the listener and of its address. Every request carries it: who goes on with the
/// connection after the answer (a WebSocket) keeps it.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    _guest: Option<Arc<Guest>>,
}

/// Who is at the other end.
struct Client {
    remote: Option<SocketAddr>,
    guest: Option<Arc<Guest>>,
    place: Arc<Place>,
}

async fn answer<S>(stream: S, client: Client, router: Router, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request| {
        if let Some(remote) = client.remote {
            request.extensions_mut().insert(ConnectInfo(remote));
        }
        if let Some(guest) = &client.guest {
            request.extensions_mut().insert(Arc::clone(guest));
        }
        request.extensions_mut().insert(Arc::clone(&client.place));
        router.call(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LEN_MAX)
        .serve_connection(TokioIo::new(StallGuard::new(stream)), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // An error is the client's: a broken head, a time-out, a lost connection. It has had its answer where there is one.
    tokio::select! {
        _ = &mut connection => {}
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn place(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pop-serve-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder.join("pop.sock")
    }

    async fn start(router: Router, connections_max: usize) -> (SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let listener = bind("http.listen", SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = watch::channel(false);
        (address, stop, tokio::spawn(serve(listener, bounded(router), connections_max, None, stopped)))
    }

    /// A listener whose clients seem to come from 192.0.2.1: loopback itself has no bound.
    struct Far(TcpListener);

    impl Listen for Far {
        type Accepted = TcpStream;
        type Stream = TcpStream;

        async fn accept(&self) -> io::Result<(TcpStream, Option<SocketAddr>)> {
            let (stream, _) = Listen::accept(&self.0).await?;
            Ok((stream, Some(SocketAddr::from(([192, 0, 2, 1], 1)))))
        }

        fn establish(&self, stream: TcpStream) -> impl Future<Output = io::Result<TcpStream>> + Send + 'static {
            ready(Ok(stream))
        }
    }

    async fn start_far(router: Router, limits: SourceLimits) -> (SocketAddr, watch::Sender<bool>, Arc<Sources>) {
        let listener = bind("http.listen", SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = watch::channel(false);
        let sources = Sources::new(limits);
        tokio::spawn(serve(Far(listener), bounded(router), 64, Some(Arc::clone(&sources)), stopped));
        (address, stop, sources)
    }

    fn here() -> Router {
        Router::new().route("/", get(|| async { "here" }))
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("the listener is there");
        stream.write_all(request.as_bytes()).await.expect("the request is small");
        let mut answer = Vec::new();
        // A reset after the answer is the server closing on an unread body.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn a_living_socket_is_refused_and_a_dead_one_replaced() {
        let path = place("dead-or-alive");
        let first = SocketFile::bind(&path).expect("nothing is there");
        assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        let message = SocketFile::bind(&path).expect_err("the first is alive");
        assert!(message.starts_with("another node is alive at") && message.contains("admin.socket"), "{message}");
        // A kill leaves the file and frees the lock.
        let SocketFile { path: left, .. } = &first;
        std::fs::hard_link(left, path.with_extension("left")).expect("same folder");
        drop(first);
        std::fs::rename(path.with_extension("left"), &path).expect("same folder");
        drop(SocketFile::bind(&path).expect("a dead socket is replaced"));
        assert!(!path.exists());
        std::fs::remove_dir_all(path.parent().expect("it has one")).expect("it was made here");
    }

    #[test]
    fn a_folder_that_others_made_or_may_write_is_not_private() {
        let place = place("private");
        let folder = place.parent().expect("it has one");
        make_folder(folder).expect("its parent is there");
        assert_eq!(check_private(folder), Ok(()));
        let link = folder.join("link");
        std::os::unix::fs::symlink(folder, &link).expect("it is ours");
        check_private(&link).expect_err("a link leads anywhere");
        for mode in [0o770, 0o702] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).expect("it is ours");
            let message = check_private(folder).expect_err("others may write");
            assert!(message.contains("is not this user's alone: remove it"), "{message}");
        }
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
        // Only root can give a folder away.
        if config::user_id() == 0 {
            std::os::unix::fs::chown(folder, Some(65_534), None).expect("root may");
            check_private(folder).expect_err("it is another user's");
        }
        std::fs::remove_dir_all(folder).expect("it was made here");
    }

    #[tokio::test]
    async fn a_file_in_the_sockets_place_is_not_removed() {
        let path = place("a-file");
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("temporary files can be made");
        std::fs::write(&path, "precious").expect("temporary files can be made");
        let message = SocketFile::bind(&path).expect_err("it is a file");
        assert!(message.contains("is no socket: remove it"), "{message}");
        assert_eq!(std::fs::read_to_string(&path).expect("it is still there"), "precious");
        std::fs::remove_dir_all(path.parent().expect("it has one")).expect("it was made here");
    }

    #[tokio::test]
    async fn a_taken_port_is_a_sentence() {
        let first = bind("http.listen", SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let message = bind("http.listen", first.local_addr().expect("it is bound")).await.expect_err("it is taken");
        assert!(message.contains("is taken by another process: stop it, or set http.listen"), "{message}");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        let (address, _stop, _server) =
            start(Router::new().route("/", post(|body: String| async move { body.len().to_string() })), 8).await;
        for (len, status) in [(BODY_LEN_MAX, "200"), (BODY_LEN_MAX + 1, "413")] {
            let request = format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{}", "x".repeat(len));
            let answer = exchange(address, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{len} bytes: {answer}");
        }
    }

    #[tokio::test]
    async fn a_stop_lets_an_open_request_finish_and_takes_no_more() {
        let (entered, wait_entered) = tokio::sync::oneshot::channel();
        let (finish, wait_finish) = tokio::sync::oneshot::channel::<()>();
        let once = Arc::new(std::sync::Mutex::new(Some((entered, wait_finish))));
        let handler = move || async move {
            let (entered, finish) = once.lock().expect("no test panics with it").take().expect("one request");
            entered.send(()).expect("the test waits");
            finish.await.expect("the test sends");
            "done"
        };
        let (address, stop, server) = start(Router::new().route("/", get(handler)), 8).await;
        let open = tokio::spawn(async move { exchange(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await });
        wait_entered.await.expect("the request arrives");
        stop.send(true).expect("the server listens");
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        finish.send(()).expect("the handler waits");
        assert!(open.await.expect("no panic").ends_with("done"));
        server.await.expect("no panic");
    }

    /// Everything that the server says on a connection until it closes.
    async fn read_to_the_end(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn one_address_cannot_take_every_connection() {
        let (address, _stop, sources) = start_far(here(), SourceLimits { connections: 3, requests_per_s: 1_000 }).await;
        let mut idle = Vec::new();
        for _ in 0..3 {
            idle.push(TcpStream::connect(address).await.expect("the listener is there"));
        }
        let fourth = TcpStream::connect(address).await.expect("the kernel takes it");
        assert_eq!(read_to_the_end(fourth).await, "", "closed without a word");
        assert_eq!(sources.refused_connections(), 1);
        drop(idle.pop());
        // The server hears of the end in its own time.
        let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        while !exchange(address, request).await.ends_with("here") {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn requests_beyond_the_rate_are_told_to_wait_and_pipelining_is_no_way_around() {
        let (address, _stop, _sources) = start_far(here(), SourceLimits { connections: 3, requests_per_s: 2 }).await;
        let answer = exchange(address, &"GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(500)).await;
        let statuses: Vec<_> = answer.lines().filter(|line| line.contains("HTTP/1.1 ")).collect();
        assert_eq!(statuses.iter().filter(|line| line.ends_with("200 OK")).count(), 10, "2 a second, saved up for 5 s");
        assert!(statuses.len() == 11 && statuses[10].ends_with("429 Too Many Requests"), "and the connection ends: {statuses:?}");
        assert!(answer.to_ascii_lowercase().contains("retry-after: 1\r\n"));
    }

    #[tokio::test]
    async fn floods_of_header_and_noise_are_refused_within_bounds() {
        let (address, _stop, _server) = start(here(), 8).await;
        let head = "GET / HTTP/1.1\r\nhost: x\r\n";
        let rows = [
            (format!("{head}{}\r\n", "a: b\r\n".repeat(200)), "431"),
            (format!("{head}cookie: {}\r\n\r\n", "x".repeat(4 * HEAD_LEN_MAX)), "431"),
            (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(4 * HEAD_LEN_MAX)), "4"),
            ("\0\u{1}\u{2}garbage\r\n\r\n".to_owned(), "400"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "400"),
            (format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\n"), "400"),
            (format!("{head}content-length: -1\r\n\r\n"), "400"),
        ];
        for (request, status) in rows {
            let answer = exchange(address, &request).await;
            let shown = &request[..request.len().min(60)];
            assert!(answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")), "{shown:?}: {answer}");
            assert!(!answer.contains("here"));
        }
        let answer = exchange(address, &format!("{head}connection: close\r\n\r\n")).await;
        assert!(answer.ends_with("here"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_cut_after_15_s() {
        let router = Router::new().route("/", post(|body: String| async move { body }));
        let (address, _stop, _server) = start(router, 8).await;
        let mut stream = TcpStream::connect(address).await.expect("the listener is there");
        stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nab").await.expect("a few bytes");
        let began = Instant::now();
        let answer = read_to_the_end(stream).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(began.elapsed() >= REQUEST_TIMEOUT && began.elapsed() < 2 * REQUEST_TIMEOUT, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed() {
        let (address, _stop, _server) = start(here(), 8).await;
        let mut stream = TcpStream::connect(address).await.expect("the listener is there");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("a few bytes");
        let began = Instant::now();
        assert!(read_to_the_end(stream).await.ends_with("here"));
        assert!(began.elapsed() <= 2 * HEAD_TIMEOUT, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answers_is_cut() {
        let router = Router::new().route("/", get(|| async { "x".repeat(1 << 20) }));
        let (address, _stop, server) = start(router, 1).await;
        let mut deaf = TcpStream::connect(address).await.expect("the listener is there");
        deaf.write_all("GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100).as_bytes()).await.expect("a few bytes");
        // The only place comes free although the deaf one stays.
        let answer = exchange(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.ends_with('x'));
        drop((deaf, server));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_frees_its_connection() {
        let (address, _stop, _server) = start(Router::new().route("/", get(|| async { "here" })), 1).await;
        let mut slow = TcpStream::connect(address).await.expect("the listener is there");
        slow.write_all(b"GET / HT").await.expect("a few bytes");
        // The only place is taken until the slow one's time is up; paused time then jumps there.
        let answer = exchange(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.ends_with("here"), "{answer}");
    }
}
