//! Owns making the image's root: mmdebstrap installs it, mke2fs packs it, both with the ownership
//! that only root or a user namespace can give. It must not choose where the result is kept.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::qcow2::write_sparse;
use super::super::work::Cancel;
use super::disk::Layout;
use super::{Recipe, apt, child, scratch};
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{ProgressSink, Stage};
use crate::spec::Arch;

/// Installed beside the essential packages and the kernel. Beyond booting and cloud-init: sudo for
/// the user, libpam-systemd so that logins are sessions, locales because cloud-init asks for them,
/// fdisk and cloud-guest-utils to grow the root.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "fdisk",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "locales",
    "netbase",
    "netplan.io",
    "openssh-server",
    "procps",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "tar",
    "udev",
];

/// What the last step leaves no trace of: host names, keys, apt's state, this build.
const FINISH: &str = r#"
set -eu
umask 022
exec 3>&1 >&2
partuuid=$1 blocks=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 143' TERM INT HUP
root=$work/root
mkdir "$root"
# No device nodes: a namespace may not make them, and the kernel brings its own /dev.
tar -C "$root" --exclude='./dev/*' --numeric-owner --xattrs --xattrs-include='*' -xf -
cd "$root"
echo "PARTUUID=$partuuid / ext4 rw,discard,errors=remount-ro 0 1" >etc/fstab
echo 'LANG=C.UTF-8' >etc/default/locale
echo 'localhost' >etc/hostname
printf '127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n' >etc/hosts
: >etc/machine-id
rm -f var/lib/dbus/machine-id var/lib/systemd/random-seed etc/ssh/ssh_host_*
rm -f etc/apt/apt.conf.d/99mmdebstrap etc/resolv.conf
ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
for kind in list sources; do
    for file in etc/apt/sources.list.d/*fleetbox-*.$kind; do
        if [ -e "$file" ]; then mv "$file" etc/apt/sources.list.d/debian.$kind; fi
    done
done
rm -rf var/lib/apt/lists/* var/cache/apt/*.bin var/cache/apt/archives/*.deb var/log/apt/* \
    var/log/dpkg.log var/log/bootstrap.log var/log/alternatives.log var/cache/ldconfig/aux-cache
mkdir -p var/lib/apt/lists/partial var/cache/apt/archives/partial
cd /
# Only features that the oldest kernel we boot knows; nothing left to initialise at first boot.
mke2fs -q -t ext4 -L root -m 1 -O ^orphan_file,^metadata_csum_seed \
    -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$work/fs" "${blocks}k"
rm -rf "$root"
cat "$work/fs" >&3
"#;

/// How a step gets the power to own files as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Root,
    /// A user namespace with subordinate ids, by mmdebstrap.
    Unshare,
}

/// The programs the build needs, found before it begins.
#[derive(Debug)]
pub(super) struct Tools {
    mmdebstrap: PathBuf,
    mode: Mode,
    search_path: std::ffi::OsString,
}

impl Tools {
    pub(super) fn find(arch: Arch, cancel: &Cancel) -> Result<Self> {
        // An ordinary user's PATH lacks the sbin directories, where mke2fs is.
        let mut search_path = env::os(env::SEARCH_PATH).unwrap_or_default();
        search_path.push(":/usr/local/sbin:/usr/sbin:/sbin");
        let find = |program: &str| {
            std::env::split_paths(&search_path)
                .map(|dir| dir.join(program))
                .find(|path| path.is_file())
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::HostUnsupported,
                        format!("build an image: there is no {program} on PATH"),
                    )
                    .hint("apt-get install mmdebstrap e2fsprogs")
                })
        };
        let mmdebstrap = find("mmdebstrap")?;
        find("mke2fs")?;
        if arch != Arch::host() && !can_emulate(arch) {
            return Err(Error::new(
                ErrorKind::HostUnsupported,
                format!("build an image for {arch}: this host cannot run its programs"),
            )
            .hint("apt-get install qemu-user-static binfmt-support, or build on such a host"));
        }
        let is_root = rustix::process::geteuid().is_root();
        let mode = if is_root { Mode::Root } else { Mode::Unshare };
        let tools = Self { mmdebstrap, mode, search_path };
        tools.probe(cancel)?;
        Ok(tools)
    }

    /// Whether the namespace can be had at all, before a minute is spent.
    fn probe(&self, cancel: &Cancel) -> Result<()> {
        if self.mode == Mode::Root {
            return Ok(());
        }
        let mut command = self.privileged("true");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        child::run(command, "become root in a user namespace", cancel, &|_| {}, |_| Ok(())).map_err(
            |error| {
                error.hint("apt-get install uidmap, and give the user ids: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER; or build as root")
            },
        )
    }

    fn command(&self, program: &Path) -> Command {
        #[expect(clippy::disallowed_methods, reason = "mmdebstrap and its kin do the work")]
        let mut command = Command::new(program);
        command.env("PATH", &self.search_path).env("LC_ALL", "C.UTF-8").current_dir("/");
        // The root is unpacked there: half a gigabyte and more, too much for a /tmp in memory.
        if env::os(env::TEMPORARY_DIR).is_none() {
            command.env("TMPDIR", "/var/tmp");
        }
        command
    }

    /// `script` as root, or as root of a namespace, where mmdebstrap's root can be unpacked.
    fn privileged(&self, script: &str) -> Command {
        let mut command = match self.mode {
            Mode::Root => self.command(Path::new("sh")),
            Mode::Unshare => {
                let mut command = self.command(&self.mmdebstrap);
                command.args(["--unshare-helper", "sh"]);
                command
            }
        };
        command.args(["-c", script, "fleetbox-build"]);
        command
    }
}

fn can_emulate(arch: Arch) -> bool {
    Path::new("/proc/sys/fs/binfmt_misc").join(format!("qemu-{}", arch.as_str())).exists()
}

/// Installs the packages and writes the root to `tar`.
pub(super) fn make(
    tools: &Tools,
    recipe: &Recipe,
    tar: &File,
    say: &(dyn Fn(String) + Sync),
    cancel: &Cancel,
) -> Result<()> {
    let sources =
        apt::sources(Path::new("/etc/apt"), recipe.suite, recipe.options.mirror.as_deref());
    let files = [(".list", &sources.lines), (".sources", &sources.stanzas)];
    let files: Vec<_> = files
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(extension, text)| scratch(extension, text))
        .collect::<Result<_>>()?;
    let kernel = format!("linux-image-cloud-{}", recipe.arch.debian());
    let mut packages: Vec<&str> = PACKAGES.to_vec();
    packages.push(&kernel);
    packages.extend(recipe.options.packages.iter().map(String::as_str));

    let mut command = tools.command(&tools.mmdebstrap);
    command
        .arg(if tools.mode == Mode::Root { "--mode=root" } else { "--mode=unshare" })
        .args(["--variant=apt", "--format=tar"])
        .arg(format!("--architectures={}", recipe.arch.debian()))
        .arg(format!("--include={}", packages.join(",")))
        .args(host_proxies())
        .args([recipe.suite, "-"])
        .args(files.iter().map(|(_, path)| path))
        .stdin(Stdio::null())
        .stdout(
            tar.try_clone().map_err(|e| Error::new(ErrorKind::Io, "build an image").source(e))?,
        );
    let line = |text: &str| {
        let steps = ["downloading packages", "extracting", "installing", "creating tarball"];
        if let Some(step) = text.strip_prefix("I: ")
            && steps.iter().any(|known| step.starts_with(known))
        {
            say(step.trim_end_matches('.').to_owned());
        }
    };
    child::run(command, "install the image's packages", cancel, &line, |_| Ok(()))
}

/// The host's apt may reach its mirrors only through a proxy; mmdebstrap does not read that setting.
/// It is removed from the image again.
fn host_proxies() -> Vec<String> {
    // Without apt-config there is no apt, so nothing to pass on.
    #[expect(clippy::disallowed_methods, reason = "only apt knows its own settings")]
    let Ok(dump) = Command::new("apt-config").arg("dump").stderr(Stdio::null()).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&dump.stdout)
        .lines()
        .filter(|line| {
            ["Acquire::http::Proxy", "Acquire::https::Proxy"]
                .iter()
                .any(|key| line.starts_with(key))
                && !line.ends_with("\"\";")
        })
        .map(|line| format!("--aptopt={}", line.trim_end_matches(';')))
        .collect()
}

/// Unpacks `tar`, finishes it, and writes it as ext4 into its partition of `disk`.
pub(super) fn write_file_system(
    tools: &Tools,
    tar: &File,
    disk: &File,
    layout: &Layout,
    progress: &ProgressSink,
    cancel: &Cancel,
) -> Result<()> {
    let io = |e| Error::new(ErrorKind::Io, "write the image's file system").source(e);
    let mut command = tools.privileged(FINISH);
    command
        .arg(&layout.partition_uuid)
        .arg((layout.length_bytes >> 10).to_string())
        .stdin(tar.try_clone().map_err(io)?)
        .stdout(Stdio::piped());
    child::run(command, "write the image's file system", cancel, &|_| {}, |stdout| {
        // Only bytes cross the border: neither side needs a right to the other's files.
        let Some(mut stdout) = stdout else { return Ok(()) };
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0u64;
        loop {
            let length = fill(&mut stdout, &mut buffer).map_err(io)?;
            if length == 0 {
                break;
            }
            if done + length as u64 > layout.length_bytes {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "write the image's file system: it is larger than its partition",
                ));
            }
            write_sparse(disk, &buffer[..length], layout.offset_bytes + done).map_err(io)?;
            done += length as u64;
            progress.advance(Stage::Prepare, done, Some(layout.length_bytes));
        }
        if done == layout.length_bytes {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Internal, "write the image's file system: it ended early"))
    })
}

/// Pipes give a little at a time; whole pieces make whole holes.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}
