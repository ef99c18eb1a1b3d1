//! Derived images through the library: what a build tells and leaves, over the fake backend, and one real
//! image with a machine made of it. What processes do to each other's builds is tested with the command.

use std::sync::{Arc, Mutex};

use fleetbox::{Image, Progress, Result, Vm};

use crate::require::can_boot;
use crate::unique;

/// What a build tells, as text.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn sink(&self) -> impl Fn(Progress) + Send + Sync + 'static {
        let told = self.0.clone();
        move |event| {
            let text = match event {
                Progress::Step { number, total, cached, .. } => {
                    format!("{number}/{total}{}", if cached { " cached" } else { "" })
                }
                Progress::Output(line) => format!("| {line}"),
                Progress::Begin(stage) => format!("begin {stage}"),
                Progress::Ready => "ready".to_owned(),
                _ => return,
            };
            told.lock().unwrap().push(text);
        }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[cfg(feature = "unstable-fake")]
mod fake {
    use fleetbox::{Backend, ErrorKind, ImageState};

    use super::*;

    fn image(mark: &str) -> Image {
        let line = format!("echo {mark} > mark; echo told");
        Image::from("debian-12").backend(Backend::Fake).run(line)
    }

    #[tokio::test]
    async fn a_build_tells_its_steps_and_output_and_a_second_one_only_what_is_there() -> Result<()>
    {
        let (name, told) = (unique("derived"), Told::default());
        let build = || {
            let image = image(&name).run("cat mark >&2").name(&name).on_progress(told.sink());
            image.build()
        };
        let built = build().await?;
        assert_eq!((built.reference.as_str(), built.state), (&*name, ImageState::Derived));
        assert_eq!(built.from.as_deref(), Some("debian-12"));
        let first: Vec<String> =
            told.take().into_iter().filter(|text| !text.starts_with("begin")).collect();
        assert_eq!(first, ["1/2", "| told", "2/2", &format!("| {name}"), "ready"]);
        build().await?;
        assert_eq!(told.take(), ["1/2 cached", "2/2 cached", "ready"]);
        fleetbox::images::remove(&name, false).await?;
        Ok(())
    }

