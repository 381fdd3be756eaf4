//! `eastwall devices`.

use std::path::Path;

use serde_json::{Value, json, to_value};

use super::{ask, unexpected};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::Output,
    },
    control::wire::{GuardedDevice, Reply, Request},
    policy::resolvers::listed,
};

/// Shows whose frames are judged where.
pub(crate) fn devices(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let devices = match ask(socket, &Request::Devices)? {
        Reply::Devices { devices } => devices,
        other => return Err(unexpected(&other)),
    };
    if output.for_people() {
        let headers = ["DEVICE", "WORKLOAD", "ADDRESSES", "INDEX", "CGROUP"];
        let columns = if output.is_wide() { headers.len() } else { 3 };
        let row = |d: GuardedDevice| {
            let mut row = vec![d.device, d.workload, listed(&d.addresses), d.index.to_string(), d.cgroup.to_string()];
            row.truncate(columns);
            row
        };
        let rows: Vec<Vec<String>> = devices.into_iter().map(row).collect();
        output.table(&headers[..columns], &rows, "no device leads to a workload with a network of its own")?;
    } else {
        let items: Vec<Value> = devices.iter().map(to_value).collect::<Result<_, _>>().map_err(anyhow::Error::from)?;
        output.machine(json!({"devices": items.clone()}), items)?;
    }
    Ok(Exit::Done)
}
