//! Owns the page of a bundle: one file that needs no other and runs no script. Whatever a guest said is text
//! in it, never markup.

mod timeline;

use std::fmt::Write;
use std::time::Duration;

use super::Story;
use super::event::Event;
use super::gather::Evidence;
use crate::console::harmless;
use crate::timings::Timings;

/// What is shown of a file: the files themselves lie beside the page.
const FILE_BYTES_MAX: usize = 256 * 1024;
/// In which order files are shown; those named here only. Cores are not.
const FILES: &[&str] = &[
    "error.txt",
    "console.log",
    "journal.txt",
    "kernel.txt",
    "units.txt",
    "processes.txt",
    "network.txt",
    "memory-and-disks.txt",
    "cloud-init.txt",
    "monitor.log",
    "holder.log",
];

/// What a page is made of.
pub(super) struct Told<'a> {
    pub story: &'a Story,
    pub failure: &'a str,
    pub evidence: &'a [Evidence],
    pub events: &'a [Event],
}

// Writing to a String cannot fail, so its results are dropped throughout.
pub(super) fn page(told: &Told<'_>) -> String {
    let mut html = String::with_capacity(1 << 16);
    let test = escaped(&harmless(told.story.test.as_bytes()));
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{test}</title>\
         <style>{}</style>\n<h1>{test}</h1>\n<p class=\"dim\">began {}, fleetbox {}</p>\n\
         <div class=\"failure\">{}</div>\n",
        include_str!("style.css"),
        humantime::format_rfc3339_seconds(told.story.began),
        env!("CARGO_PKG_VERSION"),
        escaped(&harmless(told.failure.as_bytes())),
    );
    html.push_str("<nav><a href=\"REPRODUCE.md\">run it again</a>");
    for (number, member) in told.evidence.iter().enumerate() {
        let _ = write!(html, "<a href=\"#m{number}\">{}</a>", escaped(&member.vm));
    }
    html.push_str("</nav>\n<h2>Timeline</h2>\n");
    timeline::draw(&mut html, told);
    for (number, evidence) in told.evidence.iter().enumerate() {
        member(&mut html, number, evidence);
    }
    html.push_str("</html>\n");
    html
}

fn member(html: &mut String, number: usize, member: &Evidence) {
    let (vm, state) = (escaped(&member.vm), escaped(&member.state));
    let _ = writeln!(html, "<h2 id=\"m{number}\">{vm} <span class=\"dim\">{state}</span></h2>");
    let facts: Vec<String> = member
        .facts
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(what, value)| escaped(&format!("{what} {value}")))
        .collect();
    let _ = writeln!(html, "<p class=\"dim\">{}</p>", facts.join(" · "));
    boot(html, member);
    for file in FILES {
        let Some(text) = member.text(file).filter(|text| !text.trim().is_empty()) else { continue };
        let open = if *file == "error.txt" { " open" } else { "" };
        let _ = writeln!(
            html,
            "<details{open}><summary>{file}</summary><pre>{}</pre></details>",
            escaped(last(&text))
        );
    }
    for (name, content) in member.files.iter().filter(|(name, _)| name.ends_with(".missing")) {
        let _ = writeln!(html, "<p><b>{}</b>: {}</p>", escaped(name), escaped(&harmless(content)));
    }
}

/// The stages of the start as bars, and of the boot as a table.
fn boot(html: &mut String, member: &Evidence) {
    let stages = member.timings.as_ref().map(Timings::stages).unwrap_or_default();
    let longest = stages.iter().map(|(_, took)| *took).max().unwrap_or_default();
    if longest > Duration::ZERO {
        html.push_str("<h3>Start</h3><div class=\"bars\">");
        for (stage, took) in stages.iter().filter(|(_, took)| !took.is_zero()) {
            let percent = 100.0 * took.as_secs_f64() / longest.as_secs_f64();
            let seconds = took.as_secs_f64();
            let _ = write!(
                html,
                "<span>{stage}</span><i style=\"width:{percent:.1}%\"></i><span>{seconds:.2} s</span>"
            );
        }
        html.push_str("</div>\n");
    }
    if let Some(report) = &member.boot {
        let _ = writeln!(
            html,
            "<details><summary>boot</summary><pre>{}</pre></details>",
            escaped(&report.to_string())
        );
    }
}

/// The end of a text that is too long.
fn last(text: &str) -> &str {
    let mut from = text.len().saturating_sub(FILE_BYTES_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_text_and_never_markup() {
        let story = Story::new("it::<b>");
        let evidence = Evidence {
            vm: "web".to_owned(),
            state: "running".to_owned(),
            files: vec![("console.log".to_owned(), b"</pre><script>x()</script>\x1b[2J".to_vec())],
            boot: None,
            timings: None,
            facts: vec![("image", "debian-12".to_owned())],
        };
        let failure = "<img src=x onerror=y>";
        let html = page(&Told { story: &story, failure, evidence: &[evidence], events: &[] });
        assert!(!html.contains("<script>") && !html.contains("<img"), "{html}");
        assert!(html.contains("&lt;/pre&gt;&lt;script&gt;x()&lt;/script&gt;^[[2J"));
    }

    #[test]
    fn long_files_show_their_end() {
        let text = format!("{}ä{}", "x".repeat(10), "y".repeat(FILE_BYTES_MAX - 1));
        assert_eq!(last(&text).len(), FILE_BYTES_MAX - 1);
        assert_eq!(last("short"), "short");
    }
}
