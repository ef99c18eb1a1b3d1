//! Owns having cloud-hypervisor's executable: the one named, the one installed, else the pinned
//! release, fetched once and checked. It must not start a machine with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::backend::select::which;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::images::{Failure, Settings, Transfer, mirrored, with_retries, work};
use crate::progress::{ProgressSink, Stage};
use crate::spec::Arch;
use crate::store::lock;
use crate::store::paths::Paths;
use crate::store::whole::{make_private_dir, write_atomic};

const NAME: &str = "cloud-hypervisor";
/// The oldest whose options and interface we use, and the one that is fetched.
const VERSION: u32 = 52;
/// It prints its version at once; a file that is something else may do anything.
const VERSION_WAIT: Duration = Duration::from_secs(10);
/// After a fetch that failed where QEMU could do instead, no start waits for another this long.
const GIVEN_UP_FOR: Duration = Duration::from_hours(1);

/// A published executable.
#[derive(Debug, Clone, Copy)]
struct Pinned {
    url: &'static str,
    sha256: &'static str,
}

/// The static builds of the project's release v52.0.
fn pinned(arch: Arch) -> Pinned {
    match arch {
        Arch::X86_64 => Pinned {
            url: "https://github.com/cloud-hypervisor/cloud-hypervisor/releases/download/v52.0/cloud-hypervisor-static",
            sha256: "829af01ff075bb96c4f183905134c453a88d68cbabdc6b87df21098842581ee9",
        },
        Arch::Aarch64 => Pinned {
            url: "https://github.com/cloud-hypervisor/cloud-hypervisor/releases/download/v52.0/cloud-hypervisor-static-aarch64",
            sha256: "bf004ddc1a148f47caa87ac49a783b8dbd6bf9bc27abe522ed197df7b982d3b1",
        },
    }
}

/// How much it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Nothing else will do.
    Only,
    /// QEMU can take its place: one try to fetch it, and not at every start.
    Rather,
}

/// An executable cloud-hypervisor of a version we know.
///
/// # Errors
/// [`ErrorKind::InvalidSetting`] if `FLEETBOX_CLOUD_HYPERVISOR` names none; else why it cannot be
/// fetched.
pub(crate) async fn cloud_hypervisor(
    paths: &Paths,
    want: Want,
    progress: &ProgressSink,
) -> Result<PathBuf> {
    if let Some(named) = env::path(env::CLOUD_HYPERVISOR) {
        return match usable(&named).await {
            Ok(()) => Ok(named),
            Err(why) => Err(Error::new(
                ErrorKind::InvalidSetting,
                format!("use FLEETBOX_CLOUD_HYPERVISOR={}: {why}", named.display()),
            )
            .hint(format!("point it at cloud-hypervisor v{VERSION}.0 or newer, or unset it"))),
        };
    }
    if let Some(installed) = which(NAME) {
        match usable(&installed).await {
            Ok(()) => return Ok(installed),
            Err(why) => progress.note(format!("{} is passed over: {why}", installed.display())),
        }
    }
    fetched(paths, pinned(Arch::host()), want, progress).await
}

/// What is here already, without looking into it.
#[cfg(target_os = "linux")]
pub(crate) fn at_hand(paths: &Paths) -> Option<PathBuf> {
    let file = paths.monitor(&file_name());
    env::path(env::CLOUD_HYPERVISOR)
        .or_else(|| which(NAME))
        .or_else(|| file.is_file().then_some(file))
}

fn file_name() -> String {
    format!("{NAME}-v{VERSION}.0-{}", Arch::host().debian())
}

/// Why the file cannot be used, if so.
async fn usable(program: &Path) -> std::result::Result<(), String> {
    if !program.is_file() {
        return Err("there is no such file".to_owned());
    }
    if rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_err() {
        return Err("it is not executable".to_owned());
    }
    let said = match tokio::time::timeout(VERSION_WAIT, ask_version(program)).await {
        Ok(Ok(said)) => said,
        Ok(Err(e)) => return Err(format!("it does not run: {e}")),
        Err(_) => return Err("it does not tell its version".to_owned()),
    };
    match version(&said) {
        Some(version) if version >= VERSION => Ok(()),
        Some(version) => Err(format!("it is v{version}, older than v{VERSION}.0")),
        None => Err("it is not cloud-hypervisor".to_owned()),
    }
}

