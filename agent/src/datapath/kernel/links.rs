//! What is attached and pinned: looked at again and again, and put back.
//!
//! Everything is held open, so that a pin which is removed takes nothing away, and what stands in the kernel is compared
//! by its numbers: of the link, of the program under it, and of what runs before it.
//!
//! On kernels without TCX a filter of clsact stands in for the link at a device, and what is held is the program.

use std::{
    fmt, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use agent_common::layout::names::{map, program};

use super::{Datapath, DatapathError, attach};
use crate::{
    datapath::{
        clsact,
        pins::{self, Held},
        sys::{self, Listed, Side, Target},
        table::TableError,
    },
    netlink::Requests,
};

/// How often everything is looked at until each pin is, if their directories do not change.
const LOOKS_PER_PIN: u32 = 4;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The program.
    pub program: &'static str,
    /// The index of the device; `None` is the guarded cgroup, or all cgroups.
    pub device: Option<u32>,
}

/// A link of ours.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) held: Held,
    /// Its number.
    pub(super) id: u32,
}

/// What was done to an object.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Act {
    /// Its link was detached: the program does not run.
    Detached,
    /// Another program is under its link.
    Replaced,
    /// Another program runs before it, and may decide instead.
    Overtaken,
    /// Its pin is gone, or another object is pinned there.
    Unpinned,
    /// The bpffs with all pins is no longer mounted.
    Unmounted,
    /// It says something else than was written.
    Changed,
}

impl Act {
    /// The word used in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Replaced => "replaced",
            Self::Overtaken => "overtaken",
            Self::Unpinned => "unpinned",
            Self::Unmounted => "unmounted",
            Self::Changed => "changed",
        }
    }
}

/// To what it was done.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Object {
    /// A program that is attached.
    Link(Place),
    /// A map.
    Map(&'static str),
    /// All pins.
    Pins,
}

impl Object {
    /// The index of the device that it is at.
    #[must_use]
    pub const fn device(self) -> Option<u32> {
        match self {
            Self::Link(Place { device, .. }) => device,
            Self::Map(_) | Self::Pins => None,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(Place { program, .. }) => f.write_str(program),
            Self::Map(name) => f.write_str(name),
            Self::Pins => f.write_str("bpffs"),
        }
    }
}

/// Something is not as it was left.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was done.
    pub act: Act,
    /// To what.
    pub object: Object,
    /// Programs of others that have to do with it, by number.
    pub others: Vec<u32>,
}

/// What a look found.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// What is not as it was left.
    pub findings: Vec<Finding>,
    /// What could not be looked at, and why.
    pub blind: Vec<String>,
}

impl Datapath {
    /// Looks at everything that is attached and pinned, and at what says which policy is in force. Changes nothing.
    ///
    /// A device that is gone is not spoken of: who owns which device is decided elsewhere.
    pub fn look(&mut self) -> Look {
        let mut look = Look::default();
        let mut requests = None;
        for (place, link) in &self.links {
            let found = match place.device {
                Some(index) => self.look_at_device(&mut requests, *place, link, index),
                None => self.look_at_cgroup(*place, link),
            };
            match found {
                Ok(Some((act, others))) => {
                    look.findings.push(Finding { act, object: Object::Link(*place), others });
                }
                Ok(None) => {}
                Err(e) => look.blind.push(format!("look at {}: {e}", place.program)),
            }
        }
        match self.changed_maps() {
            Ok(changed) => {
                let finding = |name| Finding { act: Act::Changed, object: Object::Map(name), others: Vec::new() };
                look.findings.extend(changed.into_iter().map(finding));
            }
            Err(e) => look.blind.push(format!("{:#}", anyhow::Error::from(e))),
        }
        look.findings.extend(self.look_at_pins());
        look
    }

    /// Looks at the directories of the pins, and at each pin if one of them has changed; and all the same now and then,
    /// because the clock of a file system is coarse.
    fn look_at_pins(&mut self) -> Vec<Finding> {
        let unpinned = |object| Finding { act: Act::Unpinned, object, others: Vec::new() };
        if !self.pins.is_mounted() {
            return vec![Finding { act: Act::Unmounted, object: Object::Pins, others: Vec::new() }];
        }
        let state = self.pins.state();
        self.looks = self.looks.wrapping_add(1);
        if state.is_some() && state == self.pins_seen && !self.looks.is_multiple_of(LOOKS_PER_PIN) {
            return Vec::new();
        }
        let links = self.links.iter().filter(|(_, link)| !link.held.is_pinned());
        let maps = self.maps.iter().filter(|(_, held)| !held.is_pinned());
        let links = links.map(|(place, _)| unpinned(Object::Link(*place)));
        let found: Vec<Finding> = links.chain(maps.map(|(name, _)| unpinned(Object::Map(name)))).collect();
        self.pins_seen = state.filter(|_| found.is_empty());
        found
    }

