//! Owns what a guest wrote to its console: making it harmless, and its tail. What that says of a boot is
//! `diagnose`'s.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

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

/// A line without the sequences that colour it (ECMA-48, `ESC [ … letter`), so that what it says can be found.
pub(crate) fn uncoloured(line: &str) -> Cow<'_, str> {
    if !line.contains("\u{1b}[") {
        return Cow::Borrowed(line);
    }
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        text.push_str(before);
        let end = after.find(|c: char| !(c.is_ascii_digit() || ";:?<=>".contains(c)));
        rest = end.map_or("", |end| {
            &after[end + after[end..].chars().next().map_or(0, char::len_utf8)..]
        });
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// The last bytes of a console. One that was never written is empty.
pub(crate) fn end(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a console has from `offset` on, at most so much; moves the offset behind it. One that was begun anew
/// is read from its beginning.
pub(crate) fn from(path: &Path, offset: &mut u64, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    if file.metadata()?.len() < *offset {
        *offset = 0;
    }
    file.seek(SeekFrom::Start(*offset))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    *offset += bytes.len() as u64;
    Ok(bytes)
}

/// The last lines of a console, harmless; says so if there is none.
pub(crate) fn tail(path: &Path) -> String {
    match end(path, TAIL_BYTES) {
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
    fn colours_go_and_words_stay() {
        let line = "[\u{1b}[0;1;31mFAILED\u{1b}[0m] Failed to start \u{1b}[0;1;39mssh.service\u{1b}[0m - x.";
        assert_eq!(uncoloured(line), "[FAILED] Failed to start ssh.service - x.");
        assert_eq!(uncoloured("plain"), "plain");
        assert_eq!(uncoloured("cut \u{1b}[0;"), "cut ");
        assert_eq!(uncoloured("\u{1b}[3\u{e4}x"), "x");
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
