//! Kernel, mounts and rights.

use std::{fs, path::Path};

use super::{Finding, Outcome};
use crate::{datapath::release, sources::cgroup::Hierarchy};

pub(super) fn examine() -> Vec<Finding> {
    vec![kernel(), btf(), jit(), cgroup(), bpffs(), net_cls(), clock(), rights()]
}

fn kernel() -> Finding {
    match release::refusal() {
        None => {
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            Finding::new(Outcome::Ok, "kernel", release, "")
        }
        Some(why) => Finding::new(Outcome::Fail, "kernel", why, "boot a newer one"),
    }
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Finding::new(Outcome::Ok, "kernel types", "/sys/kernel/btf/vmlinux", "");
    }
    let fix = "use a kernel built with CONFIG_DEBUG_INFO_BTF";
    Finding::new(Outcome::Fail, "kernel types", "no /sys/kernel/btf/vmlinux", fix)
}

fn jit() -> Finding {
    let path = "/proc/sys/net/core/bpf_jit_enable";
    match fs::read_to_string(path).map(|s| s.trim().to_owned()) {
        Ok(n) if n == "0" => {
            let fix = "sysctl net.core.bpf_jit_enable=1";
            Finding::new(Outcome::Warn, "compiler of programs", "off: every packet costs many times more", fix)
        }
        Ok(n) => Finding::new(Outcome::Ok, "compiler of programs", format!("on ({n})"), ""),
        // A kernel that always compiles has no switch.
        Err(_) => Finding::new(Outcome::Ok, "compiler of programs", "always on", ""),
    }
}

fn cgroup() -> Finding {
    match Hierarchy::find() {
        Ok(h) if h.is_real_root() => Finding::new(Outcome::Ok, "cgroup v2", h.mount().display().to_string(), ""),
        Ok(h) => {
            let found = format!("{} is not the root of the hierarchy", h.mount().display());
            Finding::new(Outcome::Fail, "cgroup v2", found, "run the agent in the host's cgroup namespace")
        }
        Err(e) => Finding::new(Outcome::Fail, "cgroup v2", e.to_string(), "mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
    }
}

fn bpffs() -> Finding {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mounts.lines().find(|l| l.contains(" - bpf ")).and_then(|l| l.split(' ').nth(4));
    match mount {
        Some(mount) => Finding::new(Outcome::Ok, "bpf file system", mount, ""),
        None => Finding::new(Outcome::Fail, "bpf file system", "not mounted", "mount -t bpf bpf /sys/fs/bpf"),
    }
}

fn net_cls() -> Finding {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let used = mounts.lines().any(|l| l.contains(" - cgroup ") && l.contains("net_cls"));
    if used {
        let found = "cgroup v1 net_cls is mounted beside cgroup v2";
        return Finding::new(Outcome::Warn, "cgroup v1", found, "unmount it if nothing uses it");
    }
    Finding::new(Outcome::Ok, "cgroup v1", "net_cls is not in use", "")
}

/// Expiries are written in wall time.
fn clock() -> Finding {
    let year_2024 = 1_704_067_200;
    let now = crate::clock::unix_seconds();
    if now < year_2024 {
        return Finding::new(
            Outcome::Fail,
            "clock",
            format!("Unix time is {now}: rules would expire wrongly"),
            "set it",
        );
    }
    Finding::new(Outcome::Ok, "clock", crate::policy::time::format(now), "")
}

fn rights() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::new(Outcome::Ok, "rights", "root", "");
    }
    let found = "not root: the agent cannot run as this user, and some checks see less";
    Finding::new(Outcome::Warn, "rights", found, "sudo eastwall doctor")
}
