//! Owns turning an `async fn(vm: Vm)` into a plain test that calls `fleetbox::testing::run`. It must
//! not know what a VM is.

use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::meta::ParseNestedMeta;
use syn::parse::Parser;
use syn::{Error, ItemFn, LitInt, LitStr, Result, ReturnType};

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
    Ok(quote! {
        #(#attrs)*
        #[::core::prelude::v1::test]
        #vis fn #name() -> #output {
            async fn body(#inputs) -> #output #block
            ::fleetbox::testing::run(
                ::core::concat!(::core::module_path!(), "::", ::core::stringify!(#name)),
                |vm| vm #configure,
                body,
            )
        }
    })
}

fn check(function: &ItemFn) -> Result<()> {
    let sig = &function.sig;
    if sig.asyncness.is_none() {
        return Err(Error::new_spanned(sig.fn_token, "a fleetbox test must be an `async fn`"));
    }
    if sig.inputs.len() != 1 {
        return Err(Error::new_spanned(&sig.ident, "a fleetbox test takes one argument: `vm: Vm`"));
    }
    if !sig.generics.params.is_empty() {
        return Err(Error::new_spanned(&sig.generics, "a fleetbox test cannot be generic"));
    }
    Ok(())
}

fn option(meta: &ParseNestedMeta<'_>) -> Result<Tokens> {
    if meta.path.is_ident("image") {
        let value: LitStr = meta.value()?.parse()?;
        return Ok(quote!(.image(#value)));
    }
    for number in ["cpus", "memory_mib", "disk_gib"] {
        if meta.path.is_ident(number) {
            let value: LitInt = meta.value()?.parse()?;
            let value: u32 = value.base10_parse()?;
            let method = syn::Ident::new(number, proc_macro2::Span::call_site());
            return Ok(quote!(.#method(#value)));
        }
    }
    if meta.path.is_ident("cold") {
        return Ok(quote!(.warm(false)));
    }
    Err(meta.error("unknown option; there are image, cpus, memory_mib, disk_gib and cold"))
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
    }

    #[test]
    fn what_cannot_be_a_test_is_refused() {
        for item in [
            quote!(
                fn t(vm: Vm) {}
            ),
            quote!(
                async fn t() {}
            ),
            quote!(
                async fn t<T>(vm: T) {}
            ),
        ] {
            assert!(expand(quote!(), item).is_err());
        }
        assert!(
            expand(
                quote!(wrong = 1),
                quote!(
                    async fn t(vm: Vm) {}
                )
            )
            .is_err()
        );
    }
}
