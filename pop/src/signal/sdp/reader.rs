//! From lines to an offer: what stands before the first `m=`, and each section in turn.

use pop_proto::control::{MID_LEN_MAX, MediaKind};

use super::line::Line;
use super::payload::{find_payload, read_payload_numbers, take_fmtp, take_rtpmap};
use super::simulcast::{take_rid, take_simulcast};
use super::source::{take_ssrc, take_ssrc_group};
use super::{
    ATTRIBUTES_MAX, Direction, FingerprintLine, MEDIA_MAX, Offer, OfferedExtension, OfferedMedia, SdpError, Setup, TransportAttributes,
};

/// Most `a=rtcp-fb` lines of one section: Chromium sends 5 for each of 10 video payload types.
const FEEDBACK_MAX: usize = 512;

/// State between lines.
pub(super) struct Reader<'a> {
    /// Most media sections.
    media_max: usize,
    /// `v=0` came.
    versioned: bool,
    transport: TransportAttributes<'a>,
    direction: Option<Direction>,
    bundle: Option<Vec<&'a str>>,
    mixed_extensions: bool,
    media: Vec<PartialMedia<'a>>,
}

/// A section whose lines are still coming.
struct PartialMedia<'a> {
    media: OfferedMedia<'a>,
    direction: Option<Direction>,
    port_zero: bool,
    bundle_only: bool,
    simulcast_seen: bool,
    /// `a=rtcp-fb:*`.
    feedback_for_all: Vec<&'a str>,
    feedback_len: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(media_max: usize) -> Reader<'a> {
        Reader {
            media_max,
            versioned: false,
            transport: TransportAttributes::default(),
            direction: None,
            bundle: None,
            mixed_extensions: false,
            media: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, line: Line<'a>) -> Result<(), SdpError> {
        if !self.versioned {
            // RFC 8866 section 5: the description starts with its version.
            if line.letter != 'v' || line.value != "0" {
                return Err(line.error("is not the version: an SDP offer starts with v=0"));
            }
            self.versioned = true;
            return Ok(());
        }
        match line.letter {
            'm' => self.open_media(line),
            'a' => self.take_attribute(line),
            _ => Ok(()),
        }
    }

    fn open_media(&mut self, line: Line<'a>) -> Result<(), SdpError> {
        if self.media.len() >= self.media_max {
            return Err(line.error(if self.media_max == MEDIA_MAX {
                "is one media section too many: at most 64 are taken"
            } else {
                "is one media section too many: at most 256 are taken"
            }));
        }
        let mut words = line.value.splitn(4, ' ');
        let (Some(media), Some(port), Some(protocol), Some(formats)) = (words.next(), words.next(), words.next(), words.next()) else {
            return Err(line.error("is not media, port, protocol and formats"));
        };
        let port = port.split('/').next().and_then(|port| port.parse::<u16>().ok());
        let port = port.ok_or_else(|| line.error("has a port that is not a number below 65536"))?;
        let kind = match media {
            "audio" => Some(MediaKind::Audio),
            "video" => Some(MediaKind::Video),
            _ => None,
        };
        let payloads = match kind {
            Some(_) => read_payload_numbers(line, formats)?,
            None => Vec::new(),
        };
        self.media.push(PartialMedia {
            media: OfferedMedia {
                line: line.number,
                kind,
                media,
                protocol,
                formats,
                disabled: false,
                mid: None,
                direction: Direction::SendRecv,
                rtcp_mux: false,
                rtcp_rsize: false,
                payloads,
                extensions: Vec::new(),
                mixed_extensions: false,
                ssrcs: Vec::new(),
                groups: Vec::new(),
                rids: Vec::new(),
                layers: Vec::new(),
                track: None,
                sctp_port: None,
                message_len_max: None,
                transport: TransportAttributes::default(),
            },
            direction: None,
            port_zero: port == 0,
            bundle_only: false,
            simulcast_seen: false,
            feedback_for_all: Vec::new(),
            feedback_len: 0,
        });
        Ok(())
    }

    fn take_attribute(&mut self, line: Line<'a>) -> Result<(), SdpError> {
        let (name, value) = line.attribute();
        let direction = Direction::read(name);
        if name == "mid" {
            self.check_mid(line, value)?;
        }
        let Some(section) = self.media.last_mut() else {
            match name {
                "group" => self.take_group(line, value)?,
                "extmap-allow-mixed" => self.mixed_extensions = true,
                _ if direction.is_some() => self.direction = direction,
                _ => take_transport_attribute(&mut self.transport, line)?,
            }
            return Ok(());
        };
        if direction.is_some() {
            section.direction = direction;
            return Ok(());
        }
        let media = &mut section.media;
        match name {
            "mid" => media.mid = Some(value),
            "rtcp-mux" | "rtcp-mux-only" => media.rtcp_mux = true,
            "rtcp-rsize" => media.rtcp_rsize = true,
            "bundle-only" => section.bundle_only = true,
            "rtpmap" => take_rtpmap(media, line, value)?,
            "fmtp" => take_fmtp(media, line, value)?,
            "rtcp-fb" => section.take_feedback(line, value)?,
            "extmap" => take_extmap(media, line, value)?,
            "extmap-allow-mixed" => media.mixed_extensions = true,
            "ssrc" => take_ssrc(media, line, value)?,
            // RFC 8830 section 2: a stream and a track; without a track it is about the stream alone.
            "msid" if media.track.is_none() => media.track = value.split(' ').nth(1).filter(|track| !track.is_empty()),
            "msid" => {}
            "sctp-port" => media.sctp_port = Some(value.parse().map_err(|_| line.error("is not a number below 65536"))?),
            "max-message-size" => media.message_len_max = Some(value.parse().map_err(|_| line.error("is not a number below 2^64"))?),
            "ssrc-group" => take_ssrc_group(media, line, value)?,
            "rid" => take_rid(media, line, value)?,
            // RFC 8853 section 5.1: "There MUST be at most one "a=simulcast" attribute per media description".
            "simulcast" if std::mem::replace(&mut section.simulcast_seen, true) => return Err(line.error("is given twice")),
            "simulcast" => take_simulcast(media, line, value)?,
            _ => take_transport_attribute(&mut media.transport, line)?,
        }
        Ok(())
    }

    /// A repeated mid would make BUNDLE, and the mid extension, mean two sections at once.
    fn check_mid(&self, line: Line<'a>, mid: &str) -> Result<(), SdpError> {
        let token = !mid.is_empty() && mid.len() <= MID_LEN_MAX && mid.bytes().all(|b| b.is_ascii_graphic());
        if !token {
            return Err(line.error("is not 1 to 16 visible characters"));
        }
        let (last, before) = self.media.split_last().ok_or_else(|| line.error("stands before the first media section"))?;
        if last.media.mid.is_some() || before.iter().any(|other| other.media.mid == Some(mid)) {
            return Err(line.error("is given twice"));
        }
        Ok(())
    }

    fn take_group(&mut self, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
        let mut words = value.split(' ').filter(|word| !word.is_empty());
        if words.next() != Some("BUNDLE") || self.bundle.is_some() {
            return Ok(());
        }
        // A mid that no section has is harmless: ffmpeg names both sections even when it sends one.
        let mids: Vec<_> = words.take(self.media_max + 1).collect();
        if mids.len() > self.media_max {
            return Err(line.error(if self.media_max == MEDIA_MAX {
                "names more than 64 sections"
            } else {
                "names more than 256 sections"
            }));
        }
        self.bundle = Some(mids);
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Offer<'a>, SdpError> {
        if !self.versioned {
            return Err(SdpError::whole("the offer", "is empty"));
        }
        if self.media.is_empty() {
            return Err(SdpError::whole("the offer", "has no media section (m=)"));
        }
        let default = self.direction.unwrap_or(Direction::SendRecv);
        let media = self.media.into_iter().map(|section| section.finish(default)).collect();
        Ok(Offer { transport: self.transport, bundle: self.bundle, mixed_extensions: self.mixed_extensions, media })
    }
}

