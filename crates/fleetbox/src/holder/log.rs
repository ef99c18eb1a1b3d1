//! Owns how a holder's log is written: a line of ours each, with its time, to standard error, which
//! is `holder.log`. It must not decide what is worth a line.

use std::io::Write;
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};

struct Lines;

/// From here on, what is logged in this process is written.
pub(super) fn start() {
    // Nothing else of this process sets one.
    if log::set_logger(&Lines).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Info && metadata.target().starts_with("fleetbox")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        let (level, target) = (record.level(), record.target());
        // In one write, so that lines do not mix. A full disk has nobody to be told of it.
        let line = format!("{time} {level:>5} {target}: {}\n", record.args());
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
