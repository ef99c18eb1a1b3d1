//! Bad input is refused with a kind and a hint before any work.

use std::time::Instant;

use fleetbox::{Arch, ErrorKind, Fault, Vm};

use crate::unique;

async fn refused(builder: fleetbox::VmBuilder) -> fleetbox::Error {
    let began = Instant::now();
    let error = builder.start().await.expect_err("bad input must be refused");
    assert!(error.hint_text().is_some(), "{error:?} lacks a hint");
    assert!(began.elapsed().as_secs() < 5, "work was done for nothing");
    error
}

#[tokio::test]
async fn names_a_host_cannot_have_are_refused() {
    for name in ["", "a/b", "..", "UPPER", "a b", "nul\0", "esc\u{1b}[2J", "-a", &"x".repeat(64)] {
        let error = refused(Vm::builder(name)).await;
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{name:?}");
        assert_eq!(error.kind().fault(), Fault::Request);
        assert!(!error.report().chars().any(|c| c.is_control() && c != '\n'));
    }
}

#[tokio::test]
async fn sizes_out_of_range_are_refused() {
    let name = unique("sizes");
    for builder in [
        Vm::builder(&name).cpus(0),
        Vm::builder(&name).cpus(1_000_000),
        Vm::builder(&name).memory_mib(0),
        Vm::builder(&name).memory_mib(u32::MAX),
        Vm::builder(&name).disk_gib(0),
        Vm::builder(&name).disk_gib(u32::MAX),
        // Nothing is left of its disk that could be durable.
    ] {
        assert_eq!(refused(builder).await.kind(), ErrorKind::InvalidSpec);
    }
    assert!(Vm::find(&name).is_err(), "something was made");
}

#[tokio::test]
async fn an_unknown_image_names_the_nearest() {
    let name = unique("image");
    let error = refused(Vm::builder(&name).image("debain-12")).await;
    assert_eq!(error.kind(), ErrorKind::UnknownImage);
    assert!(error.report().contains("debian-12"), "{}", error.report());
    assert!(Vm::find(&name).is_err(), "something was made");
}

#[tokio::test]
async fn missing_unreadable_and_damaged_images_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let missing = refused(Vm::builder(unique("image")).image(path("none.raw"))).await;
    assert_eq!(missing.kind(), ErrorKind::InvalidPath);

    std::fs::write(path("truncated.qcow2"), b"QFI\xfb\x00\x00\x00\x03").unwrap();
    let truncated = refused(Vm::builder(unique("image")).image(path("truncated.qcow2"))).await;
    assert_eq!(truncated.kind(), ErrorKind::ImageUnreadable);

    std::fs::write(path("zeros.raw"), vec![0; 1 << 20]).unwrap();
    let empty = refused(Vm::builder(unique("image")).image(path("zeros.raw"))).await;
    assert_eq!(empty.kind(), ErrorKind::ImageWithoutKernel);
}

#[test]
fn an_unknown_architecture_is_refused() {
    assert_eq!("riscv".parse::<Arch>().unwrap_err().kind(), ErrorKind::InvalidSpec);
}

#[test]
fn a_vm_that_is_not_there_is_not_found() {
    let error = Vm::find(&unique("nobody")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.hint_text().is_some());
}
