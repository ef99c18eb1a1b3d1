//! Bad input: refused with the right code, a hint and nothing half-made.

use std::path::Path;

use crate::home::Home;

#[test]
fn names_a_host_cannot_have_never_reach_the_terminal_raw() {
    let home = Home::new();
    let long = "x".repeat(64);
    for name in ["", "a/b", "..", ".", "UPPER", "a b", "a.b", "ü", "esc\u{1b}[2J", "a\nb", &long] {
        for words in [
            vec!["up", name, "--backend", "fake"],
            vec!["down", name],
            vec!["rm", "-f", name],
            vec!["logs", name],
            vec!["port", name, "7"],
            vec!["ssh-config", name],
        ] {
            home.run(&words).refused(2, &["the name "]);
        }
        home.run(["ssh", name, "--", "true"]).refused(255, &["the name "]);
    }
    // One that looks like a flag is usage.
    home.run(["up", "-a"]).fails(2, &["-a"]);
    home.assert_untouched();
}

#[test]
fn sizes_out_of_range_are_refused() {
    let home = Home::new();
    for (flag, value) in [
        ("--cpus", "0"),
        ("--cpus", "1000000"),
        ("--memory", "0"),
        ("--memory", "1"),
        ("--memory", "4294967295"),
        ("--disk", "0"),
        ("--disk", "4294967295"),
    ] {
        home.run(["up", "web", flag, value]).refused(2, &["out of range"]);
    }
    for (flag, value) in [("--cpus", "-1"), ("--memory", "99999999999G"), ("--disk", "1.5")] {
        home.run(["up", "web", &format!("{flag}={value}")]).fails(2, &[value]);
    }
    home.assert_untouched();
}

#[test]
fn control_bytes_in_any_argument_never_reach_the_terminal_raw() {
    let home = Home::new();
    let evil = "x\u{1b}[2J\u{7}\u{9b}31m";
    for words in [
        vec!["up", "web", "--image", evil],
        vec!["up", "web", "--image", "/no/\u{1b}[2J"],
        vec!["up", "web", "--image", "http://\u{1b}[2J"],
        vec!["image", "pull", evil],
        vec!["image", "rm", evil],
        vec!["image", "import", evil, "mine"],
        vec!["image", "build", evil],
        vec!["cp", evil, "/tmp"],
        vec!["up", evil],
        vec!["port", "web", "7", "--listen", "10.0.0.1:0"],
    ] {
        let ran = home.run(&words);
        assert_ne!(ran.code, 0, "{words:?}");
        let raw: Vec<char> = ran.stderr.chars().filter(|c| c.is_control() && *c != '\n').collect();
        assert!(raw.is_empty(), "{words:?} put {raw:?} out: {:?}", ran.stderr);
    }
    home.assert_untouched();
}

/// `up` with the real backend, which looks at the image; nothing of it may be left.
fn refused_image(home: &Home, image: &str, code: i32, words: &[&str]) {
    let began = std::time::Instant::now();
    home.run(["up", "web", "--image", image]).refused(code, words);
    assert!(began.elapsed().as_secs() < 20, "{image}: work was done for nothing");
    home.assert_untouched();
    assert!(home.rows().is_empty());
}

fn has_qemu() -> bool {
    crate::process::has_tool(&format!("qemu-system-{}", std::env::consts::ARCH))
}

#[test]
fn an_image_that_is_not_there_is_refused_with_the_nearest() {
    if !has_qemu() {
        return;
    }
    let home = Home::new();
    refused_image(&home, "debain-12", 2, &["debain-12", "did you mean debian-12"]);
    refused_image(&home, "zzzz", 2, &["zzzz"]);
    refused_image(&home, "  ", 2, &["empty"]);
    refused_image(&home, "/no/such/disk.raw", 2, &["/no/such/disk.raw"]);
    refused_image(&home, "./none.qcow2", 2, &["none.qcow2"]);
    refused_image(&home, home.path().to_str().unwrap(), 2, &["it is a directory"]);
    let ran = home
        .command(["up", "web", "--image", "ubuntu-24.04"])
        .env("FLEETBOX_OFFLINE", "1")
        .output();
    crate::process::Ran::from(ran.unwrap()).refused(3, &["FLEETBOX_OFFLINE"]);
    home.assert_untouched();
}

#[test]
fn damaged_and_hostile_images_are_told_apart() {
    if !has_qemu() {
        return;
    }
    let home = Home::new();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let unreadable = |name: &str, bytes: &[u8]| {
        refused_image(&home, &write(name, bytes), 3, &[name]);
    };
    unreadable("empty.raw", b"");
    unreadable("short.qcow2", b"QFI\xfb\x00\x00\x00\x03");
    unreadable("headed.qcow2", &header(1 << 30, 16, 1 << 16, 2));
    // A table of petabytes, an absurd cluster, a table outside the file, a backing file.
    unreadable("vast.qcow2", &header(u64::MAX, 16, 1 << 16, u32::MAX));
    unreadable("cluster.qcow2", &header(1 << 30, 63, 1 << 16, 2));
    unreadable("outside.qcow2", &header(1 << 30, 16, u64::MAX - 7, 2));
    let mut backed = header(1 << 30, 16, 1 << 16, 2);
    backed[8..16].copy_from_slice(&96_u64.to_be_bytes());
    backed[16..20].copy_from_slice(&11_u32.to_be_bytes());
    backed[96..107].copy_from_slice(b"/etc/passwd");
    unreadable("backed.qcow2", &backed);

    refused_image(&home, &write("zeros.raw", &vec![0; 1 << 20]), 4, &["zeros.raw", "kernel"]);
    refused_image(&home, &write("text.raw", &b"hello\n".repeat(1 << 16)), 4, &["text.raw"]);
}

/// The head of a version 3 file, padded to a few clusters.
fn header(size: u64, cluster_bits: u32, l1_offset: u64, l1_size: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &cluster_bits.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &l1_size.to_be_bytes());
    put(40, &l1_offset.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    bytes
}

#[test]
fn images_that_are_not_there_cannot_be_managed() {
    let home = Home::new();
    home.run(["image", "rm", "none"]).refused(1, &["none"]);
    home.run(["image", "import", "/no/such.raw", "mine"]).refused(2, &["/no/such.raw"]);
    home.run(["image", "build", "gentoo"]).refused(2, &["gentoo"]);
    home.run(["image", "pull", "ftp://example.org/x"]).refused(2, &["ftp"]);
    let ran = home.command(["image", "pull", "debian-13"]).env("FLEETBOX_OFFLINE", "1").output();
    crate::process::Ran::from(ran.unwrap()).refused(3, &["FLEETBOX_OFFLINE"]);
    let disk = home.path().join("disk.raw");
    std::fs::write(&disk, vec![0; 1 << 16]).unwrap();
    home.run(["image", "import", disk.to_str().unwrap(), "../x"]).refused(2, &["../x"]);
    assert!(!Path::new(&home.path().join("cache/x")).exists());
}
