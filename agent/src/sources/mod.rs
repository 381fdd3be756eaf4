//! What comes in from the host. I/O without meaning: a source never interprets what it reads.

pub mod cgroup;
pub mod devices;
pub mod netns;
pub mod policy_dir;
pub mod resolv_conf;
pub mod trust;
