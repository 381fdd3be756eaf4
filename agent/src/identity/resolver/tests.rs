use proptest::prelude::*;

use super::*;
use crate::policy::model::{Selector, Workload};

const CID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn workload(name: &str, select: Vec<Selector>) -> (String, Workload) {
    let workload = Workload {
        name: name.into(),
        id: SpiffeId::new("example.com", name).unwrap(),
        select,
        ports: BTreeMap::new(),
        ingress_mode: Mode::Enforce,
        egress_mode: Mode::Audit,
        on_deny: OnDeny::Reset,
        shared_peers: Default::default(),
        owner: None,
        place: Default::default(),
    };
    (name.into(), workload)
}

fn unit(glob: &str) -> Selector {
    Selector { systemd_unit: Some(glob.into()), ..Selector::default() }
}

fn cgroup(glob: &str) -> Selector {
    Selector { cgroup: Some(glob.into()), ..Selector::default() }
}

fn policy(workloads: Vec<(String, Workload)>) -> Policy {
    Policy {
        trust_domain: "example.com".into(),
        workloads: workloads.into_iter().collect(),
        default_mode: Some(Mode::Audit),
        ..Policy::default()
    }
}

/// Makes a tree of these paths and everything above them. Ids are given in the order of the paths.
fn tree(paths: &[&str]) -> Vec<CgroupNode> {
    let mut all = BTreeSet::from(["/".to_owned()]);
    for path in paths {
        let path = path.replace("CID", CID);
        all.extend(path.match_indices('/').skip(1).map(|(at, _)| path[..at].to_owned()));
        all.insert(path);
    }
    let ids: BTreeMap<String, u64> = all.into_iter().zip(1..).collect();
    let parent = |path: &str| (path != "/").then(|| ids[&above(path)]);
    ids.iter().map(|(path, &id)| CgroupNode { id, path: path.clone(), parent: parent(path) }).collect()
}

fn above(path: &str) -> String {
    match path.rsplit_once('/').unwrap().0 {
        "" => "/".into(),
        above => above.into(),
    }
}

struct Host {
    tree: Vec<CgroupNode>,
    labels: Labels,
}

impl Host {
    fn new(policy: &Policy, paths: &[&str]) -> Self {
        let tree = tree(paths);
        let labels = Resolver::new(policy, "db-1").unwrap().resolve(&tree);
        Self { tree, labels }
    }

    fn id(&self, path: &str) -> u64 {
        let path = path.replace("CID", CID);
        self.tree.iter().find(|c| c.path == path).unwrap().id
    }

    fn slot(&self, path: &str) -> IdentSlot {
        self.labels.cgroups[&self.id(path)]
    }

    fn name(&self, path: &str) -> &str {
        &self.labels.names[&self.slot(path).id].short
    }

    fn name_of_uid(&self, path: &str, uid: u32) -> Option<&str> {
        let key = UidKey { cgroup: self.id(path), uid, reserved: 0 };
        self.labels.uids.get(&key).map(|slot| self.labels.names[&slot.id].short.as_str())
    }

    fn inherits(&self, path: &str) -> bool {
        self.slot(path).flags & ident_flags::INHERIT != 0
    }
}

#[test]
fn what_no_workload_matches_has_a_derived_name() {
    let host = Host::new(
        &policy(vec![]),
        &[
            "/system.slice/nginx.service/worker",
            "/system.slice/docker-CID.scope",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service",
            "/by-hand/child",
            "/init.scope",
        ],
    );
    for (path, name, inherits) in [
        ("/", "node/db-1", false),
        ("/system.slice", "node/db-1", false),
        ("/system.slice/nginx.service", "unit/nginx.service", true),
        ("/system.slice/nginx.service/worker", "unit/nginx.service", true),
        ("/system.slice/docker-CID.scope", "container/0123456789ab", true),
        ("/user.slice/user-1000.slice", "node/db-1", false),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", "user/1000", true),
        ("/by-hand/child", "node/db-1", false),
        ("/init.scope", "unit/init.scope", true),
    ] {
        assert_eq!((host.name(path), host.inherits(path)), (name, inherits), "{path}");
        assert_eq!(host.slot(path).flags & ident_flags::DECLARED, 0);
        assert_eq!(host.slot(path).ingress_mode, Mode::Audit as u8);
    }
}

