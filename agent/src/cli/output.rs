//! Where answers go: stdout in the form that was asked for, talk to stderr.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

use clap::{Args, ValueEnum};
use serde_json::Value;

pub use super::visible::escape;
use super::{exit::CliError, visible};

/// Version of the JSON, YAML and JSON Lines forms. Raised when a field changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub struct OutputOptions {
    /// Form of the answer: table, wide (a table with more columns), json, yaml or jsonl (a document a line)
    #[arg(short, long, value_enum, global = true, default_value_t = Format::Table, hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "FORM", help_heading = "Output")]
    pub output: Format,
    /// Leave the headers of tables out
    #[arg(long, global = true, help_heading = "Output")]
    pub no_headers: bool,
    /// Leave everything out that is neither the answer nor an error
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Colour: auto (on a terminal, unless NO_COLOR is set), always or never
    #[arg(long, value_enum, global = true, default_value_t = Color::Auto, hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "WHEN", help_heading = "Output")]
    pub color: Color,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For people with a wide screen: more columns, where there are more
    Wide,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
    /// One JSON document a line, for lists
    Jsonl,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Color {
    /// On a terminal
    Auto,
    /// Everywhere
    Always,
    /// Nowhere
    Never,
}

/// The streams of the process, and how to write to them.
#[derive(Debug)]
pub struct Output {
    /// The form that was asked for.
    format: Format,
    /// Say less.
    pub quiet: bool,
    /// Use colour on stdout.
    pub color: bool,
    headers: bool,
}

impl Output {
    /// Reads the flags and the environment.
    #[must_use]
    pub fn new(options: &OutputOptions) -> Self {
        let color = match options.color {
            Color::Always => true,
            Color::Never => false,
            // https://no-color.org: set and not empty.
            Color::Auto => {
                let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                let dumb = env::var_os("TERM").is_some_and(|value| value == "dumb");
                io::stdout().is_terminal() && !no_color && !dumb
            }
        };
        Self { format: options.output, quiet: options.quiet, color, headers: !options.no_headers }
    }

    /// Says whether people read the answer, and no program.
    #[must_use]
    pub const fn for_people(&self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    /// Says whether they want to see more columns.
    #[must_use]
    pub const fn is_wide(&self) -> bool {
        matches!(self.format, Format::Wide)
    }

    /// Says whether tables have headers.
    #[must_use]
    pub const fn headers(&self) -> bool {
        self.headers
    }

    /// Writes one document of a stream without an end: a line each, or YAML documents.
    ///
    /// # Errors
    ///
    /// Whatever writing says.
    pub fn one_of_a_stream(&mut self, item: &Value) -> Result<(), CliError> {
        let text = match self.format {
            Format::Yaml => format!("---\n{}", yaml(item)?),
            Format::Json | Format::Jsonl | Format::Table | Format::Wide => visible::json(&format!("{item}\n")),
        };
        self.write(&text)
    }

    /// Writes text to stdout, with all that a terminal would obey or hide made visible, but for colours.
    ///
    /// # Errors
    ///
    /// Whatever writing says.
    pub fn write(&mut self, text: &str) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(visible::lines(text, self.color).as_bytes())?;
        stdout.flush()?;
        Ok(())
    }

    /// Writes talk to stderr; if that fails there is nobody to tell.
    pub fn talk(&mut self, line: &str) {
        let _ = writeln!(io::stderr().lock(), "{}", visible::lines(line, false));
    }

    /// Writes a machine form. `document` is the whole answer; `items` are its lines as JSON Lines.
    ///
    /// # Errors
    ///
    /// Whatever writing says.
    pub fn machine(&mut self, document: Value, items: impl IntoIterator<Item = Value>) -> Result<(), CliError> {
        let text = match self.format {
            Format::Jsonl => {
                let lines = items.into_iter().map(|item| format!("{}\n", versioned(item)));
                visible::json(&lines.collect::<String>())
            }
            Format::Yaml => yaml(&versioned(document))?,
            Format::Json | Format::Table | Format::Wide => pretty(&versioned(document))?,
        };
        self.write(&text)
    }

    /// Writes a table, or says on stderr that `nothing` is there. Cells that others chose are shown with
    /// control characters escaped.
    ///
    /// # Errors
    ///
    /// Whatever writing says.
    pub fn table(&mut self, headers: &[&str], rows: &[Vec<String>], nothing: &str) -> Result<(), CliError> {
        if rows.is_empty() && !self.quiet {
            self.talk(nothing);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if self.headers {
            table.set_header(headers.to_vec());
        }
        for row in rows {
            table.add_row(row.iter().map(|cell| escape(cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines = table.lines().map(|line| format!("{}\n", line.trim_end()));
        let text: String = lines.collect();
        self.write(&text)
    }
}

fn pretty(value: &Value) -> Result<String, CliError> {
    Ok(visible::json(&format!("{}\n", serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?)))
}

/// Where YAML would show a hidden character as it is, JSON says the same and is YAML as well.
fn yaml(value: &Value) -> Result<String, CliError> {
    let text = serde_saphyr::to_string(value).map_err(anyhow::Error::from)?;
    if visible::has_hidden(&text) { pretty(value) } else { Ok(text) }
}

fn versioned(value: Value) -> Value {
    match value {
        Value::Object(mut fields) => {
            fields.insert("schemaVersion".to_owned(), SCHEMA_VERSION.into());
            Value::Object(fields)
        }
        // A bare list or text has no room for it.
        other => other,
    }
}
