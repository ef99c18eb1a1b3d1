//! Owns the tests of connecting: who is trusted, what is lost, what is made anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::lab::Lab;
use crate::ErrorKind;
use crate::ssh::keys::KeyPair;
use crate::ssh::{Session, Stdio, Target};

const ATTEMPT: Duration = Duration::from_secs(10);

super::scenarios!(
    another_host_key_is_refused,
    another_client_key_is_refused,
    one_connection_serves_all,
    a_lost_connection_is_replaced,
    a_command_cut_off_is_an_error_and_not_run_again,
    reset_cuts_off_and_connects_anew,
    a_closed_session_stays_closed,
);

async fn another_host_key_is_refused(lab: &Lab) {
    let host_key = KeyPair::generate("other").unwrap().public_openssh();
    let session = Session::new(Target { host_key, ..lab.target.clone() });
    let error = session.try_connect(ATTEMPT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostKeyMismatch);
    assert_eq!(error.vm_name(), Some("web"));
    assert!(error.hint_text().is_some() && error.report().contains("SHA256:"));
}

async fn another_client_key_is_refused(lab: &Lab) {
    let client_key = Arc::new(KeyPair::generate("other").unwrap());
    let session = Session::new(Target { client_key, ..lab.target.clone() });
    let error = session.try_connect(ATTEMPT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Authentication);
    // The right key is let in afterwards.
    lab.session.try_connect(ATTEMPT).await.unwrap();
}

async fn one_connection_serves_all(lab: &Lab) {
    lab.session.connect().await.unwrap();
    lab.session.clone().try_connect(ATTEMPT).await.unwrap();
    for _ in 0..5 {
        lab.ssh("true").await;
    }
    assert_eq!(lab.connections(), 1);
    // A stream has a connection of its own: the shared one, as nobody uses it.
    for _ in 0..3 {
        let child = lab.command("true").spawn().await.unwrap();
        child.wait_with_output().await.unwrap();
        lab.ssh("true").await;
    }
    assert_eq!(lab.connections(), 1);
    let child = lab.command("cat").stdin(Stdio::Piped).spawn().await.unwrap();
    lab.ssh("true").await;
    assert_eq!(lab.connections(), 2);
    child.wait_with_output().await.unwrap();
}

async fn a_lost_connection_is_replaced(lab: &Lab) {
    lab.ssh("true").await;
    let child = lab.command("true").spawn().await.unwrap();
    child.wait_with_output().await.unwrap();
    lab.cut();
    assert_eq!(lab.ssh("echo again").await, "again");
    let child = lab.command("true").spawn().await.unwrap();
    assert!(child.wait_with_output().await.unwrap().status.success());
}

async fn a_command_cut_off_is_an_error_and_not_run_again(lab: &Lab) {
    let script = format!("echo $$ >>{}; exec sleep 100", lab.at("pid"));
    let mut command = lab.command("sh");
    command.args(["-c", &script]);
    let running = tokio::spawn(async move { command.output().await });
    let pid = lab.written("pid").await;
    lab.cut();
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    lab.ssh("true").await;
    assert_eq!(std::fs::read_to_string(lab.path("pid")).unwrap(), pid);
    lab.ssh(&format!("kill {} || true", pid.trim())).await;

    let mut child = lab.shell("echo x; sleep 10").spawn().await.unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 2]).await.unwrap();
    lab.cut();
    let error = stdout.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(child.wait().await.unwrap_err().kind(), ErrorKind::ConnectionLost);
}

async fn reset_cuts_off_and_connects_anew(lab: &Lab) {
    let mut command = lab.shell(&format!("echo up >{}; sleep 10", lab.at("up")));
    let running = tokio::spawn(async move { command.output().await });
    let child = lab.command("sleep").arg("10").spawn().await;
    lab.written("up").await;
    lab.session.reset();
    assert_eq!(running.await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionLost);
    let error = child.unwrap().wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    assert_eq!(lab.ssh("echo new").await, "new");
}

async fn a_closed_session_stays_closed(lab: &Lab) {
    lab.ssh("true").await;
    lab.session.close();
    let error = lab.command("true").output().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotRunning);
}

/// A guest that is not there yet, in the ways one is while it boots.
#[tokio::test]
async fn attempts_that_may_pass_with_time() {
    let lab = Lab::fake().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dial: crate::ssh::Dial = Arc::new(move |_| {
        Box::pin(async move { Ok(tokio::net::TcpStream::connect(address).await.unwrap()) })
    });
    let session = Session::new(Target { dial, ..lab.target.clone() });
    let silent = session.try_connect(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(silent.kind(), ErrorKind::TimedOut);
    let hang_up = async {
        loop {
            drop(listener.accept().await.unwrap());
        }
    };
    let error = tokio::select! {
        result = session.try_connect(ATTEMPT) => result.unwrap_err(),
        () = hang_up => unreachable!(),
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
}
