//! Namespaces that live as long as their handle.
//!
//! A namespace belongs to a thread, and the threads of a test are shared. So each piece of work inside
//! one gets a thread of its own, which enters, works and ends.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::resume_unwind,
    thread,
};

use anyhow::Context as _;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A network or mount namespace.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    kind: LinkNameSpaceType,
}

impl Namespace {
    /// Makes a network namespace.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn network() -> anyhow::Result<Self> {
        Self::new(LinkNameSpaceType::Network, UnshareFlags::NEWNET, "net", || Ok(()))
    }

    /// The network namespace of a process.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub fn network_of(pid: i32) -> anyhow::Result<Self> {
        let fd = File::open(format!("/proc/{pid}/ns/net")).context("open the network namespace of a process")?.into();
        Ok(Self { fd, kind: LinkNameSpaceType::Network })
    }

    /// Makes a mount namespace, in which `prepare` runs. What is mounted inside stays inside.
    ///
    /// # Errors
    ///
    /// What the kernel says, or `prepare`.
    pub fn mount(prepare: impl FnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<Self> {
        use rustix::mount::{MountPropagationFlags, mount_change};
        // Implies CLONE_FS: the thread's root and working directory stop being those of the others.
        Self::new(LinkNameSpaceType::Mount, UnshareFlags::NEWNS, "mnt", || {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
                .context("keep mounts from spreading")?;
            prepare()
        })
    }

    fn new(
        kind: LinkNameSpaceType,
        flags: UnshareFlags,
        name: &str,
        prepare: impl FnOnce() -> anyhow::Result<()> + Send,
    ) -> anyhow::Result<Self> {
        let fd = scoped(|| {
            unshare(flags)?;
            prepare()?;
            anyhow::Ok(File::open(format!("/proc/thread-self/ns/{name}"))?.into())
        });
        Ok(Self { fd: fd.with_context(|| format!("make a namespace `{name}`"))?, kind })
    }

    /// Runs `work` inside, and every process that it starts.
    ///
    /// # Panics
    ///
    /// If the namespace cannot be entered, or if `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        scoped(|| {
            // A thread that shares its working directory may not change its mount namespace.
            if self.kind == LinkNameSpaceType::Mount {
                unshare(UnshareFlags::FS).expect("leave the common working directory");
            }
            move_into_link_name_space(self.fd.as_fd(), Some(self.kind)).expect("enter a namespace");
            work()
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn scoped<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

#[expect(unsafe_code, reason = "unshare(2) is unsafe where it splits descriptors, which this never does")]
fn unshare(flags: UnshareFlags) -> anyhow::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the thread keeps sharing its descriptors with the others (asserted above), so no
    // descriptor that is open here means another file elsewhere.
    unsafe { rustix::thread::unshare_unsafe(flags) }.context("leave the namespace")
}
