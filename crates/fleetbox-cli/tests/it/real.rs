//! A real machine by the command, as an ordinary user, whose holder is killed meanwhile.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;

use crate::home::GONE;
use crate::process::{self, FLEETBOX, Ran, has_tool, is_root, until};

/// An account without rights that every Linux has.
const NOBODY: u32 = 65534;

/// The disk of debian-12 in this user's own state root, if it is there. Where QEMU is required it
/// must be.
pub(crate) fn image() -> Option<PathBuf> {
    let required = fleetbox::testing::required(fleetbox::Backend::Qemu).unwrap();
    let ran: Ran =
        Command::new(FLEETBOX).args(["image", "ls", "-o", "json"]).output().unwrap().into();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&ran.ok()).unwrap();
    let found = rows.iter().find(|row| row["reference"] == "debian-12" && row["path"].is_string());
    let path = found.map(|row| PathBuf::from(row["path"].as_str().unwrap()));
    assert!(path.is_some() || !required, "QEMU is required, but debian-12 is not here: {rows:?}");
    if path.is_none() {
        eprintln!("skipped: debian-12 is not here; `fleetbox image build debian-12` makes it");
    }
    path
}

fn interfaces() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/sys/class/net").unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A state root of an ordinary user, and the command as that user runs it.
struct Account {
    dir: tempfile::TempDir,
    /// Whom to become; absent where the tests are run by an ordinary user.
    uid: Option<u32>,
    image: PathBuf,
}

impl Account {
    fn new(image: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("fbt").tempdir_in("/tmp").unwrap();
        let uid = is_root().then_some(NOBODY);
        let mut account = Self { dir, uid, image: image.to_owned() };
        if let Some(uid) = uid {
            // What root built lies where nobody else may look.
            std::fs::set_permissions(account.dir.path(), std::fs::Permissions::from_mode(0o755))
                .unwrap();
            std::fs::copy(FLEETBOX, account.program()).unwrap();
            std::fs::create_dir(account.home()).unwrap();
            chown(account.home(), Some(uid), Some(uid)).unwrap();
            let copy = account.dir.path().join("debian.raw");
            let mut cp = Command::new("cp");
            cp.args(["--sparse=always", "--reflink=auto"]).arg(image).arg(&copy);
            Ran::from(cp.output().unwrap()).ok();
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644)).unwrap();
            account.image = copy;
        }
        account
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("h")
    }

    fn program(&self) -> PathBuf {
        match self.uid {
            Some(_) => self.dir.path().join("fleetbox"),
            None => FLEETBOX.into(),
        }
    }

    /// Any program as this user, with nothing of the caller's environment.
    fn run(&self, program: impl AsRef<std::ffi::OsStr>, words: &[&str]) -> Ran {
        let mut command = Command::new(program);
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("FLEETBOX_HOME", self.home()).env("HOME", self.home()).current_dir("/");
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        let began = Instant::now();
        let ran: Ran = command.stdin(std::process::Stdio::null()).output().unwrap().into();
        eprintln!("{words:?}: {:.1} s", began.elapsed().as_secs_f64());
        ran
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        self.run(self.program(), words).ok()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // After a failure; without one there is nothing left to remove.
        drop(self.run(self.program(), &["rm", "-f", "web"]));
    }
}

/// Whether an account can open the device a tap is made with.
fn can_open_tun(uid: Option<u32>) -> bool {
    let mut sh = Command::new("sh");
    sh.args(["-c", "exec 3<>/dev/net/tun"]);
    if let Some(uid) = uid {
        sh.uid(uid).gid(uid);
    }
    sh.output().unwrap().status.success()
}

