//! ICE-lite (RFC 8445 section 2.5): this node answers checks and never sends one.
//!
//! ```text
//! check --parse--> ours? -> authentic? -> understood? -> role? --> path validated --> selected?
//!                  no reply  no reply      420            487       answered
//! ```
//!
//! An address becomes known, and media moves to it, only by an authenticated check from it. The `generation` of a candidate
//! and the absence of PRIORITY mean nothing here.
//!
//! A restart (RFC 8445 section 9) puts new credentials beside the current ones. The first check that is answered with success
//! under them makes them the current ones, and from then on the old ones open nothing. Validated paths stay, because packets
//! are still on their way there, and media stays on the selected one until the client nominates another.
//!
//! A check proves one direction. A host of two networks nominates both, and what we answer may reach it by one alone: it sends its packets
//! by that one, and ours follow it there.

use std::time::Duration;

use pop_schemas::Time;

use crate::{
    DropReason,
    control::{IceCredentials, Path, TransportLoss},
    wire::stun::{self, Kind, Message, RESPONSE_LEN_MAX, Role, TransactionId},
};

/// Validated paths that one transport keeps: Wi-Fi, cellular, VPN and Ethernet in both address families.
pub const PATHS_MAX: usize = 8;

/// A transport that no authenticated check reaches for this long after its start is given up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Packets of the client that come by another path than the nominated one, and none by that, move ours to theirs after this: those that were
/// on their way when it nominated have come by then.
const UNUSED_MAX: Duration = Duration::from_secs(1);

/// One transport's agent.
pub struct IceLite {
    credentials: IceCredentials,
    /// Of a restart that no check has confirmed yet.
    restarted: Option<IceCredentials>,
    /// A client that is silent for this long is gone (RFC 7675 section 5.1 allows at most 30 s; browsers check every 2.5 s).
    consent: Duration,
    opened_at: Time,
    /// Set by the first check that was answered with success, by each later one, and then by each authentic packet.
    heard_at: Option<Time>,
    /// Validated, the oldest first.
    paths: Vec<Known>,
    /// One of `paths`; where this node sends. Set by the first validation, moved by USE-CANDIDATE, off TCP by the first UDP path unless the
    /// client has nominated, and by [`IceLite::follow`].
    selected: Option<Path>,
    selected_at: Time,
    /// The client has sent something else than checks by the selected path.
    is_used: bool,
    /// The path that the client chose last.
    nominated: Option<Path>,
    /// It sends by the path that it chose: nothing else moves ours.
    is_settled: bool,
}

/// A validated path.
struct Known {
    path: Path,
    /// Its last check with USE-CANDIDATE.
    nomination: Option<TransactionId>,
}

/// What an authenticated check did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckOutcome {
    /// Bytes of the answer; send it to where the check came from.
    pub response_len: usize,
    /// The path was not validated before.
    pub newly_validated: bool,
    /// Media goes to another path from now on: to this one.
    pub selected_changed: bool,
    /// The path that had to make room and is not validated any more.
    pub replaced: Option<Path>,
    /// The answer is an error: the check validated nothing.
    pub refused: bool,
    /// The check confirmed a restart: these credentials are dead.
    pub retired: Option<IceCredentials>,
}

impl IceLite {
    /// An agent that expects its first check within [`CONNECT_TIMEOUT`], and silence of at most `consent` after it.
    pub fn new(now: Time, credentials: IceCredentials, consent: Duration) -> IceLite {
        IceLite {
            credentials,
            restarted: None,
            consent,
            opened_at: now,
            heard_at: None,
            paths: Vec::with_capacity(PATHS_MAX),
            selected: None,
            selected_at: now,
            is_used: false,
            nominated: None,
            is_settled: false,
        }
    }

    /// Takes the credentials of a restart. Returns those of an earlier one that no check has confirmed: they are forgotten.
    pub fn restart(&mut self, credentials: IceCredentials) -> Option<IceCredentials> {
        self.restarted.replace(credentials)
    }

