//! Owns the words that may be said of a test: each becomes a call on `fleetbox::testing::Test`. It must not
//! know the function they are said of.

use proc_macro2::{Span, TokenStream as Tokens};
use quote::quote;
use syn::meta::ParseNestedMeta;
use syn::{Ident, Lit, LitInt, LitStr, Result, Token, parenthesized};

const KNOWN: &str = "unknown option; there are image, cpus, memory_mib, disk_gib, cold, durable, vms, fixture, timeout, \
                     requires(…) and allow_health";

/// `name`, `name = value` or `name(…)` as a method call.
pub(crate) fn option(meta: &ParseNestedMeta<'_>) -> Result<Tokens> {
    let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
    match name.as_str() {
        "image" => {
            let value: LitStr = meta.value()?.parse()?;
            Ok(vm(&quote!(.image(#value))))
        }
        "cpus" | "memory_mib" | "disk_gib" => {
            let value: LitInt = meta.value()?.parse()?;
            let value: u32 = value.base10_parse()?;
            let method = Ident::new(&name, Span::call_site());
            Ok(vm(&quote!(.#method(#value))))
        }
        "cold" => Ok(vm(&quote!(.warm(false)))),
        "durable" => Ok(vm(&quote!(.durable(true)))),
        "vms" => {
            let value: LitInt = meta.value()?.parse()?;
            let value: usize = value.base10_parse()?;
            Ok(quote!(.vms(#value)))
        }
        "fixture" => fixture(meta),
        "timeout" => {
            let value: Lit = meta.value()?.parse()?;
            let ms = milliseconds(&value)?;
            Ok(quote!(.timeout(::core::time::Duration::from_millis(#ms))))
        }
        "requires" => requires(meta),
        "allow_health" => {
            let value: LitStr = meta.value()?.parse()?;
            Ok(quote!(.allow_health(#value)))
        }
        _ => Err(meta.error(KNOWN)),
    }
}

fn vm(call: &Tokens) -> Tokens {
    quote!(.vm(|vm| vm #call))
}

/// `fixture = "host:guest"` or `fixture("host", "guest")`.
fn fixture(meta: &ParseNestedMeta<'_>) -> Result<Tokens> {
    if meta.input.peek(syn::token::Paren) {
        let content;
        parenthesized!(content in meta.input);
        let host: LitStr = content.parse()?;
        content.parse::<Token![,]>()?;
        let guest: LitStr = content.parse()?;
        return Ok(vm(&quote!(.fixture(#host, #guest))));
    }
    let value: LitStr = meta.value()?.parse()?;
    let text = value.value();
    // A guest's path begins with a slash; a host's may have colons.
    match text.rsplit_once(":/") {
        Some((host, guest)) if !host.is_empty() => {
            let guest = format!("/{guest}");
            Ok(vm(&quote!(.fixture(#host, #guest))))
        }
        _ => Err(syn::Error::new(value.span(), "a fixture is \"HOST:/GUEST\"")),
    }
}

fn requires(meta: &ParseNestedMeta<'_>) -> Result<Tokens> {
    let mut calls = quote!();
    meta.parse_nested_meta(|word| {
        let kind = match word.path.get_ident().map(ToString::to_string).as_deref() {
            Some("nested") => quote!(Nested),
            Some("netem") => quote!(Netem),
            Some("kvm") => quote!(Kvm),
            _ => return Err(word.error("a test can require nested, netem or kvm")),
        };
        calls.extend(quote!(.requires(::fleetbox::testing::Requirement::#kind)));
        Ok(())
    })?;
    Ok(calls)
}

/// Seconds as a number, or text with a unit: `"500ms"`, `"90s"`, `"5m"`, `"1h"`.
fn milliseconds(value: &Lit) -> Result<u64> {
    let wrong =
        || syn::Error::new(value.span(), "a time is seconds, or text such as \"90s\" or \"5m\"");
    let (number, factor): (u64, u64) = match value {
        Lit::Int(seconds) => (seconds.base10_parse()?, 1000),
        Lit::Str(text) => {
            let text = text.value();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let factor = match &text[end..] {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => return Err(wrong()),
            };
            (text[..end].parse().map_err(|_| wrong())?, factor)
        }
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).filter(|ms| *ms > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use crate::expand::expand;
    use proc_macro2::TokenStream as Tokens;
    use quote::quote;

    fn said(options: Tokens) -> syn::Result<String> {
        let item = quote!(
            async fn t(vm: Vm) {}
        );
        expand(options, item).map(|out| out.to_string())
    }

    #[test]
    fn options_become_calls() {
        for (options, call) in [
            (quote!(vms = 3), ". vms (3usize)"),
            (quote!(timeout = 90), "from_millis (90000u64)"),
            (quote!(timeout = "5m"), "from_millis (300000u64)"),
            (quote!(timeout = "500ms"), "from_millis (500u64)"),
            (quote!(requires(nested, kvm)), "Requirement :: Nested) . requires"),
            (quote!(allow_health = "segfault"), ". allow_health (\"segfault\")"),
            (quote!(fixture = "a:b:/c"), ". fixture (\"a:b\" , \"/c\")"),
            (quote!(fixture("a", "/c")), ". fixture (\"a\" , \"/c\")"),
        ] {
            let out = said(options).unwrap();
            assert!(out.contains(call), "{out}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for options in [
            quote!(wrong = 1),
            quote!(requires(gpu)),
            quote!(timeout = "5 parsecs"),
            quote!(timeout = 0),
            quote!(timeout = true),
            quote!(fixture = "nowhere"),
            quote!(fixture = ":/c"),
            quote!(vms = "three"),
        ] {
            assert!(said(options.clone()).is_err(), "{options}");
        }
    }
}
