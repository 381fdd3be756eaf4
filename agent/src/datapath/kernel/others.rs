//! What another version of eastwall left, whose maps have other layouts: its programs stay until those of this one judge in
//! their place, and flows that it knew are taken over.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use agent_common::layout::{DenyCounter, SockState, names::map};
use aya::maps::MapData;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Datapath, DatapathError, links::pin_name, read::sums};
use crate::datapath::{
    clsact,
    pins::{self, Pins, PinsError},
    sys,
    table::{Table, TableError},
};

impl Datapath {
    /// The directories of pins that versions with other layouts have left.
    ///
    /// # Errors
    ///
    /// [`PinsError`].
    pub fn others(&self) -> Result<Vec<PathBuf>, PinsError> {
        self.pins.others()
    }

    /// Takes over whose devices are, the flows, and the addresses of DNS names, that versions know which write them in the
    /// same way; what this one knows already stays.
    ///
    /// Flows are of no policy that this version has put in force, so each is decided again at its next packet. Those of a
    /// device that has another owner by now end when it is guarded.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]; what was taken over stays.
    pub fn take_over(&self) -> Result<(), DatapathError> {
        for version in self.pins.relatives()? {
            let maps = version.join("maps");
            copy(&maps, map::DEV_OWNER, &self.dev_owner)?;
            copy(&maps, map::FLOWS, &self.flows)?;
            copy(&maps, map::FLOW_QUOTA, &self.flow_quota)?;
            copy(&maps, map::DNS_ADDRS, &self.dns_addrs)?;
        }
        Ok(())
    }

    /// What other versions have counted, by [`DenyCounter`]; none if there are none that count in the same way.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn counts_of_others(&self) -> Result<Option<[u64; DenyCounter::COUNT as usize]>, DatapathError> {
        let mut all = None;
        for version in self.others()? {
            if let Some(counts) = open::<u32, u64>(&version.join("maps"), map::DENY_COUNTS)? {
                let of_all = all.get_or_insert([0; DenyCounter::COUNT as usize]);
                for (sum, count) in of_all.iter_mut().zip(sums(&counts, self.cpus)?) {
                    *sum += count;
                }
            }
        }
        Ok(all)
    }

    /// Takes the programs of other versions off, and their pins away: this version's judge everywhere they do. Returns how
    /// many there were.
    ///
    /// # Errors
    ///
    /// [`DatapathError`] with what is still there.
    pub fn retire_others(&mut self) -> Result<usize, DatapathError> {
        let ours: Vec<String> = self.links.keys().map(|place| pin_name(*place)).collect();
        let mut count = 0;
        for version in self.others()? {
            for pin in pins::list(&version.join("links"))? {
                let name = pin.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                // A filter is not its pin's: the one that is in its place by now is this version's.
                if !ours.iter().any(|ours| ours == name) {
                    clsact::remove_pinned(name).map_err(|source| failed("detach", &pin, source))?;
                }
                pins::take_off(&pin)?;
                count += 1;
            }
            pins::remove_version(&version)?;
        }
        Ok(count)
    }
}

/// Puts what sockets remember under another version into the place of this one's, so that whoever has a socket is known as
/// before. What is in that place already stays.
///
/// # Errors
///
/// [`DatapathError`].
pub(super) fn share_sockets(pins: &Pins) -> Result<(), DatapathError> {
    let place = pins.map(map::SOCKETS);
    for version in pins.relatives()? {
        let maps = version.join("maps");
        if !place.exists()
            && let Some(sockets) = open::<i32, SockState>(&maps, map::SOCKETS)?
        {
            sys::pin(sockets.fd().as_fd(), &place).map_err(|source| failed("pin", &place, source))?;
        }
    }
    Ok(())
}

fn failed(verb: &'static str, path: &Path, source: io::Error) -> PinsError {
    PinsError::Io { verb, path: path.to_owned(), source }
}

/// Opens a pinned map; none if there is none, or of another shape.
fn open<K, V>(maps: &Path, name: &'static str) -> Result<Option<Table<K, V>>, DatapathError>
where
    K: FromBytes + IntoBytes + Immutable,
    V: FromBytes + IntoBytes + Immutable,
{
    let pin = maps.join(name);
    let Ok(info) = MapData::from_pin(&pin).and_then(|map| map.info()) else { return Ok(None) };
    if (info.key_size() as usize, info.value_size() as usize) != (size_of::<K>(), size_of::<V>()) {
        return Ok(None);
    }
    let fd = sys::open_pin(&pin).map_err(|source| failed("open", &pin, source))?;
    Ok(fd.map(|fd| Table::new(fd, name)))
}

/// Copies what is not there yet from a pinned map of the same shape. One of another shape, or none, is left out.
fn copy<K, V>(maps: &Path, name: &'static str, into: &Table<K, V>) -> Result<(), DatapathError>
where
    K: FromBytes + IntoBytes + Immutable,
    V: FromBytes + IntoBytes + Immutable,
{
    let Some(from) = open::<K, V>(maps, name)? else { return Ok(()) };
    for key in from.keys()? {
        let Some(value) = from.get(&key)? else { continue };
        match into.insert(&key, &value) {
            // Full: what is left is judged anew.
            Err(TableError { source, .. }) if source.raw_os_error() == Some(libc::E2BIG) => break,
            taken => taken?,
        };
    }
    Ok(())
}
