//! What the command line says, byte for byte, and the exit codes that scripts depend on.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

const SHOP: &str = "apiVersion: eastwall.dev/v1alpha1
kind: Policy
metadata: { name: shop }
spec:
  trustDomain: shop.example.com
  defaults: { mode: audit, unknownMode: enforce }
  workloads:
    - { name: web, select: { systemd: { unit: web.service } }, ports: { http: tcp/8080 } }
    - { name: checkout, select: { systemd: { unit: checkout.service } } }
    - { name: payments, select: { cgroup: /pay }, ports: { grpc: tcp/8443 }, ingressMode: enforce }
  allow:
    - { id: pay, from: checkout, to: payments, ports: [grpc], owner: team-payments }
    - { id: window, from: web, to: payments, ports: [grpc], owner: me, expires: 2036-01-01T00:00:00Z }
  tests:
    - { to: payments:grpc, only: [checkout, web] }
    - { to: payments:grpc, only: [checkout], at: 2036-01-01T00:00:00Z }
";

struct Shop(tempfile::TempDir);

struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Shop {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("shop.yaml"), text).unwrap();
        Self(directory)
    }

    fn file(&self, name: &str, text: &str) -> &Self {
        fs::write(self.0.path().join(name), text).unwrap();
        self
    }

    fn run(&self, args: &[&str]) -> Answer {
        run(self.0.path(), args)
    }
}

fn run(directory: &Path, args: &[&str]) -> Answer {
    let command = Command::new(env!("CARGO_BIN_EXE_eastwall"))
        .args(args)
        .current_dir(directory)
        .env("COLUMNS", "100")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Answer { code: command.status.code().unwrap(), out: text(command.stdout), err: text(command.stderr) }
}

fn json(answer: &Answer) -> Value {
    serde_json::from_str(&answer.out).unwrap_or_else(|error| panic!("{error}: {}{}", answer.out, answer.err))
}

#[test]
fn a_wrong_letter_ends_with_3_place_caret_and_suggestion() {
    let shop = Shop::new(&SHOP.replace("from: checkout", "from: chekout"));
    let expected = "error[E03]: no workload, external or group is called `chekout`
  --> shop.yaml:12:24
   |
12 |     - { id: pay, from: chekout, to: payments, ports: [grpc], owner: team-payments }
   |                        ^^^^^^^ did you mean `checkout` (shop.yaml:9:15)?
1 error in 1 file. Nothing was applied. More: eastwall explain E03
";
    for command in [
        vec!["policy", "check", "shop.yaml"],
        vec!["policy", "test", "shop.yaml"],
        vec!["policy", "show", "shop.yaml"],
        vec!["explain", "web", "payments:grpc", "--offline", "--policy", "shop.yaml"],
    ] {
        let answer = shop.run(&command);
        assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (3, expected, ""), "{command:?}");
    }
    let answer = shop.run(&["policy", "check", "shop.yaml", "-o", "json"]);
    let document = json(&answer);
    assert_eq!((answer.code, &document["schemaVersion"], &document["ok"]), (3, &1.into(), &false.into()));
    let finding = &document["findings"][0];
    assert_eq!((&finding["code"], &finding["line"], &finding["column"]), (&"E03".into(), &12.into(), &24.into()));
    assert_eq!((&finding["endColumn"], &finding["suggestion"]), (&31.into(), &"checkout".into()));
}

#[test]
fn a_sound_policy_ends_with_0_in_every_form() {
    let shop = Shop::new(SHOP);
    let answer = shop.run(&["policy", "check", "."]);
    let hash = json(&shop.run(&["policy", "check", ".", "-o", "json"]))["policy"]["hash"].as_str().unwrap().to_owned();
    assert_eq!(
        answer.out,
        format!("ok  shop {hash}  1 file, 2 rules, 2 edges, tests 2/2, 0 warnings\n"),
        "{}",
        answer.err
    );
    assert_eq!(answer.code, 0);
    let quiet = shop.run(&["policy", "check", ".", "-q"]);
    assert_eq!((quiet.code, quiet.out.as_str()), (0, ""));
    let yaml = shop.run(&["policy", "check", ".", "-o", "yaml"]);
    assert!(yaml.code == 0 && yaml.out.contains("schemaVersion: 1\n"), "{}", yaml.out);
}

