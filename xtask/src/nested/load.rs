//! Owns what is taken into the machine, as a directory: stripped executables and the guests' image.
//! Every byte passes an emulated cipher on its way, so it must hold nothing that is not needed.

use std::path::{Path, PathBuf};

use fleetbox::{Arch, Progress};

use super::Clock;
use super::cargo::Built;
use crate::failure::{Failure, Outcome};
use crate::process;

/// The image of the machine's own guests, which tests take by default.
pub(super) const GUEST_IMAGE: &str = "debian-12";
/// The names inside.
pub(super) const CLI: &str = "fleetbox";
pub(super) const TASK: &str = "task";
pub(super) const MONITOR: &str = "cloud-hypervisor";
pub(super) const GUEST_DISK: &str = "debian-12.qcow2";

/// Fills the directory and returns it.
pub(super) async fn pack(
    dir: &Path,
    built: &Built,
    monitor: &Path,
    clock: &Clock,
) -> Outcome<PathBuf> {
    let load = dir.join("load");
    match std::fs::remove_dir_all(&load) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::io("remove", &load)(e));
        }
        _ => {}
    }
    std::fs::create_dir_all(&load).map_err(Failure::io("make", &load))?;
    strip(&built.cli, &load.join(CLI))?;
    strip(built.task.executable(), &load.join(TASK))?;
    let to = load.join(MONITOR);
    std::fs::copy(monitor, &to).map_err(Failure::io("copy", monitor))?;

    let image = fleetbox::images::pull(GUEST_IMAGE, Arch::host(), silent).await?;
    let raw = image.path.ok_or_else(|| Failure::new(format!("{GUEST_IMAGE} has no disk")))?;
    compress(&raw, dir, &load.join(GUEST_DISK), clock)?;
    Ok(load)
}

/// The stages of a fetch are not worth a line each.
pub(super) fn silent(_: Progress) {}

/// Without debugging information an executable is a tenth.
fn strip(from: &Path, to: &Path) -> Outcome<()> {
    let mut strip = process::command("strip");
    strip.arg("--strip-debug").arg("-o").arg(to).arg(from);
    process::run(&mut strip).map(drop)
}

/// A fifth of the disk's size and no holes. Made once per image, whose file's name is its version.
fn compress(raw: &Path, dir: &Path, to: &Path, clock: &Clock) -> Outcome<()> {
    let stem = raw.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let kept = dir.join(format!("{stem}.qcow2"));
    if !kept.is_file() {
        clock.say(&format!("compressing the image {GUEST_IMAGE}"));
        let half_made = dir.join(format!("{stem}.part"));
        let mut convert = process::command("qemu-img");
        convert.args(["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"]);
        process::run(convert.arg(raw).arg(&half_made))?;
        std::fs::rename(&half_made, &kept).map_err(Failure::io("rename", &half_made))?;
    }
    match std::fs::remove_file(to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::io("remove", to)(e)),
        _ => std::fs::hard_link(&kept, to).map_err(Failure::io("link", &kept)),
    }
}
