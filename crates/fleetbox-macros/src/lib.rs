//! The attribute `#[fleetbox::test]`: the entry point alone. What it expands to is in `expand`, and
//! everything that happens at run time is `fleetbox::testing`.

mod expand;

use proc_macro::TokenStream;

/// Makes an `async fn` that takes a `Vm` a test: a VM of its own is started before the body and
/// destroyed after it, also when the body panics or returns an error.
///
/// The machine comes from one that was booted once for all tests that want the same, in a moment;
/// `cold` boots it instead.
///
/// Options: `image = "…"`, `cpus = …`, `memory_mib = …`, `disk_gib = …`, `cold`.
///
/// ```ignore
/// #[fleetbox::test(memory_mib = 1024)]
/// async fn runs_linux(vm: fleetbox::Vm) -> fleetbox::Result<()> {
///     assert_eq!(vm.ssh("uname").await?, "Linux");
///     Ok(())
/// }
/// ```
#[proc_macro_attribute]
pub fn test(options: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(options.into(), item.into()).unwrap_or_else(|e| e.to_compile_error()).into()
}
