//! Owns what a guest wrote to its console: making it harmless, its tail, and which stage of the
//! boot it shows. It must not wait; callers decide when to look again.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::progress::Stage;

/// How much of a console an error shows.
const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 20;

/// Text with every control byte but newline and tab made visible, so that it can do nothing to a
/// terminal: `ESC` becomes `^[`, other bytes as `cat -v` shows them.
#[must_use]
pub fn harmless(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).replace("\r\n", "\n").chars() {
        match c {
            '\n' | '\t' => text.push(c),
            // A lone carriage return could overwrite what stands before it.
            '\0'..='\u{1f}' => {
                text.push('^');
                text.push(char::from(c as u8 + 0x40));
            }
            '\u{7f}' => text.push_str("^?"),
            // C1 controls are escape sequences in one character; the others reorder what is read.
            '\u{80}'..='\u{9f}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => text.extend(c.escape_unicode()),
            c => text.push(c),
        }
    }
    text
}

/// The last lines of a console, harmless; says so if there is none.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.is_empty() => "(the console is empty)".to_owned(),
        Ok(bytes) => {
            let text = harmless(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let first = lines.len().saturating_sub(TAIL_LINES);
            lines[first..].join("\n")
        }
        Err(e) => format!("(no console: {e})"),
    }
}

/// Follows a console and tells the stage it shows.
#[derive(Debug)]
pub(crate) struct StageReader {
    path: PathBuf,
    offset: u64,
    rest: Vec<u8>,
    stage: Stage,
}

/// What a line of the console proves; the furthest stage wins.
const MARKS: &[(&str, Stage)] = &[
    ("Linux version ", Stage::Kernel),
    ("systemd[1]:", Stage::Init),
    ("Cloud-init v.", Stage::CloudInit),
];
/// Longer lines are no marks; this bounds what a hostile guest can make us keep.
const LINE_BYTES_MAX: usize = 8192;

impl StageReader {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, rest: Vec::new(), stage: Stage::Kernel }
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// Reads what is new and returns the stage if it moved on.
    pub(crate) fn advance(&mut self) -> io::Result<Option<Stage>> {
        let before = self.stage;
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut chunk = [0; 16 * 1024];
        loop {
            let count = file.read(&mut chunk)?;
            if count == 0 {
                break;
            }
            self.offset += count as u64;
            self.take(&chunk[..count]);
        }
        Ok((self.stage != before).then_some(self.stage))
    }

    fn take(&mut self, bytes: &[u8]) {
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            if self.rest.len() < LINE_BYTES_MAX {
                self.rest.extend_from_slice(line);
            }
            if line.ends_with(b"\n") {
                let text = String::from_utf8_lossy(&self.rest);
                for (mark, stage) in MARKS {
                    if *stage > self.stage && text.contains(mark) {
                        self.stage = *stage;
                    }
                }
                self.rest.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn nothing_a_guest_sends_can_act_on_a_terminal() {
        let hostile = b"\x1b]0;title\x07\x1b[2J\x08\x7f\rover\r\nline\ttab \xff \xc2\x9b31m";
        let text = harmless(hostile);
        assert_eq!(text, "^[]0;title^G^[[2J^H^?^Mover\nline\ttab \u{fffd} \\u{9b}31m");
        assert!(text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
    }

    #[test]
    fn stages_only_move_forward_and_lines_may_come_in_pieces() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut reader = StageReader::new(file.path().to_owned());
        assert_eq!(reader.advance().unwrap(), None);
        file.write_all(b"[ 0.0] Linux version 6.1\n[ 1.0] syst").unwrap();
        assert_eq!(reader.advance().unwrap(), None);
        file.write_all(b"emd[1]: hello\n").unwrap();
        assert_eq!(reader.advance().unwrap(), Some(Stage::Init));
        file.write_all(b"Cloud-init v. 22.4 running\nLinux version 6.1\n").unwrap();
        assert_eq!(reader.advance().unwrap(), Some(Stage::CloudInit));
        assert_eq!(reader.stage(), Stage::CloudInit);
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![b'x'; 1 << 20]).unwrap();
        let mut reader = StageReader::new(file.path().to_owned());
        reader.advance().unwrap();
        assert!(reader.rest.len() <= LINE_BYTES_MAX + 16 * 1024);
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for n in 0..1000 {
            writeln!(file, "line {n}").unwrap();
        }
        let tail = tail(file.path());
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 999"));
    }
}
