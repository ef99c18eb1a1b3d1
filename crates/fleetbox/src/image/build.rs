//! Owns building a derived image: which of its layers are there, the VM in which the others are made, and
//! taking each. It must not know how anything is done in the guest.

use std::path::Path;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::{Image, Step, guest, key};
use crate::backend::Backend;
use crate::builder::VmBuilder;
use crate::control::client::Client;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::images::layer::{self, Layer};
use crate::images::{self, CachedImage, ImageInfo, hex, work};
use crate::prepare::{disk, kernel};
use crate::progress::{Progress, ProgressSink};
use crate::snapshot;
use crate::spec::DEFAULT_DISK_GIB;
use crate::store::lock::{self, Lock};
use crate::store::paths::Paths;
use crate::store::whole::make_private_dir;
use crate::sys::random;
use crate::vm::Vm;

/// How long a guest may take to shut down where its layer cannot be taken while it runs.
const STOP_GRACE: std::time::Duration = std::time::Duration::from_mins(2);

pub(super) async fn build(image: Image) -> Result<ImageInfo> {
    let paths = Paths::from_env()?;
    image.check(&paths)?;
    make_private_dir(paths.root())?;
    let plan = Plan::of(&paths, image).await?;
    let (at, locks) = plan.claim().await?;
    plan.tell_cached(at);
    if at < plan.steps.len() {
        plan.make(at).await?;
    }
    drop(locks);
    let removed = || {
        Error::new(ErrorKind::Conflict, format!("build the image {}", plan.label))
            .hint("its layers were removed meanwhile: build it again")
    };
    let last = plan.steps.last().ok_or_else(removed)?;
    // Nobody removes it until it is named and there is room.
    let _kept = lock::lock(&layer::lock_path(&paths, &last.key), || ()).await?;
    let layer = Layer::find(&paths, &last.key).ok_or_else(removed)?;
    layer::touch_key(&paths, &layer.key)?;
    if let Some(name) = &plan.image.name {
        layer::set_name(&paths, name, &layer)?;
    }
    snapshot::keep_within_budget(&paths, &layer::dir(&paths, &layer.key))?;
    plan.progress.send(Progress::Ready);
    let reference = plan.image.name.clone().unwrap_or_else(|| layer.reference());
    Ok(layer.describe(&paths, &reference))
}

/// What is to be built on what.
struct Plan<'a> {
    paths: &'a Paths,
    image: Image,
    label: String,
    /// What the first step is run on.
    base: CachedImage,
    disk_gib: u32,
    steps: Vec<Keyed>,
    progress: ProgressSink,
}

struct Keyed {
    step: Step,
    key: String,
}

/// A VM that runs the steps, and what the layers taken of it have in common.
struct Builder {
    vm: Vm,
    /// What /boot was like before the first step.
    boot: String,
    /// The image it was made of.
    started_on: String,
}

impl<'a> Plan<'a> {
    async fn of(paths: &'a Paths, image: Image) -> Result<Self> {
        let base = base(paths, &image).await?;
        let disk_gib = disk_gib(&image, &base)?;
        let (root, steps) = (key::root(&base.digest, image.arch, disk_gib), image.steps.clone());
        let steps = work::run("read what an image copies", move |cancel| {
            let (mut keyed, mut parent) = (Vec::new(), root);
            for step in steps {
                cancel.check()?;
                parent = key::of_step(&parent, &step)?;
                keyed.push(Keyed { step, key: parent.clone() });
            }
            Ok(keyed)
        })
        .await?;
        let (label, progress) = (image.label(), image.progress.clone());
        Ok(Self { paths, image, label, base, disk_gib, steps, progress })
    }

    /// The first step whose layer, and that of none after it, is there.
    fn first_missing(&self) -> usize {
        let is_there = |step: &Keyed| Layer::find(self.paths, &step.key).is_some();
        self.steps.iter().rposition(is_there).map_or(0, |at| at + 1)
    }

    /// Takes the locks of all layers that are to be made, which whoever makes the same has in the same
    /// order. Returns the first of them.
    async fn claim(&self) -> Result<(usize, Vec<Lock>)> {
        let mut told = false;
        loop {
            let first = self.first_missing();
            let mut locks = Vec::new();
            for step in &self.steps[first..] {
                let waiting = || {
                    if !std::mem::replace(&mut told, true) {
                        self.progress.note("waiting for another process that builds the same");
                    }
                };
                locks.push(lock::lock(&layer::lock_path(self.paths, &step.key), waiting).await?);
            }
            if self.first_missing() == first {
                return Ok((first, locks));
            }
        }
    }

