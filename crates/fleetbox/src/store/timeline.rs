//! Owns the file of a cluster's timeline: the form of its lines, their bound, appending and reading
//! them. It must not decide what is worth a line.
//!
//! A line is one JSON object. The file begins anew when it has grown to [`BYTES_MAX`], and what it
//! had replaces what the file before it had: at least that much is kept, and at most twice.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::paths::ClusterPaths;
use crate::error::{Error, Result};
use crate::spec::Name;

/// Some twenty thousand lines.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A line. Frozen: a field is only ever added with a default, and a line that is not understood is
/// passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Wall time, in microseconds since 1970.
    pub at_us: u64,
    /// By the monotonic clock, since the holder's start.
    pub since_start_us: u64,
    /// Wall time of the holder's start: tells holders apart.
    pub holder_us: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Name>,
    #[serde(flatten)]
    pub what: What,
}

/// What was done. Frozen as [`Line`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum What {
    HolderStarted { version: String },
    HolderEnded,
    Boot,
    Restore,
    Save { paused_us: u64 },
    End { why: String },
    LetGo,
    StopAsked { grace_ms: u64 },
    PowerCut,
    Reset,
    Pause,
    Resume,
    Balloon { mib: u32 },
    ClockJump { by_ms: i64 },
    Fault { id: u64, fault: String },
    Heal { id: u64, fault: String, lasted_us: u64 },
}

/// Appends to a cluster's timeline.
pub(crate) struct Appender {
    paths: ClusterPaths,
    file: File,
    bytes: u64,
    start: Instant,
    holder_us: u64,
    /// The file may end within a line.
    torn: bool,
    bytes_max: u64,
}

impl Appender {
    /// Goes on after what former holders wrote, with the mark of a new one.
    pub(crate) fn open(paths: &ClusterPaths) -> Result<Self> {
        Self::bounded(paths, BYTES_MAX)
    }

