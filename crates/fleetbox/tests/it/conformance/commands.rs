//! Commands: what goes in, what comes out, how they end.

use std::time::{Duration, Instant};

use fleetbox::{ErrorKind, Result, Signal, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::bed::{Bed, until};

pub(super) async fn output_and_code_are_told_apart(bed: &mut Bed) -> Result<()> {
    let output = bed.vm().shell("echo out; echo err >&2; exit 3").output().await?;
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!((output.status.code(), output.status.signal()), (Some(3), None));
    assert_eq!(bed.vm().ssh("printf ' both  \\n\\n'").await?, " both");
    Ok(())
}

pub(super) async fn a_signal_that_ends_it_is_named(bed: &mut Bed) -> Result<()> {
    // One process: of a shell that is only about to have a child, the child would be left.
    let mut child = bed.vm().shell("exec sleep 600").spawn().await?;
    child.signal(Signal::Int).await?;
    let status = child.wait().await?;
    assert_eq!((status.code(), status.signal()), (None, Some("INT")));
    Ok(())
}

pub(super) async fn a_failure_carries_its_output(bed: &mut Bed) -> Result<()> {
    let error = bed.vm().ssh("echo said; echo why >&2; exit 4").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandFailed);
    assert_eq!(error.vm_name(), Some(bed.name.as_str()));
    assert!(error.report().contains("why"), "{}", error.report());
    let output = error.output().expect("the output");
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"said\n"[..], Some(4)));
    Ok(())
}

pub(super) async fn input_environment_and_directory_arrive(bed: &mut Bed) -> Result<()> {
    let output = bed
        .vm()
        .command("sh")
        .args(["-c", "cat; echo \"$A\"; pwd"])
        .env("A", "b  c")
        .current_dir("/")
        .stdin_bytes("in\n")
        .run()
        .await?;
    assert_eq!(output.stdout, b"in\nb  c\n/\n");
    Ok(())
}

pub(super) async fn words_arrive_as_they_are(bed: &mut Bed) -> Result<()> {
    let words = ["", "a b", "'", "\"", "$HOME", "*", "\\", "new\nline", "ünï"];
    let output = bed.vm().command("printf").arg("%s|").args(words).run().await?;
    let expected: String = words.map(|word| format!("{word}|")).concat();
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    Ok(())
}

pub(super) async fn a_timeout_ends_it(bed: &mut Bed) -> Result<()> {
    let began = Instant::now();
    let timeout = Duration::from_secs(1);
    let error = bed.vm().command("sleep").arg("600").timeout(timeout).run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(began.elapsed() < Duration::from_mins(1));
    Ok(())
}

pub(super) async fn a_dropped_one_is_ended(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    // Root's are no exception. It writes its pid, which `kill -0` then asks about.
    let mut child =
        vm.command("sh").args(["-c", "echo $$; sleep 600; true"]).sudo().spawn().await?;
    let mut stdout = child.stdout.take().unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stdout.read_u8().await?);
    }
    let pid = String::from_utf8_lossy(&line).trim().to_owned();
    let ask = async || vm.command("sh").args(["-c", "kill -0 \"$0\"", &pid]).sudo().output().await;
    assert!(ask().await?.status.success(), "it runs");
    drop((child, stdout));
    until("the command's end", async || ask().await.is_ok_and(|output| !output.status.success()))
        .await;
    Ok(())
}

pub(super) async fn streams_flow_both_ways(bed: &mut Bed) -> Result<()> {
    let mut child = bed.vm().command("cat").stdin(Stdio::Piped).spawn().await?;
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for part in [&b"first"[..], b"then"] {
        stdin.write_all(part).await?;
        let mut back = vec![0; part.len()];
        // Before the end of the input.
        stdout.read_exact(&mut back).await?;
        assert_eq!(back, part);
    }
    drop(stdin);
    assert!(child.wait().await?.success());

    let much = vec![b'x'; 3 << 20];
    let output = bed.vm().command("cat").stdin_bytes(much.clone()).run().await?;
    assert!(output.stdout == much, "{} bytes came back", output.stdout.len());
    Ok(())
}

pub(super) async fn many_run_at_once(bed: &mut Bed) -> Result<()> {
    let runs: Vec<_> = (0..12)
        .map(|n| {
            let vm = bed.vm().clone();
            tokio::spawn(async move { vm.ssh(&format!("sleep 0.2; echo {n}")).await })
        })
        .collect();
    for (n, run) in runs.into_iter().enumerate() {
        assert_eq!(run.await.unwrap()?, n.to_string());
    }
    Ok(())
}
