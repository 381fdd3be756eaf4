//! What a test needs of the machine, and what happens where it is missing.

use std::io::Write as _;

use eastwall::sources::cgroup::Hierarchy;

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// User 0, with all capabilities.
    Root,
    /// A mounted cgroup v2 hierarchy.
    Cgroup2,
    /// clone3(2) that starts a process in a cgroup.
    CloneIntoCgroup,
    /// `ip` of iproute2.
    Ip,
    /// `nft` of nftables, which translates addresses.
    Nft,
    /// `strace`, which lets a system call fail when told to.
    Strace,
    /// `dnsmasq`, a resolver.
    Dnsmasq,
    /// The agent, with its kernel programs.
    Agent,
    /// The agent with kernel programs that have a log.
    KernelLog,
}

/// Returns None after printing the reason if a need is not met.
///
/// # Panics
///
/// If a need is not met and `EASTWALL_REQUIRE_ALL=1`: where everything is known to be there, a skip is
/// a failure.
#[must_use]
pub fn require_or_skip(needs: &[Need]) -> Option<()> {
    let Some(reason) = needs.iter().find_map(|need| need.missing()) else { return Some(()) };
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    assert!(!is_strict(), "{test} may not be skipped: {reason}");
    // Not by `eprintln!`, which the test harness keeps to itself when a test passes. If there is nobody
    // to tell, the test is skipped all the same.
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
    None
}

fn is_strict() -> bool {
    std::env::var_os("EASTWALL_REQUIRE_ALL").is_some_and(|v| v == "1")
}

impl Need {
    /// Says what is missing.
    fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "it needs root".to_owned()),
            Self::Cgroup2 => Hierarchy::find().err().map(|e| e.to_string()),
            Self::CloneIntoCgroup => super::spawn::clone_into_cgroup_missing(),
            Self::Ip => not_installed("ip", "`ip` of iproute2"),
            Self::Nft => not_installed("nft", "`nft` of nftables"),
            Self::Strace => not_installed("strace", "`strace`"),
            Self::Dnsmasq => not_installed("dnsmasq", "`dnsmasq` of dnsmasq-base"),
            Self::Agent => super::binary("eastwall").err().map(|e| format!("{e:#}")),
            Self::KernelLog => super::binary(super::WITH_KERNEL_LOG).err().map(|e| format!("{e:#}")),
        }
    }
}

/// Says that a program does not run here.
fn not_installed(program: &str, what: &str) -> Option<String> {
    let runs = |flag| std::process::Command::new(program).arg(flag).output().is_ok_and(|o| o.status.success());
    let runs = runs("-V") || runs("--version");
    (!runs).then(|| format!("{what} is not installed"))
}
