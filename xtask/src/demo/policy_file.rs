//! The policy of the shop: the file of the checkout, copied to where the demo edits it.

use std::{fs, net::TcpListener, path::PathBuf};

use anyhow::{Context as _, Result};

use super::place::Place;
use crate::workspace::Workspace;

/// Ports of the shop.
#[derive(Clone, Copy)]
pub struct Ports {
    /// nginx.
    pub web: u16,
    /// redis.
    pub cart: u16,
    /// PostgreSQL.
    pub orders_db: u16,
}

/// The demo's own copy.
pub struct PolicyFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub ports: Ports,
    text: String,
}

impl PolicyFile {
    /// Copies the file, with other ports where its own are taken, and installs it for the agent.
    ///
    /// # Errors
    ///
    /// It cannot be read or written; there is no free port.
    pub fn new(workspace: &Workspace, place: &Place) -> Result<Self> {
        let source = workspace.root.join("policies/shop/shop.yaml");
        let mut text = fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
        let mut free = |wanted: u16| -> Result<u16> {
            let port = free_port(wanted)?;
            text = text.replace(&format!("tcp/{wanted}"), &format!("tcp/{port}"));
            Ok(port)
        };
        let ports = Ports { web: free(18_080)?, cart: free(16_379)?, orders_db: free(15_432)? };
        for dir in ["policy.d", "policy"] {
            fs::create_dir_all(place.dir.join(dir)).context("make the policy directories")?;
        }
        fs::write(place.dir.join("policy.d/shop.yaml"), &text).context("install the policy")?;
        let file = Self { path: place.dir.join("policy/shop.yaml"), ports, text };
        file.save()?;
        Ok(file)
    }

    /// Changes one mode of one workload, as a person would in an editor.
    ///
    /// # Errors
    ///
    /// The file has no such line.
    pub fn set_mode(&mut self, workload: &str, field: &str, mode: &str) -> Result<()> {
        let begin = format!("    - name: {workload} ");
        let at = self.text.find(&begin).with_context(|| format!("the policy has no workload {workload}"))?;
        let key = format!("      {field}: ");
        let line = self.text[at..].find(&key).map(|offset| at + offset + key.len());
        let line = line.with_context(|| format!("{workload} has no {field}"))?;
        let end = self.text[line..].find('\n').map_or(self.text.len(), |offset| line + offset);
        self.text.replace_range(line..end, mode);
        self.save()
    }

    fn save(&self) -> Result<()> {
        fs::write(&self.path, &self.text).with_context(|| format!("write {}", self.path.display()))
    }
}

/// Returns `wanted` if nobody listens there, else any free port.
fn free_port(wanted: u16) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", wanted)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
    Ok(listener.context("find a free port")?.local_addr().context("find a free port")?.port())
}
