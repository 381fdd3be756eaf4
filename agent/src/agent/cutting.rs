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

/// Ends every socket that `state` denies. Returns those it ended, and what went wrong on the way: a
/// namespace that could not be entered is no reason to leave the others alone.
pub fn cut_all(who: Who<'_>, state: &MapState, now: BootSeconds) -> (Vec<Ended>, Vec<String>) {
    let (mut ended, mut problems) = (Vec::new(), Vec::new());
    let namespaces = match namespaces() {
        Ok(namespaces) => namespaces,
        Err(e) => return (ended, vec![format!("list the network namespaces: {e}")]),
    };
    for (inode, namespace) in namespaces {
        let result = inside(&namespace, || {
            let diag = Diag::open()?;
            let sockets = diag.list()?;
            let open: Vec<Open> = sockets.iter().map(open_of).collect();
            let mut ended = Vec::new();
            for cut in cut_list(&open, who, state, now) {
                if diag.destroy(&sockets[cut.index])? {
                    ended.push(Ended { socket: open[cut.index], cut });
                }
            }
            Ok(ended)
        });
        match result {
            Ok(mut of_namespace) => ended.append(&mut of_namespace),
            Err(e) => problems.push(format!("end flows in the network namespace {inode}: {e}")),
        }
    }
    (ended, problems)
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
