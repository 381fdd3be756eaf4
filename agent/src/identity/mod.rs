//! Who is who. PURE: no I/O, no clock, no log.
//!
//! - [`spiffe`] is the identity and its number; [`derived`] names what policy does not declare.
//! - [`cgroup_path`] reads facts off a path. Anybody who may make cgroups can write a path, so these
//!   facts are for display and for joining, never for labelling.
//! - [`ground`] follows a path from the root and keeps only what root-owned managers wrote.
//! - [`devices`] says whose a device and an address are: of who lives in the network behind it.
//! - [`selectors`] are the `select` keys of policy, compiled; [`resolver`] puts all of it together.

pub mod cgroup_path;
pub mod derived;
pub mod devices;
pub mod ground;
pub mod resolver;
pub mod selectors;
pub mod spiffe;
