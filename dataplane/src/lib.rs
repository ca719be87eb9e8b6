//! Pinned packet workers and the service thread.
