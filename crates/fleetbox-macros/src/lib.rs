//! The attribute `#[fleetbox::test]`: the entry point alone. What it expands to is in `expand`, and
//! everything that happens at run time is `fleetbox::testing`.

mod expand;
mod option;

use proc_macro::TokenStream;

/// Makes an `async fn`, or a plain one that calls `fleetbox::blocking`, that takes machines a test: they are started before the body and destroyed after it,
/// also when the body panics, returns an error or takes too long, or the process dies.
///
/// It takes `vm: Vm`; or up to six, `db: Vm, web: Vm`, which are on one network and know each other by these
/// names; or `nodes: Cluster`. It returns `()` or any `Result<(), E>` with `E: Debug`.
///
/// The machines come from one that was booted once for all tests that want the same, in a moment;
/// `cold` boots them instead. Afterwards console and journal are looked through: a machine that is not well
/// fails the test. A test that fails says where everything known of it was written.
///
/// | option | meaning |
/// |---|---|
/// | `image = "…"`, `cpus = …`, `memory_mib = …`, `disk_gib = …` | as the methods of `VmBuilder` |
/// | `cold` | boot, do not restore |
/// | `durable` | a power cut loses what the guest did not flush, and nothing else |
/// | `vms = 5` | how many machines a `Cluster` has; default 3 |
/// | `fixture = "host:/guest"` | a host directory, mounted read-only; may be said several times |
/// | `timeout = "5m"` | what the body may take; a number is seconds; default `FLEETBOX_TEST_TIMEOUT`, else no limit |
/// | `requires(nested, netem, kvm)` | skip where the host lacks it, fail where `FLEETBOX_REQUIRE` names it |
/// | `allow_health = "regex"` | findings that belong to the test; may be said several times |
///
/// ```ignore
/// #[fleetbox::test(memory_mib = 1024, timeout = "2m")]
/// async fn runs_linux(vm: fleetbox::Vm) -> fleetbox::Result<()> {
///     assert_eq!(vm.ssh("uname").await?, "Linux");
///     Ok(())
/// }
///
/// #[fleetbox::test(vms = 3)]
/// async fn nodes_know_each_other(nodes: fleetbox::Cluster) -> fleetbox::Result<()> {
///     for node in &nodes {
///         node.ssh(&format!("getent hosts {}-1", nodes.name())).await?;
///     }
///     Ok(())
/// }
/// ```
#[proc_macro_attribute]
pub fn test(options: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(options.into(), item.into()).unwrap_or_else(|e| e.to_compile_error()).into()
}
