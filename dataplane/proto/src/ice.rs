//! ICE-lite (RFC 8445 section 2.5): this node answers checks and never sends one.
//!
//! ```text
//! check --parse--> ours? -> authentic? -> understood? -> role? --> path validated --> selected?
//!                  no reply  no reply      420            487       answered
//! ```
//!
//! An address becomes known, and media moves to it, only by an authenticated check from it. The `generation` of a candidate
//! and the absence of PRIORITY mean nothing here.

use std::time::Duration;

use pop_schemas::Time;

use crate::{
    DropReason,
    control::{IceCredentials, Path, TransportLoss},
    wire::stun::{self, Kind, Message, RESPONSE_LEN_MAX, Role},
};

/// Validated paths that one transport keeps: Wi-Fi, cellular, VPN and Ethernet in both address families.
pub const PATHS_MAX: usize = 8;

/// A transport that no authenticated check reaches for this long after its start is given up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A client whose checks stop for this long is gone. Browsers check every 2.5 s at the latest; RFC 7675 section 5.1 allows
/// 30 s, half of it still outlasts five lost checks.
pub const CONSENT_TIMEOUT: Duration = Duration::from_secs(15);

/// One transport's agent.
pub struct IceLite {
    credentials: IceCredentials,
    opened_at: Time,
    /// Set by the first check that was answered with success, and by each later one.
    checked_at: Option<Time>,
    /// Validated paths, the oldest first.
    paths: Vec<Path>,
    /// One of `paths`; where this node sends. Set by the first validation, moved by USE-CANDIDATE.
    selected: Option<Path>,
}

/// What an authenticated check did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckOutcome {
    /// Bytes of the answer; send it to where the check came from.
    pub response_len: usize,
    /// The path was not validated before.
    pub newly_validated: bool,
    /// Media goes to another path from now on: to this one.
    pub selected_changed: bool,
    /// The path that had to make room and is not validated any more.
    pub replaced: Option<Path>,
}

impl IceLite {
    /// An agent that expects its first check within [`CONNECT_TIMEOUT`].
    pub fn new(now: Time, credentials: IceCredentials) -> IceLite {
        IceLite { credentials, opened_at: now, checked_at: None, paths: Vec::with_capacity(PATHS_MAX), selected: None }
    }

    /// Our fragment, by which the owner finds the transport of a check.
    pub fn local_ufrag(&self) -> &str {
        &self.credentials.local_ufrag
    }

    /// Judges a check that came over `path` and writes the answer, an error answer included, into `response`.
    ///
    /// Errors mean that there is no answer: [`DropReason::StunUnexpected`], [`DropReason::StunUnknownUser`],
    /// [`DropReason::StunIntegrity`].
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
        let expected = (self.credentials.local_ufrag.as_bytes(), self.credentials.remote_ufrag.as_bytes());
        if check.fragments() != Some(expected) {
            return Err(DropReason::StunUnknownUser);
        }
        let password = self.credentials.local_pwd.as_bytes();
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
        self.checked_at = Some(now);
        let newly_validated = !self.is_validated(path);
        let replaced = if newly_validated { self.validate(path) } else { None };
        let selected_changed = self.selected != Some(path) && (check.use_candidate() || self.selected.is_none());
        if selected_changed {
            self.selected = Some(path);
        }
        Ok(CheckOutcome { response_len, newly_validated, selected_changed, replaced })
    }

    /// Adds a path; returns the one that made room for it.
    fn validate(&mut self, path: Path) -> Option<Path> {
        let replaced = if self.paths.len() < PATHS_MAX {
            None
        } else {
            let oldest = self.paths.iter().position(|known| Some(*known) != self.selected);
            oldest.map(|at| self.paths.remove(at))
        };
        self.paths.push(path);
        replaced
    }

    /// Whether an authenticated check came over `path`.
    pub fn is_validated(&self, path: Path) -> bool {
        self.paths.contains(&path)
    }

    /// Every validated path, the oldest first.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// Where media and DTLS go.
    pub fn selected(&self) -> Option<Path> {
        self.selected
    }

    /// When [`Self::expired`] has to be asked next.
    pub fn deadline(&self) -> Time {
        match self.checked_at {
            None => self.opened_at + CONNECT_TIMEOUT,
            Some(checked_at) => checked_at + CONSENT_TIMEOUT,
        }
    }

    /// Why the transport is over, if it is.
    pub fn expired(&self, now: Time) -> Option<TransportLoss> {
        if now < self.deadline() {
            return None;
        }
        Some(if self.checked_at.is_none() { TransportLoss::NeverConnected } else { TransportLoss::ConsentExpired })
    }
}

/// An authenticated check that was answered with an error validates nothing.
fn refused(response_len: usize) -> CheckOutcome {
    CheckOutcome { response_len, newly_validated: false, selected_changed: false, replaced: None }
}
