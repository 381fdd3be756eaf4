//! Rules of nftables that could drop a flow. Nothing is traced: which rule a packet met is not known.

use std::{net::IpAddr, process::Command};

use agent_common::flow::proto;
use serde_json::Value;

use super::{Clue, Tuple, Weight};
use crate::policy::model::Cidr;

const LAYER: &str = "nftables";

pub(super) fn look(tuple: &Tuple) -> Vec<Clue> {
    let mut clues = match Command::new("nft").args(["-j", "list", "ruleset"]).output() {
        Ok(output) if output.status.success() => match serde_json::from_slice(&output.stdout) {
            Ok(ruleset) => suspects(tuple, &ruleset),
            Err(e) => vec![Clue::new(Weight::Unknown, LAYER, format!("what `nft -j list ruleset` prints: {e}"))],
        },
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            vec![Clue::new(Weight::Unknown, LAYER, format!("`nft -j list ruleset`: {}", said.trim()))]
        }
        Err(e) => vec![Clue::new(Weight::Unknown, LAYER, format!("`nft` cannot be run, so no rule was read: {e}"))],
    };
    // Rules of the older tables are not among those of nft.
    for file in ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"] {
        let tables = std::fs::read_to_string(file).unwrap_or_default();
        if !tables.trim().is_empty() {
            let tables = tables.split_whitespace().collect::<Vec<_>>().join(", ");
            let found = format!("legacy iptables has the tables {tables}, which were not read");
            clues.push(Clue::new(Weight::Unknown, LAYER, found));
        }
    }
    clues
}

/// Rules and policies of a ruleset that drop or reject what may be this flow.
fn suspects(tuple: &Tuple, ruleset: &Value) -> Vec<Clue> {
    let mut clues = Vec::new();
    for item in ruleset["nftables"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if let Some(chain) = item.get("chain").filter(|chain| chain["policy"] == "drop") {
            let (table, name, hook) = (text(&chain["table"]), text(&chain["name"]), text(&chain["hook"]));
            let found = format!("chain {table} {name} at {hook} drops what no rule accepts");
            clues.push(Clue::new(Weight::Suspect, LAYER, found));
        }
        let Some(rule) = item.get("rule") else { continue };
        let statements = || rule["expr"].as_array().into_iter().flatten();
        let Some(verdict) = ["drop", "reject"].into_iter().find(|v| statements().any(|s| s.get(v).is_some())) else {
            continue;
        };
        let matches: Vec<Option<bool>> =
            statements().filter_map(|statement| statement.get("match")).map(|m| matches(tuple, m)).collect();
        if matches.contains(&Some(false)) {
            continue;
        }
        let sure = if matches.contains(&None) { "may match" } else { "matches" };
        let hits = statements().find_map(|statement| statement["counter"]["packets"].as_u64());
        let hits = hits.map(|n| format!(", {n} packets so far")).unwrap_or_default();
        let (table, chain) = (text(&rule["table"]), text(&rule["chain"]));
        let comment = rule["comment"].as_str().map(|c| format!(" \"{c}\"")).unwrap_or_default();
        let found = format!("rule {} in {table} {chain}{comment} {sure} and does {verdict}{hits}", rule["handle"]);
        clues.push(Clue::new(Weight::Suspect, LAYER, found));
    }
    if clues.is_empty() {
        clues.push(Clue::new(Weight::Cleared, LAYER, "no rule that drops or rejects fits this flow"));
    }
    clues
}

/// Says whether a condition holds for the flow; `None` = that depends on what is not known here.
fn matches(tuple: &Tuple, condition: &Value) -> Option<bool> {
    let (left, right) = (&condition["left"], &condition["right"]);
    let payload = &left["payload"];
    let field = (payload["protocol"].as_str().unwrap_or_default(), payload["field"].as_str().unwrap_or_default());
    let holds = match field {
        ("ip" | "ip6", "saddr") => has_address(tuple.from, right)?,
        ("ip" | "ip6", "daddr") => has_address(tuple.to, right)?,
        (l4 @ ("tcp" | "udp" | "sctp"), _) if protocol(l4) != Some(tuple.proto) => return Some(false),
        (_, "sport") => has_number(tuple.from_port?, right)?,
        (_, "dport") => has_number(tuple.to_port?, right)?,
        _ => match left["meta"]["key"].as_str()? {
            "l4proto" => any_of(right, &|value| {
                let number = value.as_u64().and_then(|n| u8::try_from(n).ok());
                Some(value.as_str().and_then(protocol).or(number)? == tuple.proto)
            })?,
            "nfproto" => any_of(right, &|value| Some((value.as_str()? == "ipv4") == tuple.to.is_ipv4()))?,
            _ => return None,
        },
    };
    match condition["op"].as_str()? {
        "==" | "in" => Some(holds),
        "!=" => Some(!holds),
        _ => None,
    }
}

