//! Owns building a Debian image from the host's own packages: the steps and the record.
//! Everything that runs as root in the image's name runs inside mmdebstrap or its namespace.

mod apt;
mod child;
mod disk;
mod root;

use std::io::{Seek, Write};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::cache::{Origin, Record, Slot, hex};
use super::import::{Made, check_not_derived, forget_older};
use super::work::{self, Cancel};
use super::{CachedImage, catalog};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Progress, ProgressSink, Stage};
use crate::spec::Arch;
use crate::store::lock;
use crate::store::paths::Paths;

/// The aliases that can be built, with Debian's name of the release.
const SUITES: [(&str, &str); 2] = [("debian-12", "bookworm"), ("debian-13", "trixie")];

/// What [`build`](super::build) may be told; the default is what the published image has room for.
///
/// ```
/// use fleetbox::images::BuildOptions;
/// let options = BuildOptions::default().package("nginx").name("web-base");
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct BuildOptions {
    name: Option<String>,
    packages: Vec<String>,
    mirror: Option<String>,
}

impl BuildOptions {
    /// Keeps the image under a name of its own, which is then its alias; default the alias that is
    /// built. Lowercase letters, digits, dots, hyphens and underscores; no published image's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Installs one more Debian package, and what it depends on. The image needs a
    /// [`name`](Self::name) of its own then: what goes by a release's name is the plain release.
    /// Its disk has room for about 3 GiB more.
    pub fn package(mut self, name: impl Into<String>) -> Self {
        self.packages.push(name.into());
        self
    }

    /// Takes every package from this Debian mirror instead of the host's sources.
    pub fn mirror(mut self, url: impl Into<String>) -> Self {
        self.mirror = Some(url.into());
        self
    }

    fn check(&self) -> Result<()> {
        match &self.name {
            Some(name) => check_name(name)?,
            None if !self.packages.is_empty() => {
                return Err(Error::new(
                    ErrorKind::InvalidSpec,
                    "add packages to an image without a name of its own",
                )
                .hint("give it one, with `--as NAME` or BuildOptions::name"));
            }
            None => {}
        }
        let good = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
        };
        if let Some(bad) = self.packages.iter().find(|name| !good(name)) {
            return Err(Error::new(
                ErrorKind::InvalidSpec,
                format!("install \"{}\": it is no package's name", bad.escape_debug()),
            )
            .hint("give names as in `apt-get install`"));
        }
        let is_url = |url: &String| {
            ["http://", "https://", "file:/"].iter().any(|scheme| url.starts_with(scheme))
                && !url.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        match self.mirror.as_ref().filter(|url| !is_url(url)) {
            Some(bad) => Err(Error::new(
                ErrorKind::InvalidSpec,
                format!("use \"{}\" as a Debian mirror", bad.escape_debug()),
            )
            .hint("give a URL such as http://deb.debian.org/debian")),
            None => Ok(()),
        }
    }
}

/// An alias that no other image has by right: a published one's could not be fetched any more.
pub(super) fn check_name(name: &str) -> Result<()> {
    super::import::check_alias(name)?;
    if catalog::aliases().all(|alias| alias != catalog::canonical(name)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidName,
        format!("build an image as {name}: a published image has that name"),
    )
    .hint("choose another name, such as my-debian-12"))
}

/// Debian's name of the release behind an alias that can be built.
pub(super) fn suite(alias: &str) -> Option<&'static str> {
    SUITES.iter().find(|(name, _)| *name == alias).map(|(_, suite)| *suite)
}

pub(super) async fn build_at(
    paths: &Paths,
    alias: &str,
    arch: Arch,
    options: BuildOptions,
    progress: &ProgressSink,
) -> Result<CachedImage> {
    let Some(suite) = suite(alias) else {
        return Err(Error::new(
            ErrorKind::UnknownImage,
            format!("build the image \"{}\": there is no recipe for it", alias.escape_debug()),
        )
        .hint("debian-12 and debian-13 can be built; others are fetched or imported"));
    };
    options.check()?;
    let made = Made::now();
    let name = options.name.as_deref().unwrap_or(alias).to_owned();
    check_not_derived(paths, &name)?;
    let slot = Slot::new(paths, &name, &made.snapshot, arch);
    slot.make_dir()?;
    let build_lock = Slot::new(paths, &name, "build", arch).lock();
    let held = lock::lock(&build_lock, || {
        progress.note(format!("waiting for another process that builds {name}"));
    })
    .await?;
    let recipe = Recipe { suite, arch, options };
    let (thread_slot, sink) = (slot.clone(), progress.clone());
    let reference = name.clone();
    let image = work::run("build an image", move |cancel| {
        let _held = held;
        recipe.run(&thread_slot, reference, made, &sink, cancel)
    })
    .await?;
    forget_older(paths, &name, arch, &slot)?;
    Ok(image)
}

