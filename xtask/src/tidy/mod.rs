//! `xtask tidy`: the rules of this project that neither the compiler nor clippy can check.
//!
//! Each violation is one line: place, what was found, and the reason for the rule.

mod gaps;
mod imports;
mod paths;
mod text;

use std::{fmt, fs, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{run::read, workspace::Workspace};

/// Checks every file of the checkout that git does not ignore.
///
/// # Errors
///
/// A rule is broken, git cannot list the files, or a Rust file cannot be read.
pub fn run(workspace: &Workspace) -> Result<()> {
    let list = read(Command::new("git").current_dir(&workspace.root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]))
    .context("list the files of the checkout")?;
    let mut files: Vec<&str> = list.split('\0').filter(|name| !name.is_empty()).collect();
    files.sort_unstable();
    files.dedup();

    let mut found = Vec::new();
    let mut count = 0_u32;
    for name in files {
        // Not there: deleted, and not yet committed. Not text: a picture or a corpus of inputs.
        let Ok(bytes) = fs::read(workspace.root.join(name)) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        count += 1;
        text::check(name, &text, &mut found);
        if name.ends_with(".rs") {
            gaps::check(name, &text, &mut found);
            imports::check(name, &text, &mut found).with_context(|| format!("read {name}"))?;
        }
    }
    for violation in &found {
        eprintln!("{violation}");
    }
    if found.is_empty() {
        eprintln!("  ok    {count} files are tidy");
        return Ok(());
    }
    bail!("{} places are not tidy", found.len())
}

/// A place that breaks a rule.
#[derive(Debug, Eq, PartialEq)]
struct Violation {
    file: String,
    line: usize,
    what: String,
    reason: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.what, self.reason)
    }
}
