//! The built-in `dns` of the agent: whom agent.yaml and resolv.conf name, and what the command line says about it.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Output,
};

use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;
use tests::{
    lab::{Actor, AgentOptions, Errno, Family, Kind, Socket},
    scene::{LONG, LOOPBACK, Scene, document},
};

/// Nothing for `web`; a policy without any rule is not valid.
const CLOSED: &str = "[{ from: db, to: other, ports: [tcp/1] }]";

fn options(more: Value) -> AgentOptions {
    let Value::Object(more) = more else { return AgentOptions { more: Map::new(), ..AgentOptions::default() } };
    AgentOptions { more, ..AgentOptions::default() }
}

/// `db` as a resolver.
fn serve(scene: &Scene, addr: IpAddr, port: u16) -> (Socket, Socket, SocketAddr) {
    let at = SocketAddr::new(addr, port);
    (scene.db.udp_bind(at).unwrap().0, scene.db.tcp_listen(at).unwrap().0, at)
}

/// Asks by UDP and TCP, and gets an answer by both; leaves the connection open.
fn ask(scene: &Scene, from: &Actor, (udp, tcp, at): (Socket, Socket, SocketAddr)) -> (Socket, Socket) {
    let socket = from.socket(Family::of(at), Kind::Datagram, 0).unwrap();
    from.send_to(socket, at, b"query").unwrap();
    let got = scene.db.receive(udp, 1).unwrap();
    assert_eq!(got[0].data, b"query");
    scene.db.send_to(udp, got[0].from.unwrap(), b"answer").unwrap();
    assert_eq!(from.receive(socket, 1).unwrap()[0].data, b"answer");
    from.close(socket);
    let caller = from.tcp_connect(at, LONG).unwrap();
    (caller, scene.db.accept(tcp).unwrap())
}

fn refused(from: &Actor, at: SocketAddr) {
    let socket = from.socket(Family::of(at), Kind::Datagram, 0).unwrap();
    assert_eq!(from.send_to(socket, at, b"query"), Err(Errno::PERM), "udp {at}");
    from.close(socket);
    assert_eq!(from.tcp_connect(at, LONG), Err(Errno::PERM), "tcp {at}");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn resolvers_that_the_settings_name_are_asked_without_a_rule_and_every_command_says_so() {
    let named = options(json!({"dnsResolvers": ["127.0.0.1", "::1"]}));
    let Some(scene) = Scene::open(CLOSED, &named) else { return };
    for addr in LOOPBACK {
        let resolver = serve(&scene, addr, 53);
        ask(&scene, &scene.web, resolver);
        let (_, _, elsewhere) = serve(&scene, addr, 5_353);
        refused(&scene.web, elsewhere);
    }
    assert_eq!(scene.agent.status().resolvers, LOOPBACK);
    assert!(text(&scene.agent.cli(&["status"])).contains("built-in: 127.0.0.1, ::1"));
    let effective = text(&scene.agent.cli(&["policy", "show", "--effective"]));
    assert!(effective.contains("any workload to 127.0.0.1, ::1, udp and tcp 53"), "{effective}");
    for (asked, allowed) in [
        ("ip/127.0.0.1:udp/53", true),
        ("ip/::1:tcp/53", true),
        ("ip/127.0.0.1:tcp/54", false),
        ("ip/127.0.0.2:udp/53", false),
        ("db:udp/53", false),
    ] {
        let output = scene.agent.cli(&["explain", "web", asked]);
        assert_eq!(output.status.code(), Some(i32::from(!allowed)), "{asked}: {}", text(&output));
        assert_eq!(text(&output).contains("built-in dns"), allowed, "{asked}: {}", text(&output));
    }
    // Of all ports exactly one is the built-in's.
    let answers = document(&scene.agent.cli(&["explain", "web", "ip/127.0.0.1:udp/any", "-o", "json"]));
    let answers = answers["answers"].as_array().unwrap().clone();
    let by_dns: Vec<&Value> = answers.iter().filter(|a| a["builtIn"] == "dns").map(|a| &a["ports"]).collect();
    assert_eq!(by_dns, ["udp/53"], "{answers:#?}");
    assert!(scene.agent.cli(&["map", "check"]).status.success());

    // Below every rule.
    let deny = "[{ from: web, to: db, ports: [tcp/1] }]\n  deny: [{ from: web, to: db }]";
    scene.rules(deny);
    for addr in LOOPBACK {
        refused(&scene.web, SocketAddr::new(addr, 53));
    }
    let status = scene.agent.balance();
    assert_eq!((status.lost, status.problems), (0, vec![]));
}

#[test]
fn the_resolvers_of_the_host_are_followed_and_a_line_that_is_none_is_a_problem() {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), "nameserver 10.9.9.9\n").unwrap();
    let from_file = options(json!({"resolvConf": file.path()}));
    let Some(mut scene) = Scene::open(CLOSED, &from_file) else { return };
    let [v4, v6] = LOOPBACK.map(|addr| serve(&scene, addr, 53));
    refused(&scene.web, v4.2);
    let now = |scene: &mut Scene, wanted: &[&str]| {
        let wanted: Vec<IpAddr> = wanted.iter().map(|a| a.parse().unwrap()).collect();
        scene.agent.wait("the resolvers are followed", |agent| agent.status().resolvers == wanted);
    };
    fs::write(file.path(), "search example\nnameserver 127.0.0.1\nnameserver ::1\n").unwrap();
    now(&mut scene, &["127.0.0.1", "::1"]);
    let open = ask(&scene, &scene.web, v4);
    ask(&scene, &scene.web, v6);

    fs::write(file.path(), "nameserver 127.0.0.x\nnameserver ::1\n").unwrap();
    now(&mut scene, &["::1"]);
    refused(&scene.web, v4.2);
    assert!(scene.web.receive(open.0, 1).is_err(), "the open connection is cut");
    ask(&scene, &scene.web, v6);
    let problems = scene.agent.status().problems;
    let wanted = format!("{}:1: `127.0.0.x` is no address of a resolver", file.path().display());
    assert!(problems.len() == 1 && problems[0].contains(&wanted), "{problems:?}");

    // What cannot be read leaves those in force.
    fs::remove_file(file.path()).unwrap();
    scene.agent.wait("the loss is told", |agent| agent.status().problems[0].contains("lets workloads ask ::1"));
    ask(&scene, &scene.web, v6);
    scene.agent.change(&["revoke", "web", "db", "--reason", "test"]);
    refused(&scene.web, v6.2);
}

#[test]
fn switched_off_no_resolver_is_asked_without_a_rule() {
    let off = options(json!({"dns": false, "dnsResolvers": ["127.0.0.1", "::1"]}));
    let Some(scene) = Scene::open(CLOSED, &off) else { return };
    let resolvers = LOOPBACK.map(|addr| serve(&scene, addr, 53));
    for resolver in resolvers {
        refused(&scene.web, resolver.2);
    }
    assert!(text(&scene.agent.cli(&["policy", "show", "--effective"])).contains("off, or the node names no resolver"));
    scene.rules("[{ from: web, to: db, ports: [udp/53, tcp/53] }]");
    for resolver in resolvers {
        ask(&scene, &scene.web, resolver);
    }
}
