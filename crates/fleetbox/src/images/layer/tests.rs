//! Layers on disk: what makes one, what it is called, and what goes when one is removed.

use super::*;
use crate::images::{list_at, remove_at};
use crate::spec::VmSpec;
use crate::store::lock;
use crate::store::paths::MemberPaths;
use crate::store::record::VmRecord;
use crate::store::whole::GONE;

const ARCH: Arch = Arch::X86_64;

struct Home {
    _dir: tempfile::TempDir,
    paths: Paths,
    base: PathBuf,
}

fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::at(&dir.path().join("home")).unwrap();
    let base = dir.path().join("base.raw");
    std::fs::write(&base, [1; 4096]).unwrap();
    Home { _dir: dir, paths, base }
}

fn key(digit: char) -> String {
    digit.to_string().repeat(64)
}

impl Home {
    /// A layer with a file of its own, and those of the one below.
    fn layer(&self, digit: char, parent: Option<&Layer>) -> Layer {
        let key = key(digit);
        let _held = lock::try_lock(&lock_path(&self.paths, &key)).unwrap().unwrap();
        let dir = half_made(&self.paths, &key).unwrap();
        let own = format!("layer-{digit}.qcow2");
        std::fs::write(dir.join(&own), [2; 8192]).unwrap();
        let below = parent.map(|parent| parent.image(&self.paths, "").layers).unwrap_or_default();
        link(&below, &dir).unwrap();
        let names = parent.map(|parent| parent.layers.clone()).unwrap_or_default();
        let layer = Layer {
            format: FORMAT,
            digest: format!("{}{}", &key[..32], "f".repeat(32)),
            key,
            parent: parent.map(|parent| parent.key.clone()),
            from: "debian-12".into(),
            step: "run true".into(),
            arch: ARCH,
            disk_gib: 20,
            image_path: self.base.clone(),
            image_stamp: ImageStamp::of(&self.base).unwrap(),
            layers: std::iter::once(own).chain(names).collect(),
            created_at: String::new(),
        };
        layer.write(&self.paths).unwrap();
        layer.commit(&self.paths).unwrap();
        layer
    }

    fn derived(&self) -> Vec<String> {
        let derived = list_at(&self.paths).into_iter().filter(|i| i.state == ImageState::Derived);
        derived.map(|image| image.reference).collect()
    }
}

/// A record of format 1, kept for ever.
const SAMPLE: &str = r#"{"format": 1, "key": "abc", "digest": "def", "parent": null, "from": "debian-12",
    "step": "run true", "arch": "x86_64", "disk_gib": 20, "image_path": "/i.raw",
    "image_stamp": {"size_bytes": 5, "modified_ns": 7}, "layers": ["layer-1.qcow2"],
    "created_at": "2026-11-24T20:00:00Z"}"#;

#[test]
fn an_old_record_still_reads() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("layer.json"), SAMPLE).unwrap();
    let layer = Layer::read(dir.path()).unwrap();
    assert_eq!((layer.from.as_str(), layer.layers.len()), ("debian-12", 1));
    assert_eq!(layer.reference(), "derived:abc");
    std::fs::write(dir.path().join("layer.json"), SAMPLE.replace(": 1,", ": 2,")).unwrap();
    assert_eq!(Layer::read(dir.path()), None, "of a newer release");
}

#[test]
fn only_a_whole_layer_on_an_unchanged_image_is_there() {
    let home = home();
    let (low, paths) = (home.layer('a', None), &home.paths);
    let top = home.layer('b', Some(&low));
    assert_eq!(Layer::find(paths, &top.key), Some(top.clone()));
    assert_eq!(Layer::find(paths, &key('c')), None);
    let record = dir(paths, &top.key).join("layer.json");
    let json = std::fs::read(&record).unwrap();
    for length in 0..json.len() - 1 {
        std::fs::write(&record, &json[..length]).unwrap();
        assert_eq!(Layer::find(paths, &top.key), None, "cut at {length}");
    }
    std::fs::write(&record, &json).unwrap();
    std::fs::remove_file(dir(paths, &top.key).join("layer-a.qcow2")).unwrap();
    assert_eq!(Layer::find(paths, &top.key), None, "a lower file is gone");
    assert!(Layer::find(paths, &low.key).is_some());
    std::fs::write(&home.base, [3; 8192]).unwrap();
    assert_eq!(Layer::find(paths, &low.key), None, "the image was changed");
    let error = resolve(paths, &low.reference(), ARCH).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageUnreadable);
    assert!(error.report().contains("base.raw") && error.report().contains("build it again"));
}

#[test]
fn a_name_or_the_beginning_of_a_key_is_a_reference() {
    let home = home();
    let paths = &home.paths;
    let low = home.layer('a', None);
    let top = home.layer('b', Some(&low));
    set_name(paths, "web", &top).unwrap();
    let image = resolve(paths, "web", ARCH).unwrap().unwrap();
    assert_eq!((image.path.clone(), image.digest.as_str()), (home.base.clone(), &*top.digest));
    assert_eq!(image.layer_names(), ["layer-b.qcow2", "layer-a.qcow2"]);
    assert!(image.layers.iter().all(|layer| layer.is_file()));
    assert_eq!(image.size_bytes, 20 << 30);
    assert!(resolve(paths, "web", Arch::Aarch64).unwrap().is_none());
    assert!(resolve(paths, "debian-12", ARCH).unwrap().is_none());
    assert!(resolve(paths, &low.reference(), ARCH).unwrap().is_some());
    assert!(resolve(paths, &format!("{PREFIX}{}", low.key), ARCH).unwrap().is_some());
    for bad in ["derived:", "derived:aaa", "derived:cccccccc", "derived:../../../x"] {
        let error = resolve(paths, bad, ARCH).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownImage, "{bad}");
    }
    set_name(paths, "web", &low).unwrap();
    assert_eq!(resolve(paths, "web", ARCH).unwrap().unwrap().digest, low.digest, "the newer");
}

