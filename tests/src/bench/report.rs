//! The numbers: a table for people, JSON for machines.

use std::{fs, io::Write as _, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use super::{Effort, sample::Spread};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    quick: bool,
    rows: Vec<Row>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
}

/// One number.
#[derive(Debug, Serialize)]
pub struct Row {
    name: String,
    unit: &'static str,
    #[serde(flatten)]
    value: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// What was promised.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Not more.
    AtMost(f64),
    /// Not less.
    AtLeast(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl Row {
    /// A number with a name and a unit, such as `ns`.
    pub fn new(name: impl Into<String>, value: Spread, unit: &'static str) -> Self {
        Self { name: name.into(), unit, value, target: None, met: None, note: None }
    }

    /// Adds what was promised.
    pub fn target(mut self, target: Target) -> Self {
        self.met = Some(target.is_met(self.value.median));
        self.target = Some(target);
        self
    }

    /// Adds what helps to read the number.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

impl Report {
    /// An empty one, about this machine.
    pub fn new(effort: Effort) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let machine = Machine {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: cpu.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        };
        Self { machine, quick: effort.quick, rows: Vec::new() }
    }

    /// Adds a number, and shows it at once: a run takes minutes.
    pub fn add(&mut self, row: Row) {
        eprintln!("  {}", line(&row));
        self.rows.push(row);
    }

    /// How many numbers missed their target.
    pub fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.met == Some(false)).count()
    }

    /// Prints the table.
    pub fn print(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let Machine { kernel, cpu, cpus } = &self.machine;
        writeln!(
            out,
            "\nLinux {kernel}, {cpus} x {cpu}{}",
            if self.quick { ", QUICK: not to be published" } else { "" }
        )?;
        writeln!(out, "{:44} {:>12} {:>23} {:>10}", "", "median", "middle half", "target")?;
        for row in &self.rows {
            writeln!(out, "{}", line(row))?;
        }
        Ok(())
    }

    /// Writes the JSON.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

fn line(row: &Row) -> String {
    let Spread { median, low, high } = row.value;
    let middle = if low == high { String::new() } else { format!("{} .. {}", number(low), number(high)) };
    let target = match row.target {
        None => String::new(),
        Some(Target::AtMost(n)) => format!("<= {n}"),
        Some(Target::AtLeast(n)) => format!(">= {n}"),
    };
    let met = match row.met {
        None => "",
        Some(true) => "ok",
        Some(false) => "MISS",
    };
    let note = row.note.as_deref().unwrap_or_default();
    let value = format!("{} {:4}", number(median), row.unit);
    format!("{:44} {value:>12} {middle:>23} {target:>10} {met:4} {note}", row.name).trim_end().to_owned()
}

/// Four digits that count.
fn number(n: f64) -> String {
    let decimals = match n.abs() {
        n if n >= 1000.0 => 0,
        n if n >= 100.0 => 1,
        n if n >= 10.0 => 2,
        _ => 3,
    };
    format!("{n:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_on_the_wrong_side_of_its_target_is_a_miss() {
        let mut report = Report::new(Effort { quick: true });
        let row = |n| Row::new("x", Spread::exactly(n), "ns");
        report.add(row(60.0).target(Target::AtMost(60.0)));
        report.add(row(0.98).target(Target::AtLeast(0.98)));
        report.add(row(1e9));
        assert_eq!(report.missed(), 0);
        report.add(row(60.1).target(Target::AtMost(60.0)));
        report.add(row(0.97).target(Target::AtLeast(0.98)));
        report.add(row(f64::NAN).target(Target::AtMost(60.0)));
        assert_eq!(report.missed(), 3);
    }
}
