//! A codec with the parameters that decide whether a receiver can decode what a sender makes.
//!
//! The packet plane only needs payload type numbers; the match of formats happens here, once per forwarding decision.

use pop_proto::control::{Codec, PayloadType, PayloadTypeMap};

/// A codec and its profile, as `a=rtpmap` and `a=fmtp` tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// RFC 7587: every decoder takes every stream.
    Opus,
    /// Redundant audio (RFC 2198): every block is Opus.
    Red {
        /// Payload type of its blocks.
        block: u8,
    },
    /// RFC 7741: no profile that WebRTC uses.
    Vp8,
    /// RFC 9628.
    Vp9 {
        /// `profile-id`, 0 when absent.
        profile: u8,
    },
    /// RFC 6184. The level is left out: endpoints allow asymmetry and decoders adapt.
    H264 {
        /// From `profile-level-id`.
        profile: H264Profile,
        /// `packetization-mode`: 0 is one NAL unit per packet, 1 allows FU-A and STAP-A.
        packetization_mode: u8,
    },
    /// RFC 7798, as one stream. The level is left out as with H.264: a publisher offers the highest that it could make.
    H265 {
        /// `profile-id`, 1 (Main) when absent.
        profile: u8,
        /// `tier-flag`.
        high_tier: bool,
    },
    /// AOM RTP payload format 1.0.
    Av1 {
        /// `profile`, 0 when absent.
        profile: u8,
    },
    /// Whatever comes, for RTP routes: its receiver takes every format and keeps the payload type.
    Raw {
        /// RTP clock rate in Hz.
        clock_rate: u32,
    },
}

impl Format {
    /// The codec alone.
    pub const fn codec(self) -> Codec {
        match self {
            Format::Opus => Codec::Opus,
            Format::Red { .. } => Codec::Red,
            Format::Vp8 => Codec::Vp8,
            Format::Vp9 { .. } => Codec::Vp9,
            Format::H264 { .. } => Codec::H264,
            Format::H265 { .. } => Codec::H265,
            Format::Av1 { .. } => Codec::Av1,
            Format::Raw { clock_rate } => Codec::Raw { clock_rate },
        }
    }

    /// How well a receiver of this format takes a stream of `source`; `None` when it cannot decode it.
    fn fit(self, source: Format) -> Option<Fit> {
        if self == source {
            return Some(Fit::Exact);
        }
        // Blocks of redundant audio carry the sender's payload type of Opus, so even a receiver of RED gets the primary blocks
        // alone when it has another one.
        if let (Format::Opus, Format::Red { .. }) = (self, source) {
            return Some(Fit::Unwrapped);
        }
        let wider = match (self, source) {
            (
                Format::H264 { profile: ours, packetization_mode: our_mode },
                Format::H264 { profile: theirs, packetization_mode: their_mode },
            ) => {
                // Mode 1 may use single NAL unit packets too (RFC 6184 section 6.3), so its receiver takes a stream of mode
                // 0 but not the reverse.
                our_mode >= their_mode && ours.decodes(theirs)
            }
            // ITU-T H.265 annex A.3.3: a Main 10 decoder takes Main, and one of the high tier takes the main tier.
            (Format::H265 { profile: ours, high_tier: our_tier }, Format::H265 { profile: theirs, high_tier: their_tier }) => {
                (ours == theirs || (ours, theirs) == (2, 1)) && our_tier >= their_tier
            }
            // The AV1 profiles are nested: High decodes Main, Professional decodes both.
            (Format::Av1 { profile: ours }, Format::Av1 { profile: theirs }) => ours >= theirs,
            (Format::Raw { .. }, _) => true,
            _ => false,
        };
        wider.then_some(Fit::Wider)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Exact,
    Wider,
    Unwrapped,
}

/// The H.264 profiles that RFC 6184 table 5 tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum H264Profile {
    /// Baseline without the constraints.
    Baseline,
    /// What every browser sends by default.
    ConstrainedBaseline,
    /// Main.
    Main,
    /// High without interlace and B slices.
    ConstrainedHigh,
    /// High.
    High,
    /// Any other: it matches only itself.
    Other {
        /// `profile_idc`.
        idc: u8,
        /// The constraint flags.
        iop: u8,
    },
}

