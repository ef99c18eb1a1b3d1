//! Owns the tests of ending commands before they end themselves.

use std::time::{Duration, Instant};

use super::lab::Lab;
use crate::ErrorKind;

super::scenarios!(
    a_timeout_ends_the_command,
    a_dropped_future_ends_the_command,
    a_dropped_child_ends_the_command,
    pipes_and_background_jobs_end,
    what_ignores_term_is_killed,
    what_sudo_runs_ends,
    kill_returns_when_it_is_gone,
    a_blocked_reader_does_not_stop_the_end,
    every_place_taken_does_not_stop_the_end,
    a_finished_command_is_left_alone,
);

async fn a_timeout_ends_the_command(lab: &Lab) {
    let script = format!("echo $$ >{}; exec sleep 100", lab.at("pid"));
    let mut command = lab.command("sh");
    let error = command
        .args(["-c", &script])
        .timeout(Duration::from_millis(700))
        .output()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.report().contains("700ms"));
    assert!(!lab.lives("pid"));
}

async fn a_dropped_future_ends_the_command(lab: &Lab) {
    let mut command = lab.shell(&format!("echo $$ >{}; sleep 100; true", lab.at("pid")));
    let running = tokio::spawn(async move { command.output().await });
    lab.written("pid").await;
    running.abort();
    lab.gone("pid").await;
    assert_eq!(lab.ssh("echo on").await, "on");
}

async fn a_dropped_child_ends_the_command(lab: &Lab) {
    let script = format!("echo $$ >{}; exec sleep 100", lab.at("pid"));
    let child = lab.command("sh").args(["-c", &script]).spawn().await.unwrap();
    lab.written("pid").await;
    drop(child);
    lab.gone("pid").await;
}

async fn pipes_and_background_jobs_end(lab: &Lab) {
    let text = format!(
        "sleep 101 & echo $! >{}; (setsid sh -c 'echo $$ >{}; exec sleep 102' &); yes | cat >/dev/null",
        lab.at("job"),
        lab.at("daemon")
    );
    let error = lab.shell(&text).timeout(Duration::from_secs(1)).output().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(!lab.lives("job"));
    assert!(!lab.lives("daemon"));
}

async fn what_ignores_term_is_killed(lab: &Lab) {
    let script = format!("trap '' TERM; echo $$ >{}; while :; do sleep 0.1; done", lab.at("pid"));
    let mut command = lab.command("sh");
    let before = Instant::now();
    command.args(["-c", &script]).timeout(Duration::from_millis(600));
    assert_eq!(command.output().await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(!lab.lives("pid"));
    assert!(before.elapsed() > Duration::from_secs(2), "no grace was given");
}

async fn what_sudo_runs_ends(lab: &Lab) {
    if !lab.shell("sudo -n true").status().await.unwrap().success() {
        return;
    }
    let script = format!("echo $$ >{}; exec sleep 100", lab.at("direct"));
    let mut command = lab.command("sh");
    command.args(["-c", &script]).sudo().timeout(Duration::from_secs(1));
    assert_eq!(command.output().await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(!lab.lives("direct"));
    for (file, tail) in [("inner", ""), ("piped", " | cat; true")] {
        let text = format!("sudo -n sh -c 'echo $$ >{}; exec sleep 100'{tail}", lab.at(file));
        let mut command = lab.shell(&text);
        command.timeout(Duration::from_secs(1));
        assert_eq!(command.output().await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(!lab.lives(file), "{file}");
    }
}

async fn kill_returns_when_it_is_gone(lab: &Lab) {
    let script = format!("trap '' TERM; echo $$ >{}; exec sleep 100", lab.at("pid"));
    let mut child = lab.command("sh").args(["-c", &script]).spawn().await.unwrap();
    lab.written("pid").await;
    let status = child.kill().await.unwrap();
    assert_eq!(status.signal(), Some("KILL"));
    assert!(!lab.lives("pid"));
}

async fn a_blocked_reader_does_not_stop_the_end(lab: &Lab) {
    let script = format!("echo $$ >{}; exec yes", lab.at("pid"));
    let child = lab.command("sh").args(["-c", &script]).spawn().await.unwrap();
    lab.written("pid").await;
    drop(child);
    lab.gone("pid").await;
}

async fn every_place_taken_does_not_stop_the_end(lab: &Lab) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..36 {
        let mut command =
            lab.shell(&format!("echo $$ >{}; sleep 100; true", lab.at(&n.to_string())));
        command.timeout(Duration::from_secs(4));
        tasks.spawn(async move { command.output().await.unwrap_err().kind() });
    }
    let kinds = tasks.join_all().await;
    assert!(kinds.iter().all(|kind| *kind == ErrorKind::TimedOut));
    for n in 0..36 {
        let name = n.to_string();
        // Four never had a place.
        assert!(!lab.path(&name).exists() || !lab.lives(&name));
    }
}

async fn a_finished_command_is_left_alone(lab: &Lab) {
    let script = format!("sleep 60 >/dev/null 2>&1 & echo $! >{}", lab.at("pid"));
    let mut child = lab.shell(&script).spawn().await.unwrap();
    assert!(child.wait().await.unwrap().success());
    drop(child);
    // Whatever dropping it may have set off has been done after this.
    for _ in 0..3 {
        lab.ssh("true").await;
    }
    assert!(lab.lives("pid"));
    lab.ssh(&format!("kill $(cat {})", lab.at("pid"))).await;
}
