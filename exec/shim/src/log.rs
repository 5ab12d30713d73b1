//! The log: lines into the bundle's FIFO, which the daemon reads.

use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    sync::atomic::{AtomicU64, Ordering},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Writes events as `level=… msg=… key=value` lines. A full FIFO drops them:
/// no container waits for a log.
struct FifoLog {
    file: File,
    max: Level,
    spans: AtomicU64,
}

/// Logs to `log` in the working folder, if the daemon made it.
pub(crate) fn install(debug: bool) {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    // Open for both, so that a daemon that went away breaks nothing.
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open("log");
    let Ok(file) = opened else { return };
    let max = if debug { Level::DEBUG } else { Level::INFO };
    let log = FifoLog { file, max, spans: AtomicU64::new(1) };
    // It is the only one, so this cannot fail.
    let _ = tracing::subscriber::set_global_default(log);
}

impl Subscriber for FifoLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.max && metadata.target().starts_with("crated")
            || metadata.target().starts_with("containerd_shim")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let mut line = Line(format!("level={level}"));
        event.record(&mut line);
        line.0.push('\n');
        let _ = (&self.file).write(line.0.as_bytes());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        // Writing to a String cannot fail.
        let _ = write!(self.0, " {name}={:?}", format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
