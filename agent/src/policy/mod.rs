//! What may be: the policy language, from the file a human wrote to the entries of the maps. PURE: no
//! I/O, no clock, no log.

pub mod ask;
pub mod assertions;
pub mod canonical;
pub mod changes;
pub mod cidr;
pub mod codes;
pub mod compile;
pub mod diff;
pub mod dns_name;
pub mod explain;
pub mod fields;
pub mod file;
pub mod finding;
pub mod lint;
pub mod load;
pub mod map_state;
pub mod model;
pub mod names;
pub mod peers;
pub mod plan;
pub mod ports;
#[cfg(any(test, feature = "lab"))]
pub mod random;
pub mod resolvers;
pub mod sample;
pub mod spec;
pub mod time;
pub mod yaml;
