//! Why a datagram or a frame ended here. Whatever is neither delivered nor written ends with one of these and a counter of its owner.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $label:literal,)*) => {
        /// Why a relay datagram was dropped, or a frame was not written.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum RelayDrop {
            $($(#[$doc])* $variant,)*
        }

        impl RelayDrop {
            /// Every reason, in the order of its discriminant.
            pub const ALL: &'static [RelayDrop] = &[$(RelayDrop::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// A name for metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(RelayDrop::$variant => $label,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than a head and a tag, of a schema version or kind that is not spoken here, or longer than a datagram may be.
    Malformed = "malformed",
    /// No key of its phase is held: the other end is ahead of the control link, or the old key is dead.
    KeyUnknown = "key_unknown",
    /// Its counter came before.
    Replayed = "replayed",
    /// Its counter is below the replay window.
    TooOld = "too_old",
    /// The tag is wrong.
    NotAuthentic = "not_authentic",
    /// Authentic, but what was sealed is not what its kind says.
    BadPayload = "bad_payload",
    /// A repair that nobody waits for any longer.
    Late = "late",
    /// The packet that was to be repaired is no longer the one that was sent.
    Gone = "gone",
    /// The other half of a frame did not come before its place was needed.
    PartLost = "part_lost",
    /// The frame does not fit into two datagrams of the path, or not into the caller's buffer.
    TooLarge = "too_large",
    /// A transit whose route has more hops than there may be, or whose datagram is none, or a transit itself.
    BadRoute = "bad_route",
    /// A transit that may go no further and is for another node.
    HopsUsed = "hops_used",
    /// A transit that would go back to where it came from.
    Circle = "circle",
    /// The present key has sealed as much as it may: the link waits for the next generation.
    KeysUsed = "keys_used",
}
