//! Builds the kernel programs from source and hands the object to the agent.
//!
//! `AYA_BUILD_SKIP=1` leaves them out, so that host tests need no BPF toolchain; such a binary
//! refuses to run as `eastwall agent`.
#![allow(unsafe_code, missing_docs)]

use std::{env, fs, fs::File, path::PathBuf};

use anyhow::{Context as _, Result};

/// The objects, by the names of the binaries of `agent-ebpf`.
const OBJECTS: [&str; 2] = ["agent-ebpf", "boot-guard"];

fn main() -> Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("no CARGO_MANIFEST_DIR")?);
    let root = manifest.parent().context("the agent has no parent folder")?;
    println!("cargo:rustc-check-cfg=cfg(kernel_programs)");
    println!("cargo:rerun-if-changed={}", root.join("agent-common/src").display());
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|v| v == "1") {
        return Ok(());
    }
    println!("cargo:rustc-cfg=kernel_programs");

    // `cargo xtask setup` puts bpf-linker into the build output, out of the user's way.
    let target = root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    let tools = target.join("tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([tools].into_iter().chain(env::split_paths(&path)))?;
    // SAFETY: a build script's main thread, before any other thread exists.
    unsafe { env::set_var("PATH", path) };
    // build-std is unstable; the pinned stable toolchain has it behind this switch.
    // SAFETY: as above.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };

    let root_dir = root.join("agent-ebpf");
    let root_dir = root_dir.to_str().context("the path of the workspace is not UTF-8")?;
    let features: &[&str] = if env::var_os("CARGO_FEATURE_KERNEL_LOG").is_some() { &["kernel-log"] } else { &[] };
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "1.95.0".to_owned());

    // They are the same whatever the agent is built for, so all of its builds share one: a minute each.
    let own = PathBuf::from(env::var_os("OUT_DIR").context("no OUT_DIR")?);
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("no CARGO_CFG_TARGET_ARCH")?;
    let shared = target.join("kernel-programs").join([&[arch.as_str()], features].concat().join("-"));
    fs::create_dir_all(&shared).with_context(|| format!("create {}", shared.display()))?;
    let turn = File::create(shared.join("turn")).context("create the lock of the shared build")?;
    turn.lock().context("wait for another build of the agent")?;
    // SAFETY: as above.
    unsafe { env::set_var("OUT_DIR", &shared) };
    aya_build::build_ebpf(
        [aya_build::Package { name: "agent-ebpf", root_dir, features, ..Default::default() }],
        aya_build::Toolchain::Custom(&toolchain),
    )
    .context("build the kernel programs: `cargo xtask setup` installs what this needs")?;
    for object in OBJECTS {
        fs::copy(shared.join(object), own.join(object)).with_context(|| format!("keep {object}"))?;
    }
    Ok(())
}
