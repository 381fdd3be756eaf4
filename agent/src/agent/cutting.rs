//! Ends running flows that lost their rule, in every network namespace of the host.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
};

use agent_common::id::BootSeconds;

use crate::{
    datapath::cut::{Diag, LISTEN, Socket, inside},
    policy::map_state::MapState,
    reconcile::cut_list::{Cut, Open, Who, cut_list},
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
    let namespaces = match namespaces() {
        Ok(namespaces) => namespaces,
        Err(e) => {
            outcome.problems.push(format!("list the network namespaces: {e}"));
            return outcome;
        }
    };
    for (inode, namespace) in namespaces {
        let result = inside(&namespace, || {
            let diag = Diag::open()?;
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

/// Every network namespace that a process lives in, by inode.
fn namespaces() -> io::Result<BTreeMap<u64, File>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let path = entry.path().join("ns/net");
        // A process that ended meanwhile takes its link with it.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if let std::collections::btree_map::Entry::Vacant(slot) = found.entry(meta.ino())
            && let Ok(file) = File::open(&path)
        {
            slot.insert(file);
        }
    }
    Ok(found)
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
