//! What is next, as pure functions of what is known. PURE: no I/O, no clock, no log.

pub mod cut_list;
pub mod dns_names;
