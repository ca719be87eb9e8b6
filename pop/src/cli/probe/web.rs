//! The little of HTTP that a probe needs: one connection, TLS by the system's authorities, small answers, no redirects.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::statistics::Statistics;
use super::target::Target;
use super::{Plan, Sample, due, show_loss, show_sample};

/// Largest answer that is read, in bytes.
const BODY_LEN_MAX: usize = 64 << 10;

/// Where Debian keeps the authorities that it trusts; `SSL_CERT_FILE` names another file, as for OpenSSL.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// `http://authority/path` or `https://authority/path`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    is_secure: bool,
    /// Host and perhaps port.
    authority: String,
    /// From its slash on, query included.
    pub(super) path: String,
}

impl Url {
    /// `None` when it is no URL; what follows a `#` is left out.
    pub(super) fn parse(text: &str) -> Option<Url> {
        let secure = text.strip_prefix("https://");
        let rest = secure.or_else(|| text.strip_prefix("http://"))?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let plain = |text: &str| text.len() <= 2_048 && text.bytes().all(|byte| byte.is_ascii_graphic());
        let right = !authority.is_empty() && !authority.contains('@') && plain(authority) && plain(path);
        right.then(|| Url { is_secure: secure.is_some(), authority: authority.to_owned(), path: path.to_owned() })
    }

    /// Another address as this document names it: a whole URL, or a path from the root.
    pub(super) fn join(&self, reference: &str) -> Option<Url> {
        match reference.strip_prefix('/') {
            Some(_) => Url::parse(&format!("{}://{}{reference}", self.scheme(), self.authority)),
            None => Url::parse(reference),
        }
    }

    fn scheme(&self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }

    fn host_and_port(&self) -> (String, u16) {
        let default = if self.is_secure { 443 } else { 80 };
        let (host, port) = match self.authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().unwrap_or(default)),
            _ => (self.authority.as_str(), default),
        };
        (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority, self.path)
    }
}

/// TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn secure(stream: TcpStream, url: &Url) -> Result<Box<dyn Stream>, String> {
    let file = std::env::var_os("SSL_CERT_FILE").unwrap_or_else(|| AUTHORITIES.into());
    let shown = file.display();
    let mut authorities = RootCertStore::empty();
    let read = CertificateDer::pem_file_iter(&file).map_err(|error| format!("no authorities in {shown}: {error}"))?;
    // One that cannot be used is left out, as OpenSSL does.
    authorities.add_parsable_certificates(read.flatten());
    if authorities.is_empty() {
        return Err(format!("no authorities in {shown}: install ca-certificates, or name a file in SSL_CERT_FILE"));
    }
    let config = ClientConfig::builder().with_root_certificates(authorities).with_no_client_auth();
    let name = ServerName::try_from(url.host_and_port().0).map_err(|error| error.to_string())?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    connected.map(|stream| Box::new(stream) as Box<dyn Stream>).map_err(|error| error.to_string())
}

/// A connection that waits for requests.
struct Connection {
    peer: IpAddr,
    sender: SendRequest<Empty<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    async fn open(url: &Url) -> Result<Connection, String> {
        let stream = TcpStream::connect(url.host_and_port()).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let peer = stream.peer_addr().map_err(|error| error.to_string())?.ip();
        let stream: Box<dyn Stream> = if url.is_secure { secure(stream, url).await? } else { Box::new(stream) };
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        // What goes wrong there is seen by the request as well.
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Connection { peer, sender, driver })
    }

    /// The answer's status and body, and the time until its head.
    async fn get(&mut self, url: &Url) -> Result<(StatusCode, Bytes, Duration), String> {
        let request = Request::get(&url.path)
            .header(HOST, &url.authority)
            .header(USER_AGENT, concat!("pop-probe/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*")
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        self.sender.ready().await.map_err(|error| error.to_string())?;
        let started = Instant::now();
        let answer = self.sender.send_request(request).await.map_err(|error| error.to_string())?;
        let took = started.elapsed();
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_LEN_MAX).collect().await.map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes(), took))
    }
}

/// The body of a successful answer, and who gave it.
pub(super) async fn get(url: &Url) -> Result<(Bytes, IpAddr), String> {
    let mut connection = Connection::open(url).await?;
    let (status, body, _) = connection.get(url).await?;
    if status.is_success() { Ok((body, connection.peer)) } else { Err(format!("HTTP {status}")) }
}

/// Requests on a warm connection: opening it is not measured.
pub(super) async fn run(target: &Target, url: &Url, plan: Plan, mut stop: watch::Receiver<bool>, statistics: &mut Statistics) {
    let started = Instant::now();
    let mut warm = None;
    for sequence in 0..plan.count {
        tokio::select! {
            () = tokio::time::sleep_until(due(started, plan, sequence).into()) => {}
            _ = stop.wait_for(|stopped| *stopped) => return,
        }
        statistics.count_sent();
        let asked = tokio::time::timeout(plan.timeout, ask(url, warm.take())).await;
        match asked.unwrap_or_else(|_| Err("lost".to_owned())) {
            Ok((connection, rtt)) => {
                warm = Some(connection);
                let sample = Sample { sequence, rtt, stamp: None };
                statistics.add(sample);
                if plan.show {
                    show_sample(target, &sample);
                }
            }
            Err(reason) if plan.show => show_loss(target, sequence, &reason),
            Err(_) => {}
        }
    }
}

async fn ask(url: &Url, warm: Option<Connection>) -> Result<(Connection, Duration), String> {
    let mut connection = match warm {
        Some(connection) => connection,
        None => {
            let mut connection = Connection::open(url).await?;
            connection.get(url).await?;
            connection
        }
    };
    let (status, _, rtt) = connection.get(url).await?;
    if status.is_success() { Ok((connection, rtt)) } else { Err(format!("HTTP {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_host_a_port_and_a_path() {
        let url = |text: &str| Url::parse(text).unwrap_or_else(|| panic!("{text} is one"));
        assert_eq!(url("http://fra.pop.example").to_string(), "http://fra.pop.example/");
        assert_eq!(url("http://fra.pop.example:8/x?y#z").to_string(), "http://fra.pop.example:8/x?y");
        assert_eq!(url("http://[2001:db8::1]:8/").host_and_port(), ("2001:db8::1".to_owned(), 8));
        assert_eq!(url("http://[2001:db8::1]").host_and_port(), ("2001:db8::1".to_owned(), 80));
        assert_eq!(url("https://a").host_and_port(), ("a".to_owned(), 443));
        assert_eq!(url("https://a:8/x").join("/probe"), Url::parse("https://a:8/probe"));
        assert_eq!(url("http://a:8/x").join("/probe"), Url::parse("http://a:8/probe"));
        assert_eq!(url("http://a/").join("http://b/probe"), Url::parse("http://b/probe"));
        for bad in ["", "a", "a:1", "http://", "http:///x", "http://u@h/", "http://a b/", "ftp://a/"] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
    }
}
