//! Waiting for conditions: over the fake what is seen from outside, in a real guest every word there is.

use std::time::{Duration, Instant};

use fleetbox::wait::{
    all, any, boot_finished, command, console, file, http, journal, port, socket, unit,
};
use fleetbox::{Error, ErrorKind, Result, Vm};

use crate::require::can_boot;
use crate::unique;

#[cfg(feature = "unstable-fake")]
const SOON: Duration = Duration::from_millis(300);

async fn start(part: &str) -> Result<Vm> {
    Vm::builder(unique(part)).memory_mib(crate::MEMORY_MIB).ephemeral(true).warm(true).start().await
}

fn late(error: &Error) -> String {
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error:?}");
    assert!(error.hint_text().is_some());
    error.report()
}

#[cfg(feature = "unstable-fake")]
#[tokio::test]
async fn a_wait_says_what_it_saw_last() -> Result<()> {
    use std::io::Write;
    let fake = Vm::builder(unique("waits")).backend(fleetbox::Backend::Fake).ephemeral(true);
    let vm = fake.start().await?;
    let refused = vm.wait(port(9)).within(SOON).await.unwrap_err();
    assert!(late(&refused).contains("wait for port 9: not within 300ms"), "{refused:?}");
    assert!(late(&refused).contains("seen last: "), "{refused:?}");
    let failed = vm.wait(command("echo almost; exit 3").succeeds()).within(SOON).await;
    let failed = late(&failed.unwrap_err());
    assert!(failed.contains("exit code 3") && failed.contains("almost"), "{failed}");
    let missing = vm.wait(file("/no/such/file")).within(SOON).await.unwrap_err();
    assert!(late(&missing).contains("it is not there"), "{missing:?}");
    let none = vm.wait(any([file("/no/such"), port(9)])).within(Duration::from_secs(2)).await;
    let none = late(&none.unwrap_err());
    assert!(none.contains("file /no/such or port 9"), "{none}");
    assert!(none.contains("port 9: "), "{none}");

    let path = vm.console_path();
    let written = std::thread::spawn(move || {
        let mut console = std::fs::File::options().append(true).open(path).unwrap();
        write!(console, "web login").unwrap();
        write!(console, ": ").unwrap();
    });
    vm.wait(console("^web login: $")?).await?;
    written.join().unwrap();
    let touch = "(timeout 0.3 tail -f /dev/null; touch ~/there) >/dev/null 2>&1 &";
    vm.ssh(touch).await?;
    vm.wait(all([command("test -e ~/there").succeeds(), file("/dev/null")])).await?;
    vm.ssh("echo 'web[1]: ready' >> ~/journal").await?;
    vm.wait(journal("ready$")?).await?;
    vm.destroy().await?;
    let gone = vm.wait(port(22)).await.unwrap_err();
    assert_ne!(gone.kind(), ErrorKind::TimedOut, "{gone:?}");
    Ok(())
}

#[tokio::test]
async fn every_condition_comes_true_in_a_real_guest() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let vm = start("waits").await?;
    vm.wait(boot_finished()).await?;
    let server = "mkdir -p /tmp/www && echo ok > /tmp/www/health && \
        sudo systemd-run -q --unit web --no-block -p WorkingDirectory=/tmp/www python3 -m http.server 8080";
    vm.ssh(server).await?;
    vm.wait(unit("web").active()).await?;
    vm.wait(all([port(8080), http(8080, "/health").into(), http(8080, "/no").status(404).into()]))
        .await?;
    let listen = "systemd-socket-activate -l /run/web.socket cat";
    vm.ssh(&format!("sudo systemd-run -q --unit listen {listen}")).await?;
    vm.wait(socket("/run/web.socket")).await?;
    vm.ssh("(sleep 1; touch /tmp/there) >/dev/null 2>&1 &").await?;
    vm.wait(file("/tmp/there")).await?;
    vm.ssh("(sleep 1; logger -t web 'ready to go') >/dev/null 2>&1 &").await?;
    vm.wait(journal("web.*ready to go")?).await?;
    vm.ssh("(sleep 1; echo from the guest | sudo tee /dev/console) >/dev/null 2>&1 &").await?;
    vm.wait(console("^from the guest")?).await?;
    vm.ssh("sudo systemctl stop web").await?;
    vm.wait(unit("web").inactive()).await?;
    vm.wait(any([port(8080), command("true").succeeds()])).await?;

    let absent = vm.wait(unit("absent").active()).within(Duration::from_secs(7)).await;
    let absent = late(&absent.unwrap_err());
    assert!(absent.contains("LoadState=not-found"), "{absent}");
    vm.destroy().await
}

#[tokio::test]
async fn a_unit_that_failed_ends_the_wait_at_once() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let vm = start("failed").await?;
    vm.ssh("sudo systemd-run -q --unit broken sh -c 'echo no such luck; exit 7'").await?;
    let began = Instant::now();
    let error = vm.wait(unit("broken").active()).within(Duration::from_mins(5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WaitFailed, "{error:?}");
    assert!(began.elapsed() < Duration::from_mins(2));
    let report = error.report();
    for expected in ["unit broken active", "no such luck", "journalctl -u broken"] {
        assert!(report.contains(expected), "no {expected} in {report}");
    }
    vm.destroy().await
}
