//! The spool: one file that is only ever appended to, or stdout.
//!
//! Nothing is cut out of a file that a collector may have read: a line torn by a crash gets its newline
//! and is counted. Others may rename or delete the file: before each batch the path is compared with
//! what is open. `copytruncate` loses lines and cannot be supported; it is noticed and said.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::{
    appender::Appender,
    position::{self, FileId, Saved, Tail},
};
use crate::events::{
    accounting::{Ledger, LossFound},
    ocsf::Node,
    queue::SharedLedger,
    record::{Now, Record, Share, Stage, UnixMillis},
};

/// How often what was written is made durable.
const SYNC_PERIOD_NS: u64 = 1_000_000_000;

/// Settings.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    /// Where the records go.
    pub target: Target,
    /// The small file beside it, on a file system that a reboot empties: `/run/eastwall/sequence`. `None`
    /// leaves the spool as the only witness of the last number.
    pub position: Option<PathBuf>,
}

/// Where the records go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// The standard output, as container runtimes want it.
    Stdout,
    /// A file: the spool.
    File(PathBuf),
}

/// What was found when the spool was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The books, with the sums of an agent before in the same boot.
    pub ledger: SharedLedger,
    /// Last number of the boot before, if the spool ends in it.
    pub previous_boot_last_sequence: Option<u64>,
    /// Whether the last record says that the agent before stopped by itself.
    pub previous_stop_clean: Option<bool>,
}

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file cannot be opened.
    #[error("open the spool `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its end cannot be read.
    #[error("read the end of the spool `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The standard output is closed.
    #[error("use the standard output")]
    Stdout(#[source] io::Error),
}

/// The spool and its appender. Belongs to one thread.
#[derive(Debug)]
pub struct FileSink {
    config: SinkConfig,
    node: Node,
    ledger: SharedLedger,
    appender: Appender,
    file: File,
    /// What is known about the file; `None` for stdout.
    segment: Option<Segment>,
    /// A file system that keeps nothing needs no sync.
    unsynced: bool,
    synced_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    id: FileId,
    /// Length after the last batch.
    length: u64,
    /// First number in it; above the last one written while it holds none.
    first: u64,
}

impl FileSink {
    /// Opens the spool and goes on where an agent before stopped or died.
    ///
    /// # Errors
    ///
    /// [`SinkError`]; nothing was written.
    pub fn open(config: SinkConfig, node: Node, now: &Now) -> Result<(Self, Opened), SinkError> {
        let saved = config.position.as_deref().and_then(|path| Saved::load(path, &node.boot_id));
        let (file, segment, found) = match &config.target {
            Target::Stdout => {
                let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(SinkError::Stdout)?;
                (stdout.into(), None, Found::default())
            }
            Target::File(path) => {
                let is_new = !path.exists();
                let (file, length, id) =
                    open_file(path).map_err(|source| SinkError::Open { path: path.clone(), source })?;
                let found = Found::read(path, is_new, id, length, saved.as_ref(), &node)
                    .map_err(|source| SinkError::Read { path: path.clone(), source })?;
                (file, Some((length, id)), found)
            }
        };
        let is_ours = |last: &(u64, String)| last.1 == node.boot_id;
        let in_file = found.tail.last.as_ref().filter(|last| is_ours(last)).map_or(0, |last| last.0);
        let sequence = saved.as_ref().map_or(0, |saved| saved.sequence).max(in_file);
        let mut ledger = Ledger::restored(saved.as_ref().map(|saved| saved.sums).unwrap_or_default());
        for (share, denials) in found.unsaved {
            ledger.take(share, denials);
            ledger.written(share, denials);
        }
        if found.tail.broken {
            let detail = Some("a line torn by a crash was closed".to_owned());
            let (stage, share) = (Stage::Write, Share::None);
            let loss = LossFound { stage, share, records: 1, denials: 0, sequences: None, detail };
            ledger.lost(now.wall, loss);
        }
        if let Some((first, last)) = found.vanished {
            ledger.lost(now.wall, vanished(first, last));
        }
        let previous = found.tail.last.as_ref().filter(|last| !is_ours(last)).map(|last| last.0);
        let ledger = SharedLedger::new(ledger);
        let opened = Opened {
            ledger: ledger.clone(),
            previous_boot_last_sequence: previous,
            previous_stop_clean: found.tail.last.as_ref().map(|_| found.tail.stopped),
        };
        let first = match &saved {
            Some(saved) if segment.is_some_and(|(_, id)| saved.file == id) => saved.first_in_file,
            Some(_) | None => sequence + 1,
        };
        let segment = segment.map(|(length, id)| Segment { id, length, first });
        let appender = Appender::new(node.clone(), ledger.clone(), sequence, found.tail.torn);
        let sink = Self { config, node, ledger, appender, file, segment, unsynced: false, synced_ns: now.boot_ns };
        Ok((sink, opened))
    }

