//! SRTP and SRTCP (RFC 3711, RFC 7714) of one transport, in place and without allocation per packet.
//!
//! ```text
//! MasterKey --derive--> session keys --+-- SrtpSender    header, shared payload --> packet of one subscriber
//!                                      +-- SrtpReceiver  window? -> authentic? -> state -> plaintext
//! ```
//!
//! Nothing that a packet claims changes state before its tag is right: no stream, no window, no rollover counter.
//!
//! What another node needs to go on with a transport is here in plain fields: the streams' highest indexes and the SRTCP
//! index. The master keys stay with the control plane, which made them.

mod key;
mod window;

use crate::{
    DropReason,
    control::{MasterKey, SrtpProfile},
    wire::rtp,
};
use key::{SessionKey, Usage};
use window::ReplayWindow;

/// Streams (SSRCs) that one transport's receiver keeps, RTP and RTCP counted apart: sixteen layers, each with its RTX.
pub const STREAMS_MAX: usize = 32;

/// RTP packets that may arrive this much behind the newest one, in packets: over a second of a 5 Mb/s stream, since
/// retransmissions come late.
pub const RTP_WINDOW_LEN: usize = 1_024;

/// RTCP packets that may arrive this much behind the newest one.
pub const RTCP_WINDOW_LEN: usize = 128;

/// The longest that a packet grows by protection, SRTCP's index and tag.
pub const OVERHEAD_MAX: usize = 20;

/// Bytes of a sender without its two heap objects, for the memory plan.
pub const SENDER_LEN: usize = 88;

/// Bytes of a receiver without its two heap objects and its streams.
pub const RECEIVER_LEN: usize = 128;

/// Bytes of one stream's two windows, RTP and RTCP.
pub const STREAM_LEN: usize = 176;

/// Bytes of the heap object of one session key, of the largest kind: aws-lc's 584 for GCM with its allocator's head (AES-CM
/// has 320). Each sender and each receiver has two.
pub const KEY_OBJECT_LEN_MAX: usize = 608;

/// First RTP packet index that no key may protect: 2^48 (RFC 3711 section 9.2).
pub const RTP_INDEX_END: u64 = 1 << 48;
/// First SRTCP index that no key may protect: 2^31.
const RTCP_INDEX_END: u32 = 1 << 31;
/// Bytes of an RTP header without CSRCs and extensions.
const RTP_HEADER_LEN_MIN: usize = 12;
/// Bytes of the shortest RTCP packet that names its sender.
const RTCP_LEN_MIN: usize = 8;

/// Protects what this node sends to one transport.
pub struct SrtpSender {
    rtp: SessionKey,
    rtcp: SessionKey,
    /// Of the next SRTCP packet. One counter for all of the transport's SSRCs: it only has to grow for each of them.
    pub rtcp_index: u32,
}

impl SrtpSender {
    /// Derives the session keys of `master`.
    pub fn new(profile: SrtpProfile, master: &MasterKey) -> SrtpSender {
        SrtpSender {
            rtp: SessionKey::derive(profile, master, Usage::Rtp),
            rtcp: SessionKey::derive(profile, master, Usage::Rtcp),
            // As libsrtp, and so every browser, starts.
            rtcp_index: 1,
        }
    }

    /// No RTCP may be sent under this key any longer (RFC 3711 section 9.2): the transport has to end.
    pub fn is_exhausted(&self) -> bool {
        self.rtcp_index >= RTCP_INDEX_END
    }

    /// Bytes that an RTP packet grows by: its tag.
    pub fn overhead(&self) -> usize {
        self.rtp.rtp_overhead()
    }

    /// Bytes that an RTCP packet grows by: its tag and its index.
    pub fn rtcp_overhead(&self) -> usize {
        self.rtcp.rtcp_overhead()
    }

    /// Writes the protected packet, `header ++ ciphertext ++ tag`, into `out` and returns its length.
    ///
    /// `index` is the 48-bit packet index, `rollover counter << 16 | sequence`. Its owner is the caller, so that a
    /// retransmission is the same bytes again; an index with different bytes would give the key away.
    /// `header` is the final header, CSRCs and extensions included; `payload` is only read, so that all subscribers
    /// share it.
    ///
    /// Errors: [`DropReason::SrtpKeyExhausted`] at index 2^48; [`DropReason::RtpMalformed`] when `header` is no RTP header;
    /// [`DropReason::TooLarge`] when `out` is too short.
    pub fn protect_rtp(&self, index: u64, header: &[u8], payload: &[u8], out: &mut [u8]) -> Result<usize, DropReason> {
        self.protect_padded_rtp(index, header, payload, 0, out)
    }

