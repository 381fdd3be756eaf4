//! Kernel programs of somebody else, written word by word: those a test puts in the way of ours.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::{Cgroup, NetNs, wants_tcx};
use crate::{
    bpf::{self, At, Kind, TCX_INGRESS},
    filters::{Filter, Place},
};

/// A program that is attached until it is dropped.
#[derive(Debug)]
pub struct Foreign {
    _at: AttachedBy,
}

/// What a program is attached by.
#[derive(Debug)]
enum AttachedBy {
    Link { _link: OwnedFd },
    Filter { _filter: Filter },
}

impl Foreign {
    /// Puts a program at a device of a network, before all others there or behind them: by TCX, or by a filter of
    /// `clsact`.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn at_device(
        netns: &NetNs,
        program: BorrowedFd<'_>,
        device: u32,
        (attach, first): (u32, bool),
        tcx: bool,
    ) -> anyhow::Result<Self> {
        let at = netns.run(|| {
            anyhow::Ok(if tcx {
                AttachedBy::Link { _link: bpf::attach_to_device(program, device, attach, first)? }
            } else {
                let place = if first { Place::First } else { Place::Behind };
                AttachedBy::Filter { _filter: Filter::add(program, device, attach, place)? }
            })
        })?;
        Ok(Self { _at: at })
    }
}

impl Foreign {
    /// Rewrites a destination, as the translation of service addresses by some products does: connect(2) and
    /// sendmsg(2) of processes in a cgroup reach `to` instead of `from`. It runs behind what is attached there.
    ///
    /// # Panics
    ///
    /// If the kernel refuses it, or the two are not of one family.
    #[must_use]
    pub fn rewrites(cgroup: &Cgroup, from: SocketAddr, to: SocketAddr) -> [Self; 2] {
        // `enum bpf_attach_type`: connect4, sendmsg4; connect6, sendmsg6.
        let attach = if from.is_ipv4() { [10, 14] } else { [11, 15] };
        let code = rewrite(from, to);
        attach.map(|attach| {
            let program = bpf::load_code(Kind::CgroupSockAddr, attach, &code, "rewrites").expect("load a program");
            let link = bpf::link(program.as_fd(), At::Cgroup(cgroup.as_fd()), attach, 0);
            Self { _at: AttachedBy::Link { _link: link.expect("attach a program that rewrites") } }
        })
    }

    /// Takes IP packets that enter a network by a device to the other end of another device, before any other program
    /// or behind all.
    ///
    /// # Panics
    ///
    /// If the kernel refuses it.
    #[must_use]
    pub fn takes_to_peer(netns: &NetNs, device: u32, of: u32, first: bool) -> Self {
        let code = [
            // r2 = protocol of the frame; IPv4 and IPv6 go on, all else passes.
            insn(op::LOAD, 2, 1, 16, 0),
            insn(op::JUMP_EQ, 2, 0, 3, u32::from(0x0800_u16.to_be())),
            insn(op::JUMP_EQ, 2, 0, 2, u32::from(0x86dd_u16.to_be())),
            // TCX_NEXT.
            insn(op::SET, 0, 0, 0, u32::MAX),
            insn(op::EXIT, 0, 0, 0, 0),
            // return bpf_redirect_peer(of, 0).
            insn(op::SET, 1, 0, 0, of),
            insn(op::SET, 2, 0, 0, 0),
            insn(op::CALL, 0, 0, 0, 155),
            insn(op::EXIT, 0, 0, 0, 0),
        ];
        let program = bpf::load_code(Kind::SchedCls, 0, &code, "redirects").expect("load a program");
        let at = Self::at_device(netns, program.as_fd(), device, (TCX_INGRESS, first), wants_tcx() && bpf::has_tcx());
        at.expect("attach a program that redirects")
    }
}

/// Operations of linux/bpf.h, on 32 bits but for the exit and the call.
mod op {
    /// dst = *(src + off)
    pub const LOAD: u8 = 0x61;
    /// *(dst + off) = src
    pub const STORE: u8 = 0x63;
    /// dst = imm
    pub const SET: u8 = 0xb4;
    pub const JUMP_EQ: u8 = 0x16;
    pub const JUMP_NE: u8 = 0x56;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;
}

const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: u32) -> u64 {
    code as u64 | (dst as u64) << 8 | (src as u64) << 12 | (off.cast_unsigned() as u64) << 16 | (imm as u64) << 32
}

/// Offsets in `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;

fn rewrite(from: SocketAddr, to: SocketAddr) -> Vec<u64> {
    let word = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let (base, pairs): (i16, Vec<(u32, u32)>) = match (from.ip(), to.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (USER_IP4, vec![(word(&a.octets()), word(&b.octets()))]),
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let (a, b) = (a.octets(), b.octets());
            (USER_IP6, a.chunks(4).zip(b.chunks(4)).map(|(a, b)| (word(a), word(b))).collect())
        }
        _ => panic!("one family"),
    };
    let ports = (USER_PORT, (u32::from(from.port().to_be()), u32::from(to.port().to_be())));
    let fields: Vec<_> = (base..).step_by(4).zip(pairs).chain([ports]).collect();
    // Two instructions compare a field, two rewrite it.
    let mut left = i16::try_from(4 * fields.len()).expect("a short program");
    let mut code = Vec::new();
    for &(offset, (was, _)) in &fields {
        left -= 2;
        code.push(insn(op::LOAD, 2, 1, offset, 0));
        code.push(insn(op::JUMP_NE, 2, 0, left, was));
    }
    for &(offset, (_, becomes)) in &fields {
        code.push(insn(op::SET, 2, 0, 0, becomes));
        code.push(insn(op::STORE, 1, 2, offset, 0));
    }
    code.push(insn(op::SET, 0, 0, 0, 1));
    code.push(insn(op::EXIT, 0, 0, 0, 0));
    code
}
