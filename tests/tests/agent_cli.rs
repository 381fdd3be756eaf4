//! What the command line says about a running agent, to a person who has just come, and what it ends with.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{fs, process::Output};

use agent_common::layout::{EdgeEntry, EdgeKey, IdentEntry, LAYOUT_VERSION, UidKey, names::map};
use eastwall::{datapath::Table, policy::time};
use serde_json::Value;
use tests::{
    lab::{AgentOptions, Errno},
    scene::{LONG, LOOPBACK, PORT, Scene},
};

const WEB_TO_DB: &str = "[{ id: web-db, from: web, to: db, ports: [pg] }]";

fn open() -> Option<Scene> {
    let with_a_name = |lab: &tests::lab::Lab| {
        let policy = tests::scene::policy(lab, WEB_TO_DB, "");
        let db = "- { name: db, ";
        assert!(policy.contains(db), "{policy}");
        policy.replace(db, &format!("{db}ports: {{ pg: tcp/{PORT} }}, "))
    };
    Scene::open_by(with_a_name, &AgentOptions::default())
}

/// Exit code, stdout, stderr.
fn said(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn json(scene: &Scene, words: &[&str]) -> Value {
    let (_, out, err) = said(scene.agent.cli(&[words, &["-o", "json"]].concat()));
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"))
}

#[test]
fn a_wrong_letter_ends_with_3_place_caret_and_suggestion_and_changes_nothing() {
    let Some(scene) = open() else { return };
    let connects = || {
        let (listener, to) = scene.db.tcp_listen((LOOPBACK[0], PORT).into()).unwrap();
        let result = scene.web.tcp_connect(to, LONG).map(|socket| scene.web.close(socket));
        scene.db.close(listener);
        result
    };
    assert_eq!(connects(), Ok(()), "the rule is in force");
    let before = scene.agent.status();
    let sound = fs::read_to_string(scene.agent.policy_file()).unwrap();
    let typo = sound.replace("from: web, to: db", "from: wbe, to: db");
    assert_ne!(typo, sound);
    let (line, column) = typo.lines().zip(1..).find_map(|(l, n)| Some((n, l.find("wbe")? + 1))).unwrap();
    let path = scene.agent.path("typo.yaml");
    fs::write(&path, &typo).unwrap();

    for verb in ["check", "apply"] {
        let (code, out, err) = said(scene.agent.cli(&["policy", verb, path.to_str().unwrap()]));
        assert_eq!(code, Some(3), "{verb}: {out}{err}");
        for expected in [
            "error[E03]: no workload, external or group is called `wbe`".to_owned(),
            format!("{}:{line}:{column}", path.display()),
            "^^^ did you mean `web`".to_owned(),
            "1 error in 1 file. Nothing was applied. More: eastwall explain E03".to_owned(),
        ] {
            assert!(out.contains(&expected), "{verb} does not say {expected}:\n{out}{err}");
        }
    }
    let after = scene.agent.status();
    assert_eq!((after.epoch, &after.policy_hash), (before.epoch, &before.policy_hash));
    assert_eq!(after.problems, Vec::<String>::new());
    assert_eq!(connects(), Ok(()), "the running policy is unchanged");

    // In the agent's own directory it is refused as well, by `reload` and by `status`.
    fs::write(scene.agent.policy_file(), &typo).unwrap();
    let (code, out, err) = said(scene.agent.cli(&["reload"]));
    assert!(code == Some(3) && err.contains("^^^ did you mean `web`"), "{code:?}: {out}{err}");
    let (code, out, _) = said(scene.agent.cli(&["status"]));
    assert!(code == Some(1) && out.contains("the last complete policy stays in force"), "{code:?}: {out}");
    assert_eq!(scene.agent.status().epoch, before.epoch);
    assert_eq!(connects(), Ok(()), "the last complete policy stays in force");
}

#[test]
fn unknown_names_end_with_2_and_say_what_was_meant() {
    let Some(scene) = open() else { return };
    let epoch = scene.agent.status().epoch;
    for (words, expected) in [
        (
            &["revoke", "web", "dbb", "--reason", "x"][..],
            "no workload, external or group is called `dbb`; did you mean `db`?",
        ),
        (&["revoke", "wbe", "db", "--reason", "x"], "did you mean `web`?"),
        (
            &["break-glass", "other", "db:pgg", "--reason", "x", "--for", "1m", "--yes"],
            "`db` has no port called `pgg`; it has `pg`",
        ),
        (&["break-glass", "other", "db:pg", "--reason", "x", "--for", "30h", "--yes"], "at most 24 h, not 108000 s"),
        (&["explain", "web", "db:pgg"], "it has `pg`"),
        (&["explain", "wbe", "db:pg"], "did you mean `web`?"),
        (&["flows", "--reason", "no-rul"], "a similar value exists: 'no-rule'"),
        (&["revoke", "--undo", "ov-9"], "`eastwall overrides` lists them"),
    ] {
        let (code, out, err) = said(scene.agent.cli(words));
        assert!(code == Some(2) && out.is_empty() && err.contains(expected), "{words:?}: {code:?} {out}{err}");
    }
    assert_eq!(scene.agent.status().epoch, epoch, "none of it changed anything");
}

#[test]
fn what_is_in_force_is_shown_with_times_that_a_clock_shows() {
    let Some(scene) = open() else { return };
    let (code, out, err) = said(scene.agent.cli(&["overrides"]));
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", "no override is in force\n"));
    let (code, out, _) = said(scene.agent.cli(&["reload"]));
    assert!(code == Some(0) && out.starts_with("nothing to do: this is the policy in force, epoch 1, "), "{out}");

    // `any` may stand in an override although nobody can be asked about it.
    let (code, out, err) = said(scene.agent.cli(&["revoke", "any", "db", "--reason", "INC-1", "--ticket", "T-7"]));
    assert!(code == Some(0) && out.contains("undo: eastwall revoke --undo ov-1"), "{out}{err}");
    let (listener, to) = scene.db.tcp_listen((LOOPBACK[0], PORT).into()).unwrap();
    assert_eq!(scene.web.tcp_connect(to, LONG), Err(Errno::PERM));
    scene.db.close(listener);
    let row = &json(&scene, &["overrides"])["overrides"][0];
    let expires = row["expires"].as_str().unwrap();
    assert!(expires.ends_with('Z') && expires.contains('T'), "{row:#}");
    let edges = json(&scene, &["map", "dump", "--name", "any"]);
    let edge = &edges["edges"][0];
    assert_eq!((&edge["action"], &edge["rule"]), (&"override-deny".into(), &"ov-1".into()), "{edges:#}");
    // The kernel counts whole seconds of its own clock.
    let seconds = |text: &str| time::parse(text).unwrap();
    assert!((seconds(edge["expires"].as_str().unwrap()) - seconds(expires)).abs() <= 2, "{edge:#}");
    let (_, out, _) = said(scene.agent.cli(&["overrides", "-o", "wide"]));
    assert!(out.lines().next().unwrap().ends_with("TICKET") && out.contains("T-7"), "{out}");
    let (_, out, _) = said(scene.agent.cli(&["identities", "-o", "wide", "--no-headers"]));
    assert!(out.lines().any(|line| line.ends_with("spiffe://lab.example/web")), "{out}");
    let (_, out, _) = said(scene.agent.cli(&["map", "dump"]));
    assert!(out.lines().next().unwrap().ends_with("HITS  LAST"), "{out}");
}

#[test]
fn a_policy_is_compared_with_the_one_in_force() {
    let Some(scene) = open() else { return };
    let path = scene.agent.path("next.yaml");
    let next = path.to_str().unwrap();
    let sound = fs::read_to_string(scene.agent.policy_file()).unwrap();
    fs::write(&path, &sound).unwrap();
    let same = said(scene.agent.cli(&["policy", "diff", next]));
    assert_eq!(same, (Some(0), "no difference\n".to_owned(), String::new()));
    let (code, out, _) = said(scene.agent.cli(&["policy", "show"]));
    assert!(code == Some(0) && out.contains("allow   web   db  pg     web-db"), "{out}");
    fs::write(&path, sound.replace("from: web, to: db", "from: other, to: db")).unwrap();
    let (code, out, _) = said(scene.agent.cli(&["policy", "diff", next]));
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("+ other -> db:pg  allow by rule web-db, was deny by default\n"), "{out}");
    assert!(out.contains("- web -> db:pg    deny by default, was allow by rule web-db\n"), "{out}");
    assert_eq!(said(scene.agent.cli(&["policy", "apply", next])).0, Some(0));
    assert_eq!(said(scene.agent.cli(&["policy", "diff", next])).0, Some(0));
    said(scene.agent.cli(&["revoke", "other", "db", "--reason", "x"]));
    let (code, _, err) = said(scene.agent.cli(&["policy", "diff", next]));
    assert!(code == Some(0) && err.contains("1 override in force"), "{code:?} {err}");
}

