//! The control socket as a file: made where nobody else can put anything, closed until it is opened.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_socket, connect, socket_with},
};
use tokio::net::UnixListener;
use tracing::debug;

use crate::sources::trust;

/// Callers that wait to be accepted.
const BACKLOG: i32 = 128;

/// The socket, which nobody can reach before [`ControlSocket::listen`]. Dropping it removes the file.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    socket: OwnedFd,
}

impl ControlSocket {
    /// Makes the socket: 0660, root and `group`, in a directory that only root can change.
    ///
    /// # Errors
    ///
    /// If somebody else could change the directory or one above it, or something other than the dead socket
    /// of an agent before is at the path; it is left as it is.
    pub fn bind(path: &Path, group: &str) -> Result<Self> {
        let dir = path.parent().ok_or_else(|| anyhow!("`{}` has no directory", path.display()))?;
        trust::open_directory(dir, 0)?;
        let address = SocketAddrUnix::new(path).with_context(|| format!("`{}` is too long", path.display()))?;
        clear(path, &address)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context("make a socket")?;
        // Closed to others from the first moment on, whatever the mask of the process is.
        let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = bind_socket(&socket, &address);
        rustix::process::umask(old);
        bound.with_context(|| format!("make the socket `{}`", path.display()))?;
        let made = Self { path: path.to_owned(), socket };
        if let Some(gid) = group_id(group) {
            std::os::unix::fs::chown(path, None, Some(gid)).context("give the socket to its group")?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o660)).context("open the socket to its group")?;
        } else {
            debug!("there is no group `{group}`: only root can use the socket");
        }
        Ok(made)
    }

    /// Lets callers in. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// What listen(2) said.
    pub fn listen(&self) -> io::Result<UnixListener> {
        rustix::net::listen(&self.socket, BACKLOG)?;
        UnixListener::from_std(self.socket.as_fd().try_clone_to_owned()?.into())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // It may have been removed by somebody else; then there is nothing left to do.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a socket of root that nobody listens at.
fn clear(path: &Path, address: &SocketAddrUnix) -> Result<()> {
    let shown = path.display();
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("look at `{shown}`")),
    };
    if !meta.file_type().is_socket() {
        return Err(anyhow!("`{shown}` is in the way and is no socket; remove it"));
    }
    if meta.uid() != 0 {
        return Err(anyhow!("`{shown}` is in the way and belongs to uid {}; remove it", meta.uid()));
    }
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context("make a socket")?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {}
        Ok(()) | Err(Errno::AGAIN) => {
            return Err(anyhow!("`{shown}` is in use by another program; stop it, or set `controlSocket`"));
        }
        Err(e) => return Err(e).with_context(|| format!("find out who uses `{shown}`")),
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            Err(anyhow!("`{shown}` is in the way and is mounted there; unmount it"))
        }
        result => result.with_context(|| format!("remove the dead socket `{shown}`")),
    }
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