    /// Our fragments: the current one, and that of a restart that no check has confirmed.
    pub fn local_ufrags(&self) -> impl Iterator<Item = &str> {
        [Some(&self.credentials), self.restarted.as_ref()].into_iter().flatten().map(|credentials| &*credentials.local_ufrag)
    }

    /// Judges a check that came over `path` and writes the answer, an error answer included, into `response`.
    ///
    /// Errors mean that there is no answer: [`DropReason::StunUnexpected`], [`DropReason::StunUnknownUser`],
    /// [`DropReason::StunIntegrity`]. Allocates nothing.
    pub fn handle_check(
        &mut self,
        now: Time,
        path: Path,
        check: &Message<'_>,
        response: &mut [u8; RESPONSE_LEN_MAX],
    ) -> Result<CheckOutcome, DropReason> {
        if check.kind() != Kind::BindingRequest {
            return Err(DropReason::StunUnexpected);
        }
        let restart = self.restarted.as_ref().filter(|restarted| is_for(check, restarted));
        let confirms = restart.is_some();
        let current = Some(&self.credentials).filter(|current| is_for(check, current));
        let password = restart.or(current).ok_or(DropReason::StunUnknownUser)?.local_pwd.as_bytes();
        if !check.is_authentic(password) {
            return Err(DropReason::StunIntegrity);
        }
        let transaction = check.transaction();
        if !check.unknown_attributes().as_slice().is_empty() {
            return Ok(refused(stun::write_unknown_attributes(transaction, check.unknown_attributes(), password, response)));
        }
        // A lite agent is controlled whatever the tie-breakers say: it cannot take the other role.
        if let Some(Role::Controlled(_)) = check.role() {
            return Ok(refused(stun::write_role_conflict(transaction, password, response)));
        }
        let response_len = stun::write_success(transaction, path.remote, password, response);
        self.heard_at = Some(now);
        let retired = if confirms { self.restarted.take().map(|fresh| std::mem::replace(&mut self.credentials, fresh)) } else { None };
        let newly_validated = !self.is_validated(path);
        let replaced = if newly_validated { self.validate(path) } else { None };
        let is_better = match self.selected {
            None => true,
            // A client that does not nominate means the path of its first check, also that after a restart. RFC 6544 section 4.2:
            // UDP is preferred to TCP when both work.
            Some(selected) => self.nominated.is_none() && (retired.is_some() || (selected.is_tcp() && !path.is_tcp())),
        };
        let nominates = check.use_candidate() && self.is_first(path, transaction);
        let selected_changed = self.selected != Some(path) && (nominates || is_better);
        if nominates {
            self.nominated = Some(path);
        }
        if selected_changed {
            self.select(now, path, false);
        }
        Ok(CheckOutcome { response_len, newly_validated, selected_changed, replaced, refused: false, retired })
    }

    /// Adds a path; returns the one that made room for it.
    fn validate(&mut self, path: Path) -> Option<Path> {
        let replaced = if self.paths.len() < PATHS_MAX {
            None
        } else {
            let oldest = self.paths.iter().position(|known| Some(known.path) != self.selected);
            oldest.map(|at| self.paths.remove(at).path)
        };
        self.paths.push(Known { path, nomination: None });
        replaced
    }

    /// Whether a nomination is not the last one of its path again. A client repeats what it has no answer to.
    fn is_first(&mut self, path: Path, transaction: TransactionId) -> bool {
        let known = self.paths.iter_mut().find(|known| known.path == path);
        known.is_none_or(|known| known.nomination.replace(transaction) != Some(transaction))
    }

    fn select(&mut self, now: Time, path: Path, is_used: bool) {
        (self.selected, self.selected_at, self.is_used) = (Some(path), now, is_used);
        self.is_settled = is_used && self.nominated.is_none_or(|nominated| nominated == path);
    }

