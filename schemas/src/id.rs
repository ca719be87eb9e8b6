//! Names of things. Text ids come from clients, so each has one bounded check here.

use std::fmt;

/// Longest room name or identity, in bytes of UTF-8.
pub const TEXT_ID_LEN_MAX: usize = 128;

/// Why a text is not a room name or an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdError {
    /// It has no character.
    Empty,
    /// It has more than [`TEXT_ID_LEN_MAX`] bytes.
    TooLong,
    /// It holds a control character, white space at an end, or one of `/ * $ ? #`, which separate and match keys on the bus.
    BadCharacter(char),
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdError::Empty => f.write_str("is empty"),
            IdError::TooLong => write!(f, "is longer than {TEXT_ID_LEN_MAX} bytes"),
            IdError::BadCharacter(c) => write!(f, "holds {c:?}, which is not allowed"),
        }
    }
}

impl std::error::Error for IdError {}

fn check_text(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > TEXT_ID_LEN_MAX {
        return Err(IdError::TooLong);
    }
    if let Some(c) = text.chars().find(|c| c.is_control() || "/*$?#".contains(*c)) {
        return Err(IdError::BadCharacter(c));
    }
    match text.chars().next().into_iter().chain(text.chars().last()).find(|c| c.is_whitespace()) {
        Some(c) => Err(IdError::BadCharacter(c)),
        None => Ok(()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks `text` (1 to 128 bytes, no control character, none of `/ * $ ? #`).
            pub fn new(text: &str) -> Result<Self, IdError> {
                check_text(text)?;
                Ok(Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// A session's name: the room of WHIP, WHEP and LiveKit URLs.
    SessionId
);
text_id!(
    /// Who a participant says it is: the token's subject.
    Identity
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:x}"), self.0)
            }
        }
    };
}

number_id!(
    /// One participant's stay in one session, unique within the node's incarnation.
    ParticipantId, "PA_"
);
number_id!(
    /// One published audio, video or data stream, unique within the node's incarnation.
    TrackId, "TR_"
);
number_id!(
    /// One client's ICE+DTLS+SRTP association, unique within the node's incarnation.
    TransportId, "TP_"
);
number_id!(
    /// One media section of a subscriber that a track can be forwarded into, unique within the node's incarnation.
    SubscriptionId, "SU_"
);

/// A node of the mesh. Its owner is one `pop` process at a time; [`Incarnation`] tells its starts apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The node `name` of `pop`: FNV-1a of both, so that all nodes know each other's number without asking. That two names of one mesh
    /// get the same is less likely than 1 in 10^13; it shows as a duplicate node.
    pub fn of(pop: &str, name: &str) -> NodeId {
        NodeId(fnv1a(pop.bytes().chain([b'/']).chain(name.bytes())))
    }
}

/// FNV-1a of 64 bits, where all nodes and releases have to agree.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One start of a node. The order is that of the starts of one node and means nothing between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// One more than the highest of which this node has heard.
    pub start: u64,
    /// Drawn at the start: tells two apart that took the same number.
    pub nonce: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_number_everywhere() {
        assert_eq!(NodeId::of("fra", "a").to_string(), NodeId::of("fra", "a").to_string());
        assert_ne!(NodeId::of("fra", "a"), NodeId::of("fr", "aa"));
        assert_eq!(NodeId::of("fra", "a").to_string().len(), 16);
    }

    #[test]
    fn a_room_name_is_bounded_and_free_of_separators() {
        assert_eq!(SessionId::new(""), Err(IdError::Empty));
        assert_eq!(SessionId::new(&"a".repeat(129)), Err(IdError::TooLong));
        for bad in ["a/b", "a*", "$a", "a?b", "#", "a\0b", "a\n", " a", "a "] {
            assert!(matches!(SessionId::new(bad), Err(IdError::BadCharacter(_))), "{bad:?} was accepted");
        }
        assert_eq!(SessionId::new("Straße 7").map(|id| id.to_string()), Ok("Straße 7".to_owned()));
        assert!(SessionId::new(&"a".repeat(128)).is_ok());
    }
}
