//! `image`: list, fetch, delete, take in, build.

use std::io::Write;

use fleetbox::images::{self, BuildOptions};
use fleetbox::{Arch, Error, Image, ImageInfo};

use super::printed;
use crate::args::image::ImageBuild;
use crate::args::{Format, ImageCommand};
use crate::progress::Display;
use crate::{Outcome, render};

pub(super) async fn run(command: ImageCommand) -> Outcome {
    let display = Display::new();
    match command {
        ImageCommand::Ls(args) => {
            let images = images::list().await?;
            printed(match args.output {
                Format::Json => render::json(&images),
                Format::Text => render::images_table(&images),
            })
        }
        ImageCommand::Pull { image, arch } => tell(
            &images::pull(&image, arch.unwrap_or_else(Arch::host), display.sink(&image)).await?,
        ),
        ImageCommand::Rm { images, force } => {
            for image in &images {
                let freed_bytes = images::remove(image, force).await?;
                eprintln!("{image}: {} MiB freed", freed_bytes >> 20);
            }
            Ok(0)
        }
        ImageCommand::Import { path, alias, arch } => {
            let arch = arch.unwrap_or_else(Arch::host);
            tell(&images::import(&path, &alias, arch, display.sink(&alias)).await?)
        }
        ImageCommand::Build(args) => tell(&build(args, &display).await?),
    }
}

async fn build(args: ImageBuild, display: &Display) -> Result<ImageInfo, Error> {
    let ImageBuild { alias, file, name, arch, packages, mirror, cpus, memory, disk } = args;
    let arch = arch.unwrap_or_else(Arch::host);
    let Some(file) = file else {
        let alias = alias.unwrap_or_default();
        let shown = name.clone().unwrap_or_else(|| alias.clone());
        let mut options = BuildOptions::default();
        for package in packages {
            options = options.package(package);
        }
        if let Some(name) = name {
            options = options.name(name);
        }
        if let Some(mirror) = mirror {
            options = options.mirror(mirror);
        }
        return images::build(&alias, arch, options, display.sink(&shown)).await;
    };
    let shown = name.clone().unwrap_or_else(|| "image".to_owned());
    let mut image = Image::from_file(file)?.arch(arch).on_progress(display.sink(&shown));
    if let Some(name) = name {
        image = image.name(name);
    }
    if let Some(cpus) = cpus {
        image = image.cpus(cpus);
    }
    if let Some(memory_mib) = memory {
        image = image.memory_mib(memory_mib);
    }
    if let Some(disk_gib) = disk {
        image = image.disk_gib(disk_gib);
    }
    image.build().await
}

fn tell(image: &ImageInfo) -> Outcome {
    let path = image.path.as_deref().map(|p| p.display().to_string()).unwrap_or_default();
    printed(writeln!(std::io::stdout(), "{} {path}", image.reference))
}
