//! Policy files as a revision of git has them.

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, anyhow};

use crate::{
    cli::exit::{CliError, Exit},
    sources::policy_dir::PolicyText,
};

/// Reads a file, or the *.yaml of a directory, as `revision` has it. Needs `git`.
///
/// # Errors
///
/// Wrong usage if there is no such revision or file; an invalid policy if a file is no text.
pub(super) fn read(revision: &str, path: &Path) -> Result<Vec<PolicyText>, CliError> {
    let usage = |error| CliError::new(Exit::Usage, error);
    // git would take it for an option.
    if revision.starts_with('-') {
        return Err(usage(anyhow!("`{revision}` is no revision; write `origin/main` or a commit")));
    }
    let (directory, names) = if path.is_dir() {
        let listed = git(path, &["ls-tree", "-z", "--name-only", revision]).map_err(usage)?;
        let names = String::from_utf8_lossy(&listed).into_owned();
        // As in a directory: an editor's own files begin with a dot.
        let is_policy = |name: &&str| !name.starts_with('.') && Path::new(name).extension() == Some(OsStr::new("yaml"));
        let names = names.split('\0').filter(is_policy);
        (path, names.map(str::to_owned).collect::<Vec<_>>())
    } else {
        let name = path.file_name().ok_or_else(|| usage(anyhow!("`{}` is no file", path.display())))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        (parent, vec![name.to_string_lossy().into_owned()])
    };
    let read = |name: String| {
        let bytes = git(directory, &["show", &format!("{revision}:./{name}")]).map_err(usage)?;
        let text = String::from_utf8(bytes).map_err(|_| anyhow!("`{name}` in `{revision}` is not UTF-8"));
        let text = text.map_err(|error| CliError::new(Exit::Invalid, error))?;
        Ok(PolicyText { name: format!("{revision}:{name}"), text })
    };
    names.into_iter().map(read).collect()
}

fn git(directory: &Path, words: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args(words).stdin(Stdio::null());
    let output = command.output().context("start `git`, which reads the revision")?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(anyhow!("`git {}` says: {}", words.join(" "), said.trim().lines().next().unwrap_or("nothing")))
}
