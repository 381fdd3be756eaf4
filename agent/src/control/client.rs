//! The command line's end of the control socket.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use super::wire::{Reply, Request};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent answers at `{}` ({}); see `systemctl status eastwall`, or name its socket with --socket",
        path.display(),
        why_not(cause)
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The group.
    #[error("`{}` may be used by root and the group `eastwall` only; try `sudo`", path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// It hung up.
    #[error("the agent hung up without an answer")]
    NoAnswer,
    /// Another version.
    #[error("the answer of the agent cannot be read; is it of another version?")]
    Answer(#[source] serde_json::Error),
    /// Everything else.
    #[error("speak to the agent")]
    Io(#[from] io::Error),
}

/// What the system says about the socket, in the words of whoever typed its path.
fn why_not(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::NotFound => "it is not there".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody listens there any more".to_owned(),
        _ => cause.to_string(),
    }
}

/// Asks once.
///
/// # Errors
///
/// [`ClientError`]. A refusal is an answer.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, ClientError> {
    stream(socket, request)?.next().unwrap_or(Err(ClientError::NoAnswer))
}

/// Asks, and returns answers until the agent hangs up.
///
/// # Errors
///
/// [`ClientError`].
pub fn stream(
    socket: &Path,
    request: &Request,
) -> Result<impl Iterator<Item = Result<Reply, ClientError>> + use<>, ClientError> {
    let path = || socket.to_owned();
    let mut stream = UnixStream::connect(socket).map_err(|cause| match cause.kind() {
        io::ErrorKind::PermissionDenied => ClientError::NotPermitted { path: path() },
        _ => ClientError::Unreachable { path: path(), cause },
    })?;
    let mut line = serde_json::to_vec(request).map_err(ClientError::Answer)?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // It was turned away before it could ask; the reason is there to be read.
        Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
        result => result?,
    }
    let lines = BufReader::new(stream).lines();
    Ok(lines.map(|line| serde_json::from_str(&line?).map_err(ClientError::Answer)))
}
