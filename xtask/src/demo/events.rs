//! The events file, as any reader of OCSF would read it.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{call::Call, place::Host};

/// How long a record may take from the kernel to the file.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// The file.
pub struct Events {
    path: PathBuf,
}

impl Events {
    /// Names the file; it need not be there.
    pub fn of(host: &Host) -> Self {
        Self { path: host.events() }
    }

    /// Returns all records so far.
    ///
    /// # Errors
    ///
    /// A line is no JSON.
    pub fn all(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.path).with_context(|| format!("read {}", self.path.display()))?;
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).context("read a record")).collect()
    }

    /// Waits until a record behind the first `skip` is as `wanted`, and returns it.
    ///
    /// # Errors
    ///
    /// None comes.
    pub fn wait(&self, skip: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + WRITE_MAX;
        loop {
            if let Some(record) = self.all()?.into_iter().skip(skip).find(|record| wanted(record)) {
                return Ok(record);
            }
            if Instant::now() > end {
                bail!("there is no record of {what} in {}", self.path.display());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Returns the code of a record: `deny`, `would-deny`, `cut` and others.
pub fn code(record: &Value) -> &str {
    record.pointer("/metadata/event_code").and_then(Value::as_str).unwrap_or_default()
}

/// Says whether a record is about `call`.
pub fn is_about(record: &Value, call: Call) -> bool {
    let name = |pointer| record.pointer(pointer).and_then(Value::as_str);
    name("/src_endpoint/svc_name") == Some(call.from) && name("/dst_endpoint/svc_name") == Some(call.to)
}

/// Returns a text field of a record, for printing.
pub fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_default()
}
