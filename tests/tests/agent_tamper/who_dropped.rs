//! `eastwall doctor --who-dropped`, with every layer in turn as the one that drops.

use std::{fs, os::fd::AsFd as _};

use serde_json::json;
use tests::{
    bpf::{self, Kind, TCX_EGRESS},
    filters::{self, Filter, Place},
    lab::Family,
    scene::{BRIEF, document, policy},
};

use super::stage::{CLOSED, Stage};

#[test]
fn who_dropped_a_flow_is_told_from_who_might_have() {
    let Some(stage) = Stage::open() else { return };
    let (receiver, to) = stage.net.db.udp(Family::V4);
    let ask = |to: &str| {
        let output = stage.cli(&["doctor", "-o", "json", "--who-dropped", "10.9.0.1", to]);
        let clues = document(&output)["clues"].as_array().unwrap().clone();
        let of = |weight: &str| -> Vec<String> {
            let of = clues.iter().filter(|clue| clue["weight"] == json!(weight));
            of.map(|clue| format!("{}: {}", clue["layer"].as_str().unwrap(), clue["found"].as_str().unwrap())).collect()
        };
        (of("evidence"), of("suspect"), of("cleared"), output.status.code())
    };
    let target = format!("10.9.1.2:udp/{}", to.port());
    let has = |clues: &[String], layer: &str, text: &str| {
        assert!(clues.iter().any(|c| c.starts_with(layer) && c.contains(text)), "no `{layer}: {text}` in {clues:#?}");
    };
    let (evidence, _, cleared, code) = ask(&target);
    assert_eq!((evidence, code), (vec![], Some(0)), "it is allowed, routed and heard");
    has(&cleared, "programs", "no program of XDP at to-");

    // A program behind ours, a route, a switch of the kernel, nobody who listens: each is found by itself.
    let drops = bpf::load(Kind::SchedCls, 0, 2, "intruder").unwrap();
    let link = stage.intrude(drops.as_fd(), 1, TCX_EGRESS, false).unwrap();
    let (evidence, suspects, ..) = ask(&target);
    assert_eq!(evidence, Vec::<String>::new(), "what a program does is not known");
    has(&suspects, "programs", "to-db egress: ");
    has(&suspects, "programs", "intruder, behind");
    drop(link);
    // It is asked behind ours, by TCX or as a filter.
    let filter =
        stage.net.host.run(|| Filter::add(drops.as_fd(), stage.indices[1], TCX_EGRESS, Place::Behind)).unwrap();
    let (_, suspects, ..) = ask(&target);
    has(&suspects, "programs", "to-db egress: ");
    has(&suspects, "programs", "intruder, behind");
    drop(filter);
    let add = "filter add dev to-db egress pref 9 protocol all matchall action drop";
    match stage.net.host.run(|| filters::tc(add)) {
        Ok(_) => {
            has(&ask(&target).1, "programs", "to-db egress: a filter matchall, behind");
            stage.tc("filter del dev to-db egress pref 9");
        }
        Err(e) => {
            assert!(format!("{e:#}").contains("classifier not found"), "{e:#}");
            eprintln!("SKIP filters of another kind: this kernel has none");
        }
    }
    // By XDP it is asked before ours, which never see what it drops.
    let drops = bpf::load(Kind::Xdp, 0, 1, "intruder").unwrap();
    let link = stage.net.host.run(|| bpf::attach_xdp(drops.as_fd(), stage.indices[0])).unwrap();
    let (sender, _) = stage.net.web.udp(Family::V4);
    stage.net.web.actor.send_to(sender, to, b"dropped").unwrap();
    assert_eq!(stage.net.db.actor.receive_for(receiver, 1, BRIEF), Ok(vec![]));
    let (evidence, suspects, ..) = ask(&target);
    assert_eq!(evidence, Vec::<String>::new(), "what a program does is not known");
    has(&suspects, "programs", "to-web XDP, generic: ");
    has(&suspects, "programs", "intruder, BEFORE");
    drop(link);
    stage.net.web.actor.send_to(sender, to, b"passes").unwrap();
    assert_eq!(stage.net.db.actor.receive(receiver, 1).unwrap()[0].data, b"passes");
    stage.net.web.actor.close(sender);
    for (kind, said) in [("unreachable", "`unreachable`"), ("prohibit", "`prohibit`"), ("blackhole", "`blackhole`")] {
        stage.net.host.ip(&format!("route add {kind} 10.9.1.2/32"));
        let (evidence, _, _, code) = ask(&target);
        has(&evidence, "routing", said);
        assert_eq!(code, Some(1));
        stage.net.host.ip(&format!("route del {kind} 10.9.1.2/32"));
    }
    stage.net.host.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0")).unwrap();
    has(&ask(&target).0, "routing", "forwards no IPv4");
    stage.net.host.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
    has(&ask("10.9.1.2:tcp/9").0, "socket", "no socket listens at 10.9.1.2 tcp/9");

    // Our own denial, by its record.
    stage.agent.apply(&policy(&stage.net.lab, CLOSED, ""));
    let (_, suspects, ..) = ask(&target);
    has(&suspects, "eastwall", "DENY");
    let (sender, _) = stage.net.web.udp(Family::V4);
    let _ = stage.net.web.actor.send_to(sender, to, b"denied");
    stage.agent.event("a denial", |e| e["metadata"]["event_code"] == json!("deny"));
    let (evidence, _, _, code) = ask(&target);
    has(&evidence, "eastwall", "no-rule");
    assert_eq!(code, Some(1));
    let wrong = stage.cli(&["doctor", "--who-dropped", "web", &target]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("`web` is no address"), "{wrong:?}");
}
