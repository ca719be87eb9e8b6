//! Signalling: how a client and this node agree on a transport and on media.

pub mod answer;
pub mod sdp;