    fn tell_cached(&self, steps: usize) {
        for number in 0..steps {
            self.tell(number, true);
        }
    }

    fn tell(&self, at: usize, cached: bool) {
        self.progress.send(Progress::Step {
            number: at + 1,
            total: self.steps.len(),
            text: self.steps[at].step.to_string(),
            cached,
        });
    }

    /// Makes the layers from that of the step `first` on.
    async fn make(&self, first: usize) -> Result<()> {
        layer::remove_half_made(self.paths)?;
        let mut builder = self.start(first).await?;
        let mut parent = first.checked_sub(1).map(|at| self.steps[at].key.clone());
        for at in first..self.steps.len() {
            self.tell(at, false);
            if let Err(e) = self.run(&builder.vm, at).await {
                builder.vm.destroy().await?;
                return Err(self.failed(at, e));
            }
            let taken = self.take(&mut builder, at, parent).await;
            parent = Some(taken.map_err(|e| self.failed(at, e))?.key);
        }
        builder.vm.destroy().await
    }

    async fn start(&self, first: usize) -> Result<Builder> {
        let (reference, digest) = match first.checked_sub(1) {
            None => (self.image.from.clone(), self.base.digest.clone()),
            Some(at) => {
                let key = &self.steps[at].key;
                let layer = Layer::find(self.paths, key).ok_or_else(|| self.changed("a layer"))?;
                (format!("{}{key}", layer::PREFIX), layer.digest)
            }
        };
        let name = format!("build-{}x", random::hex::<4>()?);
        // A golden machine of the image serves others; one of a layer in between, hardly.
        let vm = self.builder(&name).image(reference).warm(first == 0).start().await?;
        if vm.backend().has_guest() && vm.record().image_digest != digest {
            return Err(self.changed("the image it begins with"));
        }
        guest::settle(&vm).await?;
        Ok(Builder { boot: guest::boot_files(&vm).await?, started_on: digest, vm })
    }

    fn builder(&self, name: &str) -> VmBuilder {
        let spec = self.image.spec(self.disk_gib);
        let outer = self.progress.clone();
        let mut builder = Vm::builder(name)
            .arch(spec.arch)
            .cpus(spec.cpus)
            .memory_mib(spec.memory_mib)
            .disk_gib(spec.disk_gib)
            .ephemeral(true)
            .on_progress(move |event| {
                // More follows.
                if !matches!(event, Progress::Ready) {
                    outer.send(event);
                }
            });
        if let Some(backend) = self.image.backend {
            builder = builder.backend(backend);
        }
        builder
    }

    async fn run(&self, vm: &Vm, at: usize) -> Result<()> {
        match &self.steps[at].step {
            Step::Run { line, env } => guest::run(vm, line, env, &self.progress).await,
            Step::Copy { host, guest } => {
                guest::copy(vm, host, guest).await?;
                self.check_unchanged(at).await
            }
        }
    }