    /// Forgets paths that are `gone`; media goes to the one that was validated last of those that are left, UDP first.
    pub fn forget(&mut self, gone: impl Fn(&Path) -> bool) {
        self.paths.retain(|known| !gone(&known.path));
        if self.selected.is_some_and(|selected| gone(&selected)) {
            self.selected = self.paths().max_by_key(|path| !path.is_tcp());
            (self.is_used, self.is_settled) = (false, false);
        }
        self.nominated = self.nominated.filter(|path| !gone(path));
    }

    /// Whether an authenticated check came over `path`.
    pub fn is_validated(&self, path: Path) -> bool {
        self.paths().any(|known| known == path)
    }

    /// A packet of the client was authenticated by SRTP: it is there although it may not check again. libnice, and so GStreamer,
    /// keeps a selected pair alive with Binding indications only.
    #[inline]
    pub fn note_authentic_packet(&mut self, now: Time, path: Path) {
        if self.heard_at.is_some() {
            self.heard_at = Some(now);
        }
        self.follow(now, path, UNUSED_MAX);
    }

    /// A datagram of a handshake came by `path`: the client reads there.
    pub fn note_handshake(&mut self, now: Time, path: Path) {
        self.follow(now, path, Duration::ZERO);
    }

    /// The client sends by `path`, and so do we: at once when it has nominated that, else when it has not sent by the selected one for
    /// `patience` after that was selected.
    #[inline]
    fn follow(&mut self, now: Time, path: Path, patience: Duration) {
        if self.is_settled && !patience.is_zero() {
            return;
        }
        let is_late = patience.is_zero() || !self.is_used && now.since(self.selected_at) >= patience;
        if self.selected == Some(path) || (self.nominated == Some(path) || is_late) && self.is_validated(path) {
            self.select(now, path, true);
        }
    }

    /// Every validated path, the oldest first.
    pub fn paths(&self) -> impl Iterator<Item = Path> {
        self.paths.iter().map(|known| known.path)
    }

    /// Where media and DTLS go.
    pub fn selected(&self) -> Option<Path> {
        self.selected
    }

    /// When [`Self::expired`] has to be asked next.
    pub fn deadline(&self) -> Time {
        match self.heard_at {
            None => self.opened_at + CONNECT_TIMEOUT,
            Some(heard_at) => heard_at + self.consent,
        }
    }

    /// Why the transport is over, if it is.
    pub fn expired(&self, now: Time) -> Option<TransportLoss> {
        if now < self.deadline() {
            return None;
        }
        Some(if self.heard_at.is_none() { TransportLoss::NeverConnected } else { TransportLoss::ConsentExpired })
    }
}

/// RFC 8445 section 7.2.2: the USERNAME of a check to us is our fragment, a colon, and the client's.
fn is_for(check: &Message<'_>, credentials: &IceCredentials) -> bool {
    check.fragments() == Some((credentials.local_ufrag.as_bytes(), credentials.remote_ufrag.as_bytes()))
}