impl H264Profile {
    /// From the first two bytes of `profile-level-id` (RFC 6184 table 5: `x` bits are ignored).
    pub const fn from_profile_level_id(idc: u8, iop: u8) -> H264Profile {
        match (idc, iop) {
            (0x42, iop) if iop & 0x4f == 0x40 => H264Profile::ConstrainedBaseline,
            (0x42, iop) if iop & 0x4f == 0x00 => H264Profile::Baseline,
            (0x4d, iop) if iop & 0x8f == 0x80 => H264Profile::ConstrainedBaseline,
            (0x58, iop) if iop & 0xcf == 0xc0 => H264Profile::ConstrainedBaseline,
            (0x58, iop) if iop & 0xcf == 0x80 => H264Profile::Baseline,
            (0x4d, iop) if iop & 0xaf == 0x00 => H264Profile::Main,
            (0x64, 0x00) => H264Profile::High,
            (0x64, 0x0c) => H264Profile::ConstrainedHigh,
            (idc, iop) => H264Profile::Other { idc, iop },
        }
    }

    /// A decoder of this profile decodes what `source` means in practice (ITU-T H.264 annex A.2).
    ///
    /// Baseline counts as Constrained Baseline: the tools that set them apart (FMO, ASO, redundant slices) are in no WebRTC
    /// encoder, Chromium and aiortc offer Baseline first, and some Firefox builds have Constrained Baseline alone.
    fn decodes(self, source: H264Profile) -> bool {
        use H264Profile::{Baseline, ConstrainedBaseline, ConstrainedHigh, High, Main};
        self == source
            || matches!((self, source), (Baseline | Main | ConstrainedHigh | High, ConstrainedBaseline) | (High, Main | ConstrainedHigh))
    }
}

/// An RTP payload type with its format, as negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadFormat {
    /// RTP payload type, 0 to 127; of [`Format::Raw`] [`pop_proto::control::ANY_PAYLOAD_TYPE`].
    pub number: u8,
    /// What it carries.
    pub format: Format,
    /// Payload type of its retransmissions, when RTX was negotiated for it.
    pub rtx: Option<u8>,
}

impl PayloadFormat {
    /// What the packet plane needs of it.
    pub const fn payload_type(self) -> PayloadType {
        PayloadType { number: self.number, codec: self.format.codec(), rtx: self.rtx }
    }
}

/// For each payload type of the source that the receiver can decode, the receiver's payload type for it: the exact format
/// first, then a wider one, each in the receiver's order. One of the receiver's may serve several of the source's.
pub(crate) fn map_payload_types(source: &[PayloadFormat], receiver: &[PayloadFormat]) -> Vec<PayloadTypeMap> {
    let map = |from: &PayloadFormat| {
        let (fit, to) = find(from.format, receiver)?;
        Some(PayloadTypeMap { from: from.number, to: to.number, rtx: to.rtx, unwrap_red: fit == Fit::Unwrapped })
    };
    source.iter().filter_map(map).collect()
}

/// A receiver of these formats takes a stream of `source`.
pub(crate) fn takes(receiver: &[PayloadFormat], source: Format) -> bool {
    find(source, receiver).is_some()
}

