//! What root makes in a user's state root under sudo, and whether the user can go on with it.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::home::{GONE, Home};
use crate::process::{FLEETBOX, Ran, has_tool, is_root, possible};

/// Nobody on this host; a user needs no name.
const USER: u32 = 54_321;

fn below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            below(&entry.path(), found);
        }
        found.push(entry.path());
    }
}

/// Files and directories that are not the user's; a holder's socket is for the holder's user.
fn not_theirs(home: &Home) -> Vec<PathBuf> {
    let mut found = Vec::new();
    below(home.path(), &mut found);
    assert!(found.len() > 8, "{found:?}");
    found.retain(|path| {
        let metadata = path.symlink_metadata().unwrap();
        !metadata.file_type().is_socket() && (metadata.uid(), metadata.gid()) != (USER, USER)
    });
    found
}

#[test]
fn what_is_made_under_sudo_is_the_invoking_users() {
    if !is_root() {
        eprintln!("skipped: only root can be sudo");
        return;
    }
    let home = Home::new();
    chown(home.path(), Some(USER), Some(USER)).unwrap();
    let sudo = |words: &[&str]| -> Ran {
        home.command(words).env("SUDO_UID", USER.to_string()).output().unwrap().into()
    };
    sudo(&["up", "web", "--backend", "fake"]).ok();
    assert_eq!(not_theirs(&home), Vec::<PathBuf>::new());
    // Root itself is not hindered.
    sudo(&["down", "web"]).ok();
    sudo(&["up", "web"]).ok();
    sudo(&["down", "web"]).ok();
    home.assert_no_process_within(GONE);
    assert_eq!(not_theirs(&home), Vec::<PathBuf>::new());

    // Where the user may enter.
    let place = tempfile::Builder::new().prefix("fbt").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let fleetbox = place.path().join("fleetbox");
    std::fs::copy(FLEETBOX, &fleetbox).unwrap();
    let as_user = |mut command: Command| {
        command.uid(USER).gid(USER).current_dir("/");
        command
    };
    let user = |words: &[&str]| -> Ran {
        let mut command = as_user(home.program(&fleetbox));
        command.args(words).output().unwrap().into()
    };
    assert_eq!(user(&["ls", "-q"]).ok(), "web\n");
    let mut namespace = as_user(home.program("unshare"));
    if has_tool("unshare") && possible("a user namespace", namespace.args(["-Ur", "true"])) {
        user(&["up", "web"]).ok();
        assert_eq!(user(&["ssh", "web", "--", "hostname"]).ok(), "web\n");
    }
    user(&["rm", "-f", "web"]).ok();
    home.assert_untouched();
}

#[test]
fn a_place_that_is_not_the_invoking_users_stays_roots() {
    if !is_root() {
        eprintln!("skipped: only root can be sudo");
        return;
    }
    let home = Home::new();
    let mut up = home.command(["up", "web", "--backend", "fake"]);
    Ran::from(up.env("SUDO_UID", USER.to_string()).output().unwrap()).ok();
    let mut found = Vec::new();
    below(home.path(), &mut found);
    assert!(found.iter().all(|path| path.symlink_metadata().unwrap().uid() == 0));
}
