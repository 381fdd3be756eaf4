//! The command line's end of the control socket.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
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
    /// It takes the question, and no answer comes.
    #[error(
        "the agent at `{}` has not answered for {} s: it is stopped, or stuck; `eastwall doctor` and its log may tell",
        path.display(),
        after.as_secs()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
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

/// How long an agent may think about a question, which it answers between two things that it does.
const TO_SAY: Duration = Duration::from_secs(30);
/// The same for what it has to do first: after two minutes it says that it is too busy.
const TO_DO: Duration = Duration::from_secs(130);

/// Asks once.
///
/// # Errors
///
/// [`ClientError`]. A refusal is an answer.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, ClientError> {
    ask_for(socket, request, if request.is_work() { TO_DO } else { TO_SAY })
}

fn ask_for(socket: &Path, request: &Request, after: Duration) -> Result<Reply, ClientError> {
    let stream = connect(socket, request)?;
    if !is_readable(&stream, after)? {
        return Err(ClientError::Silent { path: socket.to_owned(), after });
    }
    replies(stream).next().unwrap_or(Err(ClientError::NoAnswer))
}

fn is_readable(stream: &UnixStream, within: Duration) -> io::Result<bool> {
    let end = Instant::now() + within;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            result => return Ok(result? > 0),
        }
    }
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
    Ok(replies(connect(socket, request)?))
}

fn connect(socket: &Path, request: &Request) -> Result<UnixStream, ClientError> {
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
    Ok(stream)
}

fn replies(stream: UnixStream) -> impl Iterator<Item = Result<Reply, ClientError>> + use<> {
    let lines = BufReader::new(stream).lines();
    lines.map(|line| serde_json::from_str(&line?).map_err(ClientError::Answer))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_agent_that_is_silent_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let after = Duration::from_millis(50);
        let ask = || ask_for(&socket, &Request::Status, after);
        assert!(matches!(ask(), Err(ClientError::Unreachable { .. })));
        // Whoever listens is asked, though nobody accepts.
        let listener = UnixListener::bind(&socket).unwrap();
        let start = Instant::now();
        let error = ask().unwrap_err();
        assert!(matches!(error, ClientError::Silent { .. }) && start.elapsed() >= after, "{error}");
        drop(listener);
    }
}
