//! The agent's end of the control socket.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, broadcast::error::RecvError, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    access::{self, Caller},
    wire::{REQUEST_MAX, Reply, Request},
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

/// Connections at one time; one more waits.
const CONNECTIONS_MAX: usize = 64;
/// How long a caller may take to write its request.
const REQUEST_TIME: Duration = Duration::from_secs(10);
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

/// Makes the socket: 0660, root and `group`, in a directory that only root can write.
///
/// # Errors
///
/// If the directory is somebody else's, or something other than a dead socket is at the path.
pub fn bind(path: &Path, group: &str) -> Result<UnixListener> {
    let dir = path.parent().ok_or_else(|| anyhow!("`{}` has no directory", path.display()))?;
    let meta = fs::symlink_metadata(dir).with_context(|| format!("look at `{}`", dir.display()))?;
    if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        return Err(anyhow!("`{}` must be a directory of root that nobody else can write", dir.display()));
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(anyhow!("`{}` is in the way and is no socket; remove it", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("look at `{}`", path.display())),
    }
    // Closed to others from the first moment on, whatever the mask of the process is.
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(old);
    let listener = bound.with_context(|| format!("make the socket `{}`", path.display()))?;
    if let Some(gid) = group_id(group) {
        std::os::unix::fs::chown(path, None, Some(gid)).context("give the socket to its group")?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).context("open the socket to its group")?;
    } else {
        debug!("there is no group `{group}`: only root can use the socket");
    }
    Ok(listener)
}

/// Answers callers, each on a task of its own, until it is dropped.
pub async fn serve(listener: UnixListener, outside: Outside, pipeline: Arc<Pipeline>, access: Access) {
    let (access, room) = (Arc::new(access), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                warn!("accept a caller: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (outside, pipeline, access) = (outside.clone(), Arc::clone(&pipeline), Arc::clone(&access));
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(e) = one(stream, &outside, &pipeline, &access).await {
                debug!("a caller: {e:#}");
            }
        });
    }
}

async fn one(stream: UnixStream, outside: &Outside, pipeline: &Pipeline, access: &Access) -> Result<()> {
    let caller = caller(&stream, access)?;
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let limit = u64::try_from(REQUEST_MAX).unwrap_or(u64::MAX) + 1;
    timeout(REQUEST_TIME, BufReader::new(read.take(limit)).read_until(b'\n', &mut line)).await??;
    if line.len() > REQUEST_MAX {
        return send(&mut write, &refused("the request is too long")).await;
    }
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(e) => return send(&mut write, &refused(&format!("the request cannot be read: {e}"))).await,
    };
    if let Some(why) = access::refusal(caller, &request) {
        return send(&mut write, &Reply::Refused { message: why.to_owned(), code: 5 }).await;
    }
    if request == Request::Follow {
        return follow(write, pipeline, &access.node).await;
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

async fn follow(mut write: OwnedWriteHalf, pipeline: &Pipeline, node: &Node) -> Result<()> {
    let mut events = pipeline.subscribe();
    // The first line says that everything from here on will be shown.
    send(&mut write, &Reply::Missed { count: 0 }).await?;
    loop {
        let reply = match events.recv().await {
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
    write.write_all(&bytes).await?;
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

fn group_id(name: &str) -> Option<u32> {
    // The file is enough: the group is made by the package.
    let name = CString::new(name).ok()?;
    let text = fs::read("/etc/group").ok()?;
    text.split(|&b| b == b'\n').find_map(|line| {
        let mut fields = line.split(|&b| b == b':');
        (fields.next()? == name.as_bytes()).then_some(())?;
        std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()
    })
}
