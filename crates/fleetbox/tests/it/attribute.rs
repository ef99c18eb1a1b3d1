//! `#[fleetbox::test]` from the outside. Run with `FLEETBOX_BACKEND=fake` it needs no machine.

use fleetbox::{State, Vm};

#[fleetbox::test(memory_mib = 1024)]
async fn a_test_has_a_machine_of_its_own(vm: Vm) -> fleetbox::Result<()> {
    assert!(vm.name().starts_with("a-test-has-a-machine-of-its-own-t"));
    assert_eq!(vm.state().await?, State::Running);
    assert_eq!(vm.ssh("echo $((6 * 7))").await?, "42");
    let output = vm.command("hostname").run().await?;
    assert_eq!(output.stdout_text(), vm.name());
    Ok(())
}

/// Runs a body with a VM and tells whether the VM was gone afterwards, however the body ended.
#[cfg(feature = "unstable-fake")]
fn gone_after(body: impl AsyncFnOnce(Vm) + 'static) -> bool {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Arc, Mutex};
    let name = Arc::new(Mutex::new(String::new()));
    let seen = name.clone();
    let run = AssertUnwindSafe(|| {
        fleetbox::testing::run(
            "gone_after",
            |vm| vm.backend(fleetbox::Backend::Fake),
            async move |vm: Vm| {
                vm.name().clone_into(&mut seen.lock().unwrap());
                body(vm).await;
            },
        );
    });
    drop(catch_unwind(run));
    let name = name.lock().unwrap().clone();
    assert!(!name.is_empty(), "the body never ran");
    Vm::find(&name).is_err()
}

#[cfg(feature = "unstable-fake")]
#[test]
fn the_machine_is_destroyed_after_success_and_after_a_panic() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static RAN: AtomicBool = AtomicBool::new(false);
    assert!(gone_after(async |_| RAN.store(true, Ordering::Relaxed)));
    assert!(RAN.load(Ordering::Relaxed));
    assert!(gone_after(async |_| panic!("on purpose")));
}

#[cfg(feature = "unstable-fake")]
#[test]
fn an_error_of_the_body_is_the_tests_result() {
    let outcome: Result<(), String> = fleetbox::testing::run(
        "an_error",
        |vm| vm.backend(fleetbox::Backend::Fake),
        async |_| Err("on purpose".to_owned()),
    );
    assert_eq!(outcome, Err("on purpose".to_owned()));
}
