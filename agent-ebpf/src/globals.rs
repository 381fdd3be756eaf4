//! Constants that the agent writes before the programs are loaded. The kernel freezes them.

use core::ptr;

use agent_common::cached::Keys;

/// Keys of the seal over cached verdicts; drawn anew for every load.
#[unsafe(no_mangle)]
static KEYS: Keys = [0; 4];
/// Offset of `self.parent` in `struct cgroup`, bytes, from the kernel's BTF.
#[unsafe(no_mangle)]
static OFF_PARENT: u32 = 0;

/// 1 = devices and addresses of the host are in the tables, and what its processes send past their sockets is judged.
#[unsafe(no_mangle)]
static GUARD_HOST: u32 = 0;

macro_rules! reader {
    ($(#[$doc:meta])* $name:ident, $global:ident, $ty:ty) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> $ty {
            // SAFETY: a static of this program. Volatile, because its value at load is not the one
            // that was compiled in.
            unsafe { ptr::read_volatile(&raw const $global) }
        }
    };
}

/// Returns the keys of the seal.
#[inline(always)]
pub fn keys() -> Keys {
    let keys = (&raw const KEYS).cast::<u64>();
    // SAFETY: as in `reader`; four words.
    unsafe {
        [
            ptr::read_volatile(keys),
            ptr::read_volatile(keys.add(1)),
            ptr::read_volatile(keys.add(2)),
            ptr::read_volatile(keys.add(3)),
        ]
    }
}

/// Says whether what the host's processes send past their sockets is judged.
#[inline(always)]
pub fn guards_host() -> bool {
    guard_host() != 0
}

reader!(/** Returns the switch as it is. */ guard_host, GUARD_HOST, u32);
reader!(/** Returns the offset of `cgroup.self.parent`. */ off_parent, OFF_PARENT, u32);
