//! Hosts that lack something: the right code, and a hint that names the fix.

use std::process::Command;

use crate::home::Home;
use crate::process::{FLEETBOX, Ran, has_tool, is_root, possible};

const UP_FAKE: [&str; 4] = ["up", "web", "--backend", "fake"];

fn with(home: &Home, name: &str, value: impl AsRef<std::ffi::OsStr>, words: &[&str]) -> Ran {
    home.command(words).env(name, value).output().unwrap().into()
}

#[test]
fn a_state_root_that_cannot_be_is_refused() {
    let home = Home::new();
    let long = home.path().join("x".repeat(110));
    with(&home, "FLEETBOX_HOME", &long, &UP_FAKE).refused(3, &["too long", "FLEETBOX_HOME"]);
    assert!(!long.exists());
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    for below in [file.clone(), file.join("below")] {
        for words in [&UP_FAKE[..], &["image", "pull", "debian-12"]] {
            let ran = with(&home, "FLEETBOX_HOME", &below, words);
            ran.refused(3, &["FLEETBOX_HOME", below.to_str().unwrap()]);
        }
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"");
    home.assert_untouched();
}

#[test]
fn a_state_root_that_is_read_only_is_refused() {
    if !is_root() || !has_tool("unshare") {
        eprintln!("skipped: only root can mount");
        return;
    }
    let home = Home::new();
    let mount = "mount --bind \"$FLEETBOX_HOME\" \"$FLEETBOX_HOME\" && \
                 mount -o remount,ro,bind \"$FLEETBOX_HOME\"";
    let Some(mut command) = in_mounts(&home, mount) else { return };
    Ran::from(command.args(UP_FAKE).output().unwrap()).refused(3, &["FLEETBOX_HOME"]);
    // Also when its directories are there already.
    home.ok(["image", "ls"]);
    std::fs::create_dir_all(home.cluster("web")).unwrap();
    std::fs::create_dir_all(home.path().join("keys")).unwrap();
    let mut command = in_mounts(&home, mount).unwrap();
    Ran::from(command.args(UP_FAKE).output().unwrap()).refused(3, &["FLEETBOX_HOME"]);
    std::fs::remove_dir(home.cluster("web")).unwrap();
}

/// The command in a mount namespace of its own, where `prepare` is done first.
fn in_mounts(home: &Home, prepare: &str) -> Option<Command> {
    let build = |last: &str| {
        let mut command = home.program("unshare");
        command.args(["-m", "sh", "-c", &format!("{prepare} && {last}"), FLEETBOX]);
        command
    };
    possible("mounting", &mut build("true")).then(|| build("exec \"$0\" \"$@\""))
}

#[test]
fn a_full_disk_is_told_and_nothing_half_made_stays() {
    if !is_root() || !has_tool("unshare") {
        eprintln!("skipped: only root can mount");
        return;
    }
    let home = Home::new();
    let source = tempfile::tempdir().unwrap();
    let image = source.path().join("big.raw");
    let noise: Vec<u8> = (0..2_000_000_u64)
        .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect();
    std::fs::write(&image, noise).unwrap();
    let try_in = |size: &str, words: &[&str]| -> Option<Ran> {
        let mount = format!("mount -t tmpfs -o size={size},mode=700 none \"$FLEETBOX_HOME\"");
        in_mounts(&home, &mount)?;
        let script = format!(
            "{mount} && {{ \"$0\" \"$@\"; code=$?; find \"$FLEETBOX_HOME\" -type f; exit $code; }}"
        );
        let mut command = home.program("unshare");
        command.args(["-m", "sh", "-c", &script, FLEETBOX]).args(words);
        Some(command.output().unwrap().into())
    };
    let Some(ran) = try_in("1m", &["image", "import", image.to_str().unwrap(), "big"]) else {
        return;
    };
    let left: Vec<&str> = ran.stdout.lines().filter(|file| !file.contains(".lock")).collect();
    assert!(left.is_empty(), "{left:?}");
    ran.refused(3, &["No space left", "fleetbox image rm"]);

    #[cfg(feature = "unstable-fake")]
    {
        let ran = try_in("60k", &UP_FAKE).unwrap();
        let left: Vec<&str> = ran.stdout.lines().filter(|file| !file.contains("/keys/")).collect();
        assert!(left.is_empty(), "{left:?}");
        ran.refused(3, &["No space left"]);
    }
}

#[cfg(feature = "unstable-fake")]
#[test]
fn a_holder_that_is_none_is_refused_at_once() {
    let home = Home::new();
    let began = std::time::Instant::now();
    let holder = |path: &str, code: i32, words: &[&str]| {
        with(&home, "FLEETBOX_HOLDER", path, &UP_FAKE).refused(code, words);
        home.assert_untouched();
    };
    holder("/no/such/file", 2, &["FLEETBOX_HOLDER=/no/such/file"]);
    holder("/bin", 2, &["FLEETBOX_HOLDER=/bin"]);
    holder("/bin/true", 3, &["/bin/true", "FLEETBOX_HOLDER"]);
    holder("/bin/false", 3, &["/bin/false", "FLEETBOX_HOLDER"]);
    holder("/etc/passwd", 3, &["/etc/passwd", "FLEETBOX_HOLDER"]);
    assert!(began.elapsed().as_secs() < 20);
    // This command itself is one.
    with(&home, "FLEETBOX_HOLDER", FLEETBOX, &UP_FAKE).ok();
    assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
}

