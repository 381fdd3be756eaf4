//! `eastwall version`.

use agent_common::layout::LAYOUT_VERSION;
use serde_json::json;

use super::{
    exit::{CliError, Exit},
    output::Output,
};

pub(super) fn run(output: &mut Output) -> Result<Exit, CliError> {
    let version = env!("CARGO_PKG_VERSION");
    let kernel_programs = cfg!(kernel_programs);
    if output.for_people() {
        let built =
            if kernel_programs { "kernel programs built in" } else { "without kernel programs: checks policies only" };
        output.write(&format!("eastwall {version}\nlayout {LAYOUT_VERSION}, {built}\n"))?;
    } else {
        let document = json!({"version": version, "layoutVersion": LAYOUT_VERSION, "kernelPrograms": kernel_programs});
        output.machine(document.clone(), [document])?;
    }
    Ok(Exit::Done)
}
