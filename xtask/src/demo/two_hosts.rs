//! The second act: two hosts that enforce one policy, and what is left of it when one of them falls.

use anyhow::{Context as _, Result, ensure};

use super::{
    call::Call,
    events,
    hosts::{CART, DEBUG, Hosts, WEB_APP},
    story::Story,
};
use crate::workspace::Workspace;

const APP_CART: Call = Call { from: "web-app", to: "cart" };
const DEBUG_CART: Call = Call { from: "debug", to: "cart" };

const NO_HOSTS: &str = "there are no hosts yet";

/// Tells the act.
///
/// # Errors
///
/// The first step that does not end as it should.
pub fn all(workspace: &Workspace, story: &mut Story<'_>) -> Result<()> {
    story.step("two hosts", "an agent on each, the same policy, and cart is on the other one", |story| {
        story.hosts = Some(Hosts::open(workspace, story.place)?);
        two_hosts(story)
    })?;
    story.step("borrow", "debug enters the network of web-app: an address is no identity", borrow)?;
    story.step("one host falls", "nothing guards the callers' host any more; the door of cart does", one_falls)?;
    story.step("kill -9 again", "and without an agent on the other host, too", kill_far)
}

fn hosts<'s>(story: &'s Story<'_>) -> Result<&'s Hosts> {
    story.hosts.as_ref().context(NO_HOSTS)
}

/// Calls `cart` by its IPv4 address and by its IPv6 address; both must work.
fn both_work(story: &mut Story<'_>) -> Result<()> {
    for address in CART.addresses {
        let mut outcome = APP_CART.make_by(&mut hosts(story)?.call(WEB_APP, WEB_APP.network, address))?;
        outcome.text += &format!(", at {address}");
        story.worked(APP_CART, outcome)?;
    }
    Ok(())
}

/// Calls `cart` as `debug` does, from a network; returns what the program said.
fn refused_from(story: &mut Story<'_>, network: &str, address: &str) -> Result<String> {
    let outcome = DEBUG_CART.make_by(&mut hosts(story)?.call(DEBUG, network, address))?;
    Ok(story.was_refused(DEBUG_CART, outcome)?.text)
}

fn two_hosts(story: &mut Story<'_>) -> Result<String> {
    story
        .say(&format!("near     web-app {}, debug {}, each behind a device", WEB_APP.addresses[0], DEBUG.addresses[0]));
    story.say(&format!("far      cart {}", CART.addresses[0]));
    both_work(story)?;
    for address in CART.addresses {
        let text = refused_from(story, DEBUG.network, address)?;
        ensure!(text.contains("not permitted"), "the caller was not told at once: {text}");
    }
    Ok("web-app reaches cart by IPv4 and IPv6, debug by neither".to_owned())
}

fn borrow(story: &mut Story<'_>) -> Result<String> {
    let text = refused_from(story, WEB_APP.network, CART.addresses[0])?;
    ensure!(text.contains("not permitted"), "the caller was not told at once: {text}");
    Ok(format!("refused, though it calls from {}", WEB_APP.addresses[0]))
}

fn one_falls(story: &mut Story<'_>) -> Result<String> {
    let near = &mut story.hosts.as_mut().context(NO_HOSTS)?.near;
    let pid = near.kill()?;
    near.detach()?;
    story.say(&format!("near     the agent, process {pid}, is killed, and its programs are detached"));
    // Nothing may have been reported there so far: then there is no file.
    let seen = hosts(story)?.far_events.all().map_or(0, |records| records.len());
    refused_from(story, DEBUG.network, CART.addresses[0])?;
    let record = story.record_in(&hosts(story)?.far_events, seen, "deny", DEBUG_CART)?;
    story.say(&format!("why      {}", events::text(&record, "status_detail")));
    both_work(story)?;
    Ok("the other host refuses debug by the name that it has for its address".to_owned())
}

fn kill_far(story: &mut Story<'_>) -> Result<String> {
    let place = story.place;
    let pid = story.hosts.as_mut().context(NO_HOSTS)?.far.kill()?;
    story.say(&format!("far      the agent, process {pid}, is killed"));
    refused_from(story, DEBUG.network, CART.addresses[1])?;
    both_work(story)?;
    let far = &mut story.hosts.as_mut().context(NO_HOSTS)?.far;
    let took = far.restart(place)?;
    let status = far.status()?;
    ensure!(status["adopted"] == true, "the new agent did not adopt the kernel side");
    story.say(&format!("far      the next agent is ready after {} ms, adopted: true", took.as_millis()));
    Ok("refused and allowed as before".to_owned())
}