#[test]
fn a_declared_workload_covers_its_endpoint_and_all_below() {
    let host = Host::new(
        &policy(vec![workload("web", vec![unit("nginx*.service")])]),
        &["/system.slice/nginx.service/a/b", "/system.slice/other.service"],
    );
    for path in ["/system.slice/nginx.service", "/system.slice/nginx.service/a/b"] {
        let slot = host.slot(path);
        assert_eq!(host.name(path), "web");
        assert_eq!(slot.flags, ident_flags::LABELLED | ident_flags::INHERIT | ident_flags::DECLARED);
        assert_eq!((slot.ingress_mode, slot.egress_mode, slot.on_deny), (Mode::Enforce as u8, Mode::Audit as u8, 1));
        assert_eq!(u64::from(slot.endpoint), host.id("/system.slice/nginx.service"));
    }
    assert_eq!(host.name("/system.slice/other.service"), "unit/other.service");
}

#[test]
fn g87_a_child_named_like_another_unit_keeps_the_identity_of_its_parent() {
    let declared = policy(vec![
        workload("db", vec![unit("postgresql.service")]),
        workload("box", vec![Selector { container_id: Some("0123*".into()), ..Selector::default() }]),
        workload("web", vec![unit("nginx.service")]),
    ]);
    let fakes = [
        "/system.slice/nginx.service/postgresql.service",
        "/system.slice/nginx.service/system.slice/postgresql.service",
        "/system.slice/nginx.service/docker-CID.scope",
    ];
    let others = [
        "/system.slice/postgresql.service",
        "/docker/CID/system.slice/postgresql.service",
        "/by-hand/system.slice/postgresql.service",
        "/user.slice/user-7.slice/user@7.service/postgresql.service",
    ];
    let host = Host::new(&declared, &[&fakes[..], &others[..]].concat());
    for path in fakes {
        assert_eq!(host.name(path), "web", "{path}");
    }
    let expected = ["db", "box", "node/db-1", "user/7"];
    for (path, name) in others.into_iter().zip(expected) {
        assert_eq!(host.name(path), name, "{path}");
    }
}

#[test]
fn a_selector_that_names_the_path_reaches_into_an_endpoint() {
    let declared = policy(vec![
        workload("web", vec![unit("nginx.service")]),
        workload("metrics", vec![cgroup("/system.slice/nginx.service/metrics")]),
        workload("app", vec![cgroup("/apps/*")]),
    ]);
    let host = Host::new(&declared, &["/system.slice/nginx.service/metrics/x", "/apps/one/two", "/apps/three"]);
    assert_eq!(host.name("/system.slice/nginx.service"), "web");
    assert_eq!(host.name("/system.slice/nginx.service/metrics/x"), "metrics");
    assert_eq!(host.name("/apps/one/two"), "app");
    assert_ne!(host.slot("/apps/one").endpoint, host.slot("/apps/three").endpoint);
    assert_eq!(host.slot("/apps/one").endpoint, host.slot("/apps/one/two").endpoint);
    assert!(host.inherits("/apps/one") && !host.inherits("/apps"));
}

#[test]
fn one_star_does_not_cross_a_slash_and_two_do() {
    let paths = ["/apps/one/two"];
    let host = Host::new(&policy(vec![workload("w", vec![cgroup("/*/two")])]), &paths);
    assert_eq!(host.name("/apps/one/two"), "node/db-1");
    let host = Host::new(&policy(vec![workload("w", vec![cgroup("/**/two")])]), &paths);
    assert_eq!(host.name("/apps/one/two"), "w");
}

#[test]
fn units_below_a_declared_slice_are_endpoints_of_their_own() {
    let host = Host::new(
        &policy(vec![workload("batch", vec![cgroup("/batch.slice")])]),
        &["/batch.slice/job.service", "/batch.slice/by-hand"],
    );
    assert_eq!(host.name("/batch.slice"), "batch");
    assert_eq!(host.name("/batch.slice/by-hand"), "batch");
    assert_eq!(host.name("/batch.slice/job.service"), "unit/job.service");
    assert!(!host.inherits("/batch.slice"), "a new unit would start as `batch`");
}

