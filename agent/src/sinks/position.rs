//! What outlives the agent: the last number, the place in the file, the sums.
//!
//! Two witnesses: a small file on a file system that a reboot empties, written after each batch, and
//! the spool itself. The larger number wins, so that a crash between the two writes repeats no number.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::events::{accounting::SavedSums, ocsf::LINE_BYTES_MAX, record::Share};

/// The small file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Saved {
    /// The boot it belongs to.
    pub boot_id: String,
    /// Last number given out.
    pub sequence: u64,
    /// Last number that is on disk.
    pub last_written: u64,
    /// First number in the file at the path.
    pub first_in_file: u64,
    /// Which file that was.
    pub file: FileId,
    /// Its length after the last batch.
    pub length: u64,
    /// The sums.
    pub sums: SavedSums,
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Reads it off.
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Saved {
    /// Reads the file; `None` if there is none or it is of another boot.
    ///
    /// A file that cannot be understood counts as none: the spool is the other witness.
    pub fn load(path: &Path, boot_id: &str) -> Option<Self> {
        let saved: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (saved.boot_id == boot_id).then_some(saved)
    }

    /// Replaces the file by rename, so that a reader finds the old or the new one whole.
    ///
    /// # Errors
    ///
    /// What the system says; the file before stays.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let bytes = serde_json::to_vec(self)?;
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&bytes)?;
        fs::rename(&new, path)
    }
}

/// What the end of the spool says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tail {
    /// Number and boot of the last whole record.
    pub last: Option<(u64, String)>,
    /// The last whole record says that the agent stops.
    pub stopped: bool,
    /// The last line has no newline.
    pub torn: bool,
    /// It has no newline and is no whole record either.
    pub broken: bool,
}

/// What of a line is read back.
#[derive(Deserialize)]
struct Line {
    metadata: LineMetadata,
    device: LineDevice,
    activity_id: u8,
    count: Option<u64>,
    unmapped: LineUnmapped,
}

#[derive(Deserialize)]
struct LineMetadata {
    sequence: u64,
    event_code: String,
}

#[derive(Deserialize)]
struct LineDevice {
    boot_uid: String,
}

#[derive(Deserialize)]
struct LineUnmapped {
    eastwall: LineRest,
}

#[derive(Deserialize)]
struct LineRest {
    kind: String,
}

/// Bytes at the end of the spool that hold its last whole record, whatever was torn after it.
const TAIL_BYTES: u64 = 4 * LINE_BYTES_MAX as u64;

/// Reads the end of the spool.
///
/// # Errors
///
/// What the system says.
pub fn tail(path: &Path) -> io::Result<Tail> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let torn = bytes.last().is_some_and(|&byte| byte != b'\n');
    let mut lines = bytes.split(|&byte| byte == b'\n').rev().map(|line| serde_json::from_slice::<Line>(line).ok());
    let unfinished = lines.next().flatten();
    let broken = torn && unfinished.is_none();
    let last = unfinished.or_else(|| lines.find_map(|line| line));
    let stopped = last.as_ref().is_some_and(|line| line.unmapped.eastwall.kind == "lifecycle" && line.activity_id == 4);
    Ok(Tail { last: last.map(|line| (line.metadata.sequence, line.device.boot_uid)), stopped, torn, broken })
}

/// Returns the denials in each record of a boot that stands behind `offset`: written, but not in the
/// small file any more when the agent died.
///
/// # Errors
///
/// What the system says.
pub fn denials_behind(path: &Path, offset: u64, boot_id: &str) -> io::Result<Vec<(Share, u64)>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut denials = Vec::new();
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    // A line longer than any of ours is no line of ours, and is not worth the memory.
    while reader.by_ref().take(2 * LINE_BYTES_MAX as u64).read_until(b'\n', &mut bytes)? > 0 {
        let line = serde_json::from_slice::<Line>(&bytes).ok().filter(|line| line.device.boot_uid == boot_id);
        denials.extend(line.map(|line| denials_of(&line)));
        bytes.clear();
    }
    Ok(denials)
}

fn denials_of(line: &Line) -> (Share, u64) {
    let count = line.count.unwrap_or(0);
    match (line.metadata.event_code.as_str(), line.unmapped.eastwall.kind.as_str()) {
        ("deny" | "would-deny", "first") => (Share::Listed, count),
        ("deny" | "would-deny", "repeat") => (Share::Repeated, count),
        ("folded", _) => (Share::Folded, count),
        _ => (Share::None, 0),
    }
}
