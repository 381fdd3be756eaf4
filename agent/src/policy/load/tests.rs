//! Loading: what is accepted, what is refused, and how it is shown.

use proptest::prelude::*;

use super::*;
use crate::policy::{
    finding::{Sources, render},
    model::{Action, PortSpec, SharedPeers},
};

const SHOP: &str = "\
apiVersion: eastwall.dev/v1alpha1
kind: Policy
metadata: { name: shop }
spec:
  trustDomain: shop.example.com
  defaults: { mode: audit }
  workloads:
    - { name: web, select: { systemd: { unit: web.service } }, ports: { http: tcp/8080 } }
    - name: checkout
      select: { cgroup: \"/checkout/**\", anyOf: [{ host: \"a-*\" }, { uid: [5, 7] }] }
      ports: { http: tcp/8080, metrics: tcp/9090 }
      labels: { tier: back }
      ingressMode: enforce
    - { name: payments, select: { container: { id: \"ab*\" } }, ports: { grpc: tcp/8443 }, labels: { tier: back } }
  externals:
    - { name: partners, cidrs: [198.51.100.0/24, \"2001:db8::/48\"], except: [198.51.100.128/25] }
  groups:
    - { name: inner, members: [web, partners] }
    - { name: all, members: [inner, payments] }
    - { name: back, labels: { tier: back } }
  allow:
    - { from: web, to: payments, ports: [grpc] }
    - { from: all, to: checkout, ports: [http, tcp/7000-7010], expires: 2036-01-31T00:00:00Z, owner: me, x-note: 1 }
    - { id: dba, from: unit/psql.service, to: \"spiffe://SHOP.example.com/payments\", ports: [any] }
  deny:
    - { from: world, to: payments }
  tests:
    - from: web
      allow: [payments:grpc]
      deny: [\"ip/203.0.113.9:tcp/80\"]
    - { to: checkout:http, only: [all], at: 2035-01-01T00:00:00Z, name: callers }
";

/// A document around the body of `spec`, which is indented by two.
fn document(spec: &str) -> String {
    format!(
        "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: d }}\nspec:\n  trustDomain: t.example\n{spec}"
    )
}

/// Workloads that the cases below lean on.
const TWO: &str = "  workloads:
    - { name: web, select: { systemd: { unit: w } }, ports: { http: tcp/80 } }
    - { name: db, select: { systemd: { unit: d } }, ports: { pg: tcp/5432 } }
";

/// Loads a spec and compares the findings: code and a part of the rendered text of each.
#[track_caller]
fn refused(spec: &str, expected: &[(&str, &str)]) {
    let text = document(spec);
    let findings = load(&[("f.yaml", &text)]).expect_err(&text);
    let shown = render(&findings, &Sources::from([("f.yaml", text.as_str())]), false);
    let codes: Vec<&str> = findings.iter().map(|finding| finding.code.name()).collect();
    assert_eq!(codes, expected.iter().map(|&(code, _)| code).collect::<Vec<_>>(), "{shown}");
    for (finding, (_, part)) in findings.iter().zip(expected) {
        let shown = render(std::slice::from_ref(finding), &Sources::from([("f.yaml", text.as_str())]), false);
        assert!(shown.contains(part), "`{part}` is not in\n{shown}");
        assert!(shown.contains("f.yaml:"), "no place in\n{shown}");
    }
}

#[test]
fn a_policy_is_read_with_all_its_parts() {
    let Loaded { policy, warnings } = load(&[("shop.yaml", SHOP)]).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(policy.name, "shop");
    assert_eq!(policy.trust_domain, "shop.example.com");
    assert!(policy.hash.starts_with("sha256:") && policy.hash.len() == 7 + 16);
    let checkout = &policy.workloads["checkout"];
    assert_eq!((checkout.ingress_mode, checkout.egress_mode), (Mode::Enforce, Mode::Audit));
    assert_eq!(checkout.id.as_str(), "spiffe://shop.example.com/checkout");
    assert_eq!(checkout.select.len(), 2);
    assert_eq!(checkout.select[0].host.as_deref(), Some("a-*"));
    assert_eq!(checkout.select[0].cgroup, checkout.select[1].cgroup);
    assert_eq!(checkout.select[1].uids, [5, 7]);
    assert_eq!(policy.groups["all"], ["partners", "payments", "web"]);
    assert_eq!(policy.groups["back"], ["checkout", "payments"]);
    let ids: Vec<&str> = policy.rules.iter().map(|rule| rule.id.as_str()).collect();
    assert!(ids.contains(&"shop/1afeb713") && ids.contains(&"dba") && ids.is_sorted(), "{ids:?}");
    let dba = policy.rules.iter().find(|rule| rule.id == "dba").unwrap();
    assert_eq!((dba.from.as_str(), dba.to.as_str(), dba.action), ("unit/psql.service", "payments", Action::Allow));
    let all = policy.rules.iter().find(|rule| rule.from == "all").unwrap();
    assert_eq!(all.ports[0], PortSpec::Named("http".to_owned()));
    assert_eq!(all.expires, Some(2_085_350_400));
    assert_eq!(all.place.line, 23);
    assert_eq!(policy.tests.len(), 3);
    assert_eq!(policy.tests[2].name.as_deref(), Some("callers"));
}

#[test]
fn a_wrong_letter_is_refused_with_place_caret_and_suggestion() {
    let text = SHOP.replace("from: web, to: payments", "from: wbe, to: payments");
    let findings = load(&[("shop.yaml", &text)]).unwrap_err();
    assert_eq!(
        render(&findings, &Sources::from([("shop.yaml", text.as_str())]), false),
        "error[E03]: no workload, external or group is called `wbe`
  --> shop.yaml:22:15
   |
22 |     - { from: wbe, to: payments, ports: [grpc] }
   |               ^^^ did you mean `web` (shop.yaml:8:15)?
"
    );
}

#[test]
fn order_and_the_split_over_files_do_not_matter() {
    let whole = load(&[("a.yaml", SHOP)]).unwrap().policy;
    let again = load(&[("other-name.yaml", SHOP)]).unwrap().policy;
    assert_eq!(whole.hash, again.hash);
    let first = document(TWO) + "  allow:\n    - { id: a, from: web, to: db, ports: [pg] }\n";
    let second = "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: e }\nspec:\n  deny:\n    - { id: b, from: db, to: web }\n";
    let hashes = [
        load(&[("1", &first), ("2", second)]).unwrap().policy,
        load(&[("1", second), ("2", &first)]).unwrap().policy,
        load(&[("1", &format!("{second}---\n{first}"))]).unwrap().policy,
    ]
    .map(|policy| (policy.name, policy.hash));
    assert!(hashes.iter().all(|found| *found == hashes[0]), "{hashes:?}");
    assert_eq!(hashes[0].0, "d+e");
}

#[test]
fn g85_fields_are_strict_and_empty_is_never_everything() {
    refused("  alow: [{}]\n", &[("E01", "did you mean `allow`?")]);
    refused("  x-mine: [{}]\n  imports: [x]\n", &[("E01", "`imports` in `spec` is not supported by this version")]);
    refused("  allow: []\n", &[("E06", "`allow` is an empty list")]);
    refused("  allow:\n", &[("E06", "`allow` has no value")]);
    refused("  allow: web\n", &[("E01", "`allow` must be a list, and this is text")]);
    refused(
        &format!("{TWO}  allow: [{{ from: web, from: db, to: db, ports: [pg] }}]\n"),
        &[("E01", "first written here")],
    );
    refused(
        &format!("{TWO}  allow: [{{ <<: {{ from: web }}, to: db, ports: [pg] }}]\n"),
        &[("E01", "needs the field `from`"), ("E01", "merge key")],
    );
    refused("  allow: &a [x]\n", &[("E01", "anchors and aliases are not allowed")]);
    refused("  allow: [\n", &[("E01", "f.yaml:6")]);
    refused(&format!("{TWO}  allow: [{{ from: web, to: db }}]\n"), &[("E01", "needs the field `ports`")]);
    refused(&format!("{TWO}  allow: [{{ form: web, to: db, ports: [pg] }}]\n"), &[("E01", "did you mean `from`?")]);
    refused("  defaults: { mode: enforced }\n", &[("E01", "did you mean `enforce`?")]);
    refused("  defaults: { sharedPeers: tag }\n", &[("E01", "write any-member, deny")]);
}

#[test]
fn the_frame_of_a_document_is_strict() {
    for (text, part) in [
        ("apiVersion: v1\nkind: Policy\nmetadata: { name: a }\nspec: { trustDomain: t }\n", "eastwall.dev/v1alpha1"),
        (
            "apiVersion: eastwall.dev/v1alpha1\nkind: Polcy\nmetadata: { name: a }\nspec: { trustDomain: t }\n",
            "no kind",
        ),
        (
            "apiVersion: eastwall.dev/v1alpha1\nkind: Override\nmetadata: { name: a }\nspec: { trustDomain: t }\n",
            "revoke",
        ),
        ("kind: Policy\nmetadata: { name: a }\nspec: { trustDomain: t }\n", "apiVersion"),
        ("apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nspec: { trustDomain: t }\n", "metadata"),
        ("- a\n", "must be a map"),
        ("[a]: b\n", "a key of the document must be text"),
        ("", "no file holds a policy document"),
    ] {
        let findings = load(&[("f", text)]).unwrap_err();
        assert!(render(&findings, &Sources::new(), false).contains(part), "{text}: {findings:?}");
    }
    let large = format!("# {}", "x".repeat(file::FILE_BYTES_MAX));
    assert!(load(&[("f", &large)]).unwrap_err()[0].message.contains("are the most"));
}

#[test]
fn names_are_unique_legal_and_known() {
    let twice = "  workloads:\n    - { name: web, select: { cgroup: /a } }\n  externals: [{ name: web, cidrs: [10.0.0.0/8] }]\n";
    refused(twice, &[("E02", "the other one")]);
    refused("  workloads: [{ name: world, select: { cgroup: /a } }]\n", &[("E02", "`world` is a reserved name")]);
    refused("  workloads: [{ name: unit/a, select: { cgroup: /a } }]\n", &[("E02", "reserved")]);
    refused("  workloads: [{ name: a//b, select: { cgroup: /a } }]\n", &[("E04", "path segments")]);
    for (name, code, part) in [
        ("web2", "E03", "did you mean `web`"),
        ("unknown", "E03", "no rule can match it"),
        ("nodes", "E01", "not supported by this version"),
        ("ns/a/sa/b", "E01", "not supported by this version"),
        ("ip/10.0.0.1", "E03", "in tests only"),
        ("user/root", "E03", "user/1000"),
        ("user/007", "E03", "user/1000"),
        ("unit/pg@15.service", "E04", "write `unit/pg.service/15`"),
        ("node/a/b", "E03", "one name"),
    ] {
        refused(&format!("{TWO}  deny: [{{ from: {name}, to: db }}]\n"), &[(code, part)]);
    }
    let same = format!("{TWO}  deny: [{{ from: web, to: db }}, {{ from: web, to: db, ports: [any] }}]\n");
    refused(&same, &[("E02", "delete one, or give it an `id`")]);
    let ids = format!("{TWO}  deny: [{{ id: a, from: web, to: db }}, {{ id: a, from: db, to: web }}]\n");
    refused(&ids, &[("E02", "two rules have the id `a`")]);
}

#[test]
fn a_container_is_named_by_its_short_id_however_it_was_written() {
    let id = "0123456789abcdef".repeat(4);
    let text = document(&format!("{TWO}  deny: [{{ from: container/{id}, to: db }}]\n"));
    assert_eq!(load(&[("f", &text)]).unwrap().policy.rules[0].from, "container/0123456789ab");
}

#[test]
fn trust_domains_agree_and_defaults_stand_once() {
    let other = "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: e }\nspec: { trustDomain: other, defaults: { mode: audit } }\n";
    let this = document("  defaults: { mode: enforce }\n");
    let codes = |findings: Vec<Finding>| findings.iter().map(|finding| finding.code.name()).collect::<Vec<_>>();
    assert_eq!(codes(load(&[("a", &this), ("b", other)]).unwrap_err()), ["E04", "E12"]);
    assert_eq!(codes(load_in(&[("b", other)], Some("agent.example")).unwrap_err()), ["E04"]);
    let none = other.replace("trustDomain: other, ", "");
    assert_eq!(codes(load(&[("b", &none)]).unwrap_err()), ["E04"]);
    assert_eq!(load_in(&[("b", &none)], Some("Agent.example")).unwrap().policy.trust_domain, "agent.example");
    let upper = load(&[("b", &other.replace("other", "Other"))]).unwrap();
    assert_eq!((upper.policy.trust_domain.as_str(), upper.warnings[0].code), ("other", Code::W14));
}

#[test]
fn an_answer_to_a_denied_caller_is_one_of_those_that_are_given() {
    let text = document(&format!("  defaults: {{ onDeny: reset }}\n{TWO}"));
    let reset = load(&[("f.yaml", &text)]).unwrap();
    assert!(reset.policy.workloads.values().all(|workload| workload.on_deny == OnDeny::Reset));
    refused(&format!("  defaults: {{ onDeny: dorp }}\n{TWO}"), &[("E01", "write drop, reset")]);
}

#[test]
fn shared_peers_are_said_for_all_and_for_one() {
    let one = TWO.replace("pg: tcp/5432 }", "pg: tcp/5432 }, sharedPeers: any-member");
    let text = document(&format!("  defaults: {{ sharedPeers: deny }}\n{one}"));
    let loaded = load(&[("f.yaml", &text)]).unwrap();
    let said = |name: &str| loaded.policy.workloads[name].shared_peers;
    assert_eq!((said("web"), said("db")), (SharedPeers::Deny, SharedPeers::AnyMember));
}

#[test]
fn a_port_that_cannot_be_read_is_one_error_and_not_one_for_every_rule() {
    let two = TWO.replace("pg: tcp/5432", "pg: tcp/543210");
    refused(&format!("{two}  allow: [{{ from: web, to: db, ports: [pg] }}]\n"), &[("E05", "`543210` is not a port")]);
}

#[test]
fn ports_exist_on_every_member() {
    let allow = |to: &str, port: &str| {
        format!(
            "{TWO}  externals: [{{ name: out, cidrs: [10.0.0.0/8] }}]\n  groups: [{{ name: g, members: [web, db] }}]\n  \
             allow: [{{ from: web, to: {to}, ports: [{port}] }}]\n"
        )
    };
    refused(&allow("db", "pgg"), &[("E05", "did you mean `pg`?")]);
    refused(&allow("g", "pg"), &[("E05", "`web` has no port called `pg`")]);
    refused(&allow("out", "pg"), &[("E05", "`out` has no port called `pg`")]);
    refused(&allow("any", "pg"), &[("E05", "has no port names")]);
    refused(&allow("db", "tcp/0"), &[("E05", "1 to 65535")]);
    refused(&allow("db", "5432"), &[("E05", "write `tcp/5432`")]);
    refused(
        "  workloads: [{ name: a, select: { cgroup: /a }, ports: { any: tcp/1, b: c } }]\n",
        &[("E05", "`any` is not a port name"), ("E05", "protocol is missing")],
    );
}

#[test]
fn selectors_are_checked_key_by_key() {
    let select = |select: &str| format!("  workloads: [{{ name: a, select: {select} }}]\n");
    refused(&select("{ host: a }"), &[("E06", "names no endpoint")]);
    refused(&select("{ uid: [1] }"), &[("E06", "names no endpoint")]);
    refused(&select("{ k8s: { namespace: a } }"), &[("E01", "`k8s` in `select` is not supported by this version")]);
    refused(&select("{ exe: /bin/a }"), &[("E01", "not supported by this version")]);
    refused(&select("{ container: { image: a } }"), &[("E01", "not supported by this version")]);
    refused(&select("{ systemd: {} }"), &[("E06", "empty map")]);
    refused(&select("{ systemd: { unti: a } }"), &[("E01", "did you mean `unit`?")]);
    refused(&select("{ cgroup: \"/a[\" }"), &[("E01", "is no glob")]);
    refused(&select("{ cgroup: a }"), &[("E01", "must begin with `/`")]);
    refused(&select("{ cgroup: /a, uid: [root] }"), &[("E01", "is no uid")]);
    refused(&select("{ cgroup: /a, uid: [4294967295] }"), &[("E01", "`4294967295` is no uid")]);
    refused(&select("{ cgroup: /a, uid: [] }"), &[("E06", "empty list")]);
    refused(&select("{ cgroup: /a, anyOf: [{ cgroup: /b }] }"), &[("E01", "both in `anyOf` and beside it")]);
    refused(&select("{ anyOf: [{ host: b }] }"), &[("E06", "names no endpoint")]);
    refused(&select("{ anyOf: [{ anyOf: [{ cgroup: /a }] }] }"), &[("E01", "inside `anyOf`")]);
    refused(&select("{}"), &[("E06", "empty map")]);
}

#[test]
fn g85_groups_end_and_externals_are_ranges() {
    let groups = "  groups: [{ name: a, members: [b] }, { name: b, members: [a] }]\n";
    refused(groups, &[("E07", "b -> a -> b"), ("E07", "a -> b -> a")]);
    refused("  groups: [{ name: a, members: [world] }]\n", &[("E03", "cannot be a member")]);
    refused("  groups: [{ name: a, labels: { x: y } }]\n", &[("E06", "no workload carries")]);
    let deep: String = (0..20).map(|n| format!("    - {{ name: g{n}, members: [g{}] }}\n", n + 1)).collect();
    let deep = format!("{TWO}  groups:\n{deep}    - {{ name: g20, members: [web] }}\n");
    assert!(load(&[("f", &document(&deep))]).unwrap_err().iter().all(|finding| finding.code == Code::E07));
    let external = |fields: &str| format!("  externals: [{{ name: a, {fields} }}]\n");
    refused(&external("cidrs: [10.0.0.1/8]"), &[("E17", "write `10.0.0.0/8`")]);
    refused(&external("cidrs: [10.0.0.0/8], except: [11.0.0.0/8]"), &[("E17", "does not lie in any range")]);
    refused(&external("cidrs: [10.0.0.1]"), &[("E17", "is not an address range")]);
    refused(&external("dns: [a.*.example]"), &[("E18", "has a star inside")]);
    refused(&external("dns: [10.0.0.1, a.example]"), &[("E18", "write it as a range in `cidrs`")]);
}

#[test]
fn expiry_and_tests_are_checked() {
    refused(&format!("{TWO}  deny: [{{ from: web, to: db, expires: soon }}]\n"), &[("E01", "is no time")]);
    let test = |test: &str| format!("{TWO}  tests: [{{ {test} }}]\n");
    refused(&test("from: web"), &[("E06", "promises nothing")]);
    refused(&test("allow: [db:pg]"), &[("E01", "`from` or `to`")]);
    refused(&test("from: web, allow: [db]"), &[("E05", "write `name:port`")]);
    refused(&test("from: web, allow: [db:http]"), &[("E05", "no port called `http`")]);
    refused(&test("from: web, only: [db]"), &[("E01", "beside `to`")]);
    refused(&test("to: db:pg, only: [any]"), &[("E03", "nobody in particular")]);
    refused(&test("to: db:pg, only: [pod/a/b]"), &[("E01", "not supported by this version")]);
    refused(&test("from: ip/300.1.1.1, allow: [db:pg]"), &[("E03", "holds no address")]);
    refused(&test("from: web, allow: [\"ip/10.0.0.1:http\"]"), &[("E05", "has no port names")]);
}

#[test]
fn one_run_shows_every_error_in_the_order_of_the_file() {
    let text = document(&format!(
        "{TWO}  allow:\n    - {{ from: wbe, to: db, ports: [pg] }}\n    - {{ from: web, to: bd, ports: [x y] }}\n"
    ));
    let lines: Vec<u32> =
        load(&[("f", &text)]).unwrap_err().iter().map(|f| f.at.as_ref().unwrap().place.line).collect();
    assert_eq!(lines, [10, 11, 11]);
}

/// Damages a text at random places: cuts, doubles, swaps and foreign bytes.
fn damaged() -> impl Strategy<Value = String> {
    let damage = (0..SHOP.len(), 0..40_usize, prop_oneof![Just(String::new()), "[ -~]{0,8}", ".{0,4}"]);
    proptest::collection::vec(damage, 1..6).prop_map(|damages| {
        let mut chars: Vec<char> = SHOP.chars().collect();
        for (at, cut, insert) in damages {
            let at = at.min(chars.len());
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, insert.chars());
        }
        chars.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn loading_and_rendering_never_panic_on_damaged_policies(text in damaged()) {
        if let Err(findings) = load(&[("f", &text)]) {
            prop_assert!(!findings.is_empty());
            let _ = render(&findings, &Sources::from([("f", text.as_str())]), true);
        }
    }

    #[test]
    fn loading_never_panics_on_any_text(text in prop_oneof![".{0,200}", "[-:{}\\[\\],&*!|>'\"%@`# \n\ta-z0]{0,200}"]) {
        if let Err(findings) = load(&[("f", &text), ("g", SHOP)]) {
            let _ = render(&findings, &Sources::from([("f", text.as_str())]), false);
        }
    }
}