#[tokio::test]
async fn removal_takes_what_only_that_image_needs_and_leaves_what_lies_on_it_whole() {
    let home = home();
    let paths = &home.paths;
    let low = home.layer('a', None);
    let (one, two) = (home.layer('b', Some(&low)), home.layer('c', Some(&low)));
    set_name(paths, "one", &one).unwrap();
    assert_eq!(home.derived(), [two.reference(), "one".to_owned()]);
    let vm = home.base.with_file_name("vm");
    std::fs::create_dir(&vm).unwrap();
    link(&one.image(paths, "one").layers, &vm).unwrap();

    let kernels = [&one, &two].map(|layer| paths.kernels().join(&layer.digest));
    for kernel in &kernels {
        std::fs::create_dir_all(kernel).unwrap();
    }
    let member = paths.clusters().join("vm/vm");
    std::fs::create_dir_all(&member).unwrap();
    let record = VmRecord::described(&VmSpec::default()).unwrap();
    let record = VmRecord { image_digest: one.digest.clone(), ..record };
    record.write(&MemberPaths::at(member)).unwrap();
    let freed_bytes = remove_at(paths, "one", false).await.unwrap();
    assert!(freed_bytes < 8192, "a VM has its file: {freed_bytes}");
    assert!(Layer::find(paths, &one.key).is_none() && Layer::find(paths, &low.key).is_some());
    assert!(!lock_path(paths, &one.key).exists());
    for name in &one.layers {
        assert!(vm.join(name).is_file(), "{name}");
    }
    let freed_bytes = remove_at(paths, &two.reference(), false).await.unwrap();
    assert!(freed_bytes >= 8192, "{freed_bytes}");
    assert!(Layer::find(paths, &low.key).is_none(), "nobody needs it any more");
    assert_eq!(kernels.map(|kernel| kernel.exists()), [true, false], "a VM boots the first");
    let error = remove_at(paths, "one", false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_image_is_in_use_by_those_derived_from_it_and_takes_them_along_by_force() {
    let home = home();
    let paths = &home.paths;
    let sink = crate::progress::ProgressSink::default();
    let image =
        crate::images::import::import_at(paths, &home.base, "golden", ARCH, &sink).await.unwrap();
    let on_image = Home { base: image.path.clone(), paths: paths.clone(), ..self::home() };
    let layer = on_image.layer('a', None);
    set_name(paths, "web", &layer).unwrap();
    let error = remove_at(paths, "golden", false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("the image web needs it"), "{error}");
    remove_at(paths, "golden", true).await.unwrap();
    assert!(on_image.derived().is_empty() && !image.path.exists());
}

#[tokio::test]
async fn a_name_stands_for_one_kind_of_image() {
    let home = home();
    let paths = &home.paths;
    set_name(paths, "web", &home.layer('a', None)).unwrap();
    let sink = crate::progress::ProgressSink::default();
    let import = |alias| crate::images::import::import_at(paths, &home.base, alias, ARCH, &sink);
    assert_eq!(import("web").await.unwrap_err().kind(), ErrorKind::Conflict);
    import("golden").await.unwrap();
    let check = |name| crate::images::check_derived_name(paths, name).map_err(|e| e.kind());
    assert_eq!(check("golden"), Err(ErrorKind::Conflict));
    assert_eq!(check("debian-12"), Err(ErrorKind::InvalidName));
    assert_eq!(check("../x"), Err(ErrorKind::InvalidName));
    assert_eq!(check("web"), Ok(()));
}

#[test]
fn what_killed_processes_left_goes_and_what_is_worked_on_stays() {
    let home = home();
    let paths = &home.paths;
    let whole = home.layer('a', None);
    half_made(paths, &key('b')).unwrap();
    drop(lock::try_lock(&lock_path(paths, &key('b'))).unwrap());
    half_made(paths, &key('c')).unwrap();
    std::fs::create_dir(paths.layers().join(format!("{GONE}{}", key('d')))).unwrap();
    let _made = lock::try_lock(&lock_path(paths, &key('c'))).unwrap().unwrap();
    assert_eq!(remove_half_made(paths).unwrap().len(), 2);
    assert!(paths.layers().join(format!("{HALF_MADE}{}", key('c'))).exists());
    let locks = ['a', 'b', 'c'].map(|digit| lock_path(paths, &key(digit)).exists());
    assert_eq!(locks, [true, false, true], "of a layer, of none, and held");
    assert!(Layer::find(paths, &whole.key).is_some());
    let kept: Vec<bool> = kept(paths).into_iter().map(|(_, _, may_go)| may_go).collect();
    assert_eq!(kept, [true]);
    set_name(paths, "web", &whole).unwrap();
    assert!(!self::kept(paths)[0].2, "it has a name");
    evict(paths, &dir(paths, &whole.key)).unwrap();
    assert!(Layer::find(paths, &whole.key).is_none());
}
