//! A socket is made: note its cgroup, before anything can be sent through it.

use aya_ebpf::{
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_netns_cookie,
    },
    macros::cgroup_sock,
    programs::SockContext,
};

use crate::sockets;

/// Notes whose socket it is. Refuses nothing.
#[cgroup_sock(sock_create)]
pub fn ew_sock_create(ctx: SockContext) -> i32 {
    let Some(stored) = sockets::storage(ctx.sock) else {
        // Without storage the packet hooks ask the kernel for the cgroup each time.
        return 1;
    };
    // SAFETY: storage of a socket that nobody else can reach yet; helpers of the calling task.
    unsafe {
        (*stored).cgroup = bpf_get_current_cgroup_id();
        (*stored).netns = bpf_get_netns_cookie(ctx.sock.cast());
        (*stored).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*stored).uid = bpf_get_current_uid_gid() as u32;
        bpf_get_current_comm((&raw mut (*stored).comm).cast(), 16);
        (*stored).maker_known = 1;
    }
    1
}
