//! Replies on their way out: one JSON document on a line, many in one write.

use std::time::Duration;

use anyhow::Result;
use bytes::{BufMut as _, BytesMut};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::wire::Reply;

/// How long a caller may take to read what is written at once.
const READ_TIME: Duration = Duration::from_secs(10);

/// Bytes after which it is time to write: some twenty denials.
const FULL: usize = 64 << 10;

/// Replies that are not written yet, in one buffer that is used again.
#[derive(Debug, Default)]
pub struct Frames(BytesMut);

impl Frames {
    /// Returns one reply.
    ///
    /// # Errors
    ///
    /// If the reply cannot be written down, which no reply is.
    pub fn of(reply: &Reply) -> Result<Self> {
        let mut frames = Self::default();
        frames.push(reply)?;
        Ok(frames)
    }

    /// Adds a reply.
    ///
    /// # Errors
    ///
    /// As [`Self::of`].
    pub fn push(&mut self, reply: &Reply) -> Result<()> {
        serde_json::to_writer((&mut self.0).writer(), reply)?;
        self.0.put_u8(b'\n');
        Ok(())
    }

    /// Says whether it is time to write.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.len() >= FULL
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Writes everything.
    ///
    /// # Errors
    ///
    /// If the caller hung up, or does not read.
    pub async fn write_to(&mut self, write: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        timeout(READ_TIME, write.write_all_buf(&mut self.0)).await??;
        Ok(())
    }
}
