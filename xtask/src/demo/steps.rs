//! The steps. Each prints a few lines, checks what it prints, and returns what the summary says.

use std::{
    fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    agent::Agent,
    call::{Call, psql},
    events::{self, Events},
    shop,
    story::Story,
    two_hosts,
};
use crate::workspace::Workspace;

const SHOPPER_WEB: Call = Call { from: "shopper", to: "web" };
const APP_CART: Call = Call { from: "web-app", to: "cart" };
const APP_ORDERS: Call = Call { from: "web-app", to: "orders-db" };
const DEBUG_CART: Call = Call { from: "debug", to: "cart" };
const DEBUG_WEB: Call = Call { from: "debug", to: "web" };
const DEBUG_ORDERS: Call = Call { from: "debug", to: "orders-db" };
const SHOPPER_ORDERS: Call = Call { from: "shopper", to: "orders-db" };

/// How long the last window of denials may stay open, and the counters with it: on a busy machine a step lasts long
/// enough for longer windows than the first.
const SETTLE_MAX: Duration = Duration::from_secs(330);

/// How long something may take that has been caused. It is waited for, so this is no delay.
const UNTIL_MAX: Duration = Duration::from_secs(30);

/// Tells all steps.
///
/// # Errors
///
/// The first that does not end as it should.
pub fn all(workspace: &Workspace, story: &mut Story<'_>) -> Result<()> {
    story.step("audit", "everything works; what policy does not allow is written down", audit)?;
    story.step("enforce one", "orders-db closes its door; who is allowed notices nothing", enforce_one)?;
    story.step("refuse", "everybody else stays outside of orders-db, and the record says why", refuse)?;
    story.step("explain", "the same question without a packet", explain)?;
    story.step(
        "enforce another",
        "the door of cart and the exit of debug, by an edit and an apply",
        enforce_another,
    )?;
    story.step("revoke", "a query is running when its edge is revoked", revoke)?;
    story.step("kill -9", "no agent runs, and the kernel goes on refusing", kill)?;
    story.step("adopt", "the next agent takes over what it finds", adopt)?;
    two_hosts::all(workspace, story)?;
    story.step("add up", "every denial is a record, part of a count, or counted as lost", add_up)
}

fn audit(story: &mut Story<'_>) -> Result<String> {
    for call in [SHOPPER_WEB, APP_CART, APP_ORDERS, DEBUG_CART] {
        story.works(call)?;
    }
    story.works(DEBUG_ORDERS)?;
    let record = story.record(0, "would-deny", DEBUG_ORDERS)?;
    story.events.wait(0, "debug -> cart", |r| events::code(r) == "would-deny" && events::is_about(r, DEBUG_CART))?;
    for call in [SHOPPER_WEB, APP_CART, APP_ORDERS] {
        let wrong = story.events.all()?.into_iter().find(|r| events::is_about(r, call));
        ensure!(wrong.is_none(), "{call} is allowed and was reported: {wrong:?}");
    }
    ensure!(record["disposition"] == "Detected", "an audited call is said to be {}", record["disposition"]);
    let would = number(&story.agent.status()?, "wouldDeny")?;
    ensure!(would >= 2, "{would} denials were counted, and 2 calls are not allowed");
    Ok("5 calls worked; the 2 that policy does not allow were reported".to_owned())
}

fn enforce_one(story: &mut Story<'_>) -> Result<String> {
    story.policy.set_mode("orders-db", "ingressMode", "enforce")?;
    let epoch = apply(story)?;
    for call in [SHOPPER_WEB, APP_CART, APP_ORDERS] {
        story.works(call)?;
    }
    Ok(format!("3 allowed calls work in epoch {epoch}"))
}

fn refuse(story: &mut Story<'_>) -> Result<String> {
    let seen = story.events.all()?.len();
    story.refused(DEBUG_ORDERS)?;
    story.refused(SHOPPER_ORDERS)?;
    let record = story.record(seen, "deny", DEBUG_ORDERS)?;
    story.say(&format!("why      {}", events::text(&record, "status_detail")));
    let nearest = record.pointer("/unmapped/eastwall/nearest").and_then(Value::as_str);
    let nearest = nearest.context("the record names no nearest rule")?;
    story.say(&format!("near     {}", nearest.trim_start_matches("nearest rule ")));
    story
        .events
        .wait(seen, "shopper -> orders-db", |r| events::code(r) == "deny" && events::is_about(r, SHOPPER_ORDERS))?;
    ensure!(record["status_code"] == "no-rule", "the reason is {}", record["status_code"]);
    Ok("2 calls refused, 2 records name both ends".to_owned())
}

