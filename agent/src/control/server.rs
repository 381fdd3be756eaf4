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
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast::error::RecvError, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    access::{self, Caller},
    places::Places,
    wire::{QUESTION_MAX, REQUEST_MAX, Reply, Request},
};
use crate::{
    agent::{
        Shared,
        inbox::{Input, Outside},
    },
    clock,
    events::{
        line,
        ocsf::{Node, Stamp, write_line},
        pipeline::Pipeline,
        record::{DenyEvent, Record},
    },
};

/// How long a caller may take to write its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long a caller may take to read an answer.
const READ_TIME: Duration = Duration::from_secs(10);
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
    if let Ok(mut bytes) = serde_json::to_vec(reply) {
        bytes.push(b'\n');
        let _ = stream.try_write(&bytes);
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
    if request == Request::Follow {
        return follow(read, write, pipeline, &access.node).await;
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

async fn follow(mut read: OwnedReadHalf, mut write: OwnedWriteHalf, pipeline: &Pipeline, node: &Node) -> Result<()> {
    let mut events = pipeline.subscribe();
    // The first line says that everything from here on will be shown.
    send(&mut write, &Reply::Missed { count: 0 }).await?;
    let mut rest = [0; 64];
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            // It hung up, or says more than it was asked for.
            _ = read.read(&mut rest) => return Ok(()),
        };
        let reply = match event {
            Ok(event) => Reply::Denial { record: record(&event, node)?, line: line::line(&event) },
            Err(RecvError::Lagged(count)) => Reply::Missed { count },
            Err(RecvError::Closed) => return Ok(()),
        };
        send(&mut write, &reply).await?;
    }
}

/// The record as the events file has it, but for the sequence number, which the writer gives out.
fn record(event: &Arc<DenyEvent>, node: &Node) -> Result<serde_json::Value> {
    let mut line = Vec::new();
    let stamp = Stamp { node, sequence: 0, logged: clock::now().wall };
    write_line(&mut line, &Record::Deny(Arc::clone(event)), &stamp)?;
    let mut value: serde_json::Value = serde_json::from_slice(&line)?;
    if let Some(metadata) = value.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        metadata.remove("sequence");
    }
    Ok(value)
}

async fn send(write: &mut OwnedWriteHalf, reply: &Reply) -> Result<()> {
    let mut bytes = serde_json::to_vec(reply)?;
    bytes.push(b'\n');
    timeout(READ_TIME, write.write_all(&bytes)).await??;
    Ok(())
}

fn refused(message: &str) -> Reply {
    Reply::Refused { message: message.to_owned(), code: 2 }
}

/// Asks the kernel who is at the other end. A caller whose cgroup cannot be found is treated as a
/// workload: it may be one.
fn caller(stream: &UnixStream, access: &Access) -> Result<Caller> {
    let credentials = stream.peer_cred()?;
    let pid = credentials.pid().ok_or_else(|| anyhow!("the caller has no process id"))?;
    let is_workload = match cgroup_of(pid, &access.mount) {
        Ok(cgroup) => access.shared.is_declared(cgroup),
        Err(e) => {
            debug!("find the cgroup of the caller {pid}: {e}");
            true
        }
    };
    Ok(Caller { uid: credentials.uid(), is_workload })
}

fn cgroup_of(pid: i32, mount: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|l| l.strip_prefix("0::/")).ok_or(io::ErrorKind::NotFound)?;
    Ok(fs::metadata(mount.join(path))?.ino())
}
