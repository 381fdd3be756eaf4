//! Where things are: the checkout, the build output, the tools that are installed beside it.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The checkout that `cargo xtask` was typed in.
pub struct Workspace {
    /// The folder that holds the workspace's `Cargo.toml`.
    pub root: PathBuf,
    /// The build output: `CARGO_TARGET_DIR`, or `target` in the checkout.
    pub target: PathBuf,
    /// The toolchain's version, from `rust-toolchain.toml`, which alone names it.
    pub toolchain: String,
}

impl Workspace {
    /// Finds the checkout.
    ///
    /// # Errors
    ///
    /// Not started by cargo; `rust-toolchain.toml` cannot be read or names no channel.
    pub fn find() -> Result<Self> {
        // Asked for at run time: checkouts that share a build output may share this very binary.
        let own = env::var_os("CARGO_MANIFEST_DIR").context("start this as `cargo xtask`")?;
        let root = Path::new(&own).parent().context("xtask has no parent folder")?.to_owned();
        // A relative folder is meant from the checkout, wherever the command was typed.
        let target = root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
        let toolchain = toolchain(&root)?;
        Ok(Self { root, target, toolchain })
    }

    /// Returns the folder that holds `bin/` with the pinned tools.
    ///
    /// It lies in the build output, so that checkouts that share one share the tools as well;
    /// `agent/build.rs` looks in the same places.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

fn toolchain(root: &Path) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct File {
        toolchain: Toolchain,
    }
    #[derive(serde::Deserialize)]
    struct Toolchain {
        channel: String,
    }
    let path = root.join("rust-toolchain.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let file: File = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(file.toolchain.channel)
}
