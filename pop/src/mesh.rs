//! Secured links to other nodes (DESIGN 8): so far, what their certificates call them.

mod name;

pub use name::NodeName;
