//! The guard that stands until an agent has its first policy in force.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use agent_common::layout::{
    BOOT_DEPTH_MAX, BOOT_PATH_BYTES, BOOT_PATH_MAX, BOOT_PATHS, BootPath, boot_count, names::boot,
};
use aya::{Btf, EbpfLoader};

use super::{
    DatapathError, btf,
    kernel::attach::{attach_program, load_program},
    object,
    pins::{self, Held, Pins},
    release,
    sys::wait_for_running_programs,
    table::{Table, TableError, map_of},
};

/// The guard of a host: it is what is pinned.
#[derive(Clone, Debug)]
pub struct BootGuard {
    /// Where the guard is pinned: beside the pins of agents, and not among them.
    directory: PathBuf,
}

/// A guard that stands.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// The cgroups that it was told of, by path from the root of the hierarchy, in order.
    pub cgroups: Vec<String>,
    /// What it did.
    pub counts: BootCounts,
}

/// What a guard did since it stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BootCounts {
    /// Packets that guarded cgroups did not send.
    pub sent: u64,
    /// Packets that they did not receive.
    pub received: u64,
    /// Cgroups that could not be told from guarded ones; while that is not 0 nothing passes, whosever it is.
    pub missed: u64,
}

impl BootGuard {
    /// The guard beside the pins of an agent.
    #[must_use]
    pub fn beside(pins: &Path) -> Self {
        let mut directory = pins.as_os_str().to_owned();
        directory.push("-boot");
        Self { directory: directory.into() }
    }

    /// Raises the guard, in place of one that stands already. `root` is the directory of the cgroup at which it is attached;
    /// `cgroups` are paths, from the root of the hierarchy, to it or below, and `dir` says where such a one is.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]. One that stood before still does, but where a pin could not be made: then of either all that
    /// is pinned is in force.
    pub fn raise(&self, root: &Path, cgroups: &[String], dir: impl Fn(&str) -> PathBuf) -> Result<(), DatapathError> {
        let bytes = object::boot_guard().ok_or(DatapathError::NoPrograms)?;
        if let Some(why) = release::refusal() {
            return Err(DatapathError::OldKernel(why));
        }
        Pins::make_apart(&self.directory)?;
        let stood = !pins::list(&self.directory)?.is_empty();
        let offsets = btf::Btf::of_kernel()?;
        let offset = |of, member| offsets.offset(of, member);
        let (kn, id) = (offset("cgroup", "kn")?, offset("kernfs_node", "id")?);
        let (hierarchy, number) = (offset("cgroup", "root")?, offset("cgroup_root", "hierarchy_id")?);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("OFF_CGROUP_KN", &kn, true)
            .override_global("OFF_KN_ID", &id, true)
            .override_global("OFF_ROOT", &hierarchy, true)
            .override_global("OFF_HIERARCHY", &number, true);
        let mut ebpf = loader.load(bytes).map_err(DatapathError::Load)?;
        let types = Btf::from_sys_fs().map_err(|e| DatapathError::Load(e.into()))?;
        let mut load = |name| {
            let program = load_program(&mut ebpf, name, &types)?.try_clone_to_owned();
            Ok((name, program.map_err(|e| DatapathError::program("hold", name, e))?))
        };
        let programs = boot::PROGRAMS.into_iter().map(&mut load).collect::<Result<Vec<_>, DatapathError>>()?;
        let maps = boot::MAPS.iter().map(|&name| Ok((name, map_of(&ebpf, name)?)));
        let maps = maps.collect::<Result<Vec<_>, TableError>>()?;
        let paths = Table::<BootPath, u32>::of_object(&ebpf, boot::PATHS)?;
        let guarded = Table::<u64, u32>::of_object(&ebpf, boot::CGROUPS)?;
        for path in cgroups {
            paths.put(&key(path), &1)?;
        }
        // Nothing is pinned before everything is attached: a guard stands whole, or not at all.
        let mut links = Vec::new();
        for (name, program) in programs {
            if name == boot::OUT {
                // Whatever comes from now on is seen, so that this is the rest.
                for path in cgroups {
                    let dir = dir(path);
                    match fs::metadata(&dir) {
                        Ok(meta) => guarded.put(&meta.ino(), &1)?,
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        Err(e) => return Err(DatapathError::Cgroup(dir, e)),
                    }
                }
            }
            links.push((name, attach_program(program.as_fd(), name, root)?));
        }
        let mut objects = maps.into_iter().chain(links);
        let pinned = objects.try_for_each(|(name, object)| Held::new(object, self.directory.join(name)).pin());
        if pinned.is_err() && !stood {
            // As if nothing had been tried. Why it failed is said in any case.
            let _ = self.lift();
        }
        Ok(pinned?)
    }

