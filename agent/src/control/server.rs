//! The agent's end of the control socket.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, anyhow};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::oneshot,
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    access::{self, Caller},
    flows,
    frames::Frames,
    places::Places,
    wire::{QUESTION_MAX, REQUEST_MAX, Reply, Request},
};
use crate::{
    agent::{
        Shared,
        inbox::{Input, Outside},
    },
    events::{ocsf::Node, pipeline::Pipeline},
};

/// How long a caller may take to write its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long an answer may take: the fill of a large policy is well below.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// What tells callers apart.
pub struct Access {
    /// Where the cgroup hierarchy is mounted.
    pub mount: PathBuf,
    /// Who is a declared workload.
    pub shared: Arc<Shared>,
    /// This host, as events name it.
    pub node: Node,
}

/// Answers callers, each on a task of its own, until it is dropped. Nobody waits for another: who has no
/// place is told so and let go.
pub async fn serve(listener: UnixListener, outside: Outside, pipeline: Arc<Pipeline>, access: Access) {
    let (access, places) = (Arc::new(access), Arc::new(Places::default()));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                warn!("accept a caller: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let caller = match caller(&stream, &access) {
            Ok(caller) => caller,
            Err(e) => {
                debug!("a caller: {e:#}");
                continue;
            }
        };
        // Even as root it takes nobody's place.
        if caller.is_workload {
            let (message, code) = (access::WORKLOAD.to_owned(), 5);
            turn_away(&stream, &Reply::Refused { message, code });
            continue;
        }
        let Some(place) = places.take(caller.uid) else {
            let message = format!("uid {} has too many connections to the agent; close some", caller.uid);
            turn_away(&stream, &Reply::Refused { message, code: 6 });
            continue;
        };
        let (outside, pipeline, access) = (outside.clone(), Arc::clone(&pipeline), Arc::clone(&access));
        tokio::spawn(async move {
            let _place = place;
            if let Err(e) = one(stream, &outside, &pipeline, &access).await {
                debug!("a caller: {e:#}");
            }
        });
    }
}

/// Answers without waiting: what does not fit into an empty socket is not worth a task.
fn turn_away(stream: &UnixStream, reply: &Reply) {
    if let Ok(frame) = Frames::of(reply) {
        let _ = stream.try_write(frame.bytes());
    }
}

async fn one(stream: UnixStream, outside: &Outside, pipeline: &Pipeline, access: &Access) -> Result<()> {
    let longest = if stream.peer_cred()?.uid() == 0 { REQUEST_MAX } else { QUESTION_MAX };
    let mut line = Vec::new();
    let mut stream = BufReader::new(stream);
    let limit = u64::try_from(longest).unwrap_or(u64::MAX) + 1;
    timeout(REQUEST_TIME, (&mut stream).take(limit).read_until(b'\n', &mut line)).await??;
    let stream = stream.into_inner();
    // Again, since the process may have moved or ended while it wrote.
    let caller = caller(&stream, access)?;
    let (read, mut write) = stream.into_split();
    if line.len() > longest {
        return send(&mut write, &refused(&format!("the request is longer than {longest} bytes"))).await;
    }
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(e) => return send(&mut write, &refused(&format!("the request cannot be read: {e}"))).await,
    };
    if let Some(why) = access::refusal(caller, &request) {
        return send(&mut write, &Reply::Refused { message: why.to_owned(), code: 5 }).await;
    }
    match request {
        Request::Recent => return flows::recent(write, pipeline, &access.node).await,
        Request::Follow { known } => return flows::follow(read, write, pipeline, &access.node, known).await,
        _ => {}
    }
    let (sender, receiver) = oneshot::channel();
    if !outside.send(Input::Request(request, caller, sender)) {
        return send(&mut write, &refused("the agent is busy; try again")).await;
    }
    let reply = match timeout(ANSWER_TIME, receiver).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) => refused("the agent is stopping"),
        Err(_) => Reply::Refused { message: "the agent took too long".to_owned(), code: 7 },
    };
    send(&mut write, &reply).await
}

async fn send(write: &mut OwnedWriteHalf, reply: &Reply) -> Result<()> {
    Frames::of(reply)?.write_to(write).await
}

fn refused(message: &str) -> Reply {
    Reply::Refused { message: message.to_owned(), code: 2 }
}

/// Asks the kernel who is at the other end. A caller whose cgroup cannot be found is treated as a
/// workload: it may be one.
fn caller(stream: &UnixStream, access: &Access) -> Result<Caller> {
    let credentials = stream.peer_cred()?;
    let pid = credentials.pid().ok_or_else(|| anyhow!("the caller has no process id"))?;
    let is_workload = match cgroups_of(pid, &access.mount) {
        Ok(cgroups) => cgroups.into_iter().any(|cgroup| access.shared.is_declared(cgroup)),
        Err(e) => {
            debug!("find the cgroup of the caller {pid}: {e}");
            true
        }
    };
    Ok(Caller { uid: credentials.uid(), is_workload })
}

/// The cgroup of a process, and all above it. One that was made a moment ago is not known yet, and whoever is in it is a
/// part of the workload above.
fn cgroups_of(pid: i32, mount: &Path) -> io::Result<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|l| l.strip_prefix("0::/")).ok_or(io::ErrorKind::NotFound)?;
    Path::new(path).ancestors().map(|path| Ok(fs::metadata(mount.join(path))?.ino())).collect()
}
