//! Owns the synchronous form of the whole API: one word, [`Block::block`], after any call. It must not have a
//! second implementation of anything.
//!
//! ```no_run
//! use fleetbox::Vm;
//! use fleetbox::blocking::Block;
//! use fleetbox::wait::port;
//!
//! fn main() -> fleetbox::Result<()> {
//!     let vm = Vm::builder("web").memory_mib(1024).start().block()?;
//!     vm.command("apt-get").args(["install", "-y", "nginx"]).sudo().run().block()?;
//!     vm.wait(port(80)).block()?;
//!     println!("{}", vm.ssh("uname -a").block()?);
//!     vm.destroy().block()
//! }
//! ```
//!
//! In tests: a plain `fn` under `#[fleetbox::test]`, or [`Test::run_blocking`](crate::testing::Test::run_blocking).

use std::future::IntoFuture;
use std::sync::OnceLock;

use tokio::runtime::Handle;

/// Every future, awaited by the thread that asks. What runs on meanwhile, such as connections, does so in a thread
/// that the first call starts and that lives as long as the process.
pub trait Block: IntoFuture + Sized {
    /// Runs the future to its end.
    ///
    /// # Panics
    /// In an async context, where it would stop everything else: await there. If no thread can be started.
    fn block(self) -> Self::Output {
        runtime().block_on(self.into_future())
    }
}

impl<F: IntoFuture> Block for F {}

/// The runtime behind it.
pub(crate) fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap_or_else(|e| panic!("failed to start a runtime for blocking calls: {e}"));
        let handle = runtime.handle().clone();
        let drive = move || runtime.block_on(std::future::pending::<()>());
        std::thread::Builder::new()
            .name("fleetbox-blocking".to_owned())
            .spawn(drive)
            .unwrap_or_else(|e| panic!("failed to start a thread for blocking calls: {e}"));
        handle
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn any_future_is_run_and_what_it_spawns_goes_on() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let answer = async move {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                sender.send(7).unwrap();
            });
            6
        };
        assert_eq!(answer.block(), 6);
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(7));
    }
}
