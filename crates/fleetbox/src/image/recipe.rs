//! Owns the file that describes a derived image: its words, and where in it something is wrong. It must
//! not look at what it names.

use std::path::Path;

use super::Image;
use crate::error::{Error, ErrorKind, Result};

/// Longer ones are something else.
const BYTES_MAX: u64 = 1 << 20;

pub(super) fn read(path: &Path) -> Result<Image> {
    let unreadable = |why: &str| {
        Error::new(ErrorKind::InvalidPath, format!("read the image file {}: {why}", path.display()))
            .hint("give the path of a file with lines such as `from debian-12` and `run …`")
    };
    let metadata = path.metadata().map_err(|e| unreadable("it is not there").source(e))?;
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return Err(unreadable("it is no file of text"));
    }
    let text = std::fs::read(path).map_err(|e| unreadable("it cannot be read").source(e))?;
    let text = String::from_utf8(text).map_err(|_| unreadable("it is not UTF-8"))?;
    let dir = path.parent().unwrap_or(Path::new(""));
    parse(&text, dir).map_err(|Wrong { line, what, hint }| {
        Error::new(
            ErrorKind::InvalidSpec,
            format!("read the image file {}: line {line}: {what}", path.display()),
        )
        .hint(hint)
    })
}

/// What is wrong, and how it is right.
#[derive(Debug)]
struct Wrong {
    line: usize,
    what: String,
    hint: &'static str,
}

const HINT_WORDS: &str = "lines are `from IMAGE`, `run LINE OF SHELL`, `copy HOST GUEST`, `env NAME=VALUE` and `# comments`";

