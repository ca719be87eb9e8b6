//! The controlling side of ICE towards a lite server: one candidate pair, nominated by the first check, kept by later ones.

use std::net::SocketAddr;

use pop_proto::wire::stun::{BindingRequest, Kind, Message, RESPONSE_LEN_MAX, Role, TransactionId, write_request, write_success};

use crate::random::random_bytes;

/// The longest request of ours, in bytes.
pub(crate) const REQUEST_LEN_MAX: usize = 256;

/// Priority of a host candidate (RFC 8445 section 5.1.2.1: type 126, local preference 65535, component 1).
const PRIORITY: u32 = 126 << 24 | 65_535 << 8 | 255;

/// Credentials of one pair and the transaction that is under way.
pub(crate) struct Checks {
    username: String,
    password: String,
    tie_breaker: u64,
    transaction: TransactionId,
    /// Authentic answers so far.
    pub(crate) answers: u64,
}

impl Checks {
    /// `remote` are the server's ufrag and password.
    pub(crate) fn new(local_ufrag: &str, remote: (&str, &str)) -> Checks {
        Checks {
            username: format!("{}:{local_ufrag}", remote.0),
            password: remote.1.to_owned(),
            tie_breaker: u64::from_be_bytes(random_bytes()),
            transaction: TransactionId([0; 12]),
            answers: 0,
        }
    }

    /// The USERNAME of our checks: the server's fragment, ours behind the colon.
    pub(crate) fn username(&self) -> &str {
        &self.username
    }

    /// Writes the next check. "The controlling agent MUST include the USE-CANDIDATE attribute" to nominate (RFC 8445
    /// section 7.1.2); a lite server has nothing to compare, so the first check does.
    pub(crate) fn write_check(&mut self, out: &mut [u8; REQUEST_LEN_MAX]) -> usize {
        self.transaction = TransactionId(random_bytes());
        let request = BindingRequest {
            transaction: self.transaction,
            username: &self.username,
            priority: Some(PRIORITY),
            role: Some(Role::Controlling(self.tie_breaker)),
            use_candidate: true,
        };
        write_request(&request, self.password.as_bytes(), out).expect("two ufrags of at most 32 bytes fit a request")
    }

    /// An answer to the last check: the address that the server saw. `None` for anything else.
    pub(crate) fn read_answer(&mut self, datagram: &[u8]) -> Option<SocketAddr> {
        let message = Message::parse(datagram).ok()?;
        let is_ours = message.kind() == Kind::BindingSuccess && message.transaction() == self.transaction;
        if !is_ours || !message.is_authentic(self.password.as_bytes()) {
            return None;
        }
        self.answers += 1;
        message.mapped_address()
    }
}

/// Writes the answer to a check of a full agent at `from`; `None` when it is not one for our `password`.
pub(crate) fn answer_check(password: &str, datagram: &[u8], from: SocketAddr, out: &mut [u8; RESPONSE_LEN_MAX]) -> Option<usize> {
    let message = Message::parse(datagram).ok()?;
    let is_ours = message.kind() == Kind::BindingRequest && message.is_authentic(password.as_bytes());
    is_ours.then(|| write_success(message.transaction(), from, password.as_bytes(), out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_of_the_other_end_is_answered_when_it_is_authentic() {
        let mut request = [0; REQUEST_LEN_MAX];
        let len = Checks::new("theirs", ("mine", "our-own-password-22")).write_check(&mut request);
        let (from, mut out) = ("127.0.0.1:5".parse().unwrap(), [0; RESPONSE_LEN_MAX]);
        assert_eq!(answer_check("another", &request[..len], from, &mut out), None);
        let answer = answer_check("our-own-password-22", &request[..len], from, &mut out).unwrap();
        assert_eq!(answer_check("our-own-password-22", &out[..answer], from, &mut [0; RESPONSE_LEN_MAX]), None, "an answer is no check");
        let message = Message::parse(&out[..answer]).unwrap();
        assert_eq!((message.kind(), message.mapped_address()), (Kind::BindingSuccess, Some(from)));
    }

    #[test]
    fn only_the_authentic_answer_to_the_last_check_counts() {
        let mut checks = Checks::new("mine", ("theirs", "secret-secret-secret-22"));
        let mut request = [0; REQUEST_LEN_MAX];
        let len = checks.write_check(&mut request);
        let message = Message::parse(&request[..len]).unwrap();
        assert_eq!(message.fragments(), Some((&b"theirs"[..], &b"mine"[..])));
        assert!(message.is_authentic(b"secret-secret-secret-22") && message.use_candidate());
        let address = "127.0.0.1:5".parse().unwrap();
        let mut answer = |transaction, password: &[u8]| {
            let mut out = [0; 100];
            let len = write_success(transaction, address, password, &mut out);
            checks.read_answer(&out[..len])
        };
        assert_eq!(answer(message.transaction(), b"wrong"), None);
        assert_eq!(answer(TransactionId([1; 12]), b"secret-secret-secret-22"), None);
        assert_eq!(answer(message.transaction(), b"secret-secret-secret-22"), Some(address));
        assert_eq!(checks.answers, 1);
    }
}
