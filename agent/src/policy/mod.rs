//! What may be: the policy language, from the file a human wrote to the entries of the maps. PURE: no
//! I/O, no clock, no log.

pub mod map_state;
pub mod model;