    /// The same with `padding` bytes behind the payload, encrypted too (RFC 3550 section 5.1): `header` has the P bit then.
    ///
    /// Errors: those of [`SrtpSender::protect_rtp`].
    pub fn protect_padded_rtp(&self, index: u64, header: &[u8], payload: &[u8], padding: u8, out: &mut [u8]) -> Result<usize, DropReason> {
        if index >= RTP_INDEX_END {
            return Err(DropReason::SrtpKeyExhausted);
        }
        if header.len() < RTP_HEADER_LEN_MIN {
            return Err(DropReason::RtpMalformed);
        }
        let (ssrc, sequence) = rtp_stream(header);
        debug_assert_eq!(sequence, index as u16, "the index ends in the header's sequence number");
        debug_assert!(padding == 0 || header[0] & rtp::PADDING != 0, "the header tells of the padding");
        let len = header.len() + payload.len() + usize::from(padding) + self.overhead();
        let out = out.get_mut(..len).ok_or(DropReason::TooLarge)?;
        self.rtp.seal_rtp(ssrc, index, header, payload, padding, out)?;
        Ok(len)
    }

    /// Protects the RTCP packet in `buf[..len]` in place and returns its new length.
    ///
    /// Errors: [`DropReason::SrtpKeyExhausted`] instead of a second use of an SRTCP index; [`DropReason::RtcpMalformed`]
    /// below eight bytes; [`DropReason::TooLarge`] when `buf` has no room for [`Self::rtcp_overhead`] more.
    pub fn protect_rtcp(&mut self, buf: &mut [u8], len: usize) -> Result<usize, DropReason> {
        if self.rtcp_index >= RTCP_INDEX_END {
            return Err(DropReason::SrtpKeyExhausted);
        }
        if len < RTCP_LEN_MIN {
            return Err(DropReason::RtcpMalformed);
        }
        let protected_len = len + self.rtcp_overhead();
        let packet = buf.get_mut(..protected_len).ok_or(DropReason::TooLarge)?;
        self.rtcp.seal_rtcp(self.rtcp_index, packet)?;
        self.rtcp_index += 1;
        Ok(protected_len)
    }
}

/// An RTP packet that was authentic and new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the plaintext packet, header included.
    pub len: usize,
    /// The 48-bit packet index: `rollover counter << 16 | sequence`.
    pub index: u64,
}

/// Opens what one transport's client sends.
pub struct SrtpReceiver {
    rtp: SessionKey,
    rtcp: SessionKey,
    rtp_streams: Vec<Stream<{ RTP_WINDOW_LEN / 64 }>>,
    rtcp_streams: Vec<Stream<{ RTCP_WINDOW_LEN / 64 }>>,
}

/// What is remembered of one SSRC; made only after its first packet was authentic.
struct Stream<const WORDS: usize> {
    ssrc: u32,
    window: ReplayWindow<WORDS>,
}

impl SrtpReceiver {
    /// Derives the session keys of `master`.
    pub fn new(profile: SrtpProfile, master: &MasterKey) -> SrtpReceiver {
        SrtpReceiver {
            rtp: SessionKey::derive(profile, master, Usage::Rtp),
            rtcp: SessionKey::derive(profile, master, Usage::Rtcp),
            rtp_streams: Vec::new(),
            rtcp_streams: Vec::new(),
        }
    }