fn protocol(word: &str) -> Option<u8> {
    match word {
        "tcp" => Some(proto::TCP),
        "udp" => Some(proto::UDP),
        "sctp" => Some(proto::SCTP),
        "icmp" => Some(proto::ICMP),
        "ipv6-icmp" | "icmpv6" => Some(proto::ICMPV6),
        _ => None,
    }
}

/// Says whether one of the values holds; a single one is a set of one.
fn any_of(right: &Value, holds: &dyn Fn(&Value) -> Option<bool>) -> Option<bool> {
    match right.get("set").unwrap_or(right) {
        Value::Array(values) => {
            let all: Vec<Option<bool>> = values.iter().map(holds).collect();
            if all.contains(&Some(true)) {
                Some(true)
            } else {
                all.into_iter().collect::<Option<Vec<_>>>().map(|_| false)
            }
        }
        value => holds(value),
    }
}

fn has_address(addr: IpAddr, right: &Value) -> Option<bool> {
    any_of(right, &|value| {
        if let Some(prefix) = value.get("prefix") {
            let text = format!("{}/{}", prefix["addr"].as_str()?, prefix["len"]);
            return Some(Cidr::parse(&text).ok()?.contains(addr));
        }
        if let Some(range) = value["range"].as_array() {
            let bound = |n: usize| range.get(n)?.as_str()?.parse::<IpAddr>().ok();
            return Some((bound(0)?..=bound(1)?).contains(&addr));
        }
        // The name of a set is no address.
        Some(value.as_str()?.parse::<IpAddr>().ok()? == addr)
    })
}

fn has_number(port: u16, right: &Value) -> Option<bool> {
    any_of(right, &|value| {
        if let Some(range) = value["range"].as_array() {
            let bound = |n: usize| range.get(n)?.as_u64();
            return Some((bound(0)?..=bound(1)?).contains(&u64::from(port)));
        }
        Some(value.as_u64()? == u64::from(port))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(expr: Value) -> Value {
        json!({"nftables": [
            {"metainfo": {"json_schema_version": 1}},
            {"chain": {"family": "inet", "table": "fw", "name": "in", "hook": "input", "policy": "accept"}},
            {"rule": {"family": "inet", "table": "fw", "chain": "in", "handle": 7, "expr": expr}},
        ]})
    }

    fn condition(protocol: &str, field: &str, op: &str, right: Value) -> Value {
        json!({"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}})
    }

    fn weight(expr: Value) -> (Weight, String) {
        let tuple = Tuple::parse("10.9.0.1:40000", "10.9.1.2:tcp/443").unwrap();
        let clues = suspects(&tuple, &rule(expr));
        (clues[0].weight, clues[0].found.clone())
    }

    #[test]
    fn a_rule_that_drops_is_suspect_unless_a_condition_of_it_fails() {
        let drop = json!({"drop": null});
        for fits in [
            condition("tcp", "dport", "==", json!(443)),
            condition("tcp", "dport", "==", json!({"set": [80, 443]})),
            condition("tcp", "dport", "!=", json!({"range": [1, 442]})),
            condition("tcp", "sport", ">", json!(1)),
            condition("ip", "daddr", "==", json!({"prefix": {"addr": "10.9.0.0", "len": 16}})),
            condition("ip", "saddr", "==", json!({"range": ["10.9.0.1", "10.9.0.9"]})),
            condition("ip", "saddr", "==", json!("@blocked")),
            json!({"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}),
            json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}),
        ] {
            assert_eq!(weight(json!([fits, drop])).0, Weight::Suspect, "{fits}");
        }
        for fails in [
            condition("tcp", "dport", "==", json!(80)),
            condition("udp", "dport", "==", json!(443)),
            condition("ip", "saddr", "==", json!("10.9.0.2")),
            condition("ip", "daddr", "==", json!({"prefix": {"addr": "10.8.0.0", "len": 16}})),
            condition("ip6", "daddr", "==", json!("fd00::1")),
            json!({"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv6"}}),
        ] {
            assert_eq!(weight(json!([fails, drop])).0, Weight::Cleared, "{fails}");
        }
    }

    #[test]
    fn what_is_known_of_a_rule_is_said() {
        let condition = condition("tcp", "dport", "==", json!(443));
        let counter = json!({"counter": {"packets": 12, "bytes": 720}});
        let (weight, found) = weight(json!([condition, counter, {"reject": {"type": "tcp reset"}}]));
        assert_eq!(weight, Weight::Suspect);
        assert_eq!(found, "rule 7 in fw in matches and does reject, 12 packets so far");
        let accepts = self::weight(json!([{"accept": null}]));
        assert_eq!(accepts.0, Weight::Cleared);
        let chain = json!({"nftables": [{"chain": {"table": "fw", "name": "in", "hook": "input", "policy": "drop"}}]});
        let clues = suspects(&Tuple::parse("10.9.0.1", "10.9.1.2:icmp").unwrap(), &chain);
        assert_eq!(clues[0].weight, Weight::Suspect);
    }
}