#[test]
fn a_stray_token_does_not_make_a_holder_of_a_command() {
    let home = Home::new();
    for token in ["x", &"0".repeat(32)] {
        let ran = with(&home, "FLEETBOX_HOLDER_TOKEN", token, &["--version"]);
        assert!(ran.ok().starts_with("fleetbox "));
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let home = Home::new();
    with(&home, "FLEETBOX_BACKEND", "vmware", &["up", "web"]).refused(2, &["vmware"]);
    home.assert_untouched();
    #[cfg(feature = "unstable-fake")]
    {
        with(&home, "FLEETBOX_IP_WAIT_TIMEOUT", "soon", &UP_FAKE).refused(2, &["soon"]);
        with(&home, "FLEETBOX_IP_WAIT_TIMEOUT", "0", &UP_FAKE).refused(2, &["=0"]);
        home.assert_no_process_within(crate::home::GONE);
    }
}

#[test]
fn without_qemu_the_package_is_named() {
    let home = Home::new();
    let ran = with(&home, "PATH", "/no/such/directory", &["up", "web"]);
    ran.refused(3, &["qemu-system-", "apt-get install qemu-system-"]);
    home.assert_untouched();
    let ran = with(&home, "PATH", "/no/such/directory", &["doctor", "-o", "json"]);
    assert_eq!(ran.code, 3);
    let qemu = check(&ran, "qemu");
    assert_eq!(qemu["verdict"], "missing");
    assert!(qemu["fix"].as_str().unwrap().contains("apt-get install"), "{qemu}");
}

fn check(doctor: &Ran, name: &str) -> serde_json::Value {
    let checks: Vec<serde_json::Value> = serde_json::from_str(&doctor.stdout).unwrap();
    checks.into_iter().find(|check| check["name"] == name).unwrap()
}

#[test]
fn without_tun_the_module_is_named() {
    if !is_root() || !has_tool("unshare") {
        eprintln!("skipped: only root can hide /dev/net/tun");
        return;
    }
    let home = Home::new();
    let hide = "mount -t tmpfs none /dev/net";
    let Some(mut doctor) = in_mounts(&home, hide) else { return };
    let ran: Ran = doctor.args(["doctor", "-o", "json"]).output().unwrap().into();
    assert_eq!(ran.code, 3);
    let tun = check(&ran, "tun");
    assert_eq!(tun["verdict"], "missing");
    assert!(tun["fix"].as_str().unwrap().contains("modprobe tun"), "{tun}");

    // A start gets as far as the tap, if there is an image to start.
    let Some(image) = crate::real::image() else { return };
    let mut up = in_mounts(&home, hide).unwrap();
    up.args(["up", "web", "--memory", "512", "--image"]).arg(image);
    Ran::from(up.output().unwrap()).refused(3, &["/dev/net/tun", "modprobe tun"]);
    home.assert_untouched();
}

#[cfg(feature = "unstable-fake")]
#[test]
fn without_namespaces_the_setting_is_named() {
    if !has_tool("unshare") {
        return;
    }
    let home = Home::new();
    // In a user namespace of the test's own, where limits can be set without harm to the host.
    let cases: [(&str, &[&str], &str); 2] = [
        // Root, who needs pid namespaces only.
        ("echo 0 >/proc/sys/user/max_pid_namespaces", &[], "sysctl user.max_pid_namespaces"),
        // An ordinary user, who needs one of users; the one that makes them so is counted, too.
        (
            "echo 1 >/proc/sys/user/max_user_namespaces",
            &["unshare", "-U", "--map-user=1000", "--map-group=1000"],
            "sysctl user.max_user_namespaces",
        ),
    ];
    for (limit, prefix, hint) in cases {
        let build = |words: &[&str]| {
            let mut command = home.program("unshare");
            let script = format!("{limit} && exec \"$@\"");
            command.args(["-Ur", "sh", "-c", &script, "sh"]).args(prefix).args(words);
            command
        };
        if !possible("a user namespace", &mut build(&["true"])) {
            return;
        }
        let up: Vec<&str> = [FLEETBOX].into_iter().chain(UP_FAKE).collect();
        let said = Ran::from(build(&up).output().unwrap()).refused(3, &["namespace", hint]);
        assert!(!said.contains("storage") && !said.contains("space left"), "misleading: {said}");
        home.assert_untouched();
        let doctor: Ran = build(&[FLEETBOX, "doctor", "-o", "json"]).output().unwrap().into();
        let namespaces = check(&doctor, "namespaces");
        assert_eq!(namespaces["verdict"], "missing");
        assert!(namespaces["fix"].as_str().unwrap().contains(hint), "{namespaces}");
    }
}
