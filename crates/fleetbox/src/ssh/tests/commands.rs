//! Owns the tests of running commands: what goes in, what comes out, how they end.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::lab::Lab;
use crate::{ErrorKind, Signal, Stdio, Terminal};

super::scenarios!(
    output_keeps_the_streams_apart,
    arguments_arrive_exactly,
    environment_and_directory,
    input,
    exit_codes_and_signals,
    run_fails_with_the_output,
    sudo_keeps_arguments_and_environment,
    bad_requests_are_refused_before_any_work,
    too_much_output_is_an_error,
    a_child_talks_both_ways,
    a_child_is_signalled,
    many_at_once,
    a_slow_reader_holds_up_nobody,
    null_streams_let_a_server_live,
    a_terminal_or_an_error,
);

async fn output_keeps_the_streams_apart(lab: &Lab) {
    let output = lab.shell("echo out; echo err >&2").output().await.unwrap();
    assert_eq!((output.stdout_text(), output.stderr_text()), ("out".into(), "err".into()));
    assert!(output.status.success());
    assert_eq!(lab.ssh("printf 'a b\n'").await, "a b");
    let big = lab.shell("head -c 5000000 /dev/zero").output().await.unwrap();
    assert_eq!(big.stdout.len(), 5_000_000);
}

async fn arguments_arrive_exactly(lab: &Lab) {
    let all: Vec<u8> = (1..=255).collect();
    let args: [&[u8]; 5] = [b"", b"a b", b"'\"$HOME`x`\\", b"-n\n", &all];
    let args = args.map(OsStr::from_bytes);
    let output = lab.command("printf").arg("%s\\0").args(args).run().await.unwrap();
    let expected: Vec<u8> = args.iter().flat_map(|a| [a.as_bytes(), b"\0"].concat()).collect();
    assert_eq!(output.stdout, expected);
}

async fn environment_and_directory(lab: &Lab) {
    let dir = lab.path("it's a dir");
    std::fs::create_dir(&dir).unwrap();
    let output = lab
        .command("sh")
        .args(["-c", "printf '%s|%s|' \"$A\" \"$B\"; pwd"])
        .env("A", "x'y\nz")
        .envs([("B", "2")])
        .current_dir(&dir)
        .run()
        .await
        .unwrap();
    assert_eq!(output.stdout_text(), format!("x'y\nz|2|{}", dir.display()));
    let error = lab.command("true").current_dir("/no/such").run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandFailed);
    assert!(error.report().contains("/no/such"));
}

async fn input(lab: &Lab) {
    let bytes = vec![7; 3_000_000];
    let output = lab.command("cat").stdin_bytes(bytes.clone()).output().await.unwrap();
    assert_eq!(output.stdout, bytes);
    assert_eq!(lab.command("cat").output().await.unwrap().stdout, b"");
    // A command that leaves its input unread ends all the same.
    let output = lab.command("true").stdin_bytes(bytes).output().await.unwrap();
    assert!(output.status.success());
}

async fn exit_codes_and_signals(lab: &Lab) {
    assert_eq!(lab.shell("exit 3").status().await.unwrap().code(), Some(3));
    let status = lab.command("sh").args(["-c", "kill -KILL $$"]).status().await.unwrap();
    assert_eq!((status.code(), status.signal()), (None, Some("KILL")));
    assert!(!status.success());
    assert_eq!(lab.command("no-such-program").status().await.unwrap().code(), Some(127));
}

async fn run_fails_with_the_output(lab: &Lab) {
    let error =
        lab.shell("echo so far; echo 'it broke\x1b[2J' >&2; exit 4").run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandFailed);
    assert_eq!(error.vm_name(), Some("web"));
    let text = error.to_string();
    assert!(text.contains("exit code 4") && text.contains("it broke"), "{text}");
    assert!(!text.contains('\x1b'));
    assert_eq!(error.output().unwrap().stdout_text(), "so far");
}

async fn sudo_keeps_arguments_and_environment(lab: &Lab) {
    if !lab.shell("sudo -n true").status().await.unwrap().success() {
        return;
    }
    let output = lab
        .command("sh")
        .args(["-c", "echo \"$A|$1\"; pwd", "sh", "a  b"])
        .env("A", "it's")
        .current_dir("/")
        .sudo()
        .run()
        .await
        .unwrap();
    assert_eq!(output.stdout_text(), "it's|a  b\n/");
}

async fn bad_requests_are_refused_before_any_work(lab: &Lab) {
    let kind = |e: crate::Error| e.kind();
    for name in ["", "1A", "A-B", "A=B", "A B"] {
        let error = lab.command("true").env(name, "x").output().await.unwrap_err();
        assert_eq!(kind(error), ErrorKind::InvalidSpec, "{name}");
    }
    let long = "x".repeat(200_000);
    for arg in ["a\0b", &long] {
        let error = lab.command("true").arg(arg).output().await.unwrap_err();
        assert_eq!(kind(error), ErrorKind::InvalidSpec);
    }
    for program in ["", "-x"] {
        let error = lab.command(program).output().await.unwrap_err();
        assert_eq!(kind(error), ErrorKind::InvalidSpec);
    }
    let error = lab.command("true").current_dir("tmp").output().await.unwrap_err();
    assert_eq!(kind(error), ErrorKind::InvalidPath);
    assert_eq!(lab.connections(), 0);
}