#[test]
fn two_workloads_on_one_endpoint_give_it_neither_and_are_reported_once() {
    let declared =
        policy(vec![workload("a", vec![unit("nginx.service")]), workload("b", vec![cgroup("/system.slice/**")])]);
    let host = Host::new(&declared, &["/system.slice/nginx.service/x", "/system.slice/other.service"]);
    assert_eq!(host.name("/system.slice/nginx.service"), "unit/nginx.service");
    assert_eq!(host.name("/system.slice/other.service"), "b");
    assert_eq!(
        host.labels.ambiguous,
        [Ambiguous {
            path: "/system.slice/nginx.service".into(),
            cgroup: host.id("/system.slice/nginx.service"),
            uid: None,
            workloads: vec!["a".into(), "b".into()],
        }]
    );
    let both = policy(vec![workload("a", vec![cgroup("/x/**")]), workload("b", vec![cgroup("/x/**")])]);
    let host = Host::new(&both, &["/x/y/z"]);
    assert_eq!(host.name("/x/y/z"), "node/db-1");
    assert_eq!(host.labels.ambiguous.len(), 1, "the cgroup below has the same clash");
}

#[test]
fn the_owner_of_a_socket_narrows_and_never_widens() {
    let by = |uids: &[u32]| Selector { uids: uids.to_vec(), ..unit("mail.service") };
    let declared = policy(vec![
        workload("mail", vec![unit("mail.service")]),
        workload("mail/queue", vec![by(&[7, 8])]),
        workload("mail/filter", vec![by(&[8])]),
        workload("everyone", vec![Selector { uids: vec![0], ..Selector::default() }]),
    ]);
    let host = Host::new(&declared, &["/system.slice/mail.service/child", "/system.slice/b.service"]);
    for path in ["/system.slice/mail.service", "/system.slice/mail.service/child"] {
        assert_eq!(host.name(path), "mail");
        assert_eq!(host.name_of_uid(path, 7), Some("mail/queue"));
        assert_eq!(host.name_of_uid(path, 8), Some("unit/mail.service"), "two workloads match");
        assert_eq!(host.name_of_uid(path, 0), None, "`uid` alone selects nothing");
        assert_ne!(host.slot(path).flags & ident_flags::ASK_UID, 0);
        assert!(!host.inherits(path), "a new child has no entries for its owners yet");
    }
    assert_eq!(host.labels.ambiguous.iter().map(|a| a.uid).collect::<Vec<_>>(), [Some(8)]);
    assert_eq!(host.slot("/system.slice/b.service").flags & ident_flags::ASK_UID, 0);
}

#[test]
fn a_selector_for_another_host_matches_nothing_here() {
    let on = |host: &str| Selector { host: Some(host.into()), ..unit("nginx.service") };
    let declared = policy(vec![workload("here", vec![on("db-*")]), workload("there", vec![on("web-*")])]);
    let host = Host::new(&declared, &["/system.slice/nginx.service"]);
    assert_eq!(host.name("/system.slice/nginx.service"), "here");
    assert_eq!(host.labels.ambiguous, []);
}

#[test]
fn a_guarded_part_of_the_hierarchy_counts_as_a_root() {
    let top = |id, path: &str, parent| CgroupNode { id, path: path.into(), parent };
    let part =
        [top(5, "/lab", None), top(6, "/lab/system.slice", Some(5)), top(7, "/lab/system.slice/a.service", Some(6))];
    let labels = Resolver::new(&policy(vec![]), "db-1").unwrap().resolve(&part);
    assert_eq!(labels.names[&labels.cgroups[&7].id].short, "unit/a.service");
    let user = [top(5, "/user.slice/user-9.slice", None), top(6, "/user.slice/user-9.slice/session-1.scope", Some(5))];
    let labels = Resolver::new(&policy(vec![]), "db-1").unwrap().resolve(&user);
    assert_eq!(labels.names[&labels.cgroups[&6].id].short, "user/9");
}

#[test]
fn a_policy_that_gives_no_names_is_refused() {
    let bad = policy(vec![workload("w", vec![unit("[a")])]);
    assert!(matches!(Resolver::new(&bad, "h"), Err(ResolverError::Glob(_))));
    let bad = Policy { trust_domain: "no domain".into(), ..Policy::default() };
    assert!(matches!(Resolver::new(&bad, "h"), Err(ResolverError::TrustDomain { .. })));
}

fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("system.slice".to_owned()),
        Just("user.slice".to_owned()),
        Just("user-3.slice".to_owned()),
        Just("user@3.service".to_owned()),
        Just("a.service".to_owned()),
        Just("b.service".to_owned()),
        Just("docker".to_owned()),
        Just(CID.to_owned()),
        Just(format!("docker-{CID}.scope")),
        Just("plain".to_owned()),
    ]
}

fn any_tree() -> impl Strategy<Value = Vec<CgroupNode>> {
    let path = prop::collection::vec(segment(), 1..5).prop_map(|s| format!("/{}", s.join("/")));
    prop::collection::vec(path, 1..8).prop_map(|paths| tree(&paths.iter().map(String::as_str).collect::<Vec<_>>()))
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let selector = prop_oneof![
        prop_oneof![Just("a.service"), Just("*.service"), Just("b*")].prop_map(unit),
        prop_oneof![Just("/**"), Just("/system.slice/*"), Just("/**/plain"), Just("/plain/**")].prop_map(cgroup),
        Just(Selector { uids: vec![3], ..unit("a.service") }),
        Just(Selector { container_id: Some("0*".into()), ..Selector::default() }),
    ];
    prop::collection::vec(selector, 0..4)
        .prop_map(|all| policy(all.into_iter().enumerate().map(|(i, s)| workload(&format!("w{i}"), vec![s])).collect()))
}

proptest! {
    #[test]
    fn every_cgroup_has_one_label_with_a_name(policy in any_policy(), tree in any_tree()) {
        let labels = Resolver::new(&policy, "h").unwrap().resolve(&tree);
        prop_assert_eq!(labels.cgroups.len(), tree.len());
        for slot in labels.cgroups.values().chain(labels.uids.values()) {
            prop_assert!(slot.flags & ident_flags::LABELLED != 0 && slot.endpoint != 0);
            prop_assert!(labels.names.contains_key(&slot.id));
        }
    }

    #[test]
    fn a_label_depends_on_the_ancestors_alone(policy in any_policy(), tree in any_tree()) {
        let resolver = Resolver::new(&policy, "h").unwrap();
        let whole = resolver.resolve(&tree);
        for cgroup in &tree {
            let chain: Vec<CgroupNode> = tree
                .iter()
                .filter(|c| c.path == "/" || c.path == cgroup.path || cgroup.path.starts_with(&format!("{}/", c.path)))
                .cloned()
                .collect();
            let alone = resolver.resolve(&chain);
            prop_assert_eq!(alone.cgroups[&cgroup.id], whole.cgroups[&cgroup.id]);
        }
    }

    #[test]
    fn the_order_of_the_walk_changes_nothing(policy in any_policy(), tree in any_tree(), seed in any::<u64>()) {
        let resolver = Resolver::new(&policy, "h").unwrap();
        let mut shuffled = tree.clone();
        shuffled.sort_by_key(|c| c.id.wrapping_mul(seed | 1));
        prop_assert_eq!(resolver.resolve(&tree), resolver.resolve(&shuffled));
    }

    #[test]
    fn a_new_child_that_inherits_is_what_the_agent_makes_of_it(
        policy in any_policy(),
        tree in any_tree(),
        name in segment(),
        at in any::<prop::sample::Index>(),
    ) {
        let paths = policy.workloads.values().flat_map(|w| &w.select).any(|s| s.cgroup.is_some());
        prop_assume!(!paths);
        let resolver = Resolver::new(&policy, "h").unwrap();
        let parent = at.get(&tree);
        let path = format!("{}/{name}", parent.path.trim_end_matches('/'));
        prop_assume!(tree.iter().all(|c| c.path != path));
        let mut grown = tree.clone();
        grown.push(CgroupNode { id: 1000, path, parent: Some(parent.id) });
        let labels = resolver.resolve(&grown);
        let above = labels.cgroups[&parent.id];
        if above.flags & ident_flags::INHERIT != 0 {
            prop_assert_eq!(labels.cgroups[&1000], above);
        }
    }

    #[test]
    fn no_tree_panics(nodes in prop::collection::vec((0_u64..6, ".{0,8}", prop::option::of(0_u64..6)), 0..8)) {
        let nodes: Vec<_> = nodes.into_iter().map(|(id, path, parent)| CgroupNode { id, path, parent }).collect();
        let _ = Resolver::new(&policy(vec![workload("w", vec![cgroup("/**")])]), "h").unwrap().resolve(&nodes);
    }
}