struct Recipe {
    suite: &'static str,
    arch: Arch,
    options: BuildOptions,
}

impl Recipe {
    fn run(
        &self,
        slot: &Slot,
        reference: String,
        made: Made,
        progress: &ProgressSink,
        cancel: &Cancel,
    ) -> Result<CachedImage> {
        let tools = root::Tools::find(self.arch, cancel)?;
        let say = |text: String| {
            log::info!("{text}");
            progress.send(Progress::Note(text));
        };
        progress.begin(Stage::Download);
        say(format!("building {reference} from this host's Debian packages; about a minute"));
        let mut tar = slot.temporary()?;
        root::make(&tools, self, tar.as_file(), &say, cancel)?;
        tar.rewind().map_err(|e| Error::io("read", tar.path(), e))?;

        progress.begin(Stage::Prepare);
        say(format!("writing the disk of {reference}"));
        let disk = slot.temporary()?;
        let extra = !self.options.packages.is_empty();
        let layout = disk::partition(disk.as_file(), disk.path(), extra)?;
        root::write_file_system(&tools, tar.as_file(), disk.as_file(), &layout, progress, cancel)?;
        let record = Record {
            version: 0,
            reference,
            arch: self.arch,
            digest: self.identity(&layout, &made),
            snapshot: made.snapshot,
            origin: Origin::Built,
            size_bytes: 0,
            source: None,
            made_on: Some(made.on),
            suite: Some(self.suite.to_owned()),
        };
        slot.commit(disk, record)
    }

    /// Two builds never share a partition's random identity, so it stands for their content.
    fn identity(&self, layout: &disk::Layout, made: &Made) -> String {
        let mut hash = Sha256::new();
        for part in [self.suite, self.arch.as_str(), &layout.partition_uuid, &made.snapshot] {
            hash.update(part);
            hash.update([0]);
        }
        hex(&hash.finalize())
    }
}

/// A file that a tool reads by name, gone when dropped.
fn scratch(extension: &str, content: &str) -> Result<(tempfile::NamedTempFile, PathBuf)> {
    let io = |e| Error::io("write", &std::env::temp_dir(), e);
    let mut file =
        tempfile::Builder::new().prefix("fleetbox-").suffix(extension).tempfile().map_err(io)?;
    file.write_all(content.as_bytes()).map_err(io)?;
    let path = file.path().to_owned();
    Ok((file, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_could_smuggle_arguments_are_refused() {
        let named = || BuildOptions::default().name("mine");
        named().package("g++-12").mirror("http://x/debian").check().unwrap();
        for bad in ["", "-y", "a b", "a;b", "A", "../x", "a,b", "?essential", "a/sid", "a=1", "a*"]
        {
            let error = named().package(bad).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec);
        }
        for bad in ["x", "--help", "http://x y", "http://x\ny"] {
            assert!(BuildOptions::default().mirror(bad).check().is_err());
        }
    }

    #[test]
    fn what_goes_by_a_published_name_is_the_plain_release() {
        let error = BuildOptions::default().package("nginx").check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSpec);
        for bad in ["debian-12", "bookworm", "ubuntu-24.04", "", "-x", "../x", "A", "a/b"] {
            let error = BuildOptions::default().name(bad).package("nginx").check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{bad}");
        }
    }

    #[tokio::test]
    async fn an_alias_without_recipe_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::at(dir.path()).unwrap();
        let options = BuildOptions::default();
        let sink = ProgressSink::default();
        let error =
            build_at(&paths, "ubuntu-24.04", Arch::X86_64, options, &sink).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownImage);
    }
}
