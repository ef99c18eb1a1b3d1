//! Owns how bytes are written so that a POSIX shell reads them back as they were. It must not know
//! what a command is.

/// Appends `bytes` as exactly one word. NUL cannot be in one: callers refuse it before.
pub(super) fn word(script: &mut Vec<u8>, bytes: &[u8]) {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-./:,+@%".contains(b);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        script.extend_from_slice(bytes);
        return;
    }
    script.push(b'\'');
    for byte in bytes {
        if *byte == b'\'' {
            script.extend_from_slice(b"'\\''");
        } else {
            script.push(*byte);
        }
    }
    script.push(b'\'');
}

/// Appends `words`, each preceded by a space.
pub(super) fn words<'a>(script: &mut Vec<u8>, words: impl IntoIterator<Item = &'a [u8]>) {
    for bytes in words {
        script.push(b' ');
        word(script, bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn quoted(bytes: &[u8]) -> String {
        let mut script = Vec::new();
        word(&mut script, bytes);
        String::from_utf8(script).unwrap()
    }

    #[test]
    fn plain_words_stay_readable() {
        assert_eq!(quoted(b"/usr/bin/x-1"), "/usr/bin/x-1");
        assert_eq!(quoted(b""), "''");
        assert_eq!(quoted(b"a b"), "'a b'");
        assert_eq!(quoted(b"it's"), r"'it'\''s'");
        assert_eq!(quoted(b"~"), "'~'");
    }

    #[test]
    fn a_shell_gives_every_byte_back() {
        let all: Vec<u8> = (1..=255).collect();
        let samples: [&[u8]; 6] = [&all, b"'", b"''a'", b"$(x) `y` \\ \n\n", b"-n", b"#"];
        let mut script = b"printf '%s\\0'".to_vec();
        words(&mut script, samples);
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(std::ffi::OsString::from_vec(script))
            .output()
            .unwrap();
        let expected: Vec<u8> = samples.iter().flat_map(|s| [*s, b"\0"].concat()).collect();
        assert_eq!(output.stdout, expected);
    }
}