    /// What was copied has to be what the key is of.
    async fn check_unchanged(&self, at: usize) -> Result<()> {
        let parent = match at.checked_sub(1) {
            None => key::root(&self.base.digest, self.image.arch, self.disk_gib),
            Some(at) => self.steps[at].key.clone(),
        };
        let step = self.steps[at].step.clone();
        let now = work::run("read what an image copies", move |_| key::of_step(&parent, &step));
        if now.await? == self.steps[at].key {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "copy: the files changed while they were read")
            .hint("build it again when nobody writes to them"))
    }

    /// Takes the layer of the step that was just run.
    async fn take(
        &self,
        builder: &mut Builder,
        at: usize,
        parent: Option<String>,
    ) -> Result<Layer> {
        let key = &self.steps[at].key;
        let vm = &builder.vm;
        let is_same = guest::boot_files(vm).await? == builder.boot;
        guest::forget(vm).await?;
        let dir = layer::half_made(self.paths, key)?;
        let top = format!("layer-{}.qcow2", random::hex::<8>()?);
        let member = vm.cluster_paths().member(&vm.record().name);
        let below: Vec<_> = vm.record().layers.iter().map(|layer| member.layer(layer)).collect();
        layer::link(&below, &dir)?;
        if vm.backend().holds_back_writes() {
            let is_last = at + 1 == self.steps.len();
            if let Some(again) = self.copy_stopped(vm, &dir.join(&top), is_last).await? {
                builder.vm = again;
            }
        } else {
            copy_running(vm, &dir.join(&top)).await?;
            guest::remember(vm).await?;
        }
        let record = builder.vm.record();
        let layer = Layer {
            format: Layer::FORMAT,
            digest: hex(&Sha256::digest(format!("{key} {top}"))),
            key: key.clone(),
            parent,
            from: self.image.from.clone(),
            step: self.steps[at].step.to_string(),
            arch: self.image.arch,
            disk_gib: record.spec.disk_gib,
            image_path: record.image_path.clone(),
            image_stamp: record.image_stamp.clone(),
            layers: std::iter::once(top).chain(record.layers.clone()).collect(),
            created_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        };
        layer.write(self.paths)?;
        if builder.vm.backend().has_guest() {
            let of = is_same.then_some(builder.started_on.as_str());
            self.take_kernel(&layer, &dir, of).await?;
        }
        layer.commit(self.paths)?;
        Ok(layer)
    }

    /// Lets the layer have the kernel of the image of that digest, or its own.
    async fn take_kernel(&self, layer: &Layer, dir: &Path, of: Option<&str>) -> Result<()> {
        if let Some(of) = of {
            kernel::share(self.paths, of, &layer.digest)?;
        }
        let image = layer.image_in(dir, &self.label);
        kernel::extract(self.paths, &image, &self.progress).await.map(drop)
    }

    /// Copies the disk of a machine that cannot be copied while it runs, and stops it for that. Returns the
    /// same machine, started again unless it is not needed any more.
    async fn copy_stopped(&self, vm: &Vm, target: &Path, is_last: bool) -> Result<Option<Vm>> {
        let _holder = Client::new(vm.cluster_paths().socket()).hold_alone().await?;
        vm.stop_within(STOP_GRACE).await?;
        let from = vm.cluster_paths().member(&vm.record().name).disk();
        let to = target.to_owned();
        work::run("copy a disk", move |_| images::qcow2::copy(&from, &to)).await?;
        if is_last {
            return Ok(None);
        }
        let again = self.builder(vm.name()).image(vm.record().spec.image.clone()).start().await?;
        guest::settle(&again).await?;
        Ok(Some(again))
    }

    fn changed(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Conflict,
            format!("build the image {}: {what} changed meanwhile", self.label),
        )
        .hint("build it again")
    }

    /// What went wrong, with the step at which it did.
    fn failed(&self, at: usize, error: Error) -> Error {
        let (number, total, step) = (at + 1, self.steps.len(), &self.steps[at].step);
        error.within(&format!("build the image {}: step {number} of {total}, `{step}`", self.label))
    }
}

/// The disk of a machine that runs on.
async fn copy_running(vm: &Vm, target: &Path) -> Result<()> {
    let record = vm.record();
    if vm.backend().has_guest() {
        let size_bytes = u64::from(record.spec.disk_gib) << 30;
        match record.layers.first() {
            Some(layer) => disk::create_overlay_on_layer(target, layer, size_bytes)?,
            None => disk::create_overlay(target, &record.image_path, size_bytes)?,
        }
    }
    Client::new(vm.cluster_paths().socket()).copy_disk(&record.name, target).await
}

/// The image that the steps begin with. Fake machines read nothing of one but what was derived by such.
async fn base(paths: &Paths, image: &Image) -> Result<CachedImage> {
    if !is_fake(image)? {
        return images::resolve(paths, &image.from, image.arch, &image.progress).await;
    }
    if let Some(derived) = layer::resolve(paths, &image.from, image.arch)?
        && derived.path.as_os_str().is_empty()
    {
        return Ok(derived);
    }
    Ok(CachedImage {
        reference: image.from.clone(),
        path: std::path::PathBuf::new(),
        digest: hex(&Sha256::digest(format!("fake {}", image.from))),
        size_bytes: 0,
        arch: image.arch,
        layers: Vec::new(),
    })
}

fn is_fake(image: &Image) -> Result<bool> {
    let named = env::text(env::BACKEND)?.map(|word| word.parse::<Backend>()).transpose()?;
    Ok(named.or(image.backend) == Some(Backend::Fake))
}

/// As large as that of a derived image it begins with, whose file systems fill it; else as a VM's is
/// by default, or as the image needs.
fn disk_gib(image: &Image, base: &CachedImage) -> Result<u32> {
    let needed_gib = u32::try_from(base.size_bytes.div_ceil(1 << 30)).unwrap_or(u32::MAX);
    let usual_gib =
        if base.layers.is_empty() { DEFAULT_DISK_GIB.max(needed_gib) } else { needed_gib };
    let disk_gib = image.disk_gib.unwrap_or(usual_gib);
    if disk_gib >= needed_gib {
        return Ok(disk_gib);
    }
    Err(Error::new(
        ErrorKind::InvalidSpec,
        format!("build on a disk of {disk_gib} GiB: {} needs {needed_gib}", image.from),
    )
    .hint(format!("give it {needed_gib} GiB or more")))
}
