//! Network namespaces and the veth pairs between them.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use agent_common::layout::hardware;
use eastwall::datapath::Device;

use super::{Namespace, Process, routed::hardware_address};

/// How long a pair may take to come up. It is waited for, so this is no delay.
const UP_MAX: Duration = Duration::from_secs(10);

/// A network namespace. `lo` is up, and IPv6 addresses can be used at once.
#[derive(Debug)]
pub struct NetNs(Namespace);

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Where it is.
    pub netns: &'a NetNs,
    /// The name of the device; at most 15 bytes.
    pub device: &'a str,
    /// With prefix length: `10.0.0.1/24`, `fd00::1/64`.
    pub addrs: &'a [&'a str],
}

impl NetNs {
    /// Makes one.
    ///
    /// # Panics
    ///
    /// If the kernel or `ip` refuses.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "making a namespace is no default")]
    pub fn new() -> Self {
        let netns = Self(Namespace::network().expect("make a network namespace"));
        netns.run(|| {
            // Duplicate address detection would keep each new address from use for a second.
            for conf in ["all", "default"] {
                // A kernel without IPv6 has no such file; tests of IPv6 then fail by themselves.
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{conf}/accept_dad"), "0");
            }
        });
        netns.ip("link set lo up");
        netns
    }

    /// That of a process, wherever it went.
    ///
    /// # Panics
    ///
    /// If the process is gone.
    #[must_use]
    pub fn of(process: &Process) -> Self {
        let netns = Self(Namespace::network_of(process.pid()).expect("open the network namespace of a process"));
        netns.ip("link set lo up");
        netns
    }

    /// Runs `work` inside.
    ///
    /// # Panics
    ///
    /// As [`Namespace::run`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.run(work)
    }

    /// Runs `ip` inside, with words split at spaces, and returns what it prints.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn ip(&self, words: &str) -> String {
        let output = self.run(|| Command::new("ip").args(words.split_whitespace()).output()).expect("run ip");
        assert!(output.status.success(), "`ip {words}`: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// One end of a pair, the other end of which is in another namespace.
    ///
    /// # Panics
    ///
    /// If there is no such device.
    #[must_use]
    pub fn device(&self, name: &str, there: &Self, far: &str) -> Device {
        let line = self.ip(&format!("-o link show dev {name}"));
        let index = line.split(':').next().and_then(|n| n.parse().ok()).expect("a link has an index");
        let mut words = line.split_whitespace().skip_while(|word| *word != "link-netnsid");
        let netns = words.nth(1).and_then(|n| n.parse().ok()).expect("its other end is in another namespace");
        Device { index, netns, hardware: hardware(hardware_address(there, far)) }
    }

    /// Runs `nft` inside, with rules as it reads them from a file.
    ///
    /// # Panics
    ///
    /// If it refuses them.
    pub fn nft(&self, rules: &str) {
        let output = self.run(|| {
            let mut child =
                Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            // Dropped at the end of the statement, which is the end of the file.
            child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(rules.as_bytes()))?;
            child.wait_with_output()
        });
        let output = output.expect("run nft");
        assert!(output.status.success(), "{rules}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Joins two namespaces, which may be the same. When this returns, both ends are up and know each
    /// other's hardware address: the first packet of a test is not held back.
    ///
    /// # Panics
    ///
    /// If `ip` refuses, or no packet gets through.
    pub fn veth(a: VethEnd<'_>, b: VethEnd<'_>) {
        // `ip` opens a name with a `/` as it is.
        let there = format!("/proc/{}/fd/{}", std::process::id(), b.netns.as_fd().as_raw_fd());
        // If both indices are equal, the kernel takes its time to see that the link is up: it tells a
        // device of its own from one end of a pair by them (`linkwatch_urgent_event`).
        static NEXT_INDEX: AtomicU32 = AtomicU32::new(1000);
        let index = NEXT_INDEX.fetch_add(2, Ordering::Relaxed);
        let (index_b, VethEnd { device, .. }) = (index + 1, b);
        a.netns.ip(&format!(
            "link add {} index {index} type veth peer name {device} index {index_b} netns {there}",
            a.device
        ));
        for end in [a, b] {
            for addr in end.addrs {
                let nodad = if addr.contains(':') { "nodad" } else { "" };
                end.netns.ip(&format!("address add {addr} dev {} {nodad}", end.device));
            }
            end.netns.ip(&format!("link set {} up", end.device));
        }
        a.wait_until_up();
        b.wait_until_up();
        for from in a.hosts() {
            for to in b.hosts().filter(|to| to.is_ipv4() == from.is_ipv4()) {
                introduce(a.netns, from, b.netns, to);
            }
        }
    }
}

impl VethEnd<'_> {
    fn hosts(&self) -> impl Iterator<Item = IpAddr> {
        self.addrs.iter().map(|addr| {
            let host = addr.split('/').next().unwrap_or(addr);
            host.parse().expect("an address with a prefix length")
        })
    }

    /// Waits until the device has a carrier and its addresses are no longer tentative.
    fn wait_until_up(&self) {
        let end = Instant::now() + UP_MAX;
        loop {
            let link = self.netns.ip(&format!("link show dev {}", self.device));
            let tentative = self.netns.ip(&format!("-6 address show dev {} tentative", self.device));
            if link.contains("state UP") && tentative.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{} does not come up: {link}{tentative}", self.device);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Sends a datagram each way, so that both ends resolve the other.
fn introduce(netns_a: &NetNs, a: IpAddr, netns_b: &NetNs, b: IpAddr) {
    let open = |netns: &NetNs, addr: IpAddr| {
        let socket = netns.run(|| UdpSocket::bind((addr, 0))).expect("bind to an address of the lab");
        socket.set_read_timeout(Some(UP_MAX)).expect("set a timeout");
        socket
    };
    let (a, b) = (open(netns_a, a), open(netns_b, b));
    for (from, to) in [(&a, &b), (&b, &a)] {
        let addr = to.local_addr().expect("a bound socket has an address");
        from.send_to(b"hello", addr).expect("send through the pair");
        to.recv_from(&mut [0; 8]).expect("receive through the pair");
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