async fn too_much_output_is_an_error(lab: &Lab) {
    let error = lab.command("yes").output_limit_bytes(100_000).output().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandFailed);
    assert!(error.report().contains("100000 bytes"));
    let child = lab.command("yes").output_limit_bytes(100_000).spawn().await.unwrap();
    let error = child.wait_with_output().await.unwrap_err();
    assert!(error.report().contains("100000 bytes"));
}

async fn a_child_talks_both_ways(lab: &Lab) {
    let mut child = lab.command("cat").stdin(Stdio::Piped).spawn().await.unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for word in [&b"one"[..], b"two"] {
        stdin.write_all(word).await.unwrap();
        let mut back = vec![0; word.len()];
        stdout.read_exact(&mut back).await.unwrap();
        assert_eq!(back, word);
    }
    stdin.shutdown().await.unwrap();
    assert_eq!(stdout.read(&mut [0]).await.unwrap(), 0);
    assert!(child.wait().await.unwrap().success());
    assert!(child.wait().await.unwrap().success());

    let mut child =
        lab.shell("cat; echo err >&2; exit 2").stdin(Stdio::Piped).spawn().await.unwrap();
    child.stdin.as_mut().unwrap().write_all(b"in").await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(2), &b"in"[..]));
    assert_eq!(output.stderr_text(), "err");
}

async fn a_child_is_signalled(lab: &Lab) {
    let script = "trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.05; done";
    let mut child = lab.command("sh").args(["-c", script]).spawn().await.unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).await.unwrap();
    child.signal(Signal::Usr1).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), output.stdout_text()), (Some(9), "got".into()));
}

async fn many_at_once(lab: &Lab) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let mut command = lab.command("sh");
        command.args(["-c", &format!("sleep 0.2; echo {n}")]);
        tasks.spawn(async move { command.run().await.unwrap().stdout_text() });
    }
    let mut numbers: Vec<u32> =
        tasks.join_all().await.iter().map(|text| text.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..40).collect::<Vec<_>>());
    assert!(lab.connections() <= 4, "{} connections", lab.connections());
}

async fn a_slow_reader_holds_up_nobody(lab: &Lab) {
    let counter = lab.at("count");
    let script = format!("while head -c 100000 /dev/zero; do echo >>{counter}; done");
    let mut child = lab.command("sh").args(["-c", &script]).spawn().await.unwrap();
    // The writer comes to a stop: what is kept for the reader is bounded.
    let count = || std::fs::metadata(&counter).map_or(0, |m| m.len());
    let mut last = u64::MAX;
    while last != count() {
        last = count();
        for _ in 0..20 {
            assert_eq!(lab.ssh("echo alive").await, "alive");
        }
        lab.ssh("sleep 0.3").await;
    }
    assert!(count() * 100_000 < 64_000_000, "{} bytes ahead", count() * 100_000);
    // And goes on when it is read.
    let mut some = vec![0; 8_000_000];
    child.stdout.as_mut().unwrap().read_exact(&mut some).await.unwrap();
    lab.until(|| (count() > last).then_some(())).await;
    let status = child.kill().await.unwrap();
    assert!(!status.success());
}

async fn null_streams_let_a_server_live(lab: &Lab) {
    let script = format!("sleep 60 & echo $! >{}", lab.at("pid"));
    let status = lab.command("sh").args(["-c", &script]).status().await.unwrap();
    assert!(status.success());
    assert!(lab.lives("pid"));
    lab.ssh(&format!("kill $(cat {})", lab.at("pid"))).await;
}

async fn a_terminal_or_an_error(lab: &Lab) {
    let terminal = Terminal { term: "dumb".to_owned(), columns: 90, rows: 30 };
    let mut command = lab.command("sh");
    command.args(["-c", "stty size; read line; stty size; echo \"$line $TERM\""]).tty(terminal);
    let mut child = match command.timeout(Duration::from_secs(20)).spawn().await {
        Ok(child) => child,
        // An sshd that does not run as root cannot give its terminals away, and hangs up.
        Err(_) if lab.target.user != "fleetbox" && !rustix::process::geteuid().is_root() => return,
        // The fake guest has none to give, and must say so.
        Err(e) => {
            assert!(lab.target.user == "fleetbox" && e.report().contains("terminal"), "{e:?}");
            return;
        }
    };
    assert!(child.stderr.is_none());
    let mut stdout = child.stdout.take().unwrap();
    let mut first = vec![0; b"30 90\r\n".len()];
    stdout.read_exact(&mut first).await.unwrap();
    assert_eq!(first, b"30 90\r\n");
    child.resize(120, 50);
    child.stdin.as_mut().unwrap().write_all(b"hi\n").await.unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("50 120") && rest.contains("hi dumb"), "{rest}");
    assert!(child.wait().await.unwrap().success());
}
