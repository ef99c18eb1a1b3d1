//! Owns the rules about source that the compiler does not know: headers, lengths, names and which
//! file may do what. It must not change anything.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};

const LINES_WARN: usize = 500;
const LINES_MAX: usize = 600;
/// Words that say nothing about what a file owns.
const VAGUE_WORDS: [&str; 4] = ["manager", "util", "helper", "handler"];
const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"];
/// The file that names every environment variable of the library.
const VARIABLES_FILE: &str = "crates/fleetbox/src/env.rs";
/// Where what the operating system demands is allowed.
const SYSTEM_DIR: &str = "crates/fleetbox/src/sys/";
/// What follows the keyword where it is code.
const UNSAFE_FOLLOWERS: [&str; 5] = ["{", "fn ", "impl ", "extern ", "trait "];

/// A source file: its path from the workspace's root, and its text.
struct Source {
    path: String,
    text: String,
}

/// What was found.
#[derive(Debug, Default)]
struct Findings {
    violations: Vec<String>,
    warnings: Vec<String>,
}

/// Checks the tree at `root` and lists every violation; false if there is one.
pub(crate) fn run(root: &Path) -> Outcome<bool> {
    let mut sources = Vec::new();
    for dir in ["crates", "xtask"] {
        collect(root, &root.join(dir), &mut sources)?;
    }
    let mut findings = Findings::default();
    for source in &sources {
        check_source(source, &mut findings);
    }
    for document in DOCUMENTS {
        if !root.join(document).is_file() {
            findings.violations.push(format!("{document}: missing"));
        }
    }
    if let Ok(text) = std::fs::read_to_string(root.join("ARCHITECTURE.md")) {
        check_map(&text, &sources, root, &mut findings);
    }
    report(&findings, sources.len())
        .map_err(|e| Failure::new(format!("failed to print the findings: {e}")))?;
    Ok(findings.violations.is_empty())
}

fn report(findings: &Findings, files: usize) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for warning in &findings.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    for violation in &findings.violations {
        writeln!(out, "error: {violation}")?;
    }
    writeln!(out, "{files} files, {} violations", findings.violations.len())
}

fn collect(root: &Path, dir: &Path, sources: &mut Vec<Source>) -> Outcome<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .map_err(Failure::io("list", dir))?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(root, &path, sources)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).map_err(Failure::io("read", &path))?;
            let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            sources.push(Source { path, text });
        }
    }
    Ok(())
}

fn check_source(source: &Source, findings: &mut Findings) {
    let Source { path, text } = source;
    let mut violation = |what: String| findings.violations.push(format!("{path}{what}"));
    if !text.starts_with("//!") {
        violation(": does not open with `//!`, what it owns and must not do".to_owned());
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    if let Some(word) = VAGUE_WORDS.iter().find(|word| name.contains(**word)) {
        violation(format!(": \"{word}\" in a file's name says nothing about what it owns"));
    }
    for (number, line) in code(text) {
        if !path.starts_with(SYSTEM_DIR) && has_unsafe(line) {
            violation(format!(":{number}: unsafe code belongs in {SYSTEM_DIR}"));
        }
        if let Some(what) = variable(path, line) {
            violation(format!(":{number}: {what} belongs in {VARIABLES_FILE}"));
        }
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        violation(format!(": {lines} lines, {LINES_MAX} at most"));
    } else if lines > LINES_WARN {
        findings.warnings.push(format!("{path}: {lines} lines, {LINES_WARN} are plenty"));
    }
}

/// The lines that are code and no test, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("mod tests {"))
        .map(|(at, line)| (at + 1, line.trim_start()))
        .filter(|(_, line)| !line.starts_with("//"))
}

fn has_unsafe(line: &str) -> bool {
    line.match_indices("unsafe ").any(|(at, word)| {
        let rest = line[at + word.len()..].trim_start();
        UNSAFE_FOLLOWERS.iter().any(|follower| rest.starts_with(follower))
    })
}

/// What the line does with the environment that only one file may. Words in hints are no names: a
/// name stands alone in its literal.
fn variable(path: &str, line: &str) -> Option<&'static str> {
    let library = path.starts_with("crates/fleetbox/src/");
    if path == VARIABLES_FILE || path.starts_with(SYSTEM_DIR) || path.contains("/tests/") {
        return None;
    }
    if library && line.contains("env::var") {
        return Some("reading the environment");
    }
    let is_name = |literal: &str| {
        literal.strip_prefix("FLEETBOX_").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
        })
    };
    let names_one = path.starts_with("crates/") && line.split('"').skip(1).step_by(2).any(is_name);
    names_one.then_some("the name of a variable")
}

