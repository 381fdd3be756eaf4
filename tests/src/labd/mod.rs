//! The actor: does what it is told, one system call at a time, and gives back the errno.
//!
//! It has no opinion. Whether an errno is right is for the test to say.

mod icmp;
mod odd;
mod sockets;
mod uring;

use std::{io::Write as _, os::fd::OwnedFd};

use anyhow::Context as _;
use rustix::io::Errno;
use sockets::Sockets;

use crate::lab::{Command, Reply, wire};

/// Runs as `labd serve`, with commands on standard input until it closes, or `labd once COMMAND`.
///
/// # Errors
///
/// If the other side cannot be understood; never for what a command gives.
pub fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (Some("serve"), None) => serve(),
        (Some("once"), Some(command)) => once(&serde_json::from_str(&command).context("read the command")?),
        _ => anyhow::bail!("usage: labd serve | labd once COMMAND"),
    }
}

fn serve() -> anyhow::Result<()> {
    let control = std::io::stdin();
    let mut sockets = Sockets::default();
    while let Some((command, descriptor)) = wire::receive(&control)? {
        let (reply, descriptor) = answer(&mut sockets, &command, descriptor);
        wire::send(&control, &reply, descriptor.as_ref().map(std::os::fd::AsFd::as_fd))?;
    }
    Ok(())
}

/// The status is the errno: a test reads it without a channel to this process.
fn once(command: &Command) -> anyhow::Result<()> {
    let mut sockets = Sockets::default();
    sockets.inherit();
    let status = match command {
        // The socket is made here, so that connecting is one command.
        Command::Connect { socket: 0, addr, timeout_ms } => sockets.connect_once(*addr, *timeout_ms).err(),
        Command::Send { socket: 0, to: Some(to), data } => sockets.send_once(*to, data).err(),
        other => match answer(&mut sockets, other, None).0 {
            Reply::Failed(errno) => Some(Errno::from_raw_os_error(errno)),
            _ => None,
        },
    };
    std::io::stdout().flush()?;
    std::process::exit(status.map_or(0, Errno::raw_os_error))
}

fn answer(sockets: &mut Sockets, command: &Command, descriptor: Option<OwnedFd>) -> (Reply, Option<OwnedFd>) {
    match sockets.act(command, descriptor) {
        Ok(answer) => answer,
        Err(errno) => (Reply::Failed(errno.raw_os_error()), None),
    }
}
