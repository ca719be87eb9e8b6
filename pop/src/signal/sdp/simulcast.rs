//! `a=rid` (RFC 8851) and `a=simulcast` (RFC 8853): the layers that a publisher offers to send.

use pop_proto::control::MID_LEN_MAX;

use super::line::Line;
use super::payload::read_payload_number;
use super::{ATTRIBUTES_MAX, OfferedMedia, SdpError};

/// Restrictions of RFC 8851 section 5 that are handed on: they bind the sender, and we pass what it sends.
const RESTRICTIONS: [&str; 8] = ["max-width", "max-height", "max-fps", "max-fs", "max-br", "max-pps", "max-bpp", "depend"];

/// One `a=rid:ID send`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedRid<'a> {
    /// Its id.
    pub id: &'a str,
    /// Payload types of `pt=`; empty when it may use all of the section's.
    pub payloads: Vec<u8>,
    /// The other restrictions as written, in order.
    pub restrictions: Vec<&'a str>,
    /// All of them are in RFC 8851. Section 6.3: a RID with another one is not answered.
    pub understood: bool,
}

/// A layer of `a=simulcast:send`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedLayer<'a> {
    /// RIDs of which one at a time is sent, the preferred first; at least one.
    pub alternatives: Vec<LayerRid<'a>>,
}

/// A RID in `a=simulcast`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRid<'a> {
    /// The RID.
    pub id: &'a str,
    /// `~`: it begins paused.
    pub paused: bool,
}

pub(super) fn take_rid<'a>(media: &mut OfferedMedia<'a>, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
    let mut words = value.split(' ').filter(|word| !word.is_empty());
    let (Some(id), Some(direction)) = (words.next(), words.next()) else {
        return Err(line.error("is not a RID and a direction"));
    };
    check_rid(line, id)?;
    if media.rids.len() >= ATTRIBUTES_MAX {
        return Err(line.error("is given more than 64 times in one section"));
    }
    if media.rids.iter().any(|other| other.id == id) {
        return Err(line.error("is given twice"));
    }
    match direction {
        "send" => {}
        "recv" => return Ok(()),
        _ => return Err(line.error("has a direction that is not send or recv")),
    }
    let mut rid = OfferedRid { id, payloads: Vec::new(), restrictions: Vec::new(), understood: true };
    for restriction in words.flat_map(|word| word.split(';')).filter(|restriction| !restriction.is_empty()) {
        let (name, numbers) = restriction.split_once('=').unwrap_or((restriction, ""));
        if name == "pt" {
            let numbers = numbers.split(',').take(ATTRIBUTES_MAX);
            rid.payloads = numbers.map(|number| read_payload_number(line, number)).collect::<Result<_, _>>()?;
        } else {
            rid.understood &= RESTRICTIONS.contains(&name);
            rid.restrictions.push(restriction);
        }
    }
    media.rids.push(rid);
    Ok(())
}

/// `a=simulcast:send 1;2,3;~4 recv 5`: `;` separates layers, `,` the alternatives of one.
pub(super) fn take_simulcast<'a>(media: &mut OfferedMedia<'a>, line: Line<'a>, value: &'a str) -> Result<(), SdpError> {
    let mut words = value.split(' ').filter(|word| !word.is_empty());
    while let Some(direction) = words.next() {
        let list = words.next().ok_or_else(|| line.error("has a direction without a list of RIDs"))?;
        match direction {
            "send" if media.layers.is_empty() => media.layers = read_layers(line, list)?,
            "recv" => drop(read_layers(line, list)?),
            _ => return Err(line.error("is not one list of RIDs to send, one to receive, or both")),
        }
    }
    Ok(())
}

fn read_layers<'a>(line: Line<'a>, list: &'a str) -> Result<Vec<OfferedLayer<'a>>, SdpError> {
    let mut seen: Vec<&str> = Vec::new();
    let mut layers = Vec::new();
    for layer in list.split(';') {
        let mut alternatives = Vec::new();
        for word in layer.split(',') {
            let (paused, id) = word.strip_prefix('~').map_or((false, word), |id| (true, id));
            check_rid(line, id)?;
            if seen.contains(&id) {
                return Err(line.error("names a RID twice"));
            }
            if seen.len() >= ATTRIBUTES_MAX {
                return Err(line.error("names more than 64 RIDs"));
            }
            seen.push(id);
            alternatives.push(LayerRid { id, paused });
        }
        layers.push(OfferedLayer { alternatives });
    }
    Ok(layers)
}

/// RFC 8851 section 10: letters, digits, `-` and `_`; and it must fit the one-byte header extension.
fn check_rid(line: Line<'_>, id: &str) -> Result<(), SdpError> {
    let token = !id.is_empty() && id.len() <= MID_LEN_MAX && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if token { Ok(()) } else { Err(line.error("has a RID that is not 1 to 16 letters, digits, '-' and '_'")) }
}
