//! The kernel programs of eastwall.
#![no_std]
#![no_main]

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A reachable panic is refused by the verifier: it sees a loop without end.
    loop {}
}

/// GPL-compatible: helpers such as `bpf_skb_cgroup_id` ask for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
