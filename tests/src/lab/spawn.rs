//! Processes that begin their life in a cgroup and a network namespace.
//!
//! By clone3(2) with `CLONE_INTO_CGROUP`: not a single instruction runs anywhere else.
#![expect(unsafe_code, reason = "clone3(2) has no safe wrapper, and what follows it runs in a forked child")]

use std::{
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use anyhow::Context as _;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::{Cgroup, NetNs};

/// What to run.
#[derive(Clone, Debug)]
pub struct Program {
    argv: Vec<CString>,
    pid: Option<i32>,
}

/// A running process. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    exit: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl Program {
    /// The program at `path`, which is not searched for.
    ///
    /// # Panics
    ///
    /// If the path has a zero byte.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { argv: Vec::new(), pid: None }.arg(path)
    }

    /// Gives its process a number, which no other may have.
    #[must_use]
    pub fn numbered(self, pid: i32) -> Self {
        Self { pid: Some(pid), ..self }
    }

    /// Adds an argument.
    ///
    /// # Panics
    ///
    /// If it has a zero byte.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(CString::new(arg.as_ref().as_bytes()).expect("arguments have no zero bytes"));
        self
    }

    /// Starts it. `stdin` is its standard input; its other streams are ours.
    ///
    /// # Errors
    ///
    /// What clone3(2) says. A program that does not exist is an exit status of 127.
    pub fn spawn(&self, cgroup: &Cgroup, netns: &NetNs, stdin: Option<BorrowedFd<'_>>) -> anyhow::Result<Process> {
        let mut argv: Vec<*const libc::c_char> = self.argv.iter().map(|arg| arg.as_ptr()).collect();
        argv.push(ptr::null());
        let envp = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(), c"RUST_BACKTRACE=1".as_ptr(), ptr::null()];
        let netns = netns.as_fd().as_raw_fd();
        let stdin = stdin.map(|fd| fd.as_raw_fd());
        match clone_into(cgroup.as_fd().as_raw_fd(), self.pid.as_ref()).context("clone3")? {
            Cloned::Parent { pid, pidfd } => Ok(Process { pid, pidfd, exit: None }),
            Cloned::Child => {
                // SAFETY: this is the only thread of a copy of a process that had several. Only system
                // calls follow, on data made before, until the image is replaced or the copy ends.
                unsafe {
                    if libc::setns(netns, libc::CLONE_NEWNET) == 0 && stdin.is_none_or(|fd| libc::dup2(fd, 0) == 0) {
                        libc::execve(argv[0], argv.as_ptr(), envp.as_ptr());
                    }
                    libc::_exit(127)
                }
            }
        }
    }
}

impl Process {
    /// Its id in the namespace of the test.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal. One that has ended already is left alone.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// If somebody else has reaped it.
    pub fn wait(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let status = loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Err(rustix::io::Errno::INTR) => {}
                status => break status.expect("wait for a process"),
            }
        };
        let status = status.expect("a wait that may block has a status");
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => Exit::Status(status),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        };
        self.exit = Some(exit);
        exit
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.signal(Signal::KILL);
            self.wait();
        }
    }
}

enum Cloned {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// `struct clone_args` of linux/sched.h, as of Linux 5.7 (`CLONE_ARGS_SIZE_VER2`).
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// linux/sched.h. The constant of the C library is an `int`, into which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PIDFD: u64 = 0x1000;

fn clone_into(cgroup: RawFd, number: Option<&libc::pid_t>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP | CLONE_PIDFD,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        set_tid: number.map_or(0, |number| ptr::from_ref(number) as u64),
        set_tid_size: u64::from(number.is_some()),
        cgroup: u64::try_from(cgroup).map_err(io::Error::other)?,
        ..CloneArgs::default()
    };
    // SAFETY: `args` is initialised and its size is given; `pidfd` and the number live across the call. Without
    // CLONE_VM the child has its own copy of memory and goes on on its own copy of this stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has stored a new descriptor there, and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: i32::try_from(pid).map_err(io::Error::other)?, pidfd })
        }
    }
}

/// Says why processes cannot be started in a cgroup: an old kernel, or a filter around this process.
pub(super) fn clone_into_cgroup_missing() -> Option<String> {
    // A descriptor that is never open: the kernel that knows the flag refuses it with EBADF.
    match clone_into(RawFd::MAX, None) {
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => None,
        Err(e) => Some(format!("clone3 with CLONE_INTO_CGROUP: {e}")),
        Ok(Cloned::Parent { .. }) => Some("clone3 ignores CLONE_INTO_CGROUP".to_owned()),
        // SAFETY: ends this copy of the process at once.
        Ok(Cloned::Child) => unsafe { libc::_exit(0) },
    }
}
