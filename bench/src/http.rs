//! As much HTTP/1.1 as signalling needs: one request per connection, plain TCP, one bounded body.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest response that is read, in bytes: a metrics page of a full node is below 1 MB.
const RESPONSE_LEN_MAX: u64 = 8 << 20;

/// A server that does not answer for this long is reported instead of waited for.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the server said.
#[derive(Debug)]
pub(crate) struct Response {
    /// 201, 404, ..
    pub(crate) status: u16,
    head: String,
    /// The body as text.
    pub(crate) body: String,
}

impl Response {
    /// The first header called `name`, without regard to case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// Sends one request and reads the answer. The error is a sentence that names the URL.
pub(crate) fn request(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Response, String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url}: only http:// URLs are spoken here"))?;
    let (host, path) = rest.split_once('/').map_or((rest, "/".to_owned()), |(host, path)| (host, format!("/{path}")));
    let fail = |e: std::io::Error| format!("{method} {url}: {e}");
    let mut stream = TcpStream::connect(host).map_err(fail)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(fail)?;
    stream.set_nodelay(true).map_err(fail)?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(body);
    stream.write_all(text.as_bytes()).map_err(fail)?;
    let mut answer = Vec::new();
    stream.take(RESPONSE_LEN_MAX).read_to_end(&mut answer).map_err(fail)?;
    parse_response(&answer).ok_or_else(|| format!("{method} {url}: the answer is not HTTP/1.1 with a plain body"))
}

fn parse_response(bytes: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let response = Response { status, head: head.to_owned(), body: body.to_owned() };
    match response.header("transfer-encoding") {
        None => Some(response),
        Some(encoding) if encoding.eq_ignore_ascii_case("chunked") => {
            let body = join_chunks(&response.body)?;
            Some(Response { body, ..response })
        }
        Some(_) => None,
    }
}

fn join_chunks(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, behind) = rest.split_once("\r\n")?;
        let len = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if len == 0 {
            return Some(body);
        }
        body.push_str(behind.get(..len)?);
        rest = behind.get(len..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_and_without_chunks() {
        let plain = parse_response(b"HTTP/1.1 201 Created\r\nlocation: /whip/a/1\r\n\r\nv=0").unwrap();
        assert_eq!((plain.status, plain.header("Location"), plain.body.as_str()), (201, Some("/whip/a/1"), "v=0"));
        let chunked = parse_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").unwrap();
        assert_eq!(chunked.body, "abcde");
        assert!(parse_response(b"SSH-2.0-x\r\n\r\n").is_none());
    }
}