    fn look_at_device(
        &self,
        requests: &mut Option<Requests>,
        place: Place,
        link: &Link,
        index: u32,
    ) -> io::Result<Option<(Act, Vec<u32>)>> {
        let listed = self.listed_at_device(requests, place.program, index)?;
        Ok(listed.and_then(|listed| compare(&listed, link.id, self.number(place.program))))
    }

    /// Lists what is asked about packets at the place of a program, in that order; `None`: the device is gone. `requests`
    /// is opened if it takes one.
    pub(super) fn listed_at_device(
        &self,
        requests: &mut Option<Requests>,
        name: &str,
        index: u32,
    ) -> io::Result<Option<Vec<Listed>>> {
        if self.has_tcx {
            return match sys::query(Target::Device(index), Side::of(name) as u32) {
                Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
                listed => listed.map(Some),
            };
        }
        let requests = match requests {
            Some(requests) => requests,
            None => requests.insert(Requests::open(None)?),
        };
        let listed = clsact::listed(requests, name, index)?;
        // Of a device that is gone the list is empty.
        Ok((!listed.is_empty() || sys::is_device(index)?).then_some(listed))
    }

    fn look_at_cgroup(&self, place: Place, link: &Link) -> io::Result<Option<(Act, Vec<u32>)>> {
        // Nobody can detach what is open here, nor put another program under it.
        if attach::attach_type(place.program).is_none() {
            return Ok(None);
        }
        let info = sys::link_info(link.held.as_fd())?;
        // Every program of a cgroup is asked, and one that denies is enough: the order means nothing.
        Ok(if info.target == 0 {
            Some((Act::Detached, Vec::new()))
        } else if info.program != self.number(place.program) {
            Some((Act::Replaced, vec![info.program]))
        } else {
            None
        })
    }

    /// Puts right what a look found. Nothing of ours is taken away before its successor is there.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]; the next look finds it again.
    pub fn put_back(&mut self, finding: &Finding) -> Result<(), DatapathError> {
        match (finding.act, finding.object) {
            (
                Act::Detached | Act::Replaced | Act::Overtaken,
                Object::Link(place @ Place { device: Some(index), .. }),
            ) if !self.has_tcx => self.put_filter(place, index),
            (Act::Replaced, Object::Link(place)) => {
                let link = self.links.get(&place).map(|link| link.held.as_fd());
                let failed = |source| DatapathError::program("replace", place.program, source);
                link.map_or(Ok(()), |link| sys::link_update(link, self.program(place.program)?).map_err(failed))
            }
            (Act::Overtaken, Object::Link(place)) => self.overtake(place),
            (Act::Unpinned, Object::Link(place)) => {
                self.pins.make_again()?;
                Ok(self.links.get_mut(&place).map_or(Ok(()), |link| link.held.pin())?)
            }
            (Act::Unpinned, Object::Map(name)) => {
                self.pins.make_again()?;
                Ok(self.maps.get_mut(name).map_or(Ok(()), Held::pin)?)
            }
            (_, Object::Link(Place { program, device: Some(index) })) => self.attach_to_device(program, index),
            (_, Object::Link(Place { program, device: None })) => self.attach_to_cgroup(program),
            (_, Object::Map(name)) => Ok(self.write_again(name)?),
            (_, Object::Pins) => {
                self.pins.make_again()?;
                for held in self.maps.values_mut().chain(self.links.values_mut().map(|link| &mut link.held)) {
                    held.pin()?;
                }
                Ok(())
            }
        }
    }

    /// Puts a program before all others at its device, by a link of its own. A program stands at a place only once, so
    /// one that lets nothing pass takes the old place for the moment.
    fn overtake(&mut self, place: Place) -> Result<(), DatapathError> {
        let Some((index, old)) = place.device.zip(self.links.get(&place)) else { return Ok(()) };
        let failed = |source| DatapathError::program("move", place.program, source);
        let ours = self.program(place.program)?;
        sys::link_update(old.held.as_fd(), self.program(program::TC_CLOSED)?).map_err(failed)?;
        match sys::attach_first(ours, index, Side::of(place.program)) {
            Ok(link) => self.hold(place, link),
            Err(e) => {
                sys::link_update(old.held.as_fd(), ours).map_err(failed)?;
                Err(failed(e))
            }
        }
    }

