//! Denials for a caller: those that are still known, and those that come.

use std::sync::Arc;

use anyhow::Result;
use tokio::{
    io::AsyncReadExt as _,
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::broadcast::error::{RecvError, TryRecvError},
};

use super::{frames::Frames, wire::Reply};
use crate::{
    clock,
    events::{
        line,
        ocsf::{Node, Stamp, write_line},
        pipeline::Pipeline,
        record::{DenyEvent, Record},
    },
};

/// Sends what is still known, oldest first.
///
/// # Errors
///
/// If the caller hung up, or does not read.
pub async fn recent(mut write: OwnedWriteHalf, pipeline: &Pipeline, node: &Node) -> Result<()> {
    let mut frames = Frames::default();
    told(&mut frames, &mut write, &pipeline.recent(), node).await?;
    frames.write_to(&mut write).await
}

/// Sends every denial from this moment on until the caller hangs up; before them what is still known, if
/// `known` says so. No denial is left out between the two, and none is told twice.
///
/// # Errors
///
/// If the caller hung up, or does not read.
pub async fn follow(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    pipeline: &Pipeline,
    node: &Node,
    known: bool,
) -> Result<()> {
    let (recent, mut events) = pipeline.subscribe();
    let mut frames = Frames::default();
    if known {
        told(&mut frames, &mut write, &recent, node).await?;
    }
    // This line says that everything from here on will be shown.
    frames.push(&Reply::Missed { count: 0 })?;
    frames.write_to(&mut write).await?;
    let mut rest = [0; 64];
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            // It hung up, or says more than it was asked for.
            _ = read.read(&mut rest) => return Ok(()),
        };
        match event {
            Ok(event) => frames.push(&denial(&event, node)?)?,
            Err(RecvError::Lagged(count)) => frames.push(&Reply::Missed { count })?,
            Err(RecvError::Closed) => return Ok(()),
        }
        // What came at the same time goes out in the same write.
        while !frames.is_full() {
            match events.try_recv() {
                Ok(event) => frames.push(&denial(&event, node)?)?,
                Err(TryRecvError::Lagged(count)) => frames.push(&Reply::Missed { count })?,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        frames.write_to(&mut write).await?;
    }
}

async fn told(frames: &mut Frames, write: &mut OwnedWriteHalf, events: &[Arc<DenyEvent>], node: &Node) -> Result<()> {
    for event in events {
        frames.push(&denial(event, node)?)?;
        if frames.is_full() {
            frames.write_to(write).await?;
        }
    }
    Ok(())
}

/// The record as the events file has it, but for the sequence number, which the writer gives out.
fn denial(event: &Arc<DenyEvent>, node: &Node) -> Result<Reply> {
    let mut line = Vec::new();
    let stamp = Stamp { node, sequence: 0, logged: clock::now().wall };
    write_line(&mut line, &Record::Deny(Arc::clone(event)), &stamp)?;
    let mut record: serde_json::Value = serde_json::from_slice(&line)?;
    if let Some(metadata) = record.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        metadata.remove("sequence");
    }
    Ok(Reply::Denial { record, line: line::line(event) })
}
