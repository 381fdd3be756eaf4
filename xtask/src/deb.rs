//! `xtask deb`: the Debian package, and a look at what is in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    run::{cargo, read, run as run_command},
    setup,
    workspace::Workspace,
};

/// Builds the package into the folder `debian` of the build output and checks its files.
///
/// # Errors
///
/// Something is missing that cannot be installed, the package is not built, or a file in it has a
/// mode or an owner that it must not have.
pub fn run(workspace: &Workspace) -> Result<()> {
    setup::deb(workspace)?;
    let folder = workspace.target.join("debian");
    // Packages of older versions would be taken for the one that is built.
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    run_command(
        cargo(workspace).args(["deb", "--quiet", "--package", "eastwall", "--locked", "--output"]).arg(&folder),
    )?;
    let package = only_package(&folder)?;
    let contents = read(Command::new("dpkg-deb").arg("--contents").arg(&package))?;
    let problems = problems(&contents);
    for problem in &problems {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} files of {} are not as they must be", problems.len(), package.display());
    }
    eprintln!("  ok    {}: {} files", package.display(), contents.lines().count());
    Ok(())
}

fn only_package(folder: &Path) -> Result<PathBuf> {
    let files = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let paths = files.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    match <[PathBuf; 1]>::try_from(paths) {
        Ok([package]) => Ok(package),
        Err(paths) => bail!("{} holds {} files, not one package", folder.display(), paths.len()),
    }
}

/// The files that may be run, and the one that must be there.
const PROGRAMS: [&str; 1] = ["./usr/bin/eastwall"];

/// Returns what is wrong with the files of a package, from rows such as
/// `-rwxr-xr-x 0/0    4330624 2026-11-24 00:00 ./usr/bin/eastwall`.
///
/// No file runs as somebody else, nothing is writable by others, and the only
/// program is the agent, which carries its kernel programs inside.
fn problems(contents: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for program in PROGRAMS {
        if !contents.lines().any(|row| row.ends_with(program)) {
            problems.push(format!("{program} is missing"));
        }
    }
    for row in contents.lines() {
        let mut words = row.split_whitespace();
        let (Some(mode), Some(owner), Some(path)) = (words.next(), words.next(), words.nth(3)) else {
            problems.push(format!("`{row}` is no row of a package's contents"));
            continue;
        };
        let mode = mode.as_bytes();
        let has = |at: usize, letters: &[u8]| mode.get(at).is_some_and(|letter| letters.contains(letter));
        let is_folder = has(0, b"d");
        if !is_folder && !has(0, b"-") {
            problems.push(format!("{path} is neither a file nor a folder"));
            continue;
        }
        if has(3, b"sS") || has(6, b"sS") {
            problems.push(format!("{path} runs as its owner or group"));
        }
        if has(5, b"w") || has(8, b"w") {
            problems.push(format!("{path} is writable by others"));
        }
        if !is_folder && [3, 6, 9].into_iter().any(|at| has(at, b"xst")) && !PROGRAMS.contains(&path) {
            problems.push(format!("{path} is a program"));
        }
        if !matches!(owner, "0/0" | "root/root") {
            problems.push(format!("{path} belongs to {owner}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "-rwxr-xr-x 0/0   4330624 2026-11-24 00:00 ./usr/bin/eastwall\n";

    #[track_caller]
    fn check(row: &str, expected: &[&str]) {
        assert_eq!(problems(&format!("{PROGRAM}{row}\n")), expected);
    }

    #[test]
    fn a_package_has_one_program_and_nothing_that_others_may_write() {
        check("drwxr-xr-x root/root 0 2026-11-24 00:00 ./etc/", &[]);
        check("-rw-r--r-- root/root 9 2026-11-24 00:00 ./etc/x", &[]);
        check(
            "-rwsr-xr-x 0/0 9 2026-11-24 00:00 ./usr/bin/x",
            &["./usr/bin/x runs as its owner or group", "./usr/bin/x is a program"],
        );
        check("-rw-rw-r-- 0/0 9 2026-11-24 00:00 ./etc/x", &["./etc/x is writable by others"]);
        check("drwxrwxrwt 0/0 0 2026-11-24 00:00 ./tmp/", &["./tmp/ is writable by others"]);
        check("-rw-r--r-- 1000/1000 9 2026-11-24 00:00 ./etc/x", &["./etc/x belongs to 1000/1000"]);
        check("lrwxrwxrwx 0/0 0 2026-11-24 00:00 ./x -> /etc", &["./x is neither a file nor a folder"]);
    }

    #[test]
    fn a_package_without_the_agent_is_refused() {
        assert_eq!(problems("").len(), 1);
    }
}