    /// Returns what stands; `None` if nothing does.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]; it cannot be looked at.
    pub fn standing(&self) -> Result<Option<Standing>, DatapathError> {
        if pins::list(&self.directory)?.is_empty() {
            return Ok(None);
        }
        let paths = Table::<BootPath, u32>::open(&self.directory.join(boot::PATHS), boot::PATHS)?;
        let mut cgroups: Vec<String> = paths.keys()?.iter().map(path).collect();
        cgroups.sort();
        let counts = Table::<u32, u64>::open(&self.directory.join(boot::COUNTS), boot::COUNTS)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| DatapathError::Secret(e))?;
        let sum = |index| Ok::<u64, DatapathError>(counts.get_per_cpu(&index, cpus)?.iter().sum());
        let counts = BootCounts {
            sent: sum(boot_count::SENT)?,
            received: sum(boot_count::RECEIVED)?,
            missed: sum(boot_count::MISSED)?,
        };
        Ok(Some(Standing { cgroups, counts }))
    }

    /// Takes the guard off, and returns what it did, packets until the last moment included; `None` if none stood.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]; of what is left, all that is pinned still is in force. Nothing may be left, and only what it did
    /// be unknown: [`Self::standing`] tells.
    pub fn lift(&self) -> Result<Option<Standing>, DatapathError> {
        if pins::list(&self.directory)?.is_empty() {
            return Ok(None);
        }
        // The last comes off first, so that what judges never does so without knowing of a new cgroup.
        for name in boot::PROGRAMS.iter().rev() {
            pins::take_off(&self.directory.join(name))?;
        }
        // What has begun to drop a packet counts it.
        wait_for_running_programs();
        let stood = self.standing();
        for pin in pins::list(&self.directory)? {
            pins::remove(&pin)?;
        }
        match fs::remove_dir(&self.directory) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(pins::PinsError::Io { verb: "remove", path: self.directory.clone(), source }.into())
            }
            _ => stood,
        }
    }
}

/// Says why a cgroup cannot be guarded at boot, given its path from the root of the hierarchy; `None` if it can.
#[must_use]
pub fn unfit(path: &str) -> Option<&'static str> {
    let parts = path.strip_prefix('/').map(|path| path.split('/'));
    let depth = parts.clone().map_or(0, Iterator::count);
    let is_path = parts.is_some_and(|mut parts| parts.all(|part| !matches!(part, "" | "." | "..")));
    if path == "/" {
        Some("must not name `/`: nobody could reach this host any more if its agent does not start")
    } else if !is_path || path.contains('\0') {
        Some("must name cgroups by their paths from the root of the hierarchy, such as `/kubepods.slice`")
    } else if path.contains(['*', '?', '[']) {
        Some("must name cgroups by whole paths: there are no patterns here; all that lies below one is guarded with it")
    } else if depth > BOOT_DEPTH_MAX as usize || path.len() > BOOT_PATH_MAX {
        Some("names a cgroup whose path is longer than 254 bytes or 16 levels; name one above it")
    } else {
        None
    }
}

/// How many can be named.
pub const CGROUPS_MAX: usize = BOOT_PATHS as usize;

fn key(path: &str) -> BootPath {
    let mut key = [0; BOOT_PATH_BYTES];
    for (to, from) in key.iter_mut().zip(path.bytes()) {
        *to = from;
    }
    key
}

fn path(key: &BootPath) -> String {
    let end = key.iter().position(|&byte| byte == 0).unwrap_or(key.len());
    String::from_utf8_lossy(&key[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_named_by_whole_paths_below_the_root() {
        for path in ["/kubepods.slice", "/system.slice/db.service", "/a..b/.c"] {
            assert_eq!(unfit(path), None, "{path}");
            assert_eq!(super::path(&key(path)), path);
        }
        let long = format!("/{}", "x".repeat(BOOT_PATH_MAX));
        let deep = "/x".repeat(BOOT_DEPTH_MAX as usize + 1);
        for path in ["", "/", "db", "/db/", "//db", "/../db", "/system.slice/*.service", &long, &deep] {
            assert!(unfit(path).is_some(), "{path}");
        }
        assert_eq!(unfit(&long[..long.len() - 1]), None);
        assert_eq!(unfit(&deep[2..]), None);
    }
}
