//! Owns [`Image`]: how a derived image is described. Its keys are `key`'s, its text form `recipe`'s,
//! building it `build`'s with what is done in the guest in `guest`; the cache of its layers is
//! `images::layer`'s.

mod build;
mod guest;
mod key;
mod recipe;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::images::{self, ImageInfo};
use crate::progress::{Progress, ProgressSink};
use crate::spec::{Arch, VmSpec};
use crate::store::paths::Paths;

/// Describes an image made from another by steps, as a Dockerfile does: what a step changed on the disk is
/// a layer, kept by what the step and all before it say, and not made again while it is there.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::{Image, Vm};
///
/// let web = Image::from("debian-12")
///     .run("apt-get update && apt-get install -y nginx")
///     .copy("site", "/var/www/html")
///     .name("web-base")
///     .build()
///     .await?;
/// let vm = Vm::builder("web").image(web.reference).warm(true).start().await?;
/// # drop(vm);
/// # Ok(())
/// # }
/// ```
///
/// The steps are run one after another in a VM of its own, as root, and then their layers are taken: only
/// the disk counts, and what runs in memory is no part of the image. Who the building VM was is not in it:
/// each VM that is made of the image has a name, machine-id, host key and address of its own.
///
/// A VM made of it has links to all it needs, so that the image may be removed at any time. It needs a
/// disk no smaller than the building VM's.
#[derive(Debug, Clone)]
#[must_use = "nothing happens until `build`"]
pub struct Image {
    from: String,
    steps: Vec<Step>,
    /// Of the steps to come.
    env: Vec<(String, String)>,
    name: Option<String>,
    arch: Arch,
    cpus: Option<u32>,
    memory_mib: Option<u32>,
    disk_gib: Option<u32>,
    backend: Option<Backend>,
    progress: ProgressSink,
}

/// One step, with all that shapes what it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Run { line: String, env: Vec<(String, String)> },
    Copy { host: PathBuf, guest: String },
}

/// Characters of a step that are shown.
const LABEL_CHARS: usize = 100;

impl fmt::Display for Step {
    /// In the words of the file, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Step::Run { line, .. } => format!("run {}", line.trim()),
            Step::Copy { host, guest } => format!("copy {} {guest}", host.display()),
        };
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match text.char_indices().nth(LABEL_CHARS) {
            Some((end, _)) => write!(f, "{}…", &text[..end]),
            None => f.write_str(&text),
        }
    }
}

impl Image {
    /// Begins with an image: an alias, a URL, a path, or a derived image's name.
    pub fn from(reference: impl Into<String>) -> Self {
        Self {
            from: reference.into(),
            steps: Vec::new(),
            env: Vec::new(),
            name: None,
            arch: Arch::host(),
            cpus: None,
            memory_mib: None,
            disk_gib: None,
            backend: None,
            progress: ProgressSink::default(),
        }
    }

