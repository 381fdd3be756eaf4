//! What eastwall itself did, by its own records.

use std::net::IpAddr;

use serde_json::Value;

use super::{AgentSaid, Clue, Tuple, Weight};

const LAYER: &str = "eastwall";

/// What the agent knows of the flow.
pub(super) fn look(tuple: &Tuple, said: &AgentSaid) -> Vec<Clue> {
    let mut clues: Vec<Clue> = said.denials.iter().filter_map(|record| clue(tuple, record)).collect();
    let was_denied = clues.iter().any(|clue| clue.weight == Weight::Evidence);
    if let Some(why) = &said.silent {
        clues.push(Clue::new(Weight::Unknown, LAYER, why.clone()));
    }
    match &said.policy {
        Some((true, text)) => clues.push(Clue::new(Weight::Cleared, LAYER, format!("policy in force: {text}"))),
        Some((false, text)) => {
            let weight = if was_denied { Weight::Evidence } else { Weight::Suspect };
            let without = if was_denied { "" } else { "; no such denial is among the newest" };
            clues.push(Clue::new(weight, LAYER, format!("policy in force: {text}{without}")));
        }
        None => {}
    }
    if clues.is_empty() {
        clues.push(Clue::new(Weight::Cleared, LAYER, "none of the newest denials is of this flow"));
    }
    clues
}

/// What a record says, if it is about the flow or its replies.
fn clue(tuple: &Tuple, record: &Value) -> Option<Clue> {
    let end = |name: &str| {
        let end = &record[name];
        let addr: IpAddr = end["ip"].as_str()?.parse().ok()?;
        Some((addr, end["port"].as_u64().and_then(|port| u16::try_from(port).ok())))
    };
    let (source, target) = (end("src_endpoint")?, end("dst_endpoint")?);
    if record["connection_info"]["protocol_num"].as_u64() != Some(u64::from(tuple.proto)) {
        return None;
    }
    let same = |(addr, port): (IpAddr, Option<u16>), wanted: IpAddr, wanted_port: Option<u16>| {
        addr == wanted && (wanted_port.is_none() || port.is_none() || port == wanted_port)
    };
    let forth = same(source, tuple.from, tuple.from_port) && same(target, tuple.to, tuple.to_port);
    let back = same(target, tuple.from, tuple.from_port) && same(source, tuple.to, tuple.to_port);
    if !forth && !back {
        return None;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let when = record["time"].as_i64().map(|ms| crate::policy::time::format(ms / 1000)).unwrap_or_default();
    let rest = &record["unmapped"]["eastwall"];
    let hook = rest["hook"].as_str().map(|hook| format!(" at {hook}")).unwrap_or_default();
    let passed = record["metadata"]["event_code"] == "would-deny";
    let found = format!(
        "{when}{hook}: {} (rule {}; {})",
        text(&record["message"]),
        record["firewall_rule"]["uid"].as_str().unwrap_or("unknown"),
        text(&record["status_detail"])
    );
    Some(Clue::new(if passed { Weight::Cleared } else { Weight::Evidence }, LAYER, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = include_str!("../../../tests/samples/ocsf-deny-first.json");

    fn look_for(from: &str, to: &str) -> Vec<Clue> {
        let said = AgentSaid { denials: vec![serde_json::from_str(RECORD).unwrap()], ..AgentSaid::default() };
        look(&Tuple::parse(from, to).unwrap(), &said)
    }

    #[test]
    fn a_denial_of_the_flow_is_evidence_and_of_another_is_none() {
        let record: Value = serde_json::from_str(RECORD).unwrap();
        let text = |end: &str, field: &str| record[end][field].to_string().replace('"', "");
        let (from, to) = (text("src_endpoint", "ip"), text("dst_endpoint", "ip"));
        let port = text("dst_endpoint", "port");
        let clues = look_for(&from, &format!("{to}:tcp/{port}"));
        assert_eq!((clues.len(), clues[0].weight), (1, Weight::Evidence), "{clues:#?}");
        assert!(clues[0].found.contains("no-rule"), "{clues:#?}");
        for other in [format!("{to}:udp/{port}"), format!("{to}:tcp/1"), format!("10.99.0.1:tcp/{port}")] {
            assert_eq!(look_for(&from, &other)[0].weight, Weight::Cleared, "{other}");
        }
    }
}
