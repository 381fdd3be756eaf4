//! Ends running flows that lost their rule, in every network namespace of the host.

use std::{io, net::SocketAddr};

use agent_common::id::BootSeconds;

use crate::{
    datapath::cut::{Diag, LISTEN, Socket, inside},
    policy::map_state::MapState,
    reconcile::cut_list::{Cut, Open, Who, cut_list},
    sources::netns::{self, Inhabited},
};

/// A socket that was ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// What it was.
    pub socket: Open,
    /// Why.
    pub cut: Cut,
}

/// What became of the sockets that lost their rule.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Those that were ended.
    pub ended: Vec<Ended>,
    /// How many should have been and could not.
    pub failed: usize,
    /// Why, by network namespace.
    pub problems: Vec<String>,
}

/// Ends every socket that `state` denies. A socket that cannot be ended, or a namespace that cannot be
/// entered, is no reason to leave the others alone.
pub fn cut_all(who: Who<'_>, state: &MapState, now: BootSeconds) -> Outcome {
    let mut outcome = Outcome::default();
    let mut namespaces = Vec::new();
    if let Err(e) = netns::all(&mut namespaces) {
        outcome.problems.push(format!("list the network namespaces: {e}"));
    }
    for Inhabited { netns, inode, .. } in namespaces {
        let result = inside(&netns, || {
            let mut diag = Diag::open()?;
            let sockets = diag.list()?;
            let open: Vec<Open> = sockets.iter().map(open_of).collect();
            let (mut ended, mut failed) = (Vec::new(), Vec::new());
            for cut in cut_list(&open, who, state, now) {
                match diag.destroy(&sockets[cut.index]) {
                    Ok(true) => ended.push(Ended { socket: open[cut.index], cut }),
                    // It ended by itself.
                    Ok(false) => {}
                    Err(e) => failed.push(e),
                }
            }
            Ok((ended, failed))
        });
        match result {
            Ok((mut ended, failed)) => {
                outcome.ended.append(&mut ended);
                outcome.failed += failed.len();
                outcome.problems.extend(failed.first().map(|e| {
                    let count = failed.len();
                    format!("{count} sockets in the network namespace {inode}: {e}{}", hint(e))
                }));
            }
            Err(e) => outcome.problems.push(format!("enter the network namespace {inode}: {e}")),
        }
    }
    outcome
}

fn hint(e: &io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => ", which takes CAP_NET_ADMIN",
        Some(libc::EOPNOTSUPP) => ", which takes a kernel with CONFIG_INET_DIAG_DESTROY",
        _ => "",
    }
}

const fn open_of(socket: &Socket) -> Open {
    Open {
        proto: socket.proto,
        listens: socket.proto == agent_common::flow::proto::TCP && socket.state == LISTEN,
        local: SocketAddr::new(socket.local.0, socket.local.1),
        peer: SocketAddr::new(socket.peer.0, socket.peer.1),
        cgroup: socket.cgroup,
        uid: socket.uid,
    }
}
