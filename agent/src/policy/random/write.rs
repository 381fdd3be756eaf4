//! The texts of random cases: policies, overrides, and workloads of other hosts.

use std::fmt::Write as _;

use agent_common::flow::proto;

use super::{ADDRESSES, DERIVED, NOON, Random};
use crate::policy::{
    model::{Action, Cidr, Place, PortRange, PortSpec, Rule},
    time,
};

const WORKLOADS: [&str; 6] = ["web", "cart", "db", "pay/api", "log", "probe"];
/// Nested and overlapping, so that addresses carry several names.
const CIDRS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "198.51.100.0/24",
    "198.51.100.128/25",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::7/128",
    "fd00::/8",
];
const PORTS: [&str; 13] = [
    "any",
    "tcp/any",
    "udp/any",
    "tcp/80",
    "tcp/80-90",
    "tcp/91",
    "tcp/92",
    "tcp/8080",
    "udp/53",
    "icmp/echo",
    "tcp/1-65535",
    "sctp/7",
    "tcp/65535",
];
/// Every workload has these names; what they mean differs.
const NAMED: [&str; 2] = ["main", "side"];

/// Writes a policy whose rules have about `budget` port ranges in all.
pub(super) fn policy(random: &mut Random, budget: usize) -> String {
    let mut text = "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: random }\nspec:\n  trustDomain: random.example\n".to_owned();
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    };
    let workloads = &WORKLOADS[..2 + random.below(WORKLOADS.len() - 1)];
    line("  workloads:".to_owned());
    for name in workloads {
        let main = random.pick(&["tcp/80", "tcp/8080", "tcp/80-90", "udp/53"]);
        let side = random.pick(&["tcp/9090", "tcp/91", "sctp/7"]);
        let shared = if random.one_in(4) { ", sharedPeers: deny" } else { "" };
        line(format!(
            "    - {{ name: {name}, select: {{ cgroup: /{name} }}, ports: {{ main: {main}, side: {side} }}{shared} }}"
        ));
    }
    let externals: Vec<String> = (0..random.below(5)).map(|n| format!("ext{n}")).collect();
    if !externals.is_empty() {
        line("  externals:".to_owned());
    }
    let mut by_dns: Vec<&str> = Vec::new();
    for name in &externals {
        let cidrs: Vec<&str> = (0..=random.below(3)).map(|_| *random.pick(&CIDRS)).collect();
        let inside = |text: &&&str| cidrs.iter().any(|outer| covers(outer, text));
        let except: Vec<&str> = CIDRS.iter().filter(inside).filter(|_| random.one_in(5)).copied().collect();
        let except = if except.is_empty() { String::new() } else { format!(", except: [{}]", quoted(&except)) };
        let dns = if random.one_in(2) { format!(", dns: [{name}.example]") } else { String::new() };
        if !dns.is_empty() {
            by_dns.push(name.as_str());
        }
        line(format!("    - {{ name: {name}, cidrs: [{}]{except}{dns} }}", quoted(&cidrs)));
    }
    let plain: Vec<&str> = workloads.iter().copied().chain(externals.iter().map(String::as_str)).collect();
    line("  groups:".to_owned());
    line(format!("    - {{ name: servers, members: [{}, {}] }}", random.pick(workloads), random.pick(workloads)));
    let member = *random.pick(&plain);
    line(format!("    - {{ name: mixed, members: [servers, {member}] }}"));
    if by_dns.contains(&member) {
        by_dns.push("mixed");
    }
    let mut names = plain;
    names.extend(["servers", "mixed", "any", "any", "world"]);
    names.extend(DERIVED);
    for (action, share) in [("allow", 2), ("deny", 3)] {
        line(format!("  {action}:"));
        let mut ranges = 0;
        let mut number = 0;
        while ranges < budget / share || number == 0 {
            let (from, to) = (*random.pick(&names), *random.pick(&names));
            // Of a name not every address is known, so none is denied.
            if action == "deny" && (by_dns.contains(&from) || by_dns.contains(&to)) {
                number += 1;
                continue;
            }
            let mut ports: Vec<&str> = (0..=random.below(2)).map(|_| *random.pick(&PORTS)).collect();
            if (workloads.contains(&to) || to == "servers") && random.one_in(2) {
                ports.push(*random.pick(&NAMED));
            }
            ranges += ports.len();
            let expires = if random.one_in(3) { expiry(random) } else { String::new() };
            // Ids sort across the actions, so that numbers and levels disagree.
            let id = format!("r{:02}-{action}-{number}", random.below(100));
            line(format!("    - {{ id: {id}, from: {from}, to: {to}, ports: [{}]{expires} }}", ports.join(", ")));
            number += 1;
        }
    }
    text
}

fn expiry(random: &mut Random) -> String {
    let unix = NOON - 1_000 + i64::try_from(random.below(2_000)).unwrap_or_default();
    // Now and then before the boot, or after the clock of the kernel ends.
    let unix = match random.below(12) {
        0 => 1_000_000,
        _ => unix,
    };
    format!(", expires: {}", time::format(unix))
}

fn quoted(texts: &[&str]) -> String {
    texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ")
}

fn covers(outer: &str, inner: &str) -> bool {
    match (Cidr::parse(outer), Cidr::parse(inner)) {
        (Ok(outer), Ok(inner)) => outer.covers(&inner),
        _ => false,
    }
}

pub(super) fn overrides(random: &mut Random) -> Vec<Rule> {
    let names: Vec<&str> = WORKLOADS[..2].iter().copied().chain(["any", "world", "servers"]).collect();
    let mut rules = Vec::new();
    for number in 0..random.below(4) {
        let action = *random.pick(&[Action::OverrideDeny, Action::OverrideAllow]);
        let port = *random.pick(&[PortRange::ANY, PortRange { proto: proto::TCP, lo: 80, hi: 90 }]);
        rules.push(Rule {
            id: format!("{}-{number}", random.pick(&["ov", "zz"])),
            action,
            from: (*random.pick(&names)).to_owned(),
            to: (*random.pick(&names)).to_owned(),
            ports: vec![PortSpec::Range(port)],
            expires: Some(NOON - 500 + i64::try_from(random.below(1_000)).unwrap_or_default()),
            reason: None,
            owner: None,
            ticket: None,
            place: Place::default(),
        });
    }
    rules
}

/// Writes who is where on other hosts: at some of the addresses that are tried most, and in ranges around them.
pub(super) fn peers(random: &mut Random) -> String {
    let addresses: Vec<&str> = ADDRESSES.iter().filter(|_| random.one_in(4)).copied().collect();
    let mut text = if addresses.is_empty() { "peers: []\n" } else { "peers:\n" }.to_owned();
    for address in addresses {
        for _ in 0..=random.below(3) {
            // Now and then one that the policy does not declare.
            let known = if random.one_in(4) { WORKLOADS.len() } else { 2 };
            let name = random.pick(&WORKLOADS[..known]);
            let _ = writeln!(text, "  - {{ workload: {name}, addresses: [\"{address}\"] }}");
        }
    }
    let ranges: Vec<&str> = CIDRS.iter().filter(|cidr| !cidr.ends_with("/0") && random.one_in(8)).copied().collect();
    text + &format!("ranges: [{}]\n", quoted(&ranges))
}
