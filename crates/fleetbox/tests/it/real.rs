//! Real machines through the library: what takes several of them, or one that fails. What any one
//! machine does is in `conformance`.

use std::time::Duration;

use fleetbox::{Result, State, Vm};

use crate::require::can_boot;
use crate::unique;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_machines_start_at_once() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let part = unique("three");
    let starts: Vec<_> = ["a", "b", "c"]
        .map(|n| {
            Vm::builder(format!("{part}{n}"))
                .memory_mib(crate::MEMORY_MIB)
                .ephemeral(true)
                .warm(true)
                .start()
        })
        .into_iter()
        .map(tokio::spawn)
        .collect();
    let mut vms = Vec::new();
    for start in starts {
        vms.push(start.await.unwrap()?);
    }
    for vm in &vms {
        assert_eq!(vm.ssh("hostname").await?, vm.name());
        assert_eq!(vm.state().await?, State::Running);
    }
    for vm in vms {
        vm.destroy().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_that_never_comes_up_is_explained() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    // Long enough for some lines of the kernel's, far too short for sshd.
    let kvm = fleetbox::host::check()
        .await
        .iter()
        .any(|check| check.name == "kvm" && check.verdict == fleetbox::host::Verdict::Good);
    let limit = Duration::from_secs(if kvm { 1 } else { 12 });
    let name = unique("late");
    let outcome = Vm::builder(&name).memory_mib(512).timeout(limit).start().await;
    let error = outcome.expect_err("so little time must not be enough");
    assert_eq!(error.kind(), fleetbox::ErrorKind::BootFailed);
    let report = error.report();
    assert!(
        report.contains(&format!("within {} s; it had reached the stage ", limit.as_secs())),
        "{report}"
    );
    let (_, console) = report.split_once("the console's last lines:\n").expect("the console");
    assert!(console.lines().count() > 2, "{report}");
    assert!(report.contains("hint: "), "{report}");
    let vm = Vm::find(&name)?;
    assert_eq!(vm.state().await?, State::Stopped, "nothing runs on");
    vm.destroy().await
}
