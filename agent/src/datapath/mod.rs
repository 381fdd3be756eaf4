//! The kernel side as user space sees it: programs, links, pins and maps. Alone imports aya.

pub mod boot_guard;
mod btf;
mod clsact;
pub mod cut;
mod kernel;
pub mod log;
pub mod object;
mod pins;
pub mod release;
pub mod ring;
mod sys;
mod table;

pub use kernel::{
    Act, Datapath, DatapathConfig, DatapathError, Device, Finding, Held, Identities, Look, Neighbour, Object, Place,
    Prepared, Questions, RawElement, Runs, forget_idle,
};
pub use pins::{Pins, PinsError};
pub use sys::{
    MapKind, ProgramInfo, TestRun, describe, netns_cookie, open_pin, program_by_id, test_run, wait_for_running_programs,
};
pub use table::{Table, TableError};

pub use crate::policy::plan::Capacity;
