//! What each object of kernel programs has beside them.

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A reachable panic is refused by the verifier: it sees a loop without end.
    loop {}
}

/// What the kernel reads before it lets a program call helpers such as `bpf_skb_cgroup_id`, which are for
/// programs under the GPL alone. These can be had under it: `license` in Cargo.toml.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
