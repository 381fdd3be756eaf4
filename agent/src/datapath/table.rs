//! A map as a typed table.

use std::{
    collections::BTreeMap,
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use aya::{Ebpf, maps::Map};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::sys;

/// A hash, array or trie with keys `K` and values `V`, both of the shared layout.
#[derive(Debug)]
pub struct Table<K, V> {
    fd: OwnedFd,
    name: &'static str,
    types: PhantomData<fn(K) -> V>,
}

/// An operation on a map failed.
#[derive(Debug, thiserror::Error)]
#[error("{verb} the map `{map}`")]
pub struct TableError {
    /// Name of the map.
    pub map: &'static str,
    /// What was tried.
    pub verb: &'static str,
    /// What the kernel said; E2BIG is "full".
    pub source: io::Error,
}

/// Holds a hash or array of a loaded object.
///
/// # Errors
///
/// [`TableError`]; it has none of that name.
pub fn map_of(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, TableError> {
    let failed = |verb, source| TableError { map: name, verb, source };
    let Some(Map::Array(map) | Map::HashMap(map) | Map::PerCpuArray(map)) = ebpf.map(name) else {
        return Err(failed("find", io::ErrorKind::NotFound.into()));
    };
    map.fd().as_fd().try_clone_to_owned().map_err(|source| failed("hold", source))
}

/// Elements of one batch: a bound on the memory of a fill.
const BATCH: usize = 8_192;

impl<K, V> Table<K, V>
where
    K: FromBytes + IntoBytes + Immutable,
    V: FromBytes + IntoBytes + Immutable,
{
    /// Takes a descriptor of a map whose key and value sizes are those of `K` and `V`.
    #[must_use]
    pub const fn new(fd: OwnedFd, name: &'static str) -> Self {
        Self { fd, name, types: PhantomData }
    }

    /// Makes a map.
    ///
    /// # Errors
    ///
    /// [`TableError`] with the kernel's answer.
    pub fn create(kind: sys::MapKind, entries: u32, flags: u32, name: &'static str) -> Result<Self, TableError> {
        let fd = sys::create(kind, size_of::<K>(), size_of::<V>(), entries, flags);
        Ok(Self::new(fd.map_err(|source| TableError { map: name, verb: "make a side of", source })?, name))
    }

    /// Opens a pinned map whose key and value sizes are those of `K` and `V`.
    ///
    /// # Errors
    ///
    /// [`TableError`]; nothing is pinned there, or it is no map.
    pub fn open(pin: &Path, name: &'static str) -> Result<Self, TableError> {
        let failed = |source| TableError { map: name, verb: "open the pin of", source };
        let fd = sys::open_pin(pin).map_err(failed)?;
        Ok(Self::new(fd.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?, name))
    }

    /// Opens a map of a loaded object whose key and value sizes are those of `K` and `V`.
    ///
    /// # Errors
    ///
    /// [`TableError`]; the object has no hash or array of that name.
    pub fn of_object(ebpf: &Ebpf, name: &'static str) -> Result<Self, TableError> {
        Ok(Self::new(map_of(ebpf, name)?, name))
    }

    /// The descriptor, as the value of a map of maps.
    #[must_use]
    pub fn raw(&self) -> u32 {
        self.fd.as_raw_fd().cast_unsigned()
    }

    /// The descriptor.
    #[must_use]
    pub const fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Reads an element.
    ///
    /// # Errors
    ///
    /// [`TableError`] with the kernel's answer.
    pub fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        let mut value = V::new_zeroed();
        let found = sys::lookup(self.fd.as_fd(), key.as_bytes(), value.as_mut_bytes());
        Ok(found.map_err(|e| self.failed("read", e))?.then_some(value))
    }

    /// Reads and removes an element in one step.
    ///
    /// # Errors
    ///
    /// [`TableError`] with the kernel's answer.
    pub fn take(&self, key: &K) -> Result<Option<V>, TableError> {
        let mut value = V::new_zeroed();
        let found = sys::take(self.fd.as_fd(), key.as_bytes(), value.as_mut_bytes());
        Ok(found.map_err(|e| self.failed("take from", e))?.then_some(value))
    }

    /// Reads an element of a per-CPU map: one value a CPU.
    ///
    /// # Errors
    ///
    /// [`TableError`] with the kernel's answer.
    pub fn get_per_cpu(&self, key: &K, cpus: usize) -> Result<Vec<V>, TableError> {
        let stride = size_of::<V>().next_multiple_of(8);
        let mut bytes = vec![0; stride * cpus];
        sys::lookup(self.fd.as_fd(), key.as_bytes(), &mut bytes).map_err(|e| self.failed("read", e))?;
        Ok(bytes.chunks(stride).filter_map(|c| V::read_from_prefix(c).ok().map(|(v, _)| v)).collect())
    }

    /// Writes an element.
    ///
    /// # Errors
    ///
    /// [`TableError`]; a full hash is E2BIG.
    pub fn put(&self, key: &K, value: &V) -> Result<(), TableError> {
        sys::update(self.fd.as_fd(), key.as_bytes(), value.as_bytes()).map_err(|e| self.failed("write to", e))
    }

    /// Writes an element that is not there; says whether that was so.
    ///
    /// # Errors
    ///
    /// [`TableError`]; a full hash is E2BIG.
    pub fn insert(&self, key: &K, value: &V) -> Result<bool, TableError> {
        sys::insert(self.fd.as_fd(), key.as_bytes(), value.as_bytes()).map_err(|e| self.failed("write to", e))
    }

    /// Removes an element; says whether there was one.
    ///
    /// # Errors
    ///
    /// [`TableError`] with the kernel's answer.
    pub fn remove(&self, key: &K) -> Result<bool, TableError> {
        sys::delete(self.fd.as_fd(), key.as_bytes()).map_err(|e| self.failed("delete from", e))
    }

    /// Writes many elements, in batches.
    ///
    /// # Errors
    ///
    /// [`TableError`]; what was written before stays.
    pub fn put_all<'a>(&self, elements: impl IntoIterator<Item = (&'a K, &'a V)>) -> Result<(), TableError>
    where
        K: 'a,
        V: 'a,
    {
        let (mut keys, mut values, mut count) = (Vec::new(), Vec::new(), 0);
        let mut elements = elements.into_iter().peekable();
        while let Some((key, value)) = elements.next() {
            keys.extend_from_slice(key.as_bytes());
            values.extend_from_slice(value.as_bytes());
            count += 1;
            if count == BATCH || elements.peek().is_none() {
                let wanted = u32::try_from(count).unwrap_or(u32::MAX);
                let written = sys::update_batch(self.fd.as_fd(), &keys, &values, wanted)
                    .map_err(|e| self.failed("write a batch to", e))?;
                if written != wanted {
                    return Err(self.failed("write a whole batch to", io::ErrorKind::WriteZero.into()));
                }
                keys.clear();
                values.clear();
                count = 0;
            }
        }
        Ok(())
    }

    /// Returns every key; those that come or go meanwhile may be missing or twice.
    ///
    /// # Errors
    ///
    /// [`TableError`] with the kernel's answer.
    pub fn keys(&self) -> Result<Vec<K>, TableError> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = K::new_zeroed();
            let last = keys.last().map(IntoBytes::as_bytes);
            let more = sys::next_key(self.fd.as_fd(), last, next.as_mut_bytes());
            if !more.map_err(|e| self.failed("list", e))? {
                return Ok(keys);
            }
            keys.push(next);
        }
    }

    /// Returns every element; those that come or go meanwhile may be missing.
    ///
    /// # Errors
    ///
    /// [`TableError`] with the kernel's answer.
    pub fn all(&self) -> Result<BTreeMap<K, V>, TableError>
    where
        K: Ord,
    {
        let mut all = BTreeMap::new();
        for key in self.keys()? {
            if let Some(value) = self.get(&key)? {
                all.insert(key, value);
            }
        }
        Ok(all)
    }

    fn failed(&self, verb: &'static str, source: io::Error) -> TableError {
        TableError { map: self.name, verb, source }
    }
}

impl Table<u32, u32> {
    /// Returns the map that a map of maps has at `index`; none if there is none.
    ///
    /// # Errors
    ///
    /// [`TableError`] with the kernel's answer.
    pub fn inner<K, V>(&self, index: &u32, name: &'static str) -> Result<Option<Table<K, V>>, TableError>
    where
        K: FromBytes + IntoBytes + Immutable,
        V: FromBytes + IntoBytes + Immutable,
    {
        let Some(id) = self.get(index)? else { return Ok(None) };
        let fd = sys::open_id(id).map_err(|e| self.failed("open a side of", e))?;
        Ok(fd.map(|fd| Table::new(fd, name)))
    }
}
