//! `logs`: the console, with every control byte made harmless.

use std::io::Write;
use std::time::Duration;

use fleetbox::{State, Vm, harmless};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::printed;
use crate::Outcome;
use crate::args::Logs;

const POLL: Duration = Duration::from_millis(200);

pub(super) async fn run(args: Logs) -> Outcome {
    let vm = Vm::find(&args.name)?;
    let bytes = vm.console().await?;
    let text = harmless(&bytes);
    let text = args.tail.map_or(text.as_str(), |lines| last_lines(&text, lines));
    let written = std::io::stdout().write_all(text.as_bytes());
    if written.is_err() || !args.follow {
        return printed(written);
    }
    follow(&vm, bytes.len() as u64).await
}

/// Prints what is added until the VM stops or nobody reads. A console that got shorter is that of
/// a new boot.
async fn follow(vm: &Vm, mut offset: u64) -> Outcome {
    let path = vm.console_path();
    loop {
        let mut bytes = Vec::new();
        if let Ok(mut file) = tokio::fs::File::open(&path).await {
            let length = file.metadata().await.map_or(offset, |m| m.len());
            if length < offset {
                offset = 0;
            }
            let read = match file.seek(std::io::SeekFrom::Start(offset)).await {
                Ok(_) => file.read_to_end(&mut bytes).await,
                Err(e) => Err(e),
            };
            offset += read.unwrap_or(0) as u64;
        }
        let mut out = std::io::stdout().lock();
        let written = out.write_all(harmless(&bytes).as_bytes()).and_then(|()| out.flush());
        drop(out);
        if written.is_err() {
            return printed(written);
        }
        if bytes.is_empty() && vm.state().await? == State::Stopped {
            return Ok(0);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn last_lines(text: &str, lines: usize) -> &str {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let mut start = text.len();
    if lines > 0 {
        start = body.rmatch_indices('\n').nth(lines - 1).map_or(0, |(at, _)| at + 1);
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_counts_whole_lines() {
        let text = "a\nb\nc\n";
        assert_eq!(last_lines(text, 0), "");
        assert_eq!(last_lines(text, 1), "c\n");
        assert_eq!(last_lines(text, 2), "b\nc\n");
        assert_eq!(last_lines(text, 9), text);
        assert_eq!(last_lines("a\nb", 1), "b");
    }
}
