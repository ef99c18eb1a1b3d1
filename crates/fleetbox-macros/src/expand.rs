//! Owns turning a function that takes machines into a plain test that runs a `fleetbox::testing::Test`. It
//! must not know what a VM is; `option` has the words that may be said of a test.

use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::parse::Parser;
use syn::{Error, FnArg, Ident, ItemFn, Pat, Result, ReturnType};

use crate::option::option;

/// Tuples of more are not among what a test may take.
const ARGUMENTS_MAX: usize = 6;

pub(crate) fn expand(options: Tokens, item: Tokens) -> Result<Tokens> {
    let function: ItemFn = syn::parse2(item)?;
    check(&function)?;
    let mut configure = quote!();
    let parser = syn::meta::parser(|meta| {
        configure.extend(option(&meta)?);
        Ok(())
    });
    parser.parse2(options)?;

    let ItemFn { attrs, vis, sig, block } = &function;
    let (name, inputs) = (&sig.ident, &sig.inputs);
    let output = match &sig.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, kind) => quote!(#kind),
    };
    let names: Vec<Ident> =
        inputs.iter().enumerate().map(|(at, input)| argument(at, input)).collect();
    let (named, body) = if names.len() == 1 {
        (quote!(), quote!(body))
    } else {
        let words = names.iter().map(ToString::to_string);
        (quote!(.names([#(#words),*])), quote!(|(#(#names),*)| body(#(#names),*)))
    };
    let (asyncness, run) = match sig.asyncness {
        Some(_) => (quote!(async), quote!(run)),
        None => (quote!(), quote!(run_blocking)),
    };
    Ok(quote! {
        #(#attrs)*
        #[::core::prelude::v1::test]
        #vis fn #name() -> #output {
            #asyncness fn body(#inputs) -> #output #block
            ::fleetbox::testing::Test::new(
                ::core::concat!(::core::module_path!(), "::", ::core::stringify!(#name)),
            )
            #named
            #configure
            .#run(#body)
        }
    })
}

fn check(function: &ItemFn) -> Result<()> {
    let sig = &function.sig;
    if sig.inputs.is_empty() || sig.inputs.len() > ARGUMENTS_MAX {
        return Err(Error::new_spanned(
            &sig.ident,
            "a fleetbox test takes its machines: `vm: Vm`, up to six VMs, or `nodes: Cluster`",
        ));
    }
    if !sig.generics.params.is_empty() {
        return Err(Error::new_spanned(&sig.generics, "a fleetbox test cannot be generic"));
    }
    Ok(())
}

/// What an argument is called, or a name for one that is a pattern.
fn argument(at: usize, input: &FnArg) -> Ident {
    if let FnArg::Typed(typed) = input
        && let Pat::Ident(pattern) = &*typed.pat
    {
        let name = pattern.ident.to_string();
        return Ident::new(name.trim_start_matches('_'), pattern.ident.span());
    }
    Ident::new(&format!("vm_{at}"), proc_macro2::Span::call_site())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(options: Tokens, item: Tokens) -> String {
        expand(options, item).unwrap().to_string()
    }

    #[test]
    fn attributes_and_the_return_type_are_kept() {
        let out = text(
            quote!(memory_mib = 512, cold, image = "x"),
            quote!(
                #[ignore]
                async fn t(vm: Vm) -> Result<(), E> {
                    Ok(())
                }
            ),
        );
        assert!(out.contains("# [ignore]"));
        assert!(out.contains("fn t () -> Result < () , E >"));
        assert!(out.contains(". warm (false)"));
        assert!(out.contains(". memory_mib (512u32)") && out.contains(". image (\"x\")"));
        assert!(out.contains(". run (body)") && !out.contains("names"));
    }

    #[test]
    fn several_machines_are_known_by_their_arguments() {
        let out = text(
            quote!(),
            quote!(
                async fn t(db: Vm, mut _web: Vm) {}
            ),
        );
        assert!(out.contains("names ([\"db\" , \"web\"])"), "{out}");
        assert!(out.contains("| (db , web) | body (db , web)"), "{out}");
    }

    #[test]
    fn a_plain_function_is_run_as_one() {
        let out = text(
            quote!(),
            quote!(
                fn t(vm: Vm) {}
            ),
        );
        assert!(out.contains(". run_blocking (body)") && !out.contains("async"), "{out}");
    }

    #[test]
    fn what_cannot_be_a_test_is_refused() {
        for item in [
            quote!(
                async fn t() {}
            ),
            quote!(
                async fn t(a: Vm, b: Vm, c: Vm, d: Vm, e: Vm, f: Vm, g: Vm) {}
            ),
            quote!(
                async fn t<T>(vm: T) {}
            ),
        ] {
            assert!(expand(quote!(), item).is_err());
        }
    }
}