#[test]
fn warnings_end_with_1_only_when_they_count() {
    let shop = Shop::new(&SHOP.replace(", owner: me", ""));
    let answer = shop.run(&["policy", "check", "shop.yaml"]);
    assert!(answer.code == 0 && answer.out.contains("warning[W03]: 1 of 2 rules"), "{}", answer.out);
    assert_eq!(shop.run(&["policy", "check", "--strict", "shop.yaml"]).code, 1);
    let answer = shop.run(&["policy", "check", "--require", "owner,ticket", "shop.yaml"]);
    assert!(answer.code == 3 && answer.out.contains("rule `pay` lacks ticket"), "{}", answer.out);
    let lines = shop.run(&["policy", "check", "-o", "jsonl", "shop.yaml"]).out;
    let line: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&line["code"], &line["severity"]), (&"W03".into(), &"warning".into()));
    let github = shop.run(&["policy", "check", "--format", "github", "shop.yaml"]).out;
    assert_eq!(
        github,
        "::warning file=shop.yaml,line=13,col=7,endColumn=8,title=W03::1 of 2 rules have neither owner nor reason nor ticket%0Athe first\n"
    );
}

#[test]
fn an_expired_rule_is_refused_unless_it_may_stay() {
    let shop = Shop::new(SHOP);
    let at = ["policy", "check", "shop.yaml", "--at", "2036-01-01T00:00:00Z"];
    let answer = shop.run(&at);
    assert!(answer.code == 3 && answer.out.contains("error[E10]: rule `window` expired at"), "{}", answer.out);
    // Then only the test that names no moment is left to fail, and a failed test is an answer.
    let answer = shop.run(&[&at[..], &["--allow-expired"]].concat());
    assert_eq!(answer.code, 1, "{}", answer.out);
    assert!(answer.out.contains("error[E14]: test failed: payments:grpc only [checkout, web]"), "{}", answer.out);
    assert_eq!(shop.run(&["policy", "check", "shop.yaml", "--at", "2035-12-31T23:59:59Z"]).code, 0);
}

#[test]
fn a_failed_test_ends_with_1_and_names_caller_rule_and_place() {
    let shop = Shop::new(&SHOP.replace("only: [checkout, web]", "only: [checkout]"));
    shop.file("b.yaml", "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: b }\nspec:\n  deny:\n    - { from: web, to: checkout }\n");
    let answer = shop.run(&["policy", "test", "."]);
    assert_eq!(
        answer.out,
        "FAIL  ./shop.yaml:15  payments:grpc only [checkout]
        also allowed: web, by rule window (./shop.yaml:13:7)
1 passed, 1 failed
"
    );
    assert_eq!(answer.code, 1);
    let document = json(&shop.run(&["policy", "test", ".", "-o", "json"]));
    assert_eq!((&document["passed"], &document["failed"]), (&1.into(), &1.into()));
    assert_eq!(shop.run(&["policy", "check", "."]).code, 1);
    assert_eq!(Shop::new(SHOP).run(&["policy", "test", "."]).out, "2 passed, 0 failed\n");
}