    /// Holds a new link and pins it; the one before it, if there was one, is gone when this returns.
    pub(super) fn hold(&mut self, place: Place, link: OwnedFd) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::program("look at the link of", place.program, source);
        let id = sys::link_info(link.as_fd()).map_err(failed)?.id;
        let held = Held::new(link, self.pins.link(&pin_name(place)));
        let before = self.links.insert(place, Link { held, id });
        let pinned = self.links.get_mut(&place).map_or(Ok(()), |link| link.held.pin());
        drop(before);
        Ok(pinned?)
    }

    /// Puts the program of this agent under a link that is held, or pinned by an earlier agent; says whether there is
    /// one that is still attached.
    pub(super) fn adopt(&mut self, place: Place) -> Result<bool, DatapathError> {
        let failed = |verb, source| DatapathError::program(verb, place.program, source);
        if !self.links.contains_key(&place) {
            let held = Held::open(self.pins.link(&pin_name(place))).map_err(|e| failed("open the link of", e))?;
            let Some(held) = held else { return Ok(false) };
            // An agent that was told to do without TCX has pinned the program of its filter.
            if !sys::is_link(held.as_fd()).map_err(|e| failed("look at the pin of", e))? {
                return Ok(false);
            }
            let id = sys::link_info(held.as_fd()).map_err(|e| failed("look at the link of", e))?.id;
            self.links.insert(place, Link { held, id });
        }
        let Some(link) = self.links.get(&place) else { return Ok(false) };
        match sys::link_update(link.held.as_fd(), self.program(place.program)?) {
            Ok(()) => Ok(true),
            // Somebody detached it, or an earlier device had this index and the link has died with it.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                self.links.remove(&place);
                Ok(false)
            }
            Err(error) => Err(failed("replace", error)),
        }
    }

    /// Takes a program off its place; that it is not there is no error.
    pub(super) fn take_off(&mut self, place: Place) -> Result<(), DatapathError> {
        let link = self.links.get(&place).map(|link| link.held.as_fd());
        pins::take_off_open(link, &self.pins.link(&pin_name(place)))?;
        self.links.remove(&place);
        Ok(())
    }

    /// The number of a program of ours; 0 = it is not loaded.
    fn number(&self, name: &str) -> u32 {
        self.numbers.get(name).copied().unwrap_or(0)
    }

    /// Maps that do not say what was written to them, of those that say which policy is in force.
    fn changed_maps(&self) -> Result<Vec<&'static str>, TableError> {
        let mut changed = Vec::new();
        if self.epoch.get(&0)? != Some(u64::from(self.in_force.0)) {
            changed.push(map::EPOCH);
        }
        let Some(side) = &self.side else { return Ok(changed) };
        let index = self.in_force.side();
        if self.settings.get(&index)? != Some(side.settings) {
            changed.push(map::SETTINGS);
        }
        for (name, id, _) in &side.inner {
            if self.outer(name).map(|outer| outer.get(&index)).transpose()?.flatten() != Some(*id) {
                changed.push(name);
            }
        }
        Ok(changed)
    }

    fn write_again(&self, name: &str) -> Result<(), TableError> {
        let index = self.in_force.side();
        match (name, &self.side) {
            (map::EPOCH, _) => self.epoch.put(&0, &u64::from(self.in_force.0)),
            (map::SETTINGS, Some(side)) => self.settings.put(&index, &side.settings),
            (_, Some(side)) => {
                let inner = side.inner.iter().find(|(of, ..)| *of == name);
                let raw = inner.map(|(_, _, fd)| fd.as_raw_fd().cast_unsigned());
                self.outer(name).zip(raw).map_or(Ok(()), |(outer, raw)| outer.put(&index, &raw))
            }
            (_, None) => Ok(()),
        }
    }
}

/// The name of the pin of a link: there is one for each program and device.
pub(super) fn pin_name(place: Place) -> String {
    match place.device {
        Some(index) => format!("{}_{index}", place.program),
        None => place.program.to_owned(),
    }
}

/// What is wrong with our link in a list of programs, and which others have to do with it.
fn compare(listed: &[Listed], link: u32, program: u32) -> Option<(Act, Vec<u32>)> {
    let Some(at) = listed.iter().position(|one| one.link == link) else {
        return Some((Act::Detached, Vec::new()));
    };
    if listed[at].program != program {
        return Some((Act::Replaced, vec![listed[at].program]));
    }
    (at > 0).then(|| (Act::Overtaken, listed[..at].iter().map(|one| one.program).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(program: u32, link: u32) -> Listed {
        Listed { program, link, kind: String::new() }
    }

    #[test]
    fn a_place_is_ours_only_if_our_program_is_first_in_it() {
        let ours = listed(7, 70);
        let foreign = listed(8, 0);
        assert_eq!(compare(std::slice::from_ref(&ours), 70, 7), None);
        assert_eq!(compare(&[ours.clone(), foreign.clone()], 70, 7), None, "who comes behind sees what we let pass");
        assert_eq!(compare(&[], 70, 7), Some((Act::Detached, vec![])));
        assert_eq!(compare(std::slice::from_ref(&foreign), 70, 7), Some((Act::Detached, vec![])));
        assert_eq!(compare(&[foreign, listed(9, 90), ours], 70, 7), Some((Act::Overtaken, vec![8, 9])));
        assert_eq!(
            compare(&[listed(9, 70)], 70, 7),
            Some((Act::Replaced, vec![9])),
            "by its link alone it looks right"
        );
        // Our program by the link of somebody else would go when they like.
        assert_eq!(compare(&[listed(7, 71)], 70, 7), Some((Act::Detached, vec![])));
    }
}
