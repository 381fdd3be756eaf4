//! The tests that load kernel programs, built here and run in the guest.

use std::{
    fmt::Write as _,
    io::{self, BufReader, Write as _},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::{Message, TargetKind};

use super::{arch::Arch, outcome::Report, quote};
use crate::{run::cargo_for, test, workspace::Workspace};

/// Bounds on time in tests are multiplied by it where the machine is emulated.
const EMULATED_TIMES: &str = "12";

/// A program of tests, and which of its tests to run.
struct TestFile {
    name: String,
    program: String,
    /// Part of the name of a test; empty: all.
    filter: String,
}

/// Builds the tests and returns a script that runs those of `wanted`: `FILE`, a name or the beginning of some, or
/// `FILE::TEST`; all if there is none.
///
/// # Errors
///
/// They cannot be built, or there is none such.
pub fn script(workspace: &Workspace, arch: Arch, wanted: &[String], limit: Duration) -> Result<(String, usize)> {
    test::build_agents(workspace, arch.target())?;
    let files = chosen(&programs(workspace, arch)?, wanted)?;
    let mut script = String::new();
    let root = quote(&workspace.root.display().to_string());
    writeln!(script, "cd {root}").context("write a script")?;
    if arch.is_emulated() {
        writeln!(script, "export EASTWALL_SLOW={EMULATED_TIMES}").context("write a script")?;
    }
    for TestFile { name, program, filter } in &files {
        let (program, filter, seconds) = (quote(program), quote(filter), limit.as_secs());
        // Two threads: with one of them the name of a test is printed before what the test prints.
        writeln!(script, "echo '::file {name}'").context("write a script")?;
        writeln!(script, "timeout {seconds} {program} {filter} --test-threads 2").context("write a script")?;
        writeln!(script, "echo \"::status $?\"").context("write a script")?;
    }
    Ok((script, files.len()))
}

/// Prints what came out, and returns the status.
///
/// # Errors
///
/// Nobody reads on.
pub fn tell(kernel: &str, report: &Report) -> Result<ExitCode> {
    write!(io::stdout(), "\nkernel {kernel}\n{report}").context("print the results")?;
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the tests with kernel programs; returns their names and programs.
fn programs(workspace: &Workspace, arch: Arch) -> Result<Vec<(String, String)>> {
    let mut command = cargo_for(workspace, "test", arch.target());
    command.args(["--package", "tests", "--tests", "--no-run", "--message-format", "json-render-diagnostics"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut programs = Vec::new();
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message.context("read what cargo says")?
            && artifact.target.kind.contains(&TargetKind::Test)
            && let Some(program) = artifact.executable
        {
            programs.push((artifact.target.name, program.into_string()));
        }
    }
    ensure!(child.wait().context("wait for cargo")?.success(), "the tests cannot be built");
    programs.sort();
    Ok(programs)
}

fn chosen(programs: &[(String, String)], wanted: &[String]) -> Result<Vec<TestFile>> {
    let file = |(name, program): &(String, String), filter: &str| TestFile {
        name: name.clone(),
        program: program.clone(),
        filter: filter.to_owned(),
    };
    if wanted.is_empty() {
        return Ok(programs.iter().map(|entry| file(entry, "")).collect());
    }
    let mut files = Vec::new();
    for wanted in wanted {
        let (beginning, filter) = wanted.split_once("::").unwrap_or((wanted, ""));
        // A whole name means that file alone, also where others begin with it.
        let is_whole = programs.iter().any(|(name, _)| name == beginning);
        let means = |name: &str| if is_whole { name == beginning } else { name.starts_with(beginning) };
        let before = files.len();
        files.extend(programs.iter().filter(|(name, _)| means(name)).map(|entry| file(entry, filter)));
        if files.len() == before {
            let names: Vec<&str> = programs.iter().map(|(name, _)| name.as_str()).collect();
            bail!("no file of tests begins with `{beginning}`; there are {}", names.join(", "));
        }
    }
    Ok(files)
}

/// Says how long the whole run may take.
pub fn whole(limit: Duration, files: usize) -> Duration {
    /// What booting takes and more.
    const BOOT: Duration = Duration::from_secs(120);
    limit.saturating_mul(u32::try_from(files).unwrap_or(u32::MAX)).saturating_add(BOOT)
}

#[cfg(test)]
mod choice_tests {
    use super::*;

    #[test]
    fn a_file_is_chosen_by_its_name_or_by_the_beginning_of_it() {
        let programs =
            ["hook_tc", "hook_tc_flows", "hook_tc_links"].map(|name| (name.to_owned(), format!("/t/{name}")));
        let names = |wanted: &[&str]| -> Vec<String> {
            let wanted: Vec<String> = wanted.iter().map(|&word| word.to_owned()).collect();
            let files = chosen(&programs, &wanted).unwrap();
            files.into_iter().map(|file| format!("{}::{}", file.name, file.filter)).collect()
        };
        assert_eq!(names(&["hook_tc"]), ["hook_tc::"]);
        assert_eq!(names(&["hook_tc_"]), ["hook_tc_flows::", "hook_tc_links::"]);
        assert_eq!(names(&["hook_tc::g1_", "hook_tc_l::g9_"]), ["hook_tc::g1_", "hook_tc_links::g9_"]);
        assert_eq!(names(&[]).len(), 3);
        let error = chosen(&programs, &["hook_udp".to_owned()]).err().unwrap();
        assert!(error.to_string().contains("there are hook_tc, hook_tc_flows, hook_tc_links"), "{error}");
    }
}
