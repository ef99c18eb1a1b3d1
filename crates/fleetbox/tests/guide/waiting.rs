//! Waiting.

use std::time::Duration;

use fleetbox::Vm;
use fleetbox::wait::{all, any, boot_finished, command, console, file, http, journal, port, unit};

async fn example(vm: Vm) -> fleetbox::Result<()> {
    vm.wait(boot_finished()).await?;
    vm.wait(unit("nginx").active()).await?;
    vm.wait(http(80, "/health").status(204)).within(Duration::from_secs(30)).await?;
    vm.wait(all([port(5432), file("/run/postgresql/ready")])).await?;
    vm.wait(any([journal("listening on .*:8080")?, console("panic")?])).await?;
    vm.wait(command("test $(nproc) -eq 2").succeeds()).await
}
