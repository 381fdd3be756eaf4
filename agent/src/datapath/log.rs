//! What the kernel programs say for whoever works on them, as lines of the agent's own log.

use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

/// Whether the programs of this build can say anything: by the feature `kernel-log`.
pub const BUILT_IN: bool = cfg!(feature = "kernel-log");

/// Target of the lines, for `EASTWALL_LOG`.
pub const TARGET: &str = "kernel";

/// Name of the constant that the programs compare with. At 0 the verifier removes every line.
pub(super) use aya_log::LEVEL;

/// Name of the ring that lines come through. Not pinned: it belongs to this load of the programs.
pub(super) const RING: &str = "AYA_LOGS";

/// Returns the level that the programs are loaded with.
pub(super) const fn level(on: bool) -> &'static u8 {
    const DEBUG: u8 = aya_log::Level::Debug as u8;
    if on { &DEBUG } else { &0 }
}

/// Returns the size of the ring, bytes; the least there can be, which is a page, if nothing is said.
pub(super) const fn room(on: bool) -> u32 {
    if on { 1 << 17 } else { 1 }
}

/// Lines of the programs. A full ring loses lines, never a verdict or an event.
pub struct KernelLog(EbpfLogger<ToTracing>);

impl KernelLog {
    /// Takes the ring; none if the programs of this build have none.
    pub(super) fn of(ebpf: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init_with_logger(ebpf, ToTracing).ok().map(Self)
    }

    /// Passes on every line that is there.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

impl AsFd for KernelLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Hands lines of aya-log, which speaks to the crate `log`, to tracing.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args();
        match record.level() {
            Level::Error => tracing::error!(target: TARGET, "kernel: {line}"),
            Level::Warn => tracing::warn!(target: TARGET, "kernel: {line}"),
            Level::Info => tracing::info!(target: TARGET, "kernel: {line}"),
            Level::Debug => tracing::debug!(target: TARGET, "kernel: {line}"),
            Level::Trace => tracing::trace!(target: TARGET, "kernel: {line}"),
        }
    }

    fn flush(&self) {}
}
