//! A witness that shares nothing with what is tested: it counts packets on the wire.

use std::{
    net::UdpSocket,
    os::fd::{AsFd as _, OwnedFd},
    panic::{self, AssertUnwindSafe},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    net::sockopt::set_socket_recv_buffer_size_force,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use super::{NetNs, magic, packet};

/// Room for what was not looked at yet, in bytes: tens of thousands of small packets.
const BUFFER_BYTES: usize = 64 << 20;

/// How long a packet may take that is already under way.
const UNDERWAY_MAX: Duration = Duration::from_secs(20);

/// Counts the packets in a network namespace that carry certain bytes.
///
/// It stands where devices hand packets to the stack: a packet that is denied when it *leaves* is never
/// seen, one that is denied at its *arrival* is. An ICMP error that quotes the bytes counts too.
#[derive(Debug)]
pub struct Witness<'a> {
    netns: &'a NetNs,
    tap: OwnedFd,
    magic: Vec<u8>,
    arrived: u64,
    left: u64,
}

impl<'a> Witness<'a> {
    /// Watches for `magic`, from now on.
    ///
    /// # Panics
    ///
    /// If there can be no tap.
    #[must_use]
    pub fn new(netns: &'a NetNs, magic: &[u8]) -> Self {
        assert!(!magic.is_empty(), "every packet carries no bytes");
        let tap = netns.run(packet::tap).expect("open a tap");
        set_socket_recv_buffer_size_force(&tap, BUFFER_BYTES).expect("make room for packets");
        Self { netns, tap, magic: magic.to_vec(), arrived: 0, left: 0 }
    }

    /// Watches for other bytes from now on, and begins to count anew.
    ///
    /// # Panics
    ///
    /// If every packet carries them.
    pub fn turn_to(&mut self, magic: &[u8]) {
        assert!(!magic.is_empty(), "every packet carries no bytes");
        self.magic = magic.to_vec();
        (self.arrived, self.left) = (0, 0);
    }

    /// Packets that came in by any device, loopback included. Waits for those that are under way.
    ///
    /// # Panics
    ///
    /// If packets were lost: then there is no count.
    pub fn arrived(&mut self) -> u64 {
        self.settle();
        self.arrived
    }

    /// Packets that went out by any device. Waits for those that are under way.
    ///
    /// # Panics
    ///
    /// As [`Self::arrived`].
    pub fn left(&mut self) -> u64 {
        self.settle();
        self.left
    }

    /// Does `work`, counting meanwhile, while each of `beside` is called again and again in a thread of its own.
    ///
    /// # Panics
    ///
    /// If one of them does, and as [`Self::arrived`].
    pub fn during(&mut self, beside: &[&(dyn Fn() + Sync)], work: impl FnOnce()) {
        let stop = AtomicBool::new(false);
        thread::scope(|threads| {
            threads.spawn(|| self.watch(&stop));
            for again in beside {
                threads.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        again();
                    }
                });
            }
            // The threads end whatever happens, or nobody would ever hear of it.
            let done = panic::catch_unwind(AssertUnwindSafe(work));
            stop.store(true, Ordering::Relaxed);
            done.unwrap_or_else(|cause| panic::resume_unwind(cause));
        });
    }

    /// Goes on reading until told to stop: what waits unread for too long is lost, and then there is no
    /// count.
    fn watch(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.settle();
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a mark along on every CPU, and reads until each has come by. Packets wait in one queue per
    /// CPU between a device and the stack, so all that was sent before a mark is seen before it.
    fn settle(&mut self) {
        let mut marks = self.netns.run(send_marks).expect("send marks");
        let end = Instant::now() + UNDERWAY_MAX;
        let mut buffer = vec![0; 1 << 16];
        while !marks.is_empty() {
            match packet::read(self.tap.as_fd(), &mut buffer).expect("read a tap") {
                Some(tapped) => {
                    let bytes = &buffer[..tapped.len.min(buffer.len())];
                    if contains(bytes, &self.magic) {
                        *if tapped.is_outgoing { &mut self.left } else { &mut self.arrived } += 1;
                    }
                    if !tapped.is_outgoing {
                        marks.retain(|mark| !contains(bytes, mark));
                    }
                }
                None => {
                    assert!(Instant::now() < end, "a mark did not come by: the witness is blind");
                    thread::yield_now();
                }
            }
        }
        let lost = packet::lost(self.tap.as_fd()).expect("ask a tap what it lost");
        assert_eq!(lost, 0, "the witness missed packets");
    }
}

/// Sends one mark from every CPU that this thread may use, by a socket to itself.
fn send_marks() -> anyhow::Result<Vec<Vec<u8>>> {
    let socket = UdpSocket::bind("127.0.0.1:0").context("open a socket for marks")?;
    let to = socket.local_addr()?;
    let allowed = sched_getaffinity(None)?;
    let mut marks = Vec::new();
    for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        // This thread ends after the marks, so nobody else is moved.
        sched_setaffinity(None, &one)?;
        let mark = magic();
        socket.send_to(&mark, to)?;
        marks.push(mark);
    }
    Ok(marks)
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
