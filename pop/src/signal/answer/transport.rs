//! What an offer says of its one transport: ICE, certificate, DTLS role.

use super::super::sdp::{FingerprintLine, Offer, OfferedMedia, SdpError, Setup, TransportAttributes};
use crate::config::DtlsRole;

pub(super) struct OfferedTransport<'a> {
    pub(super) remote_ufrag: &'a str,
    pub(super) fingerprints: &'a [FingerprintLine<'a>],
    /// We answer `passive`.
    pub(super) passive: bool,
}

impl<'a> OfferedTransport<'a> {
    /// `first` is the first of `accepted`, which are the sections that are served.
    pub(super) fn read(
        offer: &'a Offer<'a>,
        first: &'a OfferedMedia<'a>,
        mut accepted: impl Iterator<Item = &'a OfferedMedia<'a>>,
        dtls_role: DtlsRole,
    ) -> Result<OfferedTransport<'a>, SdpError> {
        // Data channels have no RTCP.
        if let Some(media) = accepted.find(|media| media.kind.is_some() && !media.rtcp_mux) {
            return Err(SdpError {
                line: media.line,
                field: "m=".into(),
                reason: "is without a=rtcp-mux: RTP and RTCP must share one port",
            });
        }
        let transport = |has: fn(&TransportAttributes<'a>) -> bool| {
            // BUNDLE: the first section's transport is everybody's; some clients tell it once for the whole session.
            [&first.transport, &offer.transport].into_iter().find(|attributes| has(attributes))
        };
        let missing = |field, reason| move || SdpError::whole(field, reason);
        let ice = transport(|t| t.ice_ufrag.is_some()).ok_or_else(missing("a=ice-ufrag", "is missing"))?;
        let remote_ufrag = ice.ice_ufrag.ok_or_else(missing("a=ice-ufrag", "is missing"))?;
        transport(|t| t.ice_pwd.is_some()).ok_or_else(missing("a=ice-pwd", "is missing"))?;
        let fingerprints = transport(|t| !t.fingerprints.is_empty()).ok_or_else(missing("a=fingerprint", "is missing"))?;
        let setup = transport(|t| t.setup.is_some()).and_then(|t| t.setup).unwrap_or(Setup::ActPass);
        Ok(OfferedTransport { remote_ufrag, fingerprints: &fingerprints.fingerprints, passive: answer_setup(setup, dtls_role)? })
    }
}

/// Whether we answer `passive`.
fn answer_setup(offered: Setup, wanted: DtlsRole) -> Result<bool, SdpError> {
    match (offered, wanted) {
        (Setup::Active, _) | (Setup::ActPass, DtlsRole::Auto | DtlsRole::Passive) => Ok(true),
        (Setup::ActPass, DtlsRole::Active) | (Setup::Passive, DtlsRole::Auto | DtlsRole::Active) => Ok(false),
        (Setup::Passive, DtlsRole::Passive) => {
            Err(SdpError::whole("a=setup", "is passive: this node is a DTLS server alone (media.dtls_role), so offer actpass or active"))
        }
    }
}
