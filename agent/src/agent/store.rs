//! Policy documents on disk: the directory that people edit, and the last complete set.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};

use super::in_force::Candidate;
use crate::{
    config::Config,
    policy::peers::Peers,
    sources::{
        policy_dir::{self, Trust},
        trust,
    },
};

/// Where the last complete set is kept, in the state directory.
const LAST_COMPLETE: &str = "policy.json";
/// Where the last good text about workloads of other hosts is.
const LAST_PEERS: &str = "peers.yaml";

/// The files.
#[derive(Debug)]
pub struct Store {
    last_complete: PathBuf,
    last_peers: PathBuf,
    seen: Vec<Fingerprint>,
    /// As the directory looked last, if that is not what was read.
    coming: Option<Vec<Fingerprint>>,
}

/// What changes when somebody writes a file.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Fingerprint {
    path: PathBuf,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Store {
    /// Of an agent with this state directory. Nothing is read yet.
    #[must_use]
    pub fn new(state_directory: &Path) -> Self {
        let [last_complete, last_peers] = [LAST_COMPLETE, LAST_PEERS].map(|name| state_directory.join(name));
        Self { last_complete, last_peers, seen: Vec::new(), coming: None }
    }

    /// Reads the documents of the policy directory.
    ///
    /// # Errors
    ///
    /// What is wrong with the directory or with the documents.
    pub fn read_policy(&mut self, config: &Config) -> Result<Candidate> {
        self.seen = fingerprints(&config.policy_directory);
        let texts = policy_dir::read(&[&config.policy_directory], Trust::ROOT)?;
        let files = texts.into_iter().map(|t| (t.name, t.text)).collect();
        Ok(Candidate::read(files, config.trust_domain.as_deref())?)
    }

    /// Says whether the directory looks different from when it was last read, and as it did when this was asked last:
    /// half of a policy that is being written may be a policy, without what it denies.
    #[must_use]
    pub fn directory_changed(&mut self, config: &Config) -> bool {
        let now = fingerprints(&config.policy_directory);
        if now == self.seen {
            self.coming = None;
            return false;
        }
        let is_settled = self.coming.as_ref() == Some(&now);
        self.coming = Some(now);
        is_settled
    }

    /// Returns the last complete set, if there is one.
    ///
    /// # Errors
    ///
    /// If it is there and cannot be used.
    pub fn last_complete(&self, config: &Config) -> Result<Option<Candidate>> {
        let bytes = match fs::read(&self.last_complete) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("read `{}`", self.last_complete.display())),
        };
        let files: Vec<(String, String)> = serde_json::from_slice(&bytes)?;
        Ok(Some(Candidate::read(files, config.trust_domain.as_deref())?))
    }

    /// Keeps a set for the next start.
    ///
    /// # Errors
    ///
    /// What the file system said.
    pub fn keep(&self, files: &[(String, String)]) -> Result<()> {
        let new = self.last_complete.with_extension("json.new");
        fs::write(&new, serde_json::to_vec(files)?)?;
        fs::rename(&new, &self.last_complete)?;
        Ok(())
    }

    /// Keeps what was read about workloads of other hosts.
    ///
    /// # Errors
    ///
    /// What the file system said.
    pub fn keep_peers(&self, text: &str) -> io::Result<()> {
        let new = self.last_peers.with_extension("yaml.new");
        fs::write(&new, text)?;
        fs::rename(&new, &self.last_peers)
    }

    /// Returns what was kept, if it can be used.
    #[must_use]
    pub fn last_peers(&self) -> Option<Peers> {
        let text = fs::read_to_string(&self.last_peers).ok()?;
        Peers::parse(LAST_PEERS, &text).ok()
    }

    /// Puts documents into the policy directory in place of those there.
    ///
    /// # Errors
    ///
    /// What the file system said, a name that is no plain `*.yaml`, or a directory in which somebody else
    /// could put a link in the way.
    pub fn install(&mut self, config: &Config, files: &[(String, String)]) -> Result<Vec<(String, String)>> {
        let dir = &config.policy_directory;
        trust::open_directory(dir, 0)?;
        let mut installed = Vec::new();
        for (name, text) in files {
            let base = Path::new(name).file_name().and_then(|n| n.to_str()).filter(|n| n.ends_with(".yaml"));
            let base = base.ok_or_else(|| anyhow!("`{name}` is not the name of a `.yaml` file"))?;
            if installed.iter().any(|(other, _): &(PathBuf, &String)| other.ends_with(base)) {
                return Err(anyhow!("two files are called `{base}`; the policy directory is not recursive"));
            }
            installed.push((dir.join(base), text));
        }
        for (path, text) in &installed {
            let new = path.with_extension("yaml.new");
            fs::write(&new, text).with_context(|| format!("write `{}`", new.display()))?;
            fs::rename(&new, path).with_context(|| format!("write `{}`", path.display()))?;
        }
        for old in fs::read_dir(dir)?.flatten() {
            let path = old.path();
            if path.extension().is_some_and(|e| e == "yaml") && !installed.iter().any(|(p, _)| *p == path) {
                fs::remove_file(&path).with_context(|| format!("remove `{}`", path.display()))?;
            }
        }
        self.seen = fingerprints(dir);
        Ok(installed.into_iter().map(|(path, text)| (path.display().to_string(), text.clone())).collect())
    }
}

fn fingerprints(dir: &Path) -> Vec<Fingerprint> {
    let mut found: Vec<Fingerprint> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|e| e == "yaml"))
        .filter_map(|e| {
            let meta = fs::symlink_metadata(e.path()).ok()?;
            let changed = (meta.ctime(), meta.ctime_nsec());
            Some(Fingerprint { path: e.path(), inode: meta.ino(), size: meta.size(), changed })
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g94_a_policy_that_is_being_written_is_not_read_before_it_stays_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { policy_directory: directory.path().to_owned(), ..Config::default() };
        let mut store = Store::new(directory.path());
        store.seen = fingerprints(directory.path());
        let write = |text: &str| fs::write(directory.path().join("a.yaml"), text).unwrap();
        assert!(!store.directory_changed(&config));
        for text in ["allow", "allow, deny", "allow, deny all"] {
            write(text);
            assert!(!store.directory_changed(&config), "{text}: it was not seen before");
        }
        assert!(store.directory_changed(&config));
        // Until it is read.
        assert!(store.directory_changed(&config));
        store.seen = fingerprints(directory.path());
        assert!(!store.directory_changed(&config));
        // What comes and goes was never there.
        fs::write(directory.path().join("b.yaml"), "more").unwrap();
        assert!(!store.directory_changed(&config));
        fs::remove_file(directory.path().join("b.yaml")).unwrap();
        assert!(!store.directory_changed(&config));
        write("allow");
        assert!(!store.directory_changed(&config));
        assert!(store.directory_changed(&config));
    }
}
