//! Who may hold a connection to the agent, and how many. Idle callers must not keep others out, and
//! nobody may keep root out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Connections at one time.
pub const CONNECTIONS_MAX: usize = 64;
/// Of them: for all users but root together.
pub const OTHERS_MAX: usize = 48;
/// Of them: for one user that is not root.
pub const ONE_USER_MAX: usize = 16;

/// The connections that are open, by user.
#[derive(Debug, Default)]
pub struct Places {
    taken: Mutex<BTreeMap<u32, usize>>,
}

/// One connection; dropping it makes room.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    uid: u32,
}

impl Places {
    /// Takes a place for a user; `None` if it, or all users together, have theirs.
    #[must_use]
    pub fn take(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.get(&uid).copied().unwrap_or(0);
        let all: usize = taken.values().sum();
        let others = all - taken.get(&0).copied().unwrap_or(0);
        let is_full = all >= CONNECTIONS_MAX || (uid != 0 && (own >= ONE_USER_MAX || others >= OTHERS_MAX));
        if is_full {
            return None;
        }
        taken.insert(uid, own + 1);
        Some(Place { places: Arc::clone(self), uid })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        match taken.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.uid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many as there are.
    fn fill(places: &Arc<Places>, uid: u32) -> Vec<Place> {
        std::iter::from_fn(|| places.take(uid)).take(CONNECTIONS_MAX + 1).collect()
    }

    #[test]
    fn no_number_of_other_users_keeps_root_or_a_first_user_out() {
        let places = Arc::new(Places::default());
        let one = fill(&places, 1000);
        assert_eq!(one.len(), ONE_USER_MAX);
        assert!(places.take(1001).is_some(), "another user has its own");
        let all: Vec<Place> = (1001..1100).flat_map(|uid| fill(&places, uid)).collect();
        assert_eq!(one.len() + all.len(), OTHERS_MAX);
        let root = fill(&places, 0);
        assert_eq!(root.len(), CONNECTIONS_MAX - OTHERS_MAX);
    }

    #[test]
    fn a_place_that_is_given_back_can_be_taken_again() {
        let places = Arc::new(Places::default());
        let mut held = fill(&places, 1000);
        assert!(places.take(1000).is_none());
        held.pop();
        assert!(places.take(1000).is_some());
        drop(held);
        assert_eq!(*places.lock(), BTreeMap::new(), "nothing is kept of a user who is gone");
        assert_eq!(fill(&places, 0).len(), CONNECTIONS_MAX, "root may use what nobody else does");
    }
}