fn parse(text: &str, dir: &Path) -> Result<Image, Wrong> {
    let mut image: Option<Image> = None;
    for (line, text) in logical_lines(text)? {
        let wrong = |(what, hint): (String, &'static str)| Wrong { line, what, hint };
        let text = text.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        image = Some(match (word, image.take()) {
            ("from", None) => from(rest).map_err(wrong)?,
            ("from", Some(_)) => {
                return Err(wrong((
                    "a second `from`".to_owned(),
                    "an image is made from one other",
                )));
            }
            ("run" | "copy" | "env", None) => {
                return Err(wrong((
                    format!("`{word}` before `from`"),
                    "begin with `from debian-12`",
                )));
            }
            ("run", Some(image)) => run(image, rest).map_err(wrong)?,
            ("copy", Some(image)) => copy(image, rest, dir).map_err(wrong)?,
            ("env", Some(image)) => env(image, rest).map_err(wrong)?,
            _ => return Err(wrong(unknown(word))),
        });
    }
    let line = text.lines().count().max(1);
    let what = "there is no `from`".to_owned();
    image.ok_or(Wrong { line, what, hint: "begin with `from debian-12`" })
}

/// What is wrong with a line, and how it is right.
type Line = Result<Image, (String, &'static str)>;

fn from(rest: &str) -> Line {
    if rest.is_empty() || rest.contains(char::is_whitespace) {
        return Err(("`from` takes one image".to_owned(), "write `from debian-12`"));
    }
    Ok(Image::from(rest))
}

fn run(image: Image, rest: &str) -> Line {
    if rest.is_empty() {
        return Err(("`run` without a line of shell".to_owned(), HINT_WORDS));
    }
    Ok(image.run(rest))
}

fn env(image: Image, rest: &str) -> Line {
    match rest.split_once('=') {
        Some((name, value)) if is_variable(name) => Ok(image.env(name, unquoted(value))),
        _ => Err(("`env` takes NAME=VALUE".to_owned(), "write `env LANG=C.UTF-8`")),
    }
}

fn copy(image: Image, rest: &str, dir: &Path) -> Line {
    match &words(rest).ok_or(("a quote is not closed".to_owned(), "close it"))?[..] {
        [host, guest] if guest.starts_with('/') => Ok(image.copy(dir.join(host), guest)),
        [_, guest] => Err((
            format!("the guest path {} is not absolute", shown(guest)),
            "give it from the guest's root on, such as /opt/data",
        )),
        _ => Err((
            "`copy` takes a path of the host and one of the guest".to_owned(),
            "write `copy site /var/www/html`; put paths with spaces in quotes",
        )),
    }
}

fn unknown(word: &str) -> (String, &'static str) {
    let hint = match &*word.to_ascii_lowercase() {
        "from" | "run" | "copy" | "env" => "write it in lowercase letters",
        _ => HINT_WORDS,
    };
    (format!("\"{}\" is no word of an image file", shown(word)), hint)
}

/// Lines put together where one ends in `\`, each with the number of its first. Comments and empty lines
/// are left out, also between those.
fn logical_lines(text: &str) -> Result<Vec<(usize, String)>, Wrong> {
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (text, number) in text.lines().zip(1..) {
        let trimmed = text.trim_start();
        if trimmed.starts_with('#') || trimmed.is_empty() {
            continue;
        }
        let (begun, mut whole) = open.take().unwrap_or((number, String::new()));
        if let Some(more) = text.trim_end().strip_suffix('\\') {
            whole.push_str(more);
            open = Some((begun, whole));
        } else {
            whole.push_str(text);
            lines.push((begun, whole));
        }
    }
    match open {
        None => Ok(lines),
        Some((line, _)) => Err(Wrong {
            line,
            what: "it goes on with `\\` and nothing follows".to_owned(),
            hint: "end it, or take the `\\` away",
        }),
    }
}

/// Words between white space, or in quotes; none if a quote is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && matches!(c, '"' | '\'') {
            quote = Some(c);
            word.get_or_insert_default();
        } else if quote.is_none() && c.is_whitespace() {
            words.extend(word.take());
        } else {
            word.get_or_insert_default().push(c);
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// Without the quotes around it, if there are.
fn unquoted(value: &str) -> &str {
    let inner = |quote| value.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

fn shown(word: &str) -> String {
    word.chars().take(60).collect::<String>().escape_debug().to_string()
}

/// Whether a shell takes it for a variable's name.
pub(super) fn is_variable(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(word)
}

#[cfg(test)]
mod tests {
    use super::super::Step;
    use super::*;

    #[test]
    fn every_word_is_read_and_lines_go_on() {
        let text = "# made for tests\n\nfrom debian-12\nenv A=1\nenv B=\"x y\"\n  run apt-get update && \\\n# between\n  apt-get install -y nginx\ncopy 'my site' /var/www\nenv A=2\nrun true";
        let image = parse(text, Path::new("/dir")).unwrap();
        assert_eq!(image.from, "debian-12");
        let env =
            |a: &str| vec![("B".to_owned(), "x y".to_owned()), ("A".to_owned(), a.to_owned())];
        let [Step::Run { line, env: first }, copy, Step::Run { env: second, .. }] =
            &image.steps[..]
        else {
            panic!("{:?}", image.steps)
        };
        assert_eq!(line, "apt-get update &&   apt-get install -y nginx");
        assert_eq!(*first, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x y".to_owned())]);
        assert_eq!(*copy, Step::Copy { host: "/dir/my site".into(), guest: "/var/www".to_owned() });
        assert_eq!(*second, env("2"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, word) in [
            ("", 1, "no `from`"),
            ("# only\n# comments\n", 2, "no `from`"),
            ("run true", 1, "before `from`"),
            ("from a\nfrom b", 2, "second"),
            ("from", 1, "one image"),
            ("from a b", 1, "one image"),
            ("from a\nFROM b", 2, "FROM"),
            ("from a\n\nadd x /y", 3, "add"),
            ("from a\nrun", 2, "without"),
            ("from a\nrun true \\", 2, "nothing follows"),
            ("from a\nrun a \\\n b\ncopy x", 4, "takes a path"),
            ("from a\ncopy x y", 2, "not absolute"),
            ("from a\ncopy x /y /z", 2, "takes a path"),
            ("from a\ncopy 'x /y", 2, "not closed"),
            ("from a\nenv 1A=b", 2, "NAME=VALUE"),
            ("from a\nenv A", 2, "NAME=VALUE"),
            ("from a\n\u{1b}[2J", 2, "no word"),
        ] {
            let wrong = parse(text, Path::new("")).unwrap_err();
            assert_eq!(wrong.line, line, "{text:?}: {wrong:?}");
            assert!(wrong.what.contains(word), "{text:?}: {wrong:?}");
            assert!(!wrong.what.contains('\u{1b}') && !wrong.hint.is_empty());
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        for content in [None, Some(&b"from \xff"[..])] {
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let error = read(&file).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidPath);
        }
        assert_eq!(read(dir.path()).unwrap_err().kind(), ErrorKind::InvalidPath);
        std::fs::write(&file, "from a\nwhat").unwrap();
        let error = read(&file).unwrap_err();
        assert!(error.report().contains("image: line 2: \"what\""), "{}", error.report());
    }
}
