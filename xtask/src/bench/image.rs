//! Owns the figure of taking a compressed qcow2 in, against qemu-img.

use std::path::Path;

use super::report::{self, Bound, Row};
use super::sample::{in_turns, seconds};
use super::stage::Stage;
use crate::failure::{Failure, Outcome};
use crate::process;

/// Fresh memory for the page cache makes single runs differ by a factor of two.
const RUNS: usize = 9;

pub(super) fn qcow2_to_raw(stage: &Stage) -> Outcome<Vec<Row>> {
    let image = stage.image()?;
    let mut rows = Vec::new();
    for compression in ["zlib", "zstd"] {
        report::progress(&format!("making a qcow2 compressed with {compression}"));
        let packed = stage.file(&format!("{compression}.qcow2"));
        let mut pack = process::command("qemu-img");
        pack.args(["convert", "-c", "-O", "qcow2", "-o"]);
        pack.arg(format!("compression_type={compression}")).args([&image.path, &packed]);
        process::run(&mut pack)?;
        rows.extend(unpack(stage, compression, &packed)?);
    }
    Ok(rows)
}

/// Both sides as they are: we bring the disk to the platter before it counts as cached, qemu-img
/// leaves it in the page cache unless told to flush.
fn unpack(stage: &Stage, compression: &str, packed: &Path) -> Outcome<Vec<Row>> {
    let cli = stage.cli()?;
    let ours = |_| {
        let home = stage.file("home");
        let mut import = process::command(cli);
        import.env("FLEETBOX_HOME", &home).arg("image").arg("import").arg(packed).arg("unpacked");
        let took = process::time(&mut import)?;
        std::fs::remove_dir_all(&home).map_err(Failure::io("remove", &home))?;
        Ok(seconds(took))
    };
    let qemu_img = |flags: &'static [&'static str]| {
        move |_| {
            let raw = stage.file("unpacked.raw");
            let mut convert = process::command("qemu-img");
            convert.arg("convert").args(flags).args(["-O", "raw"]).arg(packed).arg(&raw);
            let took = process::time(&mut convert)?;
            std::fs::remove_file(&raw).map_err(Failure::io("remove", &raw))?;
            Ok(seconds(took))
        }
    };
    let runs = stage.runs_or(RUNS);
    let [ours, plain, flushed] =
        in_turns(runs, [&ours, &qemu_img(&[]), &qemu_img(&["-t", "writeback"])])?;
    let peers = [
        ("", plain, "which leaves the disk in the page cache"),
        ("-flushed", flushed, "which flushes the disk as we do"),
    ];
    Ok(peers
        .map(|(suffix, peer, what)| {
            let flags = if suffix.is_empty() { "" } else { " -t writeback" };
            Row::new(
                &format!("qcow2-to-raw/{compression}{suffix}"),
                (ours, Some(peer)),
                "s",
                Bound::TimesAsFast(1.0),
                runs,
                format!("`fleetbox image import`, its flush included, against `qemu-img convert{flags} -O raw`, {what}; whole processes"),
            )
        })
        .into())
}
