//! Owns the figure of packing a fixture, against the one tool that makes file systems of directories.

use std::path::Path;
use std::time::SystemTime;

use fleetbox::{Progress, Vm};
use tokio::sync::mpsc;

use super::report::{Bound, Row};
use super::sample::{ms, side_by_side};
use super::stage::{IMAGE, MEMORY_MIB, Stage, machine_name};
use crate::failure::{Failure, Outcome};
use crate::process;

const FILES: usize = 5000;
const FILES_IN_DIR: usize = 100;
const FILE_BYTES: usize = 3000;
const LARGE_BYTES: u64 = 300_000_000;
const NOTE: &str = "from the word that fixtures are packed to the last write into the drive, in a start \
    that is given up then, against `mke2fs -d` of the same directory into a sparse file, without a \
    journal, nothing of it zeroed ahead and as a whole process; 5,000 files of 3,000 bytes in 50 \
    directories and one of 300 MB, read before, in memory as far as it goes";

pub(super) fn pack(stage: &Stage) -> Outcome<Vec<Row>> {
    stage.image()?;
    let dir = stage.file("fixture");
    fill(stage, &dir)?;
    let ours = |run: usize| {
        let name = machine_name(&format!("pack{run}x"));
        pack_ours(stage, &name, &dir)
    };
    let peer = |_| {
        let image = stage.file("fixture.img");
        let mut make = process::command("mke2fs");
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        make.env("PATH", path).args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal"]);
        make.args(["-E", "lazy_itable_init=1,root_owner=0:0", "-d"]).arg(&dir).arg(&image);
        let took = process::time(make.arg("512M"))?;
        std::fs::remove_file(&image).map_err(Failure::io("remove", &image))?;
        Ok(ms(took))
    };
    // What was written just now is on its way to the disk.
    process::run(process::command("sync").arg("--file-system").arg(&dir))?;
    let runs = stage.runs();
    let (ours, peer) = side_by_side(runs, ours, peer)?;
    let bound = Bound::TimesAsLong(1.1);
    Ok(vec![Row::new("fixture", (ours, Some(peer)), "ms", bound, runs, NOTE)])
}

fn fill(stage: &Stage, dir: &Path) -> Outcome<()> {
    let make = |dir: &Path| std::fs::create_dir_all(dir).map_err(Failure::io("make", dir));
    let write =
        |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).map_err(Failure::io("write", path));
    for number in 0..FILES {
        let below = dir.join(format!("dir-{}", number / FILES_IN_DIR));
        if number % FILES_IN_DIR == 0 {
            make(&below)?;
        }
        write(&below.join(format!("file-{number}")), &[number as u8; FILE_BYTES])?;
    }
    let (large, target) = (stage.noise("large", LARGE_BYTES)?, dir.join("large"));
    std::fs::rename(&large, &target).map_err(Failure::io("move", &large))
}

/// Starts a machine, and gives it up as soon as its monitor runs. Milliseconds of packing.
fn pack_ours(stage: &Stage, name: &str, dir: &Path) -> Outcome<f64> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let packed = stage.wait(async {
        let start = Vm::builder(name)
            .image(IMAGE)
            .memory_mib(MEMORY_MIB)
            .ephemeral(true)
            .fixture(dir, "/srv/fixture")
            .on_progress(move |event| {
                if let Progress::Begin(begun) = event {
                    // Nobody listens once the machine is given up.
                    let _ = sender.send((begun, SystemTime::now()));
                }
            })
            .start();
        tokio::pin!(start);
        let mut began = None;
        loop {
            tokio::select! {
                biased;
                Some((begun, at)) = events.recv() => match begun {
                    fleetbox::Stage::Pack => began = Some(at),
                    fleetbox::Stage::Kernel => break,
                    _ => {}
                },
                started = &mut start => {
                    started?;
                    break;
                }
            }
        }
        let began = began.ok_or_else(|| Failure::new("the start never told of its fixtures"))?;
        let drive = Vm::find(name)?.console_path().with_file_name("fixture-0.img");
        let written = drive.metadata().and_then(|metadata| metadata.modified());
        let written = written.map_err(Failure::io("look at", &drive))?;
        Ok(ms(written.duration_since(began).unwrap_or_default()))
    });
    // It ends by itself as nobody holds it; this waits until it has.
    if let Ok(vm) = Vm::find(name) {
        stage.wait(async { Ok(vm.destroy().await?) })?;
    }
    packed
}