impl<'a> PartialMedia<'a> {
    fn take_feedback(&mut self, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
        self.feedback_len += 1;
        if self.feedback_len > FEEDBACK_MAX {
            return Err(line.error("is given more than 512 times in one section"));
        }
        let (number, feedback) = value.split_once(' ').ok_or_else(|| line.error("is not a payload type and a value"))?;
        if number == "*" {
            self.feedback_for_all.push(feedback.trim());
        } else if let Some(payload) = find_payload(&mut self.media, line, number)? {
            payload.feedback.push(feedback.trim());
        }
        Ok(())
    }

    fn finish(self, default: Direction) -> OfferedMedia<'a> {
        let mut media = self.media;
        media.direction = self.direction.unwrap_or(default);
        // RFC 9143 section 6: a zero port with bundle-only is not a rejected section.
        media.disabled = self.port_zero && !self.bundle_only;
        for payload in &mut media.payloads {
            payload.feedback.extend_from_slice(&self.feedback_for_all);
        }
        media
    }
}

fn take_extmap<'a>(media: &mut OfferedMedia<'a>, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
    let mut words = value.split(' ');
    let (Some(id), Some(uri)) = (words.next(), words.next()) else {
        return Err(line.error("is not an id and a URI"));
    };
    let (id, direction) = id.split_once('/').unwrap_or((id, "sendrecv"));
    let direction = Direction::read(direction).ok_or_else(|| line.error("has a direction that is none"))?;
    let id: u16 = id.parse().map_err(|_| line.error("has an id that is not a number"))?;
    // RFC 8285 section 5: 1 to 14 fit the one-byte header, 15 to 255 need the two-byte header, and 4096 and more only ask the
    // answerer to choose a number.
    let Some(id) = u8::try_from(id).ok().filter(|id| *id != 0) else { return Ok(()) };
    if media.extensions.len() >= ATTRIBUTES_MAX {
        return Err(line.error("is given more than 64 times in one section"));
    }
    if media.extensions.iter().any(|other| other.id == id) {
        return Err(line.error("gives one id to two extensions"));
    }
    media.extensions.push(OfferedExtension { id, direction, uri });
    Ok(())
}

fn take_transport_attribute<'a>(transport: &mut TransportAttributes<'a>, line: Line<'a>) -> Result<(), SdpError> {
    let (name, value) = line.attribute();
    match name {
        "ice-ufrag" => transport.ice_ufrag = Some(line.ufrag()?),
        "ice-pwd" => transport.ice_pwd = Some(line.pwd()?),
        "fingerprint" => {
            if transport.fingerprints.len() >= ATTRIBUTES_MAX {
                return Err(line.error("is given more than 64 times"));
            }
            transport.fingerprints.push(FingerprintLine { line: line.number, value });
        }
        "setup" => {
            transport.setup = Some(match value {
                "actpass" => Setup::ActPass,
                "active" => Setup::Active,
                "passive" => Setup::Passive,
                _ => return Err(line.error("is not actpass, active or passive")),
            });
        }
        _ => {}
    }
    Ok(())
}
