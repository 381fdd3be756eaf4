//! What the kernel programs say for whoever works on them: nothing, unless the agent was told to ask.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::SocketAddr;

use serde_json::json;
use tests::{
    lab::{Agent, AgentOptions, Lab, Need, WITH_KERNEL_LOG, require_or_skip},
    scene::{BRIEF, LOOPBACK, PORT, Scene},
};

const NOBODY: &str = "[{ from: web, to: db, ports: [tcp/1] }]";

/// A denial that has been told, so that a line about it was written if any is.
fn denied(options: &AgentOptions) -> Option<String> {
    // What connect refuses is no packet.
    let options = &AgentOptions { fast_refusal: false, ..options.clone() };
    let mut scene = Scene::open(NOBODY, options)?;
    let (_listener, to) = scene.db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert!(scene.other.tcp_connect(to, BRIEF).is_err());
    scene.agent.event("the denial", |e| e.pointer("/dst_endpoint/svc_name") == Some(&"db".into()));
    // Stopping drains the rings.
    scene.agent.stop();
    Some(scene.agent.log())
}

#[test]
fn the_programs_speak_only_when_asked_to() {
    if require_or_skip(&[Need::KernelLog]).is_none() {
        return;
    }
    let quiet = AgentOptions { program: WITH_KERNEL_LOG, ..AgentOptions::default() };
    let mut loud = quiet.clone();
    loud.more.insert("kernelLog".to_owned(), json!(true));
    let Some(log) = denied(&loud) else { return };
    let line = log.lines().find(|line| line.contains("kernel: ")).unwrap_or_else(|| panic!("no line in\n{log}"));
    assert!(line.contains("denial: hook 5, reason "), "{line}");
    let log = denied(&quiet).unwrap();
    assert!(!log.contains("kernel: "), "{log}");
}

#[test]
fn an_agent_without_the_log_says_so_when_asked_for_it() {
    let mut options = AgentOptions::default();
    options.more.insert("kernelLog".to_owned(), json!(true));
    let Some(lab) = Lab::open(&[Need::Agent]) else { return };
    let (code, log) = Agent::prepare(&lab, "", &options).unwrap().refuses_to_start();
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("build it with `--features kernel-log`"), "{log}");
}