    /// Opens `packet`, a whole SRTP packet, in place. `header_len` is its header with CSRCs and extensions, as the RTP view
    /// found it. After an error the bytes of `packet` mean nothing.
    ///
    /// The window is checked, then the tag, then the window is updated (RFC 3711 section 3.3). A stream's first packet has
    /// rollover counter 0.
    ///
    /// Errors: [`DropReason::RtpMalformed`], [`DropReason::StreamLimit`] (before any cryptography),
    /// [`DropReason::SrtpReplay`], [`DropReason::SrtpAuth`], [`DropReason::SrtpKeyExhausted`].
    pub fn unprotect_rtp(&mut self, packet: &mut [u8], header_len: usize) -> Result<Opened, DropReason> {
        if header_len < RTP_HEADER_LEN_MIN || packet.len() < header_len + self.rtp.rtp_overhead() {
            return Err(DropReason::RtpMalformed);
        }
        let (ssrc, sequence) = rtp_stream(packet);
        let known = self.rtp_streams.iter().position(|stream| stream.ssrc == ssrc);
        let index = match known {
            Some(at) => guess_index(self.rtp_streams[at].window.highest(), sequence)?,
            None => u64::from(sequence),
        };
        let len = open_once(&mut self.rtp_streams, known, ssrc, index, || self.rtp.open_rtp(ssrc, index, header_len, packet))?;
        Ok(Opened { len, index })
    }

    /// Opens `packet`, a whole SRTCP packet, in place and returns the length of the RTCP packet. After an error the bytes
    /// of `packet` mean nothing.
    ///
    /// Errors: [`DropReason::RtcpMalformed`], [`DropReason::SrtcpUnencrypted`], [`DropReason::StreamLimit`],
    /// [`DropReason::SrtpReplay`], [`DropReason::SrtpAuth`].
    pub fn unprotect_rtcp(&mut self, packet: &mut [u8]) -> Result<usize, DropReason> {
        if packet.len() < RTCP_LEN_MIN + self.rtcp.rtcp_overhead() {
            return Err(DropReason::RtcpMalformed);
        }
        let index = self.rtcp.claimed_rtcp_index(packet)?;
        let ssrc = key::rtcp_ssrc(packet);
        let known = self.rtcp_streams.iter().position(|stream| stream.ssrc == ssrc);
        open_once(&mut self.rtcp_streams, known, ssrc, u64::from(index), || self.rtcp.open_rtcp(index, packet))
    }

    /// Frees the state of `ssrc`: of a closed track, and of an authentic stream that was not negotiated.
    ///
    /// Its old packets are then no replay any more; the caller drops them as an unknown stream and calls this again.
    pub fn forget(&mut self, ssrc: u32) {
        self.rtp_streams.retain(|stream| stream.ssrc != ssrc);
        self.rtcp_streams.retain(|stream| stream.ssrc != ssrc);
    }
}

/// Runs `open` for a packet that may be new, and remembers its index when it was authentic. `known` is the stream's place.
fn open_once<const WORDS: usize>(
    streams: &mut Vec<Stream<WORDS>>,
    known: Option<usize>,
    ssrc: u32,
    index: u64,
    open: impl FnOnce() -> Result<usize, DropReason>,
) -> Result<usize, DropReason> {
    let Some(at) = known else {
        if streams.len() >= STREAMS_MAX {
            return Err(DropReason::StreamLimit);
        }
        let len = open()?;
        // The one allocation of a stream's life.
        streams.reserve_exact(1);
        streams.push(Stream { ssrc, window: ReplayWindow::starting_at(index) });
        return Ok(len);
    };
    let window = &mut streams[at].window;
    if !window.is_new(index) {
        return Err(DropReason::SrtpReplay);
    }
    let len = open()?;
    window.insert(index);
    Ok(len)
}

/// The packet index that is closest to `highest` and ends in `sequence` (RFC 3711 section 3.3.1 and appendix A).
fn guess_index(highest: u64, sequence: u16) -> Result<u64, DropReason> {
    let ahead = sequence.wrapping_sub(highest as u16) as i16;
    match highest.checked_add_signed(i64::from(ahead)) {
        // Before the stream's first rollover there is nothing: the packet is older than its stream.
        None => Err(DropReason::SrtpReplay),
        Some(index) if index >= RTP_INDEX_END => Err(DropReason::SrtpKeyExhausted),
        Some(index) => Ok(index),
    }
}

/// SSRC and sequence number of an RTP header of at least twelve bytes.
fn rtp_stream(header: &[u8]) -> (u32, u16) {
    let ssrc = u32::from_be_bytes(header[8..12].try_into().expect("the slice has four bytes"));
    (ssrc, u16::from_be_bytes([header[2], header[3]]))
}

#[cfg(test)]
mod tests;