    /// Writes a batch, and the losses and sums that are due.
    pub fn write(&mut self, records: &[Record], now: &Now) {
        self.follow_path(now);
        let numbers = self.appender.sequence();
        let bytes = self.appender.write(&mut self.file, records, now);
        if let Some(segment) = &mut self.segment {
            segment.length += bytes;
        }
        self.unsynced |= bytes > 0;
        if self.unsynced && now.boot_ns.saturating_sub(self.synced_ns) >= SYNC_PERIOD_NS {
            self.sync(now);
        }
        if bytes > 0 || numbers != self.appender.sequence() {
            self.save();
        }
    }

    /// Closes the file and opens what is at the path: it has just been rotated.
    ///
    /// If that fails, the old one stays open and takes the records.
    pub fn reopen(&mut self, now: &Now) {
        let Target::File(path) = &self.config.target else {
            return;
        };
        let Ok((file, length, id)) = open_file(path) else {
            return;
        };
        if self.segment.is_some_and(|segment| segment.id == id) {
            return;
        }
        // Whoever made the new file may have written to it.
        let torn = position::tail(path).is_ok_and(|tail| tail.torn);
        self.sync(now);
        let old = std::mem::replace(&mut self.file, file);
        let first = self.appender.last_written() + 1;
        if let Some(segment) = self.segment.replace(Segment { id, length, first }) {
            // A renamed file has its link; a deleted one has none, and its records are gone.
            if old.metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
                self.vanish(segment.first, now.wall);
            }
        }
        self.appender.set_torn(torn);
        self.save();
    }

    /// Makes what was written durable.
    pub fn sync(&mut self, now: &Now) {
        // An error says that the medium cannot; what the writes said is what is counted.
        let _ = self.file.sync_data();
        self.unsynced = false;
        self.synced_ns = now.boot_ns;
    }

    /// Compares what is open with what is at the path.
    fn follow_path(&mut self, now: &Now) {
        let (Target::File(path), Some(segment)) = (&self.config.target, &mut self.segment) else {
            return;
        };
        match fs::metadata(path) {
            Ok(metadata) if FileId::of(&metadata) == segment.id => {
                if metadata.len() < segment.length {
                    let first = std::mem::replace(&mut segment.first, self.appender.last_written() + 1);
                    segment.length = metadata.len();
                    // What is left of the last line, nobody knows.
                    self.appender.set_torn(metadata.len() > 0);
                    self.vanish(first, now.wall);
                }
            }
            Ok(_) => self.reopen(now),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.reopen(now),
            // The path cannot be looked at; what is open can still be written.
            Err(_) => {}
        }
    }

    /// Counts the records from `first` on as taken away by someone else.
    fn vanish(&self, first: u64, now: UnixMillis) {
        let last = self.appender.last_written();
        if first <= last {
            self.ledger.lock().lost(now, vanished(first, last));
        }
    }

    /// Writes the small file. If that fails, the spool alone tells the last number.
    fn save(&self) {
        let Some(path) = &self.config.position else {
            return;
        };
        let (file, length, first_in_file) =
            self.segment.map_or_else(Default::default, |segment| (segment.id, segment.length, segment.first));
        let saved = Saved {
            boot_id: self.node.boot_id.clone(),
            sequence: self.appender.sequence(),
            last_written: self.appender.last_written(),
            first_in_file,
            file,
            length,
            sums: *self.ledger.lock().sums(),
        };
        let _ = saved.store(path);
    }
}

/// What the spool and the small file together say.
#[derive(Debug, Default)]
struct Found {
    tail: Tail,
    /// Denials in records that the small file does not know.
    unsaved: Vec<(Share, u64)>,
    /// First and last number of records that someone took away.
    vanished: Option<(u64, u64)>,
}

impl Found {
    fn read(
        path: &Path,
        is_new: bool,
        id: FileId,
        length: u64,
        saved: Option<&Saved>,
        node: &Node,
    ) -> io::Result<Self> {
        let tail = position::tail(path)?;
        let Some(saved) = saved else {
            return Ok(Self { tail, ..Self::default() });
        };
        let mut unsaved = Vec::new();
        let mut vanished = None;
        if is_new {
            // Deleted: who rotates with `create` leaves a file at the path.
            vanished = Some((saved.first_in_file, saved.last_written));
        } else if saved.file == id && length < saved.length {
            let left = tail.last.as_ref().filter(|(_, boot)| *boot == node.boot_id).map(|(sequence, _)| *sequence);
            vanished = Some((left.map_or(saved.first_in_file, |left| left + 1), saved.last_written));
        } else if saved.file == id {
            unsaved = position::denials_behind(path, saved.length, &node.boot_id)?;
        }
        let vanished = vanished.filter(|(first, last)| first <= last && *last > 0);
        Ok(Self { tail, unsaved, vanished })
    }
}

fn vanished(first: u64, last: u64) -> LossFound {
    let (stage, share, sequences) = (Stage::Spool, Share::None, Some((first, last)));
    LossFound { stage, share, records: last - first + 1, denials: 0, sequences, detail: None }
}

/// Opens the file for appending, for its owner and group alone. The standard library adds `O_CLOEXEC`.
fn open_file(path: &Path) -> io::Result<(File, u64, FileId)> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    }
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata.len(), FileId::of(&metadata)))
}
