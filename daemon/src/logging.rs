//! Where log lines go: to standard error, as text or as JSON, from the level that was asked for.

use crated::config::Config;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Crates of this project; of others only warnings are of interest.
const OWN: [&str; 8] = [
    "crated",
    "crated_api",
    "crated_content",
    "crated_distribution",
    "crated_exec",
    "crated_mount",
    "crated_netns",
    "crated_snapshot",
];

/// Starts logging as `config` has it.
pub(crate) fn start(config: &Config) {
    let level = match config.debug.level.as_str() {
        "" => Level::INFO,
        "fatal" | "panic" => Level::ERROR,
        level => level.parse().unwrap_or(Level::INFO),
    };
    let own = OWN.into_iter().map(|name| (name, level));
    let filter = Targets::new().with_default(LevelFilter::WARN).with_targets(own);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    match config.debug.format.as_str() {
        "json" => registry.with(lines.json().with_filter(filter)).init(),
        _ => registry.with(lines.with_ansi(false).with_filter(filter)).init(),
    }
}
