//! Holds the documents and the program against each other: `docs/cli.md` is what clap knows, and every
//! command and flag that another document speaks of exists.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::{collections::BTreeSet, env, fmt::Write as _, fs, path::Path};

use clap::{Arg, Command, CommandFactory as _};
use eastwall::cli::Cli;

const DOCUMENTS: [&str; 7] = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/ARCHITECTURE.md",
    "docs/cli.md",
    "docs/events.md",
    "docs/operations.md",
    "docs/policy.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn program() -> Command {
    let mut program = Cli::command();
    program.build();
    program
}

#[test]
fn the_reference_says_what_the_program_knows() {
    let path = root().join("docs/cli.md");
    let reference = reference(&program());
    if env::var_os("EASTWALL_BLESS").is_some() {
        fs::write(&path, &reference).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differs = reference.lines().zip(written.lines()).find(|(a, b)| a != b);
    assert!(
        written == reference,
        "docs/cli.md is not what the program knows, first at {differs:?}; write it anew with \
         `EASTWALL_BLESS=1 cargo test -p eastwall --test reference`"
    );
}

#[test]
fn every_command_and_flag_that_a_document_names_exists() {
    let program = program();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for said in spoken(&text) {
            seen += 1;
            wrong.extend(unknown(&program, &said).map(|what| format!("{document}: `eastwall {said}`: {what}")));
        }
    }
    assert!(seen > 30, "only {seen} commands were found in the documents");
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn a_word_that_is_no_command_and_a_flag_that_nobody_has_are_found() {
    let program = program();
    assert_eq!(unknown(&program, "policy check --strict DIR"), None);
    assert_eq!(unknown(&program, "policy chekc DIR").unwrap(), "no command `chekc`");
    assert_eq!(unknown(&program, "status --strikt").unwrap(), "no flag `--strikt`");
    assert_eq!(spoken("a `eastwall map dump`, `map stats`\n# eastwall status # x\n"), ["map dump", "status"]);
}

fn reference(program: &Command) -> String {
    let mut text = String::from(
        "# Command line\n\nThis page is written by a test from what the program knows; `eastwall COMMAND --help` says the \
         same.\n[operations.md](operations.md) says what the commands are for, and lists the exit codes.\n\nOptions of \
         every command:\n\n",
    );
    options(&mut text, program, &BTreeSet::new());
    let common = program.get_arguments().filter_map(|arg| arg.get_long()).collect();
    for command in program.get_subcommands() {
        section(&mut text, "eastwall", command, &common);
    }
    text
}

fn section(text: &mut String, above: &str, command: &Command, common: &BTreeSet<&str>) {
    let name = format!("{above} {}", command.get_name());
    if command.has_subcommands() {
        for below in command.get_subcommands() {
            section(text, &name, below, common);
        }
        return;
    }
    let operands: String = command
        .get_positionals()
        .map(|operand| if operand.is_required_set() { format!(" {operand}") } else { format!(" [{operand}]") })
        .collect();
    let operands = operands.replace("[[", "[").replace("]]", "]");
    // Writing to a String cannot fail.
    let _ = write!(text, "\n## {name}\n\n{}.\n\n    {name} [OPTIONS]{operands}\n", plain(command.get_about().unwrap()));
    let mut table = String::new();
    options(&mut table, command, common);
    if !table.is_empty() {
        let _ = write!(text, "\n{table}");
    }
}

/// A table of operands and flags, without those that every command has.
fn options(text: &mut String, command: &Command, common: &BTreeSet<&str>) {
    let is_own =
        |arg: &&Arg| arg.get_long().is_none_or(|long| !common.contains(long) && long != "help" && long != "version");
    let rows: Vec<String> = command.get_arguments().filter(is_own).map(row).collect();
    if !rows.is_empty() {
        let _ = write!(text, "| Option | Is |\n| --- | --- |\n{}", rows.concat());
    }
}

fn row(arg: &Arg) -> String {
    let value = arg.get_value_names().filter(|_| arg.get_action().takes_values());
    let value = value.map(|names| format!(" {}", names.join(" "))).unwrap_or_default();
    let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
    let name = match arg.get_long() {
        Some(long) => format!("{short}`--{long}{value}`"),
        None => format!("`{}`", value.trim_start()),
    };
    let mut help = plain(arg.get_help().unwrap());
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        let _ = write!(help, "; `{}` if nothing is said", defaults.join(","));
    }
    let values: Vec<String> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !values.is_empty() && arg.get_action().takes_values() && !arg.is_hide_possible_values_set() {
        let _ = write!(help, ": {}", values.join(", "));
    }
    format!("| {} | {} |\n", name.replace('|', "\\|"), help.replace('|', "\\|"))
}

fn plain(text: &clap::builder::StyledStr) -> String {
    text.to_string().replace('\n', " ")
}

/// What a document says after `eastwall`: in a span of code, or in a line that begins with a prompt.
fn spoken(text: &str) -> Vec<String> {
    let spans = text.split('`').skip(1).step_by(2).filter(|span| !span.contains('\n'));
    let lines = text.lines().filter_map(|line| line.strip_prefix("# ").or_else(|| line.strip_prefix("$ ")));
    let said = spans.chain(lines).filter_map(|said| said.strip_prefix("eastwall "));
    said.map(|said| said.split(" # ").next().unwrap_or_default().trim().to_owned()).collect()
}

/// Returns what of a command does not exist.
fn unknown(program: &Command, said: &str) -> Option<String> {
    let mut command = program;
    let mut words = said.split_whitespace().peekable();
    while command.has_subcommands()
        && let Some(word) = words.next_if(|word| !word.starts_with('-'))
    {
        // `COMMAND` and its like stand for any.
        if word.chars().all(|c| c.is_uppercase() || c == '_') {
            return None;
        }
        let Some(below) = command.find_subcommand(word) else { return Some(format!("no command `{word}`")) };
        command = below;
    }
    let flags = words.filter(|word| word.starts_with("--") && word.len() > 2);
    let flags = flags.map(|word| word.split('=').next().unwrap_or(word).trim_end_matches([',', '.', ')', ']']));
    let exists = |flag: &str| {
        let name = flag.trim_start_matches('-');
        command.get_arguments().any(|arg| arg.get_long() == Some(name)) || ["help", "version"].contains(&name)
    };
    flags.into_iter().find(|flag| !exists(flag)).map(|flag| format!("no flag `{flag}`"))
}
