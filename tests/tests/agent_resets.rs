//! `onDeny: reset`: a door tells a caller at once that it is denied.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, json};
use tests::{
    frames::FAMILIES,
    lab::{Actor, Agent, AgentOptions, Errno, Lab, Routed, TwoHosts},
    scene::{BRIEF, LONG, Scene, policy},
};

/// The edge of somebody else.
const CLOSED: &str = "[{ from: other, to: db, ports: [tcp/1] }]";
const OPEN: &str = "[{ from: web, to: db, ports: [tcp/any] }]";

/// A policy in which only the door of `db` denies, with that answer.
fn only_the_door(lab: &Lab, answer: &str, rules: &str) -> String {
    let text = policy(lab, rules, "");
    text.replace("/web }", "/web }, egressMode: observe").replace("/db }", &format!("/db }}, onDeny: {answer}"))
}

/// All in the network that is the agent's.
fn on_the_host(rules: &str) -> Option<Scene> {
    let mut scene = Scene::open_by(|lab| only_the_door(lab, "reset", rules), &AgentOptions::default())?;
    scene.agent.stop();
    scene.agent.live_in(&scene.net);
    scene.agent.restart();
    Some(scene)
}

/// Connects; what is said, and whether that was before the kernel would have asked again.
fn connects(caller: &Actor, to: SocketAddr) -> (Result<(), Errno>, bool) {
    let began = Instant::now();
    let said = caller.tcp_connect(to, LONG).map(|socket| caller.close(socket));
    (said, began.elapsed() < Duration::from_secs(1))
}

#[test]
fn a_caller_on_the_same_host_is_refused_at_once_and_only_where_policy_says_so() {
    let Some(scene) = on_the_host(OPEN) else { return };
    let Scene { agent, lab, web, db, .. } = &scene;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (listener, to) = db.tcp_listen(address.parse().unwrap()).unwrap();
        agent.apply(&only_the_door(lab, "reset", OPEN));
        assert_eq!(connects(web, to).0, Ok(()));
        let callee = db.accept(listener).unwrap();
        db.close(callee);

        agent.apply(&only_the_door(lab, "reset", CLOSED));
        // Each call is answered, not only the first, which alone has a record.
        for _ in 0..20 {
            assert_eq!(connects(web, to), (Err(Errno::CONNREFUSED), true), "{address}");
        }
        agent.apply(&only_the_door(lab, "drop", CLOSED));
        assert_eq!(web.tcp_connect(to, BRIEF), Err(Errno::TIMEDOUT), "{address}");
        // Who is denied at its exit knows at once in either case.
        agent.apply(&policy(lab, CLOSED, "").replace("/db }", "/db }, onDeny: reset"));
        assert_eq!(connects(web, to), (Err(Errno::PERM), true), "{address}");
        // Whoever only looks lets everybody in.
        let audit = only_the_door(lab, "reset", CLOSED).replace("onDeny: reset", "onDeny: reset, ingressMode: audit");
        agent.apply(&audit);
        assert_eq!(connects(web, to).0, Ok(()));
        db.close(listener);
    }
    assert!(agent.balance().problems.is_empty(), "{:#?}", agent.status());
}

#[test]
fn a_dead_agent_answers_nobody_and_the_next_one_does() {
    let Some(mut scene) = on_the_host(CLOSED) else { return };
    let (listener, to) = scene.db.tcp_listen("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(connects(&scene.web, to), (Err(Errno::CONNREFUSED), true));
    scene.agent.kill();
    assert_eq!(scene.web.tcp_connect(to, BRIEF), Err(Errno::TIMEDOUT));
    assert_eq!(scene.db.accept_now(listener), Err(Errno::AGAIN));
    scene.agent.restart();
    assert_eq!(connects(&scene.web, to), (Err(Errno::CONNREFUSED), true));
}

#[test]
fn a_caller_in_a_network_of_its_own_is_refused_at_once() {
    let Some(net) = Routed::open() else { return };
    let text = |answer: &str, rules: &str| only_the_door(&net.lab, answer, rules);
    let mut agent = Agent::prepare(&net.lab, &text("reset", OPEN), &AgentOptions::default()).unwrap();
    agent.live_in(&net.host);
    agent.restart();
    agent.wait("both devices are guarded", |agent| agent.status().devices == 2);
    for family in FAMILIES {
        let (listener, to) = net.db.listen(family);
        agent.apply(&text("reset", OPEN));
        assert_eq!(connects(&net.web.actor, to).0, Ok(()), "{family:?}");
        agent.apply(&text("reset", CLOSED));
        for _ in 0..5 {
            assert_eq!(connects(&net.web.actor, to), (Err(Errno::CONNREFUSED), true), "{family:?}\n{}", agent.log());
        }
        agent.apply(&text("drop", CLOSED));
        assert_eq!(net.web.actor.tcp_connect(to, BRIEF), Err(Errno::TIMEDOUT), "{family:?}");
        net.db.actor.close(listener);
    }
    assert!(agent.balance().problems.is_empty(), "{:#?}", agent.status());
}

#[test]
fn a_caller_on_another_host_is_refused_at_once() {
    let Some(hosts) = TwoHosts::open() else { return };
    let scope = hosts.far.cgroup.path();
    let text = |rules: &str| {
        format!(
            "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: far }}\nspec:\n  trustDomain: \
             lab.example\n  defaults: {{ mode: enforce, onDeny: reset }}\n  workloads:\n    - {{ name: db, select: {{ \
             cgroup: {scope}/db }} }}\n    - {{ name: peer, select: {{ cgroup: {scope}/peer }} }}\n  externals:\n    - {{ \
             name: near, cidrs: [10.9.0.0/24, \"fd09::/64\"] }}\n    - {{ name: nobody, cidrs: [192.0.2.1/32] }}\n  \
             allow: {rules}\n"
        )
    };
    let more: Map<_, _> = [("scope", json!(scope)), ("guardHost", json!(true))]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect();
    let options = AgentOptions { more, ..AgentOptions::default() };
    let open = text("[{ from: near, to: db, ports: [tcp/any] }, { from: near, to: peer, ports: [tcp/any] }]");
    let closed = text("[{ from: nobody, to: db, ports: [tcp/1] }]");
    let mut agent = Agent::prepare(&hosts.lab, &open, &options).unwrap();
    agent.live_in(&hosts.far.net);
    agent.restart();
    agent.wait("the device is guarded", |agent| agent.status().devices == 1);
    let [_, peer] = hosts.residents();
    let caller = &hosts.near.party.actor;
    for family in FAMILIES {
        // Behind a device of the far host, and in its own network.
        for callee in [&hosts.far.party, &peer] {
            let (listener, to) = callee.listen(family);
            agent.apply(&open);
            assert_eq!(connects(caller, to).0, Ok(()), "{to}");
            agent.apply(&closed);
            for _ in 0..5 {
                assert_eq!(connects(caller, to), (Err(Errno::CONNREFUSED), true), "{to}\n{}", agent.log());
            }
            callee.actor.close(listener);
        }
    }
    thread::sleep(Duration::from_millis(10));
    assert!(agent.balance().problems.is_empty(), "{:#?}", agent.status());
}
