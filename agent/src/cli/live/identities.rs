//! `eastwall identities`.

use std::path::Path;

use serde_json::{Value, json, to_value};

use super::{ask, unexpected};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::{Format, Output},
    },
    control::wire::{Reply, Request},
};

/// Shows who is who on this host.
pub(crate) fn identities(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let endpoints = match ask(socket, &Request::Identities)? {
        Reply::Identities { endpoints } => endpoints,
        other => return Err(unexpected(&other)),
    };
    if output.format == Format::Table {
        let rows: Vec<Vec<String>> = endpoints
            .into_iter()
            .map(|e| {
                let kind = if e.declared { "declared" } else { "derived" };
                vec![e.name, kind.to_owned(), e.ingress_mode, e.egress_mode, e.path]
            })
            .collect();
        output.table(&["NAME", "KIND", "DOOR", "EXIT", "CGROUP"], &rows)?;
    } else {
        let items: Vec<Value> =
            endpoints.iter().map(to_value).collect::<Result<_, _>>().map_err(anyhow::Error::from)?;
        output.machine(json!({"identities": items.clone()}), items)?;
    }
    Ok(Exit::Done)
}
