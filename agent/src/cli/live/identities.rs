//! `eastwall identities`.

use std::path::Path;

use serde_json::{Value, json, to_value};

use super::{ask, unexpected};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::Output,
    },
    control::wire::{Endpoint, Reply, Request},
};

/// Shows who is who on this host.
pub(crate) fn identities(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let endpoints = match ask(socket, &Request::Identities)? {
        Reply::Identities { endpoints } => endpoints,
        other => return Err(unexpected(&other)),
    };
    if output.for_people() {
        let headers = ["NAME", "KIND", "DOOR", "EXIT", "CGROUP", "NUMBER", "SPIFFE ID"];
        let columns = if output.is_wide() { headers.len() } else { 5 };
        let row = |e: Endpoint| {
            let kind = if e.declared { "declared" } else { "derived" }.to_owned();
            let mut row = vec![e.name, kind, e.ingress_mode, e.egress_mode, e.path, e.cgroup.to_string(), e.spiffe_id];
            row.truncate(columns);
            row
        };
        let rows: Vec<Vec<String>> = endpoints.into_iter().map(row).collect();
        output.table(&headers[..columns], &rows, "no cgroup of the scope has a label yet")?;
    } else {
        let items: Vec<Value> =
            endpoints.iter().map(to_value).collect::<Result<_, _>>().map_err(anyhow::Error::from)?;
        output.machine(json!({"identities": items.clone()}), items)?;
    }
    Ok(Exit::Done)
}
