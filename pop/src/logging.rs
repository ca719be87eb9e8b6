//! Logs go to stderr, one event per line; stdout carries what scripts read.

use std::io::{self, IsTerminal};

use tracing::Level;

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Starts logging. Called once, before anything that could have something to say.
pub fn start(config: &LogConfig) {
    let level = match config.level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    // Libraries are quieter than we are: a peer's nonsense makes them warn.
    let filter = format!("error,pop={level},pop_dataplane={level},pop_uring={level}");
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let lines = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter).with_ansi(io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => lines.with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}