/// Every file the map names exists somewhere below the root; it names files by the end of their
/// path.
fn check_map(text: &str, sources: &[Source], root: &Path, findings: &mut Findings) {
    for quoted in text.split('`').skip(1).step_by(2) {
        if !is_path(quoted) {
            continue;
        }
        let tail = format!("/{quoted}");
        let dir = format!("/{quoted}{}", if quoted.ends_with('/') { "" } else { "/" });
        let exists = root.join(quoted).exists()
            || sources.iter().any(|s| s.path.ends_with(&tail) || s.path.contains(&dir));
        if !exists {
            findings.violations.push(format!("ARCHITECTURE.md: there is no {quoted}"));
        }
    }
}

/// A path as the map writes one: a `.rs` or `.md` file, or a directory with a slash at its end or
/// inside.
fn is_path(quoted: &str) -> bool {
    let plain = quoted.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    let file = Path::new(quoted).extension().is_some_and(|e| e == "rs" || e == "md");
    plain && !quoted.starts_with(['/', '.', '~']) && (file || quoted.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Findings {
        let mut findings = Findings::default();
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        check_source(&source, &mut findings);
        findings
    }

    fn count(path: &str, text: &str) -> usize {
        found(path, text).violations.len()
    }

    #[test]
    fn a_header_is_required() {
        assert_eq!(count("crates/a/src/x.rs", "//! Owns x.\n"), 0);
        assert_eq!(count("crates/a/src/x.rs", "use y;\n//! late\n"), 1);
    }

    #[test]
    fn long_files_are_warned_of_and_then_refused() {
        let lines = |n: usize| format!("//! x\n{}", "x;\n".repeat(n - 1));
        assert!(found("crates/a/src/x.rs", &lines(500)).warnings.is_empty());
        assert_eq!(found("crates/a/src/x.rs", &lines(600)).warnings.len(), 1);
        assert_eq!(count("crates/a/src/x.rs", &lines(600)), 0);
        assert_eq!(count("crates/a/src/x.rs", &lines(601)), 1);
    }

    #[test]
    fn vague_file_names_are_refused() {
        assert_eq!(count("crates/a/src/vm_manager.rs", "//! x\n"), 1);
        assert_eq!(count("crates/manager/src/vm.rs", "//! x\n"), 0);
    }

    #[test]
    fn unsafe_code_has_its_place_and_the_word_is_free() {
        let code = "//! x\nlet a = unsafe { b };\n";
        assert_eq!(count("crates/fleetbox/src/vm.rs", code), 1);
        assert_eq!(count("crates/fleetbox/src/sys/fd.rs", code), 0);
        let words = "//! x\n// unsafe { }\nlet cache = \"unsafe\"; // unsafe for\n";
        assert_eq!(count("crates/fleetbox/src/vm.rs", words), 0);
    }

    #[test]
    fn variables_are_named_and_read_in_one_file() {
        let named = "//! x\nlet home = os(\"FLEETBOX_HOME\");\n";
        let read = "//! x\nlet home = std::env::var_os(name);\n";
        for text in [named, read] {
            assert_eq!(count("crates/fleetbox/src/vm.rs", text), 1);
            assert_eq!(count(VARIABLES_FILE, text), 0);
            assert_eq!(count("crates/fleetbox/tests/it/main.rs", text), 0);
        }
        assert_eq!(count("crates/fleetbox-cli/src/main.rs", named), 1);
        let hint = "//! x\nhint(\"set FLEETBOX_HOME to it\");\n";
        assert_eq!(count("crates/fleetbox/src/vm.rs", hint), 0);
        let test = format!("{}#[cfg(test)]\nmod tests {{\n{named}}}\n", "//! x\n");
        assert_eq!(count("crates/fleetbox/src/vm.rs", &test), 0);
    }

    #[test]
    fn the_map_names_only_what_exists() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("docs")).unwrap();
        let sources =
            [Source { path: "crates/fleetbox/src/net/plan.rs".to_owned(), text: String::new() }];
        let mut findings = Findings::default();
        let map = "`docs/`, `net/`, `net/plan.rs`, `plan.rs`, `Vm`, `/proc/self`, `web-1`: there. \
                   `lost.rs`, `gone/`, `net/away.rs`: not.";
        check_map(map, &sources, root.path(), &mut findings);
        assert_eq!(findings.violations.len(), 3, "{findings:?}");
    }
}