    #[test]
    fn a_test_has_its_machine_of_a_derived_image() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let name = unique("derived");
        let (built, told) = (image(&name).name(&name).build(), name.clone());
        runtime.block_on(built).unwrap();
        let image = name.clone();
        fleetbox::testing::run(
            "of_a_derived_image",
            move |vm| vm.backend(Backend::Fake).image(image),
            async move |vm: Vm| assert_eq!(vm.ssh("cat mark").await.unwrap(), told),
        );
        // It started warm, from a golden machine of this very image.
        let snapshots = fleetbox::snapshots().unwrap().into_iter().flatten();
        let golden: Vec<_> = snapshots.filter(|s| s.is_golden() && s.image() == name).collect();
        assert_eq!(golden.len(), 1);
        golden[0].remove().unwrap();
        runtime.block_on(fleetbox::images::remove(&name, false)).unwrap();
    }

    #[tokio::test]
    async fn a_step_that_fails_carries_its_output_and_one_without_a_name_is_known_by_its_key()
    -> Result<()> {
        let mark = unique("mark");
        let failed = image(&mark).run("echo out; echo err >&2; exit 7").build().await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::CommandFailed);
        let report = failed.report();
        for word in ["from debian-12", "step 2 of 2", "exit code 7", "out", "err"] {
            assert!(report.contains(word), "no {word} in {report}");
        }
        let output = failed.output().unwrap();
        assert_eq!((output.status.code(), output.stdout_text().as_str()), (Some(7), "out"));
        assert_eq!(output.stderr_text(), "err");
        assert_eq!(failed.vm_name(), None, "it is not the machine's fault");

        let built = image(&mark).build().await?;
        assert!(built.reference.starts_with("derived:"), "{}", built.reference);
        let name = unique("of-key");
        let vm = Vm::builder(&name).backend(Backend::Fake).image(&built.reference).start().await?;
        assert_eq!(vm.ssh("cat mark").await?, mark);
        fleetbox::images::remove(&built.reference, false).await?;
        vm.stop().await?;
        let vm = Vm::builder(&name).backend(Backend::Fake).start().await?;
        assert_eq!(vm.ssh("cat mark").await?, mark, "it needs the image no more");
        vm.destroy().await
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_before_any_work() {
        let told = Told::default();
        let image = || Image::from("debian-12").backend(Backend::Fake).on_progress(told.sink());
        let run = || image().run("true");
        for (image, kind) in [
            (image(), ErrorKind::InvalidSpec),
            (image().run(" "), ErrorKind::InvalidSpec),
            (image().env("1", "x").run("true"), ErrorKind::InvalidSpec),
            (image().copy("/etc/passwd", "relative"), ErrorKind::InvalidPath),
            (image().copy("/nowhere", "/x"), ErrorKind::InvalidPath),
            (run().name("A b"), ErrorKind::InvalidName),
            (run().name("debian-13"), ErrorKind::InvalidName),
            (run().memory_mib(1), ErrorKind::InvalidSpec),
            (run().disk_gib(0), ErrorKind::InvalidSpec),
        ] {
            let error = image.build().await.unwrap_err();
            assert_eq!(error.kind(), kind, "{}", error.report());
            assert!(error.hint_text().is_some(), "{}", error.report());
        }
        assert!(told.take().is_empty());
    }

    #[tokio::test]
    async fn a_build_that_is_dropped_leaves_nothing_running() -> Result<()> {
        let (mark, told) = (unique("mark"), Told::default());
        let hangs = image(&mark).run("echo hangs; sleep 1000").on_progress(told.sink());
        let task = tokio::spawn(hangs.build());
        while !told.0.lock().unwrap().iter().any(|text| text == "| hangs") {
            assert!(!task.is_finished());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        task.abort();
        assert!(task.await.is_err());
        told.take();
        // Nobody has the lock any more, and the first step's layer is there.
        let built = image(&mark).on_progress(told.sink()).build().await?;
        assert_eq!(told.take(), ["1/1 cached", "ready"]);
        fleetbox::images::remove(&built.reference, false).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_made_of_an_image_that_was_built_once() -> Result<()> {
    if !can_boot().await {
        return Ok(());
    }
    let (name, told, dir) = (unique("derived"), Told::default(), tempfile::tempdir().unwrap());
    let site = dir.path().join("site");
    std::fs::create_dir(&site).unwrap();
    std::fs::write(site.join("index.html"), &name).unwrap();
    let image = || {
        Image::from("debian-12")
            .memory_mib(crate::MEMORY_MIB)
            .env("MARK", &name)
            .run("echo $MARK > /opt/mark; cat /etc/machine-id > /opt/id; hostname > /opt/host")
            .copy(&site, "/opt/site")
            .run("echo $(id -un) $(pwd) $(stat -c %U:%G /opt/site/index.html) > /opt/who")
            .name(&name)
            .on_progress(told.sink())
    };
    image().build().await?;
    told.take();
    let again = image().build().await?;
    assert_eq!(told.take(), ["1/3 cached", "2/3 cached", "3/3 cached", "ready"], "no boot");

    let small = Vm::builder(&name).image(&name).disk_gib(4).start().await.unwrap_err();
    assert!(small.report().contains("20 GiB or more"), "{}", small.report());
    let vm = Vm::builder(&name).image(&name).memory_mib(crate::MEMORY_MIB).start().await?;
    fleetbox::images::remove(&again.reference, false).await?;
    assert_eq!(vm.ssh("cat /opt/mark /opt/site/index.html").await?, format!("{name}\n{name}"));
    assert_eq!(vm.ssh("cat /opt/who").await?, "root / root:root");
    assert_eq!(vm.ssh("systemctl is-system-running --wait").await?, "running");
    assert_eq!(vm.ssh("hostname -f").await?, format!("{name}.fleetbox.internal"));
    let (own, builder) = (vm.ssh("cat /etc/machine-id").await?, vm.ssh("cat /opt/id").await?);
    assert!(own.len() == 32 && builder.len() == 32 && own != builder, "{own} {builder}");
    let of_builder = "grep -rlwF -e $(cat /opt/host) /etc /var/lib/systemd || true";
    assert_eq!(vm.command("sh").args(["-c", of_builder]).sudo().run().await?.stdout_text(), "");
    vm.destroy().await
}
