//! STUN and TURN servers for clients: the `Link` header fields of RFC 9725 section 4.6.

use axum::http::header::LINK;
use axum::http::{HeaderMap, HeaderValue};

use crate::config::IceServer;

/// One prepared header field for each server of `http.ice_servers`.
#[derive(Clone, Debug, Default)]
pub(super) struct IceServers(Vec<Field>);

#[derive(Clone, Debug)]
struct Field {
    value: HeaderValue,
    /// It holds a password.
    secret: bool,
}

impl IceServers {
    pub(super) fn new(servers: &[IceServer]) -> IceServers {
        IceServers(servers.iter().map(Field::new).collect())
    }

    /// Adds all of them for a holder of a token; those without a password for everybody else.
    pub(super) fn add_to(&self, headers: &mut HeaderMap, trusted: bool) {
        for field in self.0.iter().filter(|field| trusted || !field.secret) {
            headers.append(LINK, field.value.clone());
        }
    }
}

impl Field {
    fn new(server: &IceServer) -> Field {
        let mut text = format!("<{}>; rel=\"ice-server\"", server.url);
        if let (Some(username), Some(credential)) = (&server.username, &server.credential) {
            let (username, credential) = (quote(username), quote(credential));
            text.push_str(&format!("; username={username}; credential={credential}; credential-type=\"password\""));
        }
        let value = HeaderValue::try_from(text).expect("the config takes visible ASCII alone");
        Field { value, secret: server.credential.is_some() }
    }
}

/// A quoted-string (RFC 9110 section 5.6.4).
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(trusted: bool) -> Vec<String> {
        let turn = IceServer {
            url: "turn:turn.example.net?transport=udp".to_owned(),
            username: Some("us\"er".to_owned()),
            credential: Some("my\\Password".to_owned()),
        };
        let stun = IceServer { url: "stun:stun.example.net".to_owned(), username: None, credential: None };
        let mut headers = HeaderMap::new();
        IceServers::new(&[stun, turn]).add_to(&mut headers, trusted);
        headers.get_all(LINK).iter().map(|value| value.to_str().expect("ASCII").to_owned()).collect()
    }

    #[test]
    fn servers_are_links_as_in_the_rfc() {
        let turn = r#"<turn:turn.example.net?transport=udp>; rel="ice-server"; username="us\"er"; credential="my\\Password"; credential-type="password""#;
        assert_eq!(links(true), [r#"<stun:stun.example.net>; rel="ice-server""#, turn]);
    }

    #[test]
    fn a_password_is_for_the_holder_of_a_token() {
        assert_eq!(links(false), [r#"<stun:stun.example.net>; rel="ice-server""#]);
    }
}
