//! The kernel programs, as built from source with the agent; `None` in a build without them.

macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        #[cfg(kernel_programs)]
        pub fn $name() -> Option<&'static [u8]> {
            Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/", $file)))
        }

        $(#[$doc])*
        #[cfg(not(kernel_programs))]
        pub const fn $name() -> Option<&'static [u8]> {
            None
        }
    };
}

object!(/** The agent's. */ bytes, "agent-ebpf");
object!(/** Those of the guard that stands until there is an agent. */ boot_guard, "boot-guard");