#[test]
fn denials_that_were_are_shown_to_who_comes_later_and_can_be_filtered() {
    let Some(scene) = open() else { return };
    let (code, out, err) = said(scene.agent.cli(&["flows"]));
    assert!(
        code == Some(0) && out.is_empty() && err.contains("they are in the events file") | err.contains("no denial"),
        "{out}{err}"
    );
    let (_listener, db) = scene.db.tcp_listen((LOOPBACK[0], PORT).into()).unwrap();
    let (_elsewhere, wrong) = scene.db.tcp_listen((LOOPBACK[0], PORT + 1).into()).unwrap();
    assert_eq!(scene.other.tcp_connect(db, LONG), Err(Errno::PERM));
    assert_eq!(scene.web.tcp_connect(wrong, LONG), Err(Errno::PERM));
    let denial = |from: &'static str| move |e: &Value| e.pointer("/src_endpoint/svc_name") == Some(&from.into());
    scene.agent.event("the first denial", denial("other"));
    scene.agent.event("the second denial", denial("web"));

    let callers = |filters: &[&str]| -> Vec<String> {
        let document = json(&scene, &[&["flows"], filters].concat());
        assert_eq!(document["schemaVersion"], 1);
        let flows = document["flows"].as_array().unwrap().iter();
        flows.map(|flow| flow["src_endpoint"]["svc_name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(callers(&[]), ["other", "web"]);
    let pg = format!("tcp/{PORT}");
    for (filters, expected) in [
        (&["--denied", "--from", "other"][..], &["other"][..]),
        (&["--from", "other,web"], &["other", "web"]),
        (&["--not-from", "other"], &["web"]),
        (&["--to", "db"], &["other", "web"]),
        (&["--to", "spiffe://lab.example/db"], &["other", "web"]),
        (&["--to", "web"], &[]),
        (&["--port", pg.as_str()], &["other"]),
        (&["--not-port", pg.as_str()], &["web"]),
        (&["--port", "tcp"], &["other", "web"]),
        (&["--reason", "no-rule", "--rule", "default", "--mode", "enforce"], &["other", "web"]),
        (&["--not-reason", "no-rule"], &[]),
        (&["--not-rule", "default"], &[]),
        (&["--not-mode", "audit"], &["other", "web"]),
        (&["--not-to", "db"], &[]),
        (&["--since", "1h"], &["other", "web"]),
        (&["--since", "0s"], &[]),
        (&["--count", "1"], &["web"]),
    ] {
        assert_eq!(callers(filters), expected, "{filters:?}");
    }
    let (code, out, err) = said(scene.agent.cli(&["flows", "--from", "other"]));
    let lines: Vec<&str> = out.lines().collect();
    assert!(code == Some(0) && lines.len() == 2 && lines[0].starts_with("TIME") && err.is_empty(), "{out}{err}");
    assert_eq!(lines[0].find("PORT"), lines[1].find("tcp/"), "{out}");
    let (_, out, _) = said(scene.agent.cli(&["flows", "--no-headers", "--count", "1"]));
    assert_eq!(out.lines().count(), 1, "{out}");
    // What was comes first, and no moment lies between it and what comes.
    let (code, out, err) =
        said(scene.agent.cli(&["flows", "--follow", "--since", "1h", "--count", "2", "-o", "jsonl"]));
    assert!(code == Some(0) && out.lines().count() == 2, "{out}{err}");
}

#[test]
fn what_somebody_changed_in_the_maps_is_found() {
    let Some(scene) = open() else { return };
    let (code, out, err) = said(scene.agent.cli(&["map", "check"]));
    assert!(code == Some(0) && out.starts_with("the kernel holds what the agent believes: "), "{out}{err}");
    let raw = json(&scene, &["map", "dump", "--raw"]);
    let count = |name: &str| raw["elements"].as_array().unwrap().iter().filter(|e| e["map"] == name).count();
    assert_eq!((count("epoch"), count("settings"), count("edges")), (1, 1, 1), "{raw:#}");
    assert!(count("cgrp_ident") >= 3, "{raw:#}");

    // Who is who by owner is in a map that is written to all the time.
    let path = scene.cgroups[0].path();
    let by_owner = format!("  workloads:\n    - {{ name: four, select: {{ cgroup: {path}, uid: [4] }} }}\n");
    let sound = fs::read_to_string(scene.agent.policy_file()).unwrap();
    scene.agent.apply(&sound.replacen("  workloads:\n", &by_owner, 1));
    let maps = scene.agent.path(format!("bpf/eastwall/v{LAYOUT_VERSION}/maps"));
    let side = scene.agent.status().epoch & 1;
    scene.agent.inside(|| {
        let owners: Table<UidKey, IdentEntry> = Table::open(&maps.join(map::UID_IDENT), map::UID_IDENT).unwrap();
        assert!(owners.remove(&owners.keys().unwrap()[0]).unwrap(), "four has a label");
        let sides: Table<u32, u32> = Table::open(&maps.join(map::EDGES), map::EDGES).unwrap();
        let edges: Table<EdgeKey, EdgeEntry> = sides.inner(&side, map::EDGES).unwrap().unwrap();
        let key = edges.keys().unwrap()[0];
        assert!(edges.remove(&key).is_err(), "rules in force are closed to writers");
    });
    let (code, out, err) = said(scene.agent.cli(&["map", "check"]));
    assert_eq!(code, Some(1), "{out}{err}");
    let web = scene.cgroups[0].id();
    assert!(out.contains(&format!("uid_ident: cgroup {web}, uid 4 is not in the kernel\n")), "{out}");
    assert!(out.contains("1 difference in "), "{out}");
    let document = json(&scene, &["map", "check"]);
    assert_eq!((&document["same"], document["differences"].as_array().unwrap().len()), (&false.into(), 1));
    // As it says: whatever changes the policy writes all of it anew.
    said(scene.agent.cli(&["revoke", "other", "db", "--reason", "x"]));
    assert_eq!(said(scene.agent.cli(&["map", "check"])).0, Some(0));
}
