//! One file for each kind of hook. They hold plumbing: context -> case -> decision -> return code.

mod cgroup;
mod skb;
mod sock_addr;
mod sock_create;
mod sockopt;
mod tc;
mod tc_flow;
mod tc_host;