fn find(source: Format, receiver: &[PayloadFormat]) -> Option<(Fit, &PayloadFormat)> {
    // min_by_key keeps the first of equals: the receiver's order.
    receiver.iter().filter_map(|to| Some((to.format.fit(source)?, to))).min_by_key(|(fit, _)| *fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h264(number: u8, idc: u8, iop: u8, packetization_mode: u8) -> PayloadFormat {
        PayloadFormat {
            number,
            format: Format::H264 { profile: H264Profile::from_profile_level_id(idc, iop), packetization_mode },
            rtx: None,
        }
    }

    fn map(from: u8, to: u8) -> PayloadTypeMap {
        PayloadTypeMap { from, to, rtx: None, unwrap_red: false }
    }

    #[test]
    fn profiles_are_told_apart_as_rfc_6184_table_5_says() {
        use H264Profile::*;
        let rows = [
            (0x42, 0x00, Baseline),
            (0x42, 0xe0, ConstrainedBaseline),
            (0x42, 0xc0, ConstrainedBaseline),
            (0x42, 0x40, ConstrainedBaseline),
            (0x4d, 0x00, Main),
            (0x4d, 0x40, Main),
            (0x4d, 0x80, ConstrainedBaseline),
            (0x58, 0xc0, ConstrainedBaseline),
            (0x58, 0x80, Baseline),
            (0x64, 0x00, High),
            (0x64, 0x0c, ConstrainedHigh),
            (0x6e, 0x00, Other { idc: 0x6e, iop: 0 }),
        ];
        for (idc, iop, profile) in rows {
            assert_eq!(H264Profile::from_profile_level_id(idc, iop), profile, "{idc:02x}{iop:02x}");
        }
    }

    #[test]
    fn two_browsers_with_swapped_h264_numbers_map_each_format_to_its_equal() {
        let source = [h264(102, 0x42, 0x00, 1), h264(104, 0x42, 0x00, 0), h264(106, 0x42, 0xe0, 1), h264(108, 0x42, 0xe0, 0)];
        let receiver = [h264(108, 0x42, 0x00, 1), h264(106, 0x42, 0x00, 0), h264(104, 0x42, 0xe0, 1), h264(102, 0x42, 0xe0, 0)];
        let map: Vec<_> = map_payload_types(&source, &receiver).iter().map(|m| (m.from, m.to)).collect();
        assert_eq!(map, [(102, 108), (104, 106), (106, 104), (108, 102)]);
    }

    #[test]
    fn a_wider_decoder_takes_a_narrower_stream_and_not_the_reverse() {
        let constrained_0 = h264(96, 0x42, 0xe0, 0);
        let high_1 = h264(97, 0x64, 0x00, 1);
        assert_eq!(map_payload_types(&[constrained_0], &[high_1]), [map(96, 97)]);
        assert_eq!(map_payload_types(&[high_1], &[constrained_0]), []);
        assert_eq!(map_payload_types(&[h264(1, 0x42, 0xe0, 1)], &[h264(2, 0x42, 0xe0, 0)]), [], "mode 0 does not take FU-A");
        let av1 = |number, profile| PayloadFormat { number, format: Format::Av1 { profile }, rtx: None };
        assert_eq!(map_payload_types(&[av1(1, 0)], &[av1(2, 1)]), [map(1, 2)]);
        assert_eq!(map_payload_types(&[av1(1, 1)], &[av1(2, 0)]), []);
    }

    #[test]
    fn vp9_profiles_do_not_mix() {
        let vp9 = |number, profile| PayloadFormat { number, format: Format::Vp9 { profile }, rtx: None };
        assert_eq!(map_payload_types(&[vp9(98, 0), vp9(100, 2)], &[vp9(100, 0)]), [map(98, 100)]);
    }

    #[test]
    fn h265_goes_to_a_decoder_of_its_profile_and_tier_or_above() {
        let h265 = |number, profile, high_tier| PayloadFormat { number, format: Format::H265 { profile, high_tier }, rtx: None };
        assert_eq!(map_payload_types(&[h265(1, 1, false)], &[h265(2, 2, false), h265(3, 1, false)]), [map(1, 3)], "the exact one first");
        assert_eq!(map_payload_types(&[h265(1, 1, false)], &[h265(2, 2, true)]), [map(1, 2)], "Main 10 decodes Main");
        assert_eq!(map_payload_types(&[h265(1, 2, false)], &[h265(2, 1, false)]), []);
        assert_eq!(map_payload_types(&[h265(1, 1, true)], &[h265(2, 1, false)]), []);
        assert_eq!(map_payload_types(&[h265(1, 3, false)], &[h265(2, 4, false)]), [], "the others are not nested");
    }

    #[test]
    fn red_is_unwrapped_where_its_blocks_would_mean_something_else() {
        let opus = |number| PayloadFormat { number, format: Format::Opus, rtx: None };
        let red = |number, block| PayloadFormat { number, format: Format::Red { block }, rtx: None };
        let source = [opus(111), red(63, 111)];
        let unwrapped = |to| PayloadTypeMap { unwrap_red: true, ..map(63, to) };
        assert_eq!(map_payload_types(&source, &[opus(111), red(70, 111)]), [map(111, 111), map(63, 70)]);
        assert_eq!(map_payload_types(&source, &[opus(109), red(63, 109)]), [map(111, 109), unwrapped(109)]);
        assert_eq!(map_payload_types(&source, &[opus(111)]), [map(111, 111), unwrapped(111)]);
        assert_eq!(map_payload_types(&[opus(111)], &[red(63, 111)]), [], "nobody wraps");
    }

    #[test]
    fn the_map_names_the_receivers_payload_type_of_retransmissions() {
        let vp8 = |number, rtx| PayloadFormat { number, format: Format::Vp8, rtx };
        assert_eq!(map_payload_types(&[vp8(96, Some(97))], &[vp8(120, Some(124))])[0].rtx, Some(124));
        assert_eq!(map_payload_types(&[vp8(96, Some(97))], &[vp8(120, None)])[0].rtx, None);
    }
}
