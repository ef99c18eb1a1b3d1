//! Owns the timeline of a page: a picture to scale with a lane for each member, and a table with a column
//! for each. It must not choose events.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::super::event::{Event, Kind};
use super::{Told, escaped};

const WIDTH: f64 = 1200.0;
const LABEL: f64 = 150.0;
const LANE: f64 = 26.0;
const TOP: f64 = 22.0;
/// Rows of the table; the last ones are nearest to the failure.
const ROWS_MAX: usize = 2000;

pub(super) fn draw(html: &mut String, told: &Told<'_>) {
    if told.events.is_empty() {
        html.push_str("<p class=\"dim\">nothing was done</p>\n");
        return;
    }
    let lanes: Vec<&str> = told.evidence.iter().map(|member| member.vm.as_str()).collect();
    picture(html, told.events, &lanes, told.story.began);
    table(html, told.events, &lanes, told.story.began);
}

struct Scale {
    began: SystemTime,
    length: f64,
}

impl Scale {
    fn x(&self, at: SystemTime) -> f64 {
        let since = at.duration_since(self.began).unwrap_or_default().as_secs_f64();
        LABEL + (WIDTH - LABEL - 10.0) * (since / self.length).min(1.0)
    }
}

fn picture(html: &mut String, events: &[Event], lanes: &[&str], began: SystemTime) {
    let end = events.iter().map(|event| event.at + event.took.unwrap_or_default()).max();
    let length = end.unwrap_or(began).duration_since(began).unwrap_or_default().as_secs_f64();
    let scale = Scale { began, length: length.max(0.001) };
    let count = u32::try_from(lanes.len().max(1)).unwrap_or(u32::MAX);
    let height = TOP + LANE * f64::from(count) + 24.0;
    let _ =
        write!(html, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"timeline\">");
    for (number, lane) in (0u32..).zip(lanes) {
        let y = TOP + LANE * f64::from(number);
        let (text, line) = (y + 17.0, y + LANE);
        let _ = write!(
            html,
            "<text x=\"6\" y=\"{text}\">{}</text><line x1=\"{LABEL}\" x2=\"{WIDTH}\" y1=\"{line}\" y2=\"{line}\" stroke=\"var(--line)\"/>",
            escaped(&short(lane))
        );
    }
    for event in events {
        shape(html, event, &scale, lanes, height);
    }
    let floor = height - 8.0;
    for tick in 0..=4u32 {
        let share = f64::from(tick) / 4.0;
        let x = LABEL + (WIDTH - LABEL - 60.0) * share;
        let _ =
            write!(html, "<text x=\"{x:.1}\" y=\"{floor}\">{:.1} s</text>", scale.length * share);
    }
    html.push_str("</svg>\n");
}

fn shape(html: &mut String, event: &Event, scale: &Scale, lanes: &[&str], height: f64) {
    let place = event.vm.as_ref().and_then(|vm| lanes.iter().position(|lane| lane == vm));
    let lane = place.and_then(|place| u32::try_from(place).ok());
    let x = scale.x(event.at);
    let color = match event.kind {
        _ if event.failed => "var(--bad)",
        Kind::Command => "var(--command)",
        Kind::Fault | Kind::Heal => "var(--fault)",
        Kind::Machine | Kind::Finding => "var(--dim)",
    };
    let title = escaped(&event.text);
    let _ = match (lane, event.kind) {
        (Some(lane), Kind::Command) => {
            let width = (scale.x(event.at + event.took.unwrap_or_default()) - x).max(2.0);
            let y = TOP + LANE * f64::from(lane) + 6.0;
            write!(
                html,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"14\" rx=\"2\" fill=\"{color}\"><title>{title}</title></rect>"
            )
        }
        (Some(lane), _) => {
            let y = TOP + LANE * f64::from(lane) + 13.0;
            write!(
                html,
                "<circle cx=\"{x:.1}\" cy=\"{y}\" r=\"4\" fill=\"{color}\"><title>{title}</title></circle>"
            )
        }
        (None, _) => {
            let foot = height - 24.0;
            write!(
                html,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{foot}\" stroke=\"{color}\" stroke-width=\"2\"><title>{title}</title></line>"
            )
        }
    };
}

fn table(html: &mut String, events: &[Event], lanes: &[&str], began: SystemTime) {
    html.push_str("<table><thead><tr><th class=\"at\">after</th>");
    for lane in lanes {
        let _ = write!(html, "<th>{}</th>", escaped(lane));
    }
    html.push_str("</tr></thead><tbody>\n");
    for event in &events[events.len().saturating_sub(ROWS_MAX)..] {
        row(html, event, lanes, began);
    }
    html.push_str("</tbody></table>\n");
}

fn row(html: &mut String, event: &Event, lanes: &[&str], began: SystemTime) {
    let after = event.at.duration_since(began).unwrap_or_default().as_secs_f64();
    let failed = if event.failed { " failed" } else { "" };
    let class = format!("{}{failed}", event.kind.as_str());
    let _ = write!(html, "<tr><td class=\"at\">{after:.3} s</td>");
    let place = event.vm.as_ref().and_then(|vm| lanes.iter().position(|lane| lane == vm));
    if let Some(place) = place {
        for lane in 0..lanes.len() {
            if lane == place {
                let _ = write!(html, "<td class=\"{class}\">{}</td>", cell(event));
            } else {
                html.push_str("<td></td>");
            }
        }
    } else {
        let of = event.vm.as_ref().map_or_else(String::new, |vm| format!("{}: ", escaped(vm)));
        let columns = lanes.len().max(1);
        let _ =
            write!(html, "<td class=\"{class}\" colspan=\"{columns}\">{of}{}</td>", cell(event));
    }
    html.push_str("</tr>\n");
}

fn cell(event: &Event) -> String {
    let text = escaped(&event.text);
    if event.kind != Kind::Command {
        return format!("<b>{text}</b>");
    }
    let took = event.took.map_or_else(String::new, |took| format!(", {}", shown(took)));
    let end = escaped(event.end.as_deref().unwrap_or_default());
    let head = format!("<code>{text}</code> <span class=\"end\">{end}{took}</span>");
    let mut streams = String::new();
    for stream in [&event.stdout, &event.stderr] {
        if !stream.trim().is_empty() {
            let _ = write!(streams, "<pre>{}</pre>", escaped(stream.trim_end()));
        }
    }
    if streams.is_empty() {
        return head;
    }
    let open = if event.failed { " open" } else { "" };
    format!("<details{open}><summary>{head}</summary>{streams}</details>")
}

fn shown(took: Duration) -> String {
    if took < Duration::from_secs(1) {
        format!("{} ms", took.as_millis())
    } else {
        format!("{:.2} s", took.as_secs_f64())
    }
}

/// What fits beside a lane.
fn short(name: &str) -> String {
    const CHARS: usize = 22;
    let count = name.chars().count();
    if count <= CHARS {
        return name.to_owned();
    }
    // The end tells members apart.
    let end: String = name.chars().skip(count - CHARS + 1).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_what_tells_them_apart() {
        assert_eq!(short("node-1"), "node-1");
        assert_eq!(short(&format!("{}-2", "x".repeat(60))), format!("…{}-2", "x".repeat(19)));
    }
}