    fn bounded(paths: &ClusterPaths, bytes_max: u64) -> Result<Self> {
        let path = paths.timeline();
        let opened = open(&path, false).and_then(|mut file| {
            let bytes = file.seek(SeekFrom::End(0))?;
            Ok((bytes, ends_torn(&mut file, bytes)?, file))
        });
        let (bytes, torn, file) = opened.map_err(|e| Error::io("open", &path, e))?;
        let holder_us = us(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let (paths, start) = (paths.clone(), Instant::now());
        let mut appender = Self { paths, file, bytes, start, holder_us, torn, bytes_max };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        appender
            .append(None, What::HolderStarted { version })
            .map_err(|e| Error::io("write", &path, e))?;
        Ok(appender)
    }

    /// Appends a line, stamped with this instant.
    pub(crate) fn append(&mut self, vm: Option<&Name>, what: What) -> io::Result<()> {
        let line = Line {
            at_us: us(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            since_start_us: us(self.start.elapsed()),
            holder_us: self.holder_us,
            vm: vm.cloned(),
            what,
        };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        if self.torn {
            // What a full disk or a killed holder left must not take this line along.
            bytes.insert(0, b'\n');
        }
        if self.bytes > 0 && self.bytes + bytes.len() as u64 > self.bytes_max {
            std::fs::rename(self.paths.timeline(), self.paths.timeline_before())?;
            self.file = open(&self.paths.timeline(), true)?;
            self.bytes = 0;
        }
        let written = self.file.write_all(&bytes);
        self.torn = written.is_err();
        self.bytes += bytes.len() as u64;
        written
    }
}

fn open(path: &std::path::Path, empty: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    let file = options.open(path)?;
    if empty {
        file.set_len(0)?;
    }
    Ok(file)
}

fn ends_torn(file: &mut File, bytes: u64) -> io::Result<bool> {
    if bytes == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// All lines there are, the oldest first. What is no line, such as the half of one that a killed
/// holder left, is passed over.
pub(crate) fn read(paths: &ClusterPaths) -> Result<Vec<Line>> {
    // The newer first: if it is replaced meanwhile, it is the older one by then.
    let newer = open_to_read(&paths.timeline())?;
    let older = open_to_read(&paths.timeline_before())?;
    let same = match (&newer, &older) {
        (Some(newer), Some(older)) => inode(newer) == inode(older),
        _ => false,
    };
    let mut lines = Vec::new();
    for (file, path) in [(older, paths.timeline_before()), (newer, paths.timeline())] {
        let Some(mut file) = file else { continue };
        if same && path == paths.timeline() {
            continue;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| Error::io("read", &path, e))?;
        let read = bytes.split(|byte| *byte == b'\n');
        lines.extend(read.filter_map(|line| serde_json::from_slice(line).ok()));
    }
    Ok(lines)
}

fn open_to_read(path: &std::path::Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

fn inode(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place() -> (tempfile::TempDir, ClusterPaths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = ClusterPaths::at(dir.path().to_owned());
        (dir, paths)
    }

    fn kinds(paths: &ClusterPaths) -> Vec<What> {
        read(paths).unwrap().into_iter().map(|line| line.what).collect()
    }

    fn started() -> What {
        What::HolderStarted { version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Lines as they were first written, kept for ever.
    #[test]
    fn old_lines_still_read() {
        let stamp = r#""at_us":1,"since_start_us":2,"holder_us":3"#;
        for what in [
            r#""what":"holder_started","version":"0.1.0""#,
            r#""what":"holder_ended""#,
            r#""vm":"a","what":"boot""#,
            r#""vm":"a","what":"end","why":"it was cut off""#,
            r#""vm":"a","what":"let_go""#,
            r#""vm":"a","what":"stop_asked","grace_ms":60000"#,
            r#""vm":"a","what":"power_cut""#,
            r#""vm":"a","what":"reset""#,
            r#""vm":"a","what":"pause""#,
            r#""vm":"a","what":"resume""#,
            r#""vm":"a","what":"balloon","mib":64"#,
            r#""vm":"a","what":"clock_jump","by_ms":-1"#,
            r#""what":"fault","id":1,"fault":"cut a b""#,
            r#""what":"heal","id":1,"fault":"cut a b","lasted_us":5"#,
        ] {
            let text = format!("{{{stamp},{what}}}");
            let line: Line = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
        }
    }

    #[test]
    fn it_is_private_and_a_torn_line_costs_no_other() {
        let (_dir, paths) = place();
        let mut first = Appender::open(&paths).unwrap();
        let vm = Name::new("a").unwrap();
        first.append(Some(&vm), What::Boot).unwrap();
        first.file.write_all(br#"{"at_us":5,"since"#).unwrap();
        assert_eq!(kinds(&paths), [started(), What::Boot]);
        let mut next = Appender::open(&paths).unwrap();
        next.append(Some(&vm), What::Reset).unwrap();
        assert_eq!(kinds(&paths), [started(), What::Boot, started(), What::Reset]);
        let lines = read(&paths).unwrap();
        assert_ne!(lines[0].holder_us, lines[2].holder_us);
        assert!(lines[1].since_start_us >= lines[0].since_start_us);
        let mode = paths.timeline().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn it_is_bounded_and_keeps_the_newest() {
        let (_dir, paths) = place();
        let mut appender = Appender::bounded(&paths, 2000).unwrap();
        for mib in 0..1000 {
            appender.append(None, What::Balloon { mib }).unwrap();
        }
        let sizes =
            [paths.timeline(), paths.timeline_before()].map(|p| p.metadata().unwrap().len());
        assert!(sizes.iter().all(|size| *size <= 2000), "{sizes:?}");
        assert!(sizes.iter().sum::<u64>() > 2000, "{sizes:?}");
        let kept = kinds(&paths);
        let first = 1000 - u32::try_from(kept.len()).unwrap();
        let expected: Vec<What> = (first..1000).map(|mib| What::Balloon { mib }).collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn where_nothing_was_done_nothing_is_read() {
        let (_dir, paths) = place();
        assert!(read(&paths).unwrap().is_empty());
    }
}
