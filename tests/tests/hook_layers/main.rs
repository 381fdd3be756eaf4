//! Which layer stops what, with all of them, with the hooks of sockets alone, and with the programs at devices alone:
//! tables of ways to send, and what becomes of each. A layer that is missing in silence contradicts them.
//!
//! What needs other networks than this one is tried under the same layers elsewhere: subflows that the kernel adds (G8,
//! `hook_kernel_threads`), the host's own addresses (G58, `hook_host`), ways past the devices (G72, `hook_foreign`) and
//! tables that are full (G66 and G68, `hook_full_tables`).
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod packets;
mod sockets;
mod stage;
mod translated;
mod whose;

use agent_common::layout::names::program::{CONNECT4, CONNECT6, EGRESS, INGRESS, SENDMSG4, SENDMSG6};
use tests::lab::{Need, require_or_skip};

use stage::Table;

#[test]
fn g1_g2_g3_g4_g5_g6_g7_g9_g12_g19_are_stopped_by_one_layer_or_the_next() {
    Table {
        rows: sockets::rows,
        // Whatever leaves by a socket of `web` has been judged before its device. The doors of devices are before that
        // of the socket: with them nothing is left for it.
        devices: [false, true],
        programs: [
            &[EGRESS, SENDMSG4, SENDMSG6, CONNECT4, CONNECT6],
            &[EGRESS, INGRESS, SENDMSG4, SENDMSG6, CONNECT4, CONNECT6],
        ],
    }
    .prove(sockets::prepare);
}

#[test]
fn g20_g22_g23_g24_g25_g27_g28_g30_g57_g70_are_stopped_by_one_layer_or_the_next() {
    let programs: [&[&str]; 2] = [&[EGRESS, INGRESS], &[EGRESS, INGRESS]];
    Table { rows: whose::rows, devices: [true; 2], programs }.prove(|_| {});
}

#[test]
fn g14_g43_g44_g46_g47_g48_g50_g52_g54_g62_are_stopped_by_one_layer_or_the_next() {
    let programs: [&[&str]; 2] = [&[EGRESS], &[EGRESS, INGRESS]];
    Table { rows: packets::rows, devices: [true; 2], programs }.prove(packets::prepare);
}

#[test]
fn g59_g60_are_stopped_by_one_layer_or_the_next() {
    if require_or_skip(&[Need::Nft]).is_none() {
        return;
    }
    let programs: [&[&str]; 2] = [&[EGRESS], &[EGRESS, INGRESS]];
    Table { rows: translated::rows, devices: [true; 2], programs }.prove(translated::prepare);
}