/// An authenticated check that was answered with an error validates nothing.
fn refused(response_len: usize) -> CheckOutcome {
    CheckOutcome { response_len, newly_validated: false, selected_changed: false, replaced: None, refused: true, retired: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::TCP_SOCKET_BASE;
    use crate::wire::stun::{BindingRequest, MESSAGE_LEN_MAX, TransactionId, write_request};

    const CONSENT: Duration = Duration::from_secs(15);

    const NOMINATING: BindingRequest<'static> = BindingRequest {
        transaction: TransactionId([5; 12]),
        username: "lite:full",
        priority: Some(1),
        role: Some(Role::Controlling(1)),
        use_candidate: true,
    };
    const PLAIN: BindingRequest<'static> = BindingRequest { use_candidate: false, ..NOMINATING };

    fn agent() -> IceLite {
        let credentials = IceCredentials { local_ufrag: "lite".into(), local_pwd: "password".into(), remote_ufrag: "full".into() };
        IceLite::new(Time::ZERO, credentials, CONSENT)
    }

    fn path(port: u16) -> Path {
        Path { socket: 0, remote: ([192, 0, 2, 1], port).into() }
    }

    fn written(request: &BindingRequest<'_>, password: &[u8]) -> Vec<u8> {
        let mut out = [0; MESSAGE_LEN_MAX];
        let len = write_request(request, password, &mut out).expect("it fits");
        out[..len].to_vec()
    }

    /// Credentials of a restart, by their number.
    fn credentials(generation: u8) -> IceCredentials {
        let text = |name: &str| format!("{name}{generation}").into();
        IceCredentials { local_ufrag: text("lite"), local_pwd: text("password"), remote_ufrag: text("full") }
    }

    /// A check under the credentials of a restart.
    fn check_restarted(ice: &mut IceLite, generation: u8, from: Path, request: &BindingRequest<'_>) -> Result<CheckOutcome, DropReason> {
        let username = format!("lite{generation}:full{generation}");
        let bytes = written(&BindingRequest { username: &username, ..*request }, format!("password{generation}").as_bytes());
        ice.handle_check(Time::from_millis(5_000), from, &Message::parse(&bytes)?, &mut [0; RESPONSE_LEN_MAX])
    }

    /// The outcome and the error code of the answer.
    fn handle(ice: &mut IceLite, seconds: u64, from: Path, bytes: &[u8]) -> Result<(CheckOutcome, Option<u16>), DropReason> {
        let mut response = [0; RESPONSE_LEN_MAX];
        let check = Message::parse(bytes)?;
        let outcome = ice.handle_check(Time::from_millis(seconds * 1_000), from, &check, &mut response)?;
        let answer = Message::parse(&response[..outcome.response_len]).expect("our answer is well formed");
        assert!(answer.is_authentic(b"password") && answer.transaction() == check.transaction());
        if answer.error_code().is_none() {
            assert_eq!(answer.mapped_address(), Some(from.remote));
        }
        Ok((outcome, answer.error_code()))
    }

    fn check(ice: &mut IceLite, seconds: u64, from: Path, request: &BindingRequest<'_>) -> CheckOutcome {
        let (outcome, error) = handle(ice, seconds, from, &written(request, b"password")).expect("it is authentic");
        assert_eq!(error, None);
        outcome
    }

    #[test]
    fn the_first_validated_path_is_selected_until_another_is_nominated() {
        let mut ice = agent();
        assert_eq!(ice.selected(), None);
        let first = check(&mut ice, 1, path(1), &PLAIN);
        assert!(first.newly_validated && first.selected_changed);
        let second = check(&mut ice, 1, path(2), &PLAIN);
        assert!(second.newly_validated && !second.selected_changed);
        assert_eq!(ice.selected(), Some(path(1)));
        let nominated = check(&mut ice, 2, path(2), &NOMINATING);
        assert!(!nominated.newly_validated && nominated.selected_changed);
        assert_eq!(ice.selected(), Some(path(2)));
        assert!(!check(&mut ice, 3, path(2), &NOMINATING).selected_changed);
        assert!(!check(&mut ice, 3, path(1), &PLAIN).selected_changed, "a check without USE-CANDIDATE moves nothing");
    }

    /// A host of two networks nominates a path on each, and our answers reach it by the first alone.
    fn answered_by_one_of_two() -> (IceLite, BindingRequest<'static>) {
        let mut ice = agent();
        check(&mut ice, 1, path(1), &NOMINATING);
        let unanswered = BindingRequest { transaction: TransactionId([6; 12]), ..NOMINATING };
        assert!(check(&mut ice, 1, path(2), &unanswered).selected_changed, "it cannot be seen that this one fails");
        (ice, unanswered)
    }

    #[test]
    fn a_handshake_goes_on_by_the_path_by_which_the_client_sends_it() {
        let (mut ice, unanswered) = answered_by_one_of_two();
        ice.note_handshake(Time::from_millis(1_001), path(3));
        assert_eq!(ice.selected(), Some(path(2)), "a path that no check validated is none");
        ice.note_handshake(Time::from_millis(1_001), path(1));
        assert_eq!(ice.selected(), Some(path(1)));
        assert!(!check(&mut ice, 2, path(2), &unanswered).selected_changed, "the same check once more: it has had no answer");
        let renewed = BindingRequest { transaction: TransactionId([7; 12]), ..NOMINATING };
        assert!(check(&mut ice, 3, path(2), &renewed).selected_changed, "another check nominates anew");
    }

    #[test]
    fn media_follows_a_client_that_never_sends_by_the_path_that_it_nominated() {
        let (mut ice, _) = answered_by_one_of_two();
        ice.note_authentic_packet(Time::from_millis(1_999), path(1));
        assert_eq!(ice.selected(), Some(path(2)), "this one may have been on its way");
        ice.note_authentic_packet(Time::from_millis(2_000), path(1));
        assert_eq!(ice.selected(), Some(path(1)));
        // By this one it does send, and what comes late by the other moves nothing.
        let moved = BindingRequest { transaction: TransactionId([7; 12]), ..NOMINATING };
        assert!(check(&mut ice, 3, path(2), &moved).selected_changed);
        ice.note_authentic_packet(Time::from_millis(3_100), path(2));
        ice.note_authentic_packet(Time::from_millis(9_000), path(1));
        assert_eq!(ice.selected(), Some(path(2)));
    }

    #[test]
    fn a_late_packet_by_the_path_of_before_keeps_nobody_from_the_one_that_was_nominated() {
        let mut ice = agent();
        check(&mut ice, 1, path(1), &NOMINATING);
        ice.note_authentic_packet(Time::from_millis(1_100), path(1));
        check(&mut ice, 2, path(2), &BindingRequest { transaction: TransactionId([6; 12]), ..NOMINATING });
        ice.note_authentic_packet(Time::from_millis(3_500), path(1));
        assert_eq!(ice.selected(), Some(path(1)), "it seems that it reads there");
        ice.note_authentic_packet(Time::from_millis(3_600), path(2));
        assert_eq!(ice.selected(), Some(path(2)));
        ice.note_authentic_packet(Time::from_millis(9_000), path(1));
        assert_eq!(ice.selected(), Some(path(2)), "it is where it said that it is");
    }

    #[test]
    fn a_check_without_priority_or_role_is_accepted() {
        let mut ice = agent();
        assert!(check(&mut ice, 1, path(1), &BindingRequest { priority: None, role: None, ..PLAIN }).newly_validated);
    }

    #[test]
    fn the_same_address_on_another_socket_is_another_path() {
        let mut ice = agent();
        check(&mut ice, 1, path(1), &PLAIN);
        assert!(!ice.is_validated(Path { socket: 1, ..path(1) }));
    }

    #[test]
    fn an_address_changes_only_by_an_authentic_check() {
        let mut ice = agent();
        check(&mut ice, 1, path(1), &NOMINATING);
        let spoofed = path(666);
        for (request, password, reason) in [
            (NOMINATING, &b"passwore"[..], DropReason::StunIntegrity),
            (NOMINATING, b"", DropReason::StunIntegrity),
            (BindingRequest { username: "lite:fulm", ..NOMINATING }, b"password", DropReason::StunUnknownUser),
            (BindingRequest { username: "lite", ..NOMINATING }, b"password", DropReason::StunUnknownUser),
            (BindingRequest { username: "full:lite", ..NOMINATING }, b"password", DropReason::StunUnknownUser),
            (BindingRequest { username: "lite:full:", ..NOMINATING }, b"password", DropReason::StunUnknownUser),
        ] {
            assert_eq!(handle(&mut ice, 2, spoofed, &written(&request, password)), Err(reason));
        }
        // Without the integrity attribute: the same message cut before it.
        let mut cut = written(&NOMINATING, b"password");
        cut.truncate(cut.len() - 32);
        let length = (cut.len() - 20) as u16;
        cut[2..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(handle(&mut ice, 2, spoofed, &cut), Err(DropReason::StunIntegrity));
        assert!(!ice.is_validated(spoofed));
        assert_eq!(ice.selected(), Some(path(1)));
        assert!(check(&mut ice, 2, spoofed, &NOMINATING).selected_changed, "the client itself may move there");
    }

    #[test]
    fn answers_and_indications_are_not_checks() {
        let mut ice = agent();
        let mut response = [0; RESPONSE_LEN_MAX];
        let len = stun::write_success(NOMINATING.transaction, path(1).remote, b"password", &mut response);
        assert_eq!(handle(&mut ice, 1, path(1), &response[..len]), Err(DropReason::StunUnexpected));
        let indication = [&[0x00, 0x11, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[9; 12]].concat();
        assert_eq!(handle(&mut ice, 1, path(1), &indication), Err(DropReason::StunUnexpected));
    }

    #[test]
    fn a_controlled_client_hears_of_the_conflict_and_validates_nothing() {
        let mut ice = agent();
        let request = BindingRequest { role: Some(Role::Controlled(u64::MAX)), ..NOMINATING };
        let (outcome, error) = handle(&mut ice, 1, path(1), &written(&request, b"password")).expect("it is authentic");
        assert_eq!(error, Some(487));
        assert!(!outcome.newly_validated && !outcome.selected_changed && !ice.is_validated(path(1)));
        assert_eq!(handle(&mut ice, 1, path(1), &written(&request, b"guess")), Err(DropReason::StunIntegrity));
        assert_eq!(ice.expired(Time::ZERO + CONNECT_TIMEOUT), Some(TransportLoss::NeverConnected));
    }

    #[test]
    fn unknown_attributes_are_told_to_the_authentic_alone() {
        let mut ice = agent();
        // The writer has no unknown attribute, so PRIORITY becomes one and the message is sealed again by its own rule.
        let mut bytes = written(&NOMINATING, b"password");
        let at = bytes.windows(4).position(|window| window == [0x00, 0x24, 0, 4]).expect("PRIORITY is there");
        bytes[at] = 0x7f;
        let unsealed = bytes.len() - 32;
        let tag = {
            use hmac::{Hmac, KeyInit, Mac};
            let mac = <Hmac<sha1::Sha1> as KeyInit>::new_from_slice(b"password").expect("any length");
            let length = ((unsealed + 4) as u16).to_be_bytes();
            mac.chain_update(&bytes[..2]).chain_update(length).chain_update(&bytes[4..unsealed]).finalize().into_bytes()
        };
        bytes.truncate(unsealed + 24);
        bytes[unsealed + 4..].copy_from_slice(&tag);
        let length = (bytes.len() - 20) as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        let (outcome, error) = handle(&mut ice, 1, path(1), &bytes).expect("it is authentic");
        assert_eq!(error, Some(420));
        assert!(!outcome.newly_validated && !ice.is_validated(path(1)));
        bytes[unsealed + 4] ^= 1;
        assert_eq!(handle(&mut ice, 1, path(1), &bytes), Err(DropReason::StunIntegrity));
    }

    #[test]
    fn paths_are_bounded_and_the_selected_one_stays() {
        let mut ice = agent();
        check(&mut ice, 1, path(0), &NOMINATING);
        for port in 1..PATHS_MAX as u16 {
            assert_eq!(check(&mut ice, 1, path(port), &PLAIN).replaced, None);
        }
        assert_eq!(check(&mut ice, 1, path(100), &PLAIN).replaced, Some(path(1)));
        assert!(!ice.is_validated(path(1)) && ice.is_validated(path(0)) && ice.is_validated(path(100)));
        for port in 200..300 {
            check(&mut ice, 1, path(port), &PLAIN);
        }
        assert_eq!(ice.paths().count(), PATHS_MAX);
        assert_eq!(ice.selected(), Some(path(0)));
        let moved = check(&mut ice, 1, path(400), &NOMINATING);
        assert!(moved.selected_changed && ice.is_validated(path(400)) && ice.is_validated(path(0)));
    }

    #[test]
    fn udp_is_preferred_to_tcp_until_the_client_nominates() {
        let tcp = Path { socket: TCP_SOCKET_BASE, ..path(1) };
        let mut ice = agent();
        check(&mut ice, 1, tcp, &PLAIN);
        assert_eq!(ice.selected(), Some(tcp));
        assert!(check(&mut ice, 1, path(1), &PLAIN).selected_changed);
        assert!(!check(&mut ice, 2, tcp, &PLAIN).selected_changed);
        assert!(check(&mut ice, 2, tcp, &NOMINATING).selected_changed, "the client knows what works for it");
        assert!(!check(&mut ice, 3, path(1), &PLAIN).selected_changed);
        check(&mut ice, 3, path(2), &PLAIN);
        check(&mut ice, 3, Path { socket: TCP_SOCKET_BASE, ..path(3) }, &PLAIN);
        ice.forget(|gone| *gone == tcp);
        assert_eq!(ice.selected(), Some(path(2)), "the last UDP path");
        ice.forget(|gone| !gone.is_tcp());
        assert!(ice.selected().is_some_and(|path| path.is_tcp()));
    }

    #[test]
    fn media_moves_off_a_path_that_is_gone() {
        let mut ice = agent();
        check(&mut ice, 1, path(1), &PLAIN);
        check(&mut ice, 1, path(2), &PLAIN);
        check(&mut ice, 1, path(3), &NOMINATING);
        ice.forget(|gone| *gone == path(1));
        assert_eq!((ice.selected(), ice.paths().count()), (Some(path(3)), 2));
        ice.forget(|gone| *gone == path(3));
        assert_eq!(ice.selected(), Some(path(2)));
        ice.forget(|_| true);
        assert_eq!((ice.selected(), ice.paths().count()), (None, 0));
        assert!(check(&mut ice, 2, path(4), &PLAIN).selected_changed, "the next check selects anew");
    }

    #[test]
    fn old_credentials_work_until_a_check_confirms_the_new_ones() {
        let mut ice = agent();
        check(&mut ice, 1, path(1), &NOMINATING);
        assert_eq!(ice.restart(credentials(2)), None);
        assert_eq!(ice.local_ufrags().collect::<Vec<_>>(), ["lite", "lite2"]);
        assert!(check(&mut ice, 2, path(2), &PLAIN).newly_validated, "until then the old ones open paths too");

        let confirmed = check_restarted(&mut ice, 2, path(3), &PLAIN).expect("it is authentic");
        assert_eq!(confirmed.retired.expect("the first ones are dead").local_ufrag.as_ref(), "lite");
        assert!(confirmed.newly_validated && !confirmed.selected_changed, "media stays where it is until the client nominates");
        assert_eq!((ice.selected(), ice.local_ufrags().collect::<Vec<_>>()), (Some(path(1)), vec!["lite2"]));
        assert_eq!(handle(&mut ice, 3, path(1), &written(&NOMINATING, b"password")), Err(DropReason::StunUnknownUser));
        assert!(ice.is_validated(path(1)), "what is on its way there still counts");

        let nominated = check_restarted(&mut ice, 2, path(3), &NOMINATING).expect("it is authentic");
        assert_eq!((nominated.selected_changed, nominated.retired), (true, None));
        assert_eq!(ice.selected(), Some(path(3)));
    }

    #[test]
    fn a_restart_is_confirmed_by_an_authentic_check_alone() {
        let mut ice = agent();
        check(&mut ice, 1, path(1), &NOMINATING);
        ice.restart(credentials(2));
        let old_password = written(&BindingRequest { username: "lite2:full2", ..NOMINATING }, b"password");
        assert_eq!(handle(&mut ice, 2, path(9), &old_password), Err(DropReason::StunIntegrity));
        for mixed in ["lite2:full", "lite:full2"] {
            for password in [&b"password"[..], b"password2"] {
                let bytes = written(&BindingRequest { username: mixed, ..NOMINATING }, password);
                assert_eq!(handle(&mut ice, 2, path(9), &bytes), Err(DropReason::StunUnknownUser));
            }
        }
        let controlled = BindingRequest { role: Some(Role::Controlled(1)), ..NOMINATING };
        assert!(check_restarted(&mut ice, 2, path(9), &controlled).expect("it is authentic").refused);
        assert_eq!(ice.local_ufrags().count(), 2);
        assert!(!check(&mut ice, 3, path(1), &NOMINATING).selected_changed, "the first credentials still hold");
    }

    #[test]
    fn a_restart_replaces_one_that_was_not_confirmed() {
        let mut ice = agent();
        check(&mut ice, 1, path(1), &NOMINATING);
        ice.restart(credentials(2));
        assert_eq!(ice.restart(credentials(3)).expect("the second is forgotten").local_ufrag.as_ref(), "lite2");
        assert_eq!(check_restarted(&mut ice, 2, path(2), &NOMINATING), Err(DropReason::StunUnknownUser));
        assert!(check_restarted(&mut ice, 3, path(2), &NOMINATING).expect("it is authentic").retired.is_some());
    }

    #[test]
    fn a_client_that_never_nominates_moves_by_its_first_check_after_a_restart() {
        let mut ice = agent();
        check(&mut ice, 1, path(1), &PLAIN);
        ice.restart(credentials(2));
        assert!(check_restarted(&mut ice, 2, path(2), &PLAIN).expect("it is authentic").selected_changed);
        assert!(!check_restarted(&mut ice, 2, path(3), &PLAIN).expect("it is authentic").selected_changed);
        assert_eq!(ice.selected(), Some(path(2)));
    }

    #[test]
    fn an_unconfirmed_restart_does_not_keep_a_silent_client() {
        let mut ice = agent();
        check(&mut ice, 10, path(1), &NOMINATING);
        ice.restart(credentials(2));
        assert_eq!(ice.expired(Time::from_millis(25_000)), Some(TransportLoss::ConsentExpired));
    }

    #[test]
    fn a_transport_that_nobody_checks_is_given_up() {
        let mut ice = agent();
        assert_eq!(handle(&mut ice, 29, path(1), &written(&NOMINATING, b"wrong")), Err(DropReason::StunIntegrity));
        assert_eq!(ice.expired(Time::from_millis(29_999)), None);
        assert_eq!(ice.expired(Time::from_millis(30_000)), Some(TransportLoss::NeverConnected));
    }

    #[test]
    fn consent_ends_after_the_last_authentic_check() {
        let mut ice = agent();
        check(&mut ice, 10, path(1), &NOMINATING);
        check(&mut ice, 20, path(1), &PLAIN);
        assert!(handle(&mut ice, 30, path(1), &written(&NOMINATING, b"wrong")).is_err());
        assert_eq!(ice.deadline(), Time::from_millis(35_000));
        assert_eq!(ice.expired(Time::from_millis(34_999)), None);
        assert_eq!(ice.expired(Time::from_millis(35_000)), Some(TransportLoss::ConsentExpired));
        check(&mut ice, 34, path(2), &PLAIN);
        assert_eq!(ice.expired(Time::from_millis(35_000)), None, "consent over any validated path keeps the transport");
    }

    #[test]
    fn a_client_that_sends_media_and_no_checks_stays() {
        let mut ice = agent();
        ice.note_authentic_packet(Time::from_millis(1), path(1));
        assert_eq!(ice.expired(Time::ZERO + CONNECT_TIMEOUT), Some(TransportLoss::NeverConnected), "a check comes first");
        check(&mut ice, 10, path(1), &NOMINATING);
        ice.note_authentic_packet(Time::from_millis(24_000), path(1));
        assert_eq!(ice.expired(Time::from_millis(38_999)), None);
        assert_eq!(ice.expired(Time::from_millis(39_000)), Some(TransportLoss::ConsentExpired));
    }
}