    /// Reads the same from a file, a step a line, with `\` at the end of those that go on:
    ///
    /// ```text
    /// # How the web servers of our tests are made
    /// from debian-12
    /// env DEBIAN_FRONTEND=noninteractive
    /// run apt-get update && \
    ///     apt-get install -y nginx
    /// copy site /var/www/html
    /// ```
    ///
    /// Paths of the host are relative to the file's directory; one with spaces is put in quotes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPath`] if it cannot be read, [`ErrorKind::InvalidSpec`] with the line for what
    /// cannot be understood.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        recipe::read(path.as_ref())
    }

    /// Adds a line of shell, run by `sh -e` as root, in `/`. If it fails, so does the build, and the steps
    /// before it are kept.
    pub fn run(mut self, line: impl Into<String>) -> Self {
        self.steps.push(Step::Run { line: line.into(), env: self.env.clone() });
        self
    }

    /// Adds a copy of a file or directory of the host, by the rules of
    /// [`Vm::copy_to`](crate::Vm::copy_to), but as root and owned by root. It is made again when a name,
    /// mode or content in it has changed.
    pub fn copy(mut self, host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        self.steps.push(Step::Copy { host: host.into(), guest: guest.into() });
        self
    }

    /// Sets an environment variable for the lines of shell that follow. It is no part of the image.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        self.env.retain(|(known, _)| *known != name);
        self.env.push((name, value.into()));
        self
    }

    /// Keeps it under a name, which VMs and further images can be made from, instead of an image that
    /// had it before. Without one it is known by a number only. Lowercase letters, digits, dots, hyphens
    /// and underscores; no other image's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The architecture; the host's by default.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.arch = arch;
        self
    }

    /// Virtual CPUs of the building VM; default 2.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Memory of the building VM in MiB; default 4096.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = Some(memory_mib);
        self
    }

    /// Disk size of the building VM in GiB; default that of the derived image it begins with, else 20 or
    /// what the image needs. No VM made of the image can have a smaller one.
    pub fn disk_gib(mut self, disk_gib: u32) -> Self {
        self.disk_gib = Some(disk_gib);
        self
    }

    /// The backend of the building VM, as [`VmBuilder::backend`](crate::VmBuilder::backend).
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Calls `f` with each event of the build. It runs on the runtime's threads: be quick.
    pub fn on_progress(mut self, f: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = ProgressSink::new(f);
        self
    }

    /// Builds what is not there yet. The result's [reference](ImageInfo::reference) is what
    /// [`VmBuilder::image`](crate::VmBuilder::image) takes. Of two builds of the same at once, in whatever
    /// processes, one waits for the other and finds all done.
    ///
    /// Dropped before it is done, it leaves nothing running, and the layers of the steps that are done.
    ///
    /// # Errors
    /// Bad input is refused before any work ([`ErrorKind::InvalidSpec`], [`ErrorKind::InvalidPath`],
    /// [`ErrorKind::InvalidName`], [`ErrorKind::Conflict`] for a name that another kind of image has);
    /// those of a start; [`ErrorKind::CommandFailed`] for a line that did not succeed, with its step, and
    /// the end of its [output](Error::output); [`ErrorKind::Copy`].
    pub async fn build(self) -> Result<ImageInfo> {
        build::build(self).await
    }

    /// What the image is called in messages.
    fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("from {}", self.from))
    }

    /// Refuses what cannot be, before any work.
    fn check(&self, paths: &Paths) -> Result<()> {
        let bad = |what: String, hint: &str| {
            Err(Error::new(ErrorKind::InvalidSpec, format!("build an image: {what}")).hint(hint))
        };
        self.spec(1).check()?;
        if let Some(name) = &self.name {
            images::check_derived_name(paths, name)?;
        }
        if self.steps.is_empty() {
            return bad("it has no step".to_owned(), "add one with `run` or `copy`");
        }
        for (step, number) in self.steps.iter().zip(1..) {
            match step {
                Step::Run { line, env } => {
                    if line.trim().is_empty() || line.contains('\0') {
                        let hint = "give a line of shell, such as `apt-get update`";
                        return bad(format!("step {number} is no line of shell"), hint);
                    }
                    if let Some((name, _)) = env
                        .iter()
                        .find(|(name, value)| !recipe::is_variable(name) || value.contains('\0'))
                    {
                        let what =
                            format!("\"{}\" is no environment variable", name.escape_debug());
                        return bad(what, "use letters, digits and underscores, no digit first");
                    }
                }
                Step::Copy { guest, .. } if !guest.starts_with('/') || guest.contains('\0') => {
                    let what = format!(
                        "step {number}: the guest path {} is not absolute",
                        guest.escape_debug()
                    );
                    return Err(Error::new(
                        ErrorKind::InvalidPath,
                        format!("build an image: {what}"),
                    )
                    .hint("give it from the guest's root on, such as /opt/data"));
                }
                Step::Copy { .. } => {}
            }
        }
        Ok(())
    }

    /// The building VM's, with a disk of that size unless another is asked for.
    fn spec(&self, disk_gib: u32) -> VmSpec {
        let default = VmSpec::default();
        VmSpec {
            image: self.from.clone(),
            arch: self.arch,
            cpus: self.cpus.unwrap_or(default.cpus),
            memory_mib: self.memory_mib.unwrap_or(default.memory_mib),
            disk_gib: self.disk_gib.unwrap_or(disk_gib),
            ..default
        }
    }
}