fn explain(story: &mut Story<'_>) -> Result<String> {
    let output = story.agent.cli(&["explain", "debug", "orders-db:pg"])?;
    ensure!(output.status.code() == Some(1), "`explain` of a denied flow ended with {}", output.status);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        story.say(line);
    }
    let allowed = story.agent.cli(&["explain", "web-app", "orders-db:pg"])?;
    ensure!(allowed.status.code() == Some(0), "`explain` of an allowed flow ended with {}", allowed.status);
    Ok("denied and allowed flows are told apart by exit code".to_owned())
}

fn enforce_another(story: &mut Story<'_>) -> Result<String> {
    story.works(DEBUG_CART)?;
    story.policy.set_mode("cart", "ingressMode", "enforce")?;
    story.policy.set_mode("debug", "egressMode", "enforce")?;
    let epoch = apply(story)?;
    let outcome = story.refused(DEBUG_CART)?;
    ensure!(outcome.text.contains("not permitted"), "the caller was not told at once: {}", outcome.text);
    story.works(APP_CART)?;
    Ok(format!("debug -> cart ended with epoch {epoch}, refused after {} ms", outcome.took.as_millis()))
}

/// Applies the edited policy; returns its epoch.
fn apply(story: &Story<'_>) -> Result<u64> {
    let path = story.policy.path.display().to_string();
    let applied = story.agent.ask(&["policy", "apply", &path])?;
    let (epoch, millis) = (number(&applied, "epoch")?, number(&applied, "millis")?);
    story.say(&format!("apply    eastwall policy apply {path}: epoch {epoch}, after {millis} ms"));
    Ok(epoch)
}

fn revoke(story: &mut Story<'_>) -> Result<String> {
    let dir = story.place.cgroup_of("web-app");
    let mut report = psql(&dir, story.shop.ports, "select pg_sleep(600)");
    let report = report.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut report = report.spawn().context("start psql")?;
    let running =
        || psql(&dir, story.shop.ports, "select count(*) from pg_stat_activity where query like 'select pg_sleep%'");
    until("the query runs", || Ok(String::from_utf8_lossy(&running().output()?.stdout).trim() == "1"))?;
    ensure!(report.try_wait().context("look at psql")?.is_none(), "the query ended before anything was revoked");
    story.say("open     web-app -> orders-db    psql       select pg_sleep(600)");

    let log = shop::log_of(story.place, "orders-db");
    let logged = fs::read_to_string(&log).context("read the log of PostgreSQL")?.len();
    let seen = story.events.all()?.len();
    let start = Instant::now();
    let revoked = story.agent.ask(&["revoke", "web-app", "orders-db", "--reason", "token leaked"])?;
    let status = report.wait().context("wait for psql")?;
    let caller = start.elapsed();
    ensure!(!status.success(), "psql ended well in spite of the revocation");
    let mut line = String::new();
    until("the server notices", || {
        let text = fs::read_to_string(&log)?;
        line = text[logged..]
            .lines()
            .find(|l| l.contains("connection to client lost") || l.contains("could not receive data"))
            .unwrap_or_default()
            .to_owned();
        Ok(!line.is_empty())
    })?;
    let server = start.elapsed();
    let (cut, id) = (number(&revoked, "cut")?, revoked["id"].as_str().context("the override has no id")?);
    ensure!(cut >= 1, "no socket was cut");
    story.say(&format!("revoke   eastwall revoke web-app orders-db --reason 'token leaked': sockets cut: {cut}"));
    let talk = std::io::read_to_string(report.stderr.take().context("psql has no stderr")?).context("read psql")?;
    story.say(&format!("caller   after {} ms, psql: {}", caller.as_millis(), talk.lines().next().unwrap_or_default()));
    story.say(&format!(
        "server   after {} ms, PostgreSQL: {}",
        server.as_millis(),
        line.rsplit("] ").next().unwrap_or(&line)
    ));
    story.record(seen, "cut", APP_ORDERS)?;
    story.refused(APP_ORDERS)?;
    story.agent.ask(&["revoke", "--undo", id])?;
    story.say(&format!("undo     eastwall revoke --undo {id}"));
    story.works(APP_ORDERS)?;
    Ok(format!("caller noticed after {} ms, server after {} ms", caller.as_millis(), server.as_millis()))
}

