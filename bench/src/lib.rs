//! The parts of bench that other programs use as well: the shaper's machine, and the bodies that fuzzers run.

pub mod fuzz;
pub mod seeded;
pub mod shaper;
