//! Owns saying why a test did not run. It must only exist in tests.

use std::io::Write;

/// Past the test harness's capture, so that a skipped test is seen.
pub(crate) fn skipped(reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: {reason}").unwrap();
}