fn kill(story: &mut Story<'_>) -> Result<String> {
    let pid = story.agent.kill()?;
    let output = story.agent.cli(&["status"])?;
    ensure!(output.status.code() == Some(4), "`status` without an agent ended with {}", output.status);
    story.say(&format!("killed   the agent, process {pid}; `eastwall status` ends with 4, unreachable"));
    story.refused(DEBUG_WEB)?;
    story.refused(DEBUG_ORDERS)?;
    story.works(APP_ORDERS)?;
    Ok("2 calls refused and 1 allowed without an agent".to_owned())
}

fn adopt(story: &mut Story<'_>) -> Result<String> {
    let seen = story.events.all()?.len();
    let took = story.agent.restart(story.place)?;
    let status = story.agent.status()?;
    ensure!(status["adopted"] == true, "the new agent did not adopt the kernel side");
    story.say(&format!("started  the agent, ready after {} ms, adopted: {}", took.as_millis(), status["adopted"]));
    let record = story.record(seen, "deny", DEBUG_WEB).context("a refusal while no agent ran is not told")?;
    ensure!(record["count"].as_u64().is_some(), "a record without a count");
    story.works(APP_CART)?;
    story.refused(DEBUG_CART)?;
    Ok(format!("ready after {} ms; what was refused meanwhile is told", took.as_millis()))
}

fn add_up(story: &mut Story<'_>) -> Result<String> {
    story.say("wait     until the last window of repeats has ended, 10 s and a little more");
    let mut sums = Vec::new();
    let far = story.hosts.as_ref().map(|hosts| ("far", &hosts.far, &hosts.far_events));
    for (host, agent, events) in [("shop", &story.agent, &story.events)].into_iter().chain(far) {
        let (sum, told) = settled(agent, events)?;
        story.say(&format!("{host:<8} {sum}; its records tell of {told}"));
        sums.push(sum);
    }
    Ok(sums.join("; "))
}

/// Waits until nothing is pending; returns the sum that holds then, and how many denials the records tell of.
fn settled(agent: &Agent, events: &Events) -> Result<(String, u64)> {
    let end = Instant::now() + SETTLE_MAX;
    loop {
        let status = agent.status()?;
        let [denied, reported, suppressed, lost, pending] =
            ["denied", "reported", "suppressed", "lost", "pending"].map(|field| number(&status, field));
        let (denied, reported, suppressed, lost, pending) = (denied?, reported?, suppressed?, lost?, pending?);
        ensure!(
            denied == reported + suppressed + lost + pending,
            "{denied} denied, but {reported} reported + {suppressed} suppressed + {lost} lost + {pending} pending"
        );
        let sum = format!("{denied} denied = {reported} reported + {suppressed} suppressed + {lost} lost");
        if pending == 0 {
            let told = told(&events.all()?);
            ensure!(
                told + lost == denied,
                "the records tell of {told} denials, {lost} are lost, and {denied} were denied"
            );
            return Ok((sum, told));
        }
        if Instant::now() > end {
            bail!("after {} s {pending} denials are still not told: {sum}", SETTLE_MAX.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Returns how many denials the records tell of. A cut flow is none: nothing of it was denied before.
fn told(records: &[Value]) -> u64 {
    let denials = records.iter().filter(|r| matches!(events::code(r), "deny" | "would-deny"));
    denials.filter_map(|r| r["count"].as_u64()).sum()
}

pub fn number(value: &Value, field: &str) -> Result<u64> {
    value[field].as_u64().with_context(|| format!("the agent does not say `{field}`"))
}

pub fn until(what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + UNTIL_MAX;
    while !ready().with_context(|| what.to_owned())? {
        if Instant::now() > end {
            bail!("this did not come true: {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
