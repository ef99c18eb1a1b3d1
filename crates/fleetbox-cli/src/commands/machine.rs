//! What a new VM shall be, as the command line says it.

use fleetbox::VmBuilder;

use crate::args::machine::Machine;

impl Machine {
    /// The builder with what was said; the rest stays as it is.
    pub(super) fn of(&self, mut builder: VmBuilder) -> VmBuilder {
        if let Some(image) = &self.image {
            builder = builder.image(image);
        }
        if let Some(cpus) = self.cpus {
            builder = builder.cpus(cpus);
        }
        if let Some(memory_mib) = self.memory {
            builder = builder.memory_mib(memory_mib);
        }
        if let Some(disk_gib) = self.disk {
            builder = builder.disk_gib(disk_gib);
        }
        if let Some(arch) = self.arch {
            builder = builder.arch(arch);
        }
        if !self.fixture.is_empty() {
            builder = builder.fixtures(self.fixture.clone());
        }
        if self.nested {
            builder = builder.nested_virt(true);
        }
        if let Some(backend) = self.backend {
            builder = builder.backend(backend);
        }
        if let Some(timeout) = self.timeout {
            builder = builder.timeout(timeout);
        }
        builder
    }
}
