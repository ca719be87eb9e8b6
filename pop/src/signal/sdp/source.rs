//! `a=ssrc` and `a=ssrc-group` (RFC 5576): who sends what in a section.

use super::line::Line;
use super::{ATTRIBUTES_MAX, OfferedMedia, SdpError};

pub(super) fn take_ssrc(media: &mut OfferedMedia<'_>, line: Line<'_>, value: &str) -> Result<(), SdpError> {
    let number = value.split(' ').next().unwrap_or_default();
    let ssrc = number.parse().map_err(|_| line.error("is not a number below 2^32"))?;
    if media.ssrcs.contains(&ssrc) {
        return Ok(());
    }
    if media.ssrcs.len() >= ATTRIBUTES_MAX {
        return Err(line.error("names more than 64 sources in one section"));
    }
    media.ssrcs.push(ssrc);
    Ok(())
}

pub(super) fn take_ssrc_group(media: &mut OfferedMedia<'_>, line: Line<'_>, value: &str) -> Result<(), SdpError> {
    let mut words = value.split(' ').filter(|word| !word.is_empty());
    if words.next() != Some("FID") {
        return Ok(());
    }
    for word in words.skip(1) {
        let ssrc = word.parse().map_err(|_| line.error("holds a source that is not a number below 2^32"))?;
        if media.repair_ssrcs.len() >= ATTRIBUTES_MAX {
            return Err(line.error("names more than 64 sources in one section"));
        }
        media.repair_ssrcs.push(ssrc);
    }
    Ok(())
}