#[test]
fn an_ordinary_user_boots_works_loses_the_holder_boots_again_and_leaves_nothing() {
    let Some(image) = image() else { return };
    let required = fleetbox::testing::required(fleetbox::Backend::Qemu).unwrap();
    if !can_open_tun(is_root().then_some(NOBODY)) {
        assert!(!required, "an ordinary user cannot open /dev/net/tun; `fleetbox doctor` tells");
        eprintln!("skipped: an ordinary user cannot open /dev/net/tun");
        return;
    }
    let before = interfaces();
    let user = Account::new(&image);
    let image = user.image.to_str().unwrap();
    let printed = user.ok(&["up", "web", "--image", image, "--memory", "1024"]);
    assert!(printed.starts_with("web running "), "{printed}");
    assert_eq!(interfaces(), before, "the host's network was touched");
    let uname = user.ok(&["ssh", "web", "--", "uname", "-a"]);
    assert!(uname.starts_with("Linux web "), "{uname}");
    let state = user.ok(&["ssh", "web", "--", "systemctl", "is-system-running", "--wait"]);
    assert_eq!(state, "running\n");

    let file = user.home().join("file");
    let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&file, &content).unwrap();
    user.ok(&["cp", file.to_str().unwrap(), "web:/var/tmp/"]);
    let back = user.home().join("back");
    user.ok(&["cp", "web:/var/tmp/file", back.to_str().unwrap()]);
    assert_eq!(std::fs::read(&back).unwrap(), content);

    let known_hosts = user.home().join("clusters/web/web/known_hosts");
    let key = std::fs::read(&known_hosts).unwrap();
    user.ok(&["ssh", "web", "--", "sync"]);
    kill_holder(&user);
    assert_eq!(user.ok(&["up", "web"]), printed, "the same address");
    assert_eq!(std::fs::read(&known_hosts).unwrap(), key);
    user.ok(&["ssh", "web", "--", "test $(stat -c %s /var/tmp/file) = 2000000"]);
    let state = user.ok(&["ssh", "web", "--", "systemctl", "is-system-running", "--wait"]);
    assert_eq!(state, "running\n", "its disk was damaged");
    if has_tool("ssh") {
        strict_client_gets_in(&user);
    }

    user.ok(&["down", "web"]);
    no_process(&user.home());
    user.ok(&["rm", "-f", "web"]);
    no_process(&user.home());
    until("the removal of the cluster", GONE, || {
        std::fs::read_dir(user.home().join("clusters")).unwrap().next().is_none()
    });
    assert_eq!(interfaces(), before);
    assert_eq!(user.ok(&["ls", "-q"]), "");
}

/// The machine ends with it.
fn kill_holder(user: &Account) {
    let socket = user.home().join("clusters/web/holder.sock");
    let holder = {
        let stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let peer = rustix::net::sockopt::socket_peercred(&stream).unwrap();
        peer.pid.as_raw_nonzero().get().cast_unsigned()
    };
    let all = process::with_text(&user.home()).into_iter();
    let monitors: Vec<u32> = all.filter(|pid| process::parent(*pid) == holder).collect();
    assert!(process::describe(&monitors).contains("qemu-system-"), "{monitors:?}");

    process::signal(holder, Signal::KILL);
    no_process(&user.home());
    assert!(!socket.exists());
    let rows: serde_json::Value = serde_json::from_str(&user.ok(&["ls", "-o", "json"])).unwrap();
    assert_eq!(rows[0]["state"], "stopped", "{rows}");
}

/// OpenSSH, told to accept the pinned key only.
fn strict_client_gets_in(user: &Account) {
    let config = user.ok(&["ssh-config", "web"]);
    assert!(config.contains("StrictHostKeyChecking yes"));
    let file = user.home().join("ssh_config");
    std::fs::write(&file, config).unwrap();
    let file = file.to_str().unwrap();
    let ran = user.run("ssh", &["-F", file, "-o", "BatchMode=yes", "web", "hostname"]);
    assert_eq!(ran.ok(), "web\n");
}

#[track_caller]
fn no_process(home: &Path) {
    let began = Instant::now();
    until(&format!("no process of {}", home.display()), GONE, || {
        let left = process::with_text(home);
        if !left.is_empty() && began.elapsed() > GONE / 2 {
            eprintln!("left: {}", process::describe(&left));
        }
        left.is_empty()
    });
}
