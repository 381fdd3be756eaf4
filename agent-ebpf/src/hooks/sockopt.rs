//! setsockopt: an option that takes what a socket sends past the programs at the host's devices is refused.

use agent_common::{
    layout::{Hook, record_flags},
    verdict::{Decision, Reason, Verdict},
};
use aya_ebpf::{
    bindings::bpf_sockopt,
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_netns_cookie,
    },
    macros::cgroup_sockopt,
    programs::SockoptContext,
};

use crate::{emit, globals, judge::Case, policy, who};

/// linux/socket.h, linux/if_packet.h: frames go to the driver, past the queue of the device and TC.
const SOL_PACKET: i32 = 263;
/// See [`SOL_PACKET`].
const PACKET_QDISC_BYPASS: i32 = 20;
/// linux/socket.h: AF_XDP, which has no other way. It sends nothing before its memory and rings are set by options.
const SOL_XDP: i32 = 283;

/// Judges options that are set.
#[cgroup_sockopt(setsockopt)]
pub fn ew_setsockopt(ctx: SockoptContext) -> i32 {
    let option = ctx.sockopt;
    // SAFETY: fields of the context. The length is that of the copy which programs may change: without one the kernel
    // takes the caller's own, of whatever size, where it would refuse one of more than a page.
    let is_way_past = unsafe {
        (*option).optlen = 0;
        (*option).level == SOL_XDP || (*option).level == SOL_PACKET && (*option).optname == PACKET_QDISC_BYPASS
    };
    if !is_way_past {
        return 1;
    }
    let verdict = ew_judge_option(option);
    // The compiler knows that it is 0 or 1; the verifier does not, and wants to see it.
    // SAFETY: a value on the stack.
    i32::from(unsafe { core::ptr::read_volatile(&raw const verdict) } != 0)
}

/// Global, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_judge_option(option: *mut bpf_sockopt) -> i32 {
    let epoch = policy::epoch();
    let Some(settings) = policy::settings(epoch & 1) else {
        return 0;
    };
    // In a network of its own a workload sends by a device whose other end is the host's, and that is guarded.
    // SAFETY: the context; helpers of the calling task.
    let (netns, cgroup) = unsafe { (bpf_get_netns_cookie(option.cast()), bpf_get_current_cgroup_id()) };
    if !globals::guards_host() || netns != settings.host_netns {
        return 1;
    }
    // SAFETY: the calling task.
    let slot = who::slot_of(cgroup, || unsafe { bpf_get_current_uid_gid() as u32 }, epoch & 1);
    let case = Case::new(Hook::Setsockopt, true, cgroup, slot, epoch);
    let decision = Decision::deny(Reason::Bypass);
    case.conclude(&decision, |verdict| {
        emit::denial(&case, &decision, verdict, |record| {
            record.flags |= record_flags::PROCESS;
            if matches!(verdict, Verdict::Deny) {
                record.flags |= record_flags::EPERM;
            }
            record.netns = netns;
            // SAFETY: helpers of the calling task; the array has 16 bytes.
            unsafe {
                record.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
                record.uid = bpf_get_current_uid_gid() as u32;
                bpf_get_current_comm((&raw mut record.comm).cast(), 16);
            }
        });
    }) as i32
}
