//! RTP (RFC 3550 section 5.1, RFC 8285).