#[test]
fn rules_and_edges_are_shown_as_tables_and_data() {
    let shop = Shop::new(SHOP);
    assert_eq!(
        shop.run(&["policy", "show", "shop.yaml"]).out,
        "\
ACTION  FROM      TO        PORTS  RULE    EXPIRES               PLACE
allow   checkout  payments  grpc   pay     never                 shop.yaml:12
allow   web       payments  grpc   window  2036-01-01T00:00:00Z  shop.yaml:13
"
    );
    let edges = shop.run(&["policy", "show", "--effective", "--no-headers", "shop.yaml"]).out;
    assert!(edges.starts_with("checkout  payments  tcp/8443"), "{edges}");
    assert!(edges.contains("builtin:self"), "{edges}");
    assert!(edges.contains("any workload to the resolvers of its node, udp and tcp 53"), "{edges}");
    let document = json(&shop.run(&["policy", "show", "--effective", "shop.yaml", "-o", "json"]));
    assert_eq!(document["edges"][1]["expires"], "2036-01-01T00:00:00Z");
    let lines = shop.run(&["policy", "show", "shop.yaml", "-o", "jsonl"]).out;
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn a_flow_is_explained_and_a_denial_ends_with_1() {
    let shop = Shop::new(SHOP);
    let explain = |question: &[&str]| {
        shop.run(
            &[&["explain"], question, &["--offline", "--policy", "shop.yaml", "--at", "2035-01-01T00:00:00Z"]].concat(),
        )
    };
    let answer = explain(&["web", "checkout:tcp/8443"]);
    assert_eq!(
        answer.out,
        "DENY  web -> checkout tcp/8443    at both ends
  exit  web (audit)                  default: no allow rule from `web` to `checkout`
  door  checkout (audit)             default: no allow rule from `web` to `checkout`
  near  window: web -> payments:grpc    shop.yaml:13:7
        it differs in `to`: `payments`, not `checkout`
  the packet passes all the same: no end enforces
  to open it: - { from: web, to: checkout, ports: [tcp/8443] }
"
    );
    assert_eq!(answer.code, 1);
    assert_eq!(explain(&["web", "payments:grpc"]).code, 0);
    let answer = explain(&["wbe", "payments:grpc"]);
    assert_eq!(answer.code, 2);
    assert_eq!(answer.err, "eastwall: no workload, external or group is called `wbe`; did you mean `web`?\n");
    assert_eq!(explain(&["web", "payments:pg"]).code, 2);
    assert_eq!(explain(&["web", "payments"]).code, 2);
    let late = shop.run(&[
        "explain",
        "web",
        "payments:grpc",
        "--policy",
        "shop.yaml",
        "--at",
        "2036-01-01T00:00:00Z",
        "-o",
        "json",
    ]);
    let document = json(&late);
    assert_eq!((late.code, &document["answers"][0]["reason"]), (1, &"expired".into()));
}

#[test]
fn every_code_is_explained() {
    let here = Path::new(".");
    let answer = run(here, &["explain", "e03"]);
    assert!(answer.code == 0 && answer.out.starts_with("E03  unknown name\n\n"), "{}", answer.out);
    assert!(answer.out.lines().all(|line| line.chars().count() <= 88), "{}", answer.out);
    assert_eq!(run(here, &["explain", "E99"]).code, 2);
    let nobody = ["explain", "web", "db:pg", "--socket", "/nonexistent/agent.sock"];
    assert_eq!(run(here, &nobody).code, 4, "no agent answers there");
}

#[test]
fn wrong_usage_ends_with_2_and_bad_content_with_3() {
    let shop = Shop::new(SHOP);
    for args in [
        vec!["policy"],
        vec!["policy", "check"],
        vec!["policy", "check", "none.yaml"],
        vec!["policy", "chekc", "shop.yaml"],
        vec!["policy", "check", "shop.yaml", "-o", "xml"],
        vec!["policy", "check", "shop.yaml", "--at", "noon"],
        vec!["man", "no-such-command"],
    ] {
        let answer = shop.run(&args);
        assert!(answer.code == 2 && answer.out.is_empty() && !answer.err.is_empty(), "{args:?}: {}", answer.out);
    }
    fs::write(shop.0.path().join("bytes.yaml"), [0xff, 0xfe]).unwrap();
    assert_eq!(shop.run(&["policy", "check", "bytes.yaml"]).code, 3);
    shop.file("empty.yaml", "");
    assert_eq!(shop.run(&["policy", "check", "empty.yaml"]).code, 3);
    let none = tempfile::tempdir().unwrap();
    assert_eq!(run(none.path(), &["policy", "check", "."]).code, 3);
}

#[test]
fn two_policies_are_compared_by_what_they_decide() {
    let shop = Shop::new(SHOP);
    shop.file(
        "same.yaml",
        &SHOP.replace("ports: [grpc], owner: team-payments", "ports: [tcp/8443], owner: team-payments"),
    );
    let same = shop.run(&["policy", "diff", "shop.yaml", "same.yaml"]);
    assert_eq!((same.code, same.out.as_str()), (0, "no difference\n"), "{}", same.err);
    let new =
        SHOP.replace("{ id: pay, from: checkout,", "{ id: pay, from: web,").replace("mode: audit", "mode: enforce");
    shop.file("new.yaml", &new.replace("tests:", "x-tests:"));
    let at = ["--at", "2035-01-01T00:00:00Z"];
    let answer = shop.run(&[&["policy", "diff", "shop.yaml", "new.yaml"][..], &at].concat());
    assert_eq!(
        answer.out,
        "\
- checkout -> payments:grpc  deny by default, was allow by rule pay
~ web -> payments:grpc       allow by rule pay, was allow by rule window until 2036-01-01T00:00:00Z
~ defaults                   mode \"enforce\", was \"audit\"
~ workload checkout          egressMode \"enforce\", was \"audit\"
~ workload checkout          ingressMode \"enforce\", was \"audit\"
~ workload payments          egressMode \"enforce\", was \"audit\"
~ workload web               egressMode \"enforce\", was \"audit\"
~ workload web               ingressMode \"enforce\", was \"audit\"
0 edges opened, 1 closed, 1 changed; 6 settings changed
",
        "{}",
        answer.err
    );
    assert_eq!(answer.code, 1);
    let document = json(&shop.run(&[&["policy", "diff", "new.yaml", "shop.yaml", "-o", "json"][..], &at].concat()));
    assert_eq!((&document["opened"], &document["closed"]), (&1.into(), &0.into()));
    let opened = &document["edges"][0];
    assert_eq!(
        (&opened["change"], &opened["from"], &opened["ports"][0]),
        (&"opened".into(), &"checkout".into(), &"grpc".into())
    );
    assert_eq!((&opened["before"]["rule"], &opened["after"]["rule"]), (&Value::Null, &"pay".into()));
    // A mistake in either is the answer, and one file alone needs an agent.
    shop.file("wrong.yaml", &SHOP.replace("from: checkout", "from: chekout"));
    assert_eq!(shop.run(&["policy", "diff", "wrong.yaml", "shop.yaml"]).code, 3);
    assert_eq!(shop.run(&["policy", "diff", "shop.yaml", "--socket", "/nonexistent/agent.sock"]).code, 4);
}

#[test]
fn findings_are_sarif_and_tests_are_junit_for_who_asks() {
    let shop = Shop::new(&SHOP.replace("from: checkout", "from: chekout"));
    let answer = shop.run(&["policy", "check", "shop.yaml", "--format", "sarif"]);
    let log = json(&answer);
    assert_eq!((answer.code, &log["version"]), (3, &"2.1.0".into()));
    let result = &log["runs"][0]["results"][0];
    assert_eq!((&result["ruleId"], &result["level"]), (&"E03".into(), &"error".into()));
    let place = &result["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "shop.yaml");
    assert_eq!(place["region"], serde_json::json!({"startLine": 12, "startColumn": 24, "endColumn": 31}));
    assert_eq!(log["runs"][0]["tool"]["driver"]["rules"][0]["id"], "E03");

    let shop = Shop::new(&SHOP.replace("only: [checkout, web]", "only: [checkout]"));
    let answer = shop.run(&["policy", "test", "shop.yaml", "--junit"]);
    assert_eq!(answer.code, 1);
    assert_eq!(
        answer.out,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<testsuites name=\"eastwall\" tests=\"2\" failures=\"1\" errors=\"0\">
  <testsuite name=\"shop\" tests=\"2\" failures=\"1\" errors=\"0\" skipped=\"0\">
    <testcase classname=\"shop.yaml\" name=\"payments:grpc only [checkout]\" file=\"shop.yaml\" line=\"15\" time=\"0\">
      <failure message=\"also allowed: web, by rule window (shop.yaml:13:7)\">also allowed: web, by rule window (shop.yaml:13:7)</failure>
    </testcase>
    <testcase classname=\"shop.yaml\" name=\"payments:grpc only [checkout] at 2036-01-01T00:00:00Z\" file=\"shop.yaml\" line=\"16\" time=\"0\"/>
  </testsuite>
</testsuites>
"
    );
}

#[test]
fn colour_is_for_terminals_and_for_who_asks() {
    let shop = Shop::new(&SHOP.replace("from: checkout", "from: chekout"));
    assert!(!shop.run(&["policy", "check", "shop.yaml"]).out.contains('\u{1b}'));
    assert!(shop.run(&["policy", "check", "shop.yaml", "--color", "always"]).out.contains('\u{1b}'));
}

#[test]
fn help_pages_completions_and_version_are_generated() {
    let here = Path::new(".");
    for args in [
        vec!["--help"],
        vec!["policy", "check", "--help"],
        vec!["--version"],
        vec!["version"],
        vec!["completion", "bash"],
        vec!["completion", "fish"],
        vec!["man"],
        vec!["man", "policy", "check"],
    ] {
        let answer = run(here, &args);
        assert!(answer.code == 0 && answer.out.contains("eastwall"), "{args:?}: {}{}", answer.out, answer.err);
    }
    assert_eq!(json(&run(here, &["version", "-o", "json"]))["schemaVersion"], 1);
}
