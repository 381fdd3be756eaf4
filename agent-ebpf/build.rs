//! Lets the linker expand memset and memcpy of a known length as the compiler sees fit. By default it copies
//! in words and calls a loop over bytes for every memset, which profiles of first packets were full of.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf") {
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