async fn ask_version(program: &Path) -> std::io::Result<String> {
    let mut pause = Duration::from_millis(5);
    loop {
        let mut command = tokio::process::Command::new(program);
        command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
        match command.output().await {
            // Somebody has just written it, and a child of theirs has yet to let go of it.
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            output => return Ok(String::from_utf8_lossy(&output?.stdout).into_owned()),
        }
    }
}

/// Of `cloud-hypervisor v52.0`, or `v52.0-12-gabcdef`, 52.
fn version(said: &str) -> Option<u32> {
    let rest = said.trim().strip_prefix("cloud-hypervisor v")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

async fn fetched(
    paths: &Paths,
    pinned: Pinned,
    want: Want,
    progress: &ProgressSink,
) -> Result<PathBuf> {
    let file = paths.monitor(&file_name());
    if file.is_file() {
        return Ok(file);
    }
    let settings = Settings::from_env()?;
    if settings.offline() {
        return Err(Error::new(
            ErrorKind::Offline,
            format!("fetch {NAME} v{VERSION}.0: FLEETBOX_OFFLINE forbids it"),
        )
        .hint(ELSEWHERE));
    }
    let given_up = paths.monitor("given-up");
    if want == Want::Rather && is_recent(&given_up) {
        return Err(Error::new(
            ErrorKind::Download,
            format!("fetch {NAME}: it failed a while ago"),
        )
        .hint(ELSEWHERE));
    }
    make_private_dir(&paths.monitors())?;
    let waiting = || progress.note(format!("waiting for another process that fetches {NAME}"));
    let held = lock::lock(&paths.monitor("lock"), waiting).await?;
    if file.is_file() {
        return Ok(file);
    }
    let url = mirrored(pinned.url, settings.mirror())?;
    progress.note(format!("fetching {NAME} v{VERSION}.0 from {url}"));
    progress.begin(Stage::Download);
    let (target, sink) = (file.clone(), progress.clone());
    let outcome = work::run("fetch a monitor", move |cancel| {
        let _held = held;
        let advance = |done, total| sink.advance(Stage::Download, done, total);
        let transfer = Transfer {
            url: &url,
            part: target.with_added_extension("part"),
            part_record: target.with_added_extension("part.json"),
            cancel,
            progress: &advance,
        };
        let digest = match want {
            Want::Only => with_retries(&transfer, cancel)?,
            Want::Rather => transfer.run().map_err(|failure| match failure {
                Failure::Transient(error) | Failure::Final(error) => error,
            })?,
        };
        put_in_place(&transfer, &digest, pinned.sha256, &target)
    })
    .await;
    match outcome {
        Ok(()) => Ok(file),
        Err(error) => {
            if want == Want::Rather {
                write_atomic(&given_up, error.report().as_bytes())?;
            }
            Err(if error.hint_text().is_none() { error.hint(ELSEWHERE) } else { error })
        }
    }
}

const ELSEWHERE: &str = "install cloud-hypervisor, or point FLEETBOX_CLOUD_HYPERVISOR at it; \
    FLEETBOX_BACKEND=qemu does without";

fn put_in_place(
    transfer: &Transfer<'_>,
    digest: &str,
    promised: &str,
    target: &Path,
) -> Result<()> {
    if digest != promised {
        transfer.discard()?;
        return Err(Error::new(
            ErrorKind::ChecksumMismatch,
            format!("fetch {}: its sha256 is {digest}, not {promised}", transfer.url),
        )
        .hint("nothing was kept; try again, and if it stays so, distrust the mirror or proxy"));
    }
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&transfer.part, mode)
        .and_then(|()| std::fs::File::open(&transfer.part)?.sync_all())
        .and_then(|()| std::fs::rename(&transfer.part, target))
        .map_err(|e| Error::io("make", target, e))?;
    transfer.discard()
}

fn is_recent(path: &Path) -> bool {
    let age =
        path.metadata().and_then(|m| m.modified()).map(|at| SystemTime::now().duration_since(at));
    matches!(age, Ok(Ok(age)) if age < GIVEN_UP_FOR)
}

#[cfg(test)]
mod tests;
