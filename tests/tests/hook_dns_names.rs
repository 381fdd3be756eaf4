//! Externals by DNS name under the kernel programs: what an answer opens, for how long, and what it does not.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use agent_common::{
    id::IdentityId,
    layout::{AddrNames, DenyCounter, Hook},
    verdict::Reason,
};
use eastwall::{
    identity::spiffe::SpiffeId,
    policy::{ask::octets, resolvers::Resolvers},
    reconcile::dns_names::forget,
};
use rustix::time::{ClockId, clock_gettime};
use tests::{
    dns,
    frames::FAMILIES,
    lab::{Actor, Errno, Family, Kind, NetNs, Party, Place, Scene, Socket, VethEnd},
};

const BRIEF: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);
const RULES: &str = "    - { from: web, to: named, ports: [tcp/any, udp/any] }\n";

/// `db` lets everybody in; `web` may call who is named, and the resolver.
fn policy(scene: &Scene, names: &[&str], rules: &str) -> String {
    let door = if scene.place == Place::Veth { "door web -> db: tcp/any, udp/any" } else { "other -> db: tcp/1" };
    let text = scene.policy(&[door]);
    let externals: String =
        names.iter().map(|name| format!("    - {{ name: {name}, dns: [{name}.example, both.example] }}\n")).collect();
    text.replace("  externals:\n", &format!("  externals:\n{externals}")) + rules
}

fn id(name: &str) -> IdentityId {
    SpiffeId::new("lab.example", name).unwrap().number()
}

fn now() -> u32 {
    u32::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap()
}

/// Gives an address a name until a moment, as an answer would.
fn note(scene: &Scene, address: IpAddr, name: Option<&str>, until: u32) {
    let mut names = AddrNames::default();
    (names.names[0], names.until[0]) = (name.map_or(IdentityId(0), id), until);
    scene.guard().datapath().note_dns(octets(address), &names).unwrap();
}

fn count(scene: &Scene, counter: DenyCounter) -> u64 {
    scene.guard().datapath().deny_counts().unwrap()[counter as usize]
}

#[test]
fn a_name_that_runs_out_ends_no_flow_and_begins_none() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        let (web, db) = (&scene.web.actor, &scene.db.actor);
        let again = || {
            scene.guard().apply(&policy(&scene, &["named"], RULES));
        };
        again();
        for family in FAMILIES {
            let (listener, to) = scene.db.listen(family);
            let (receiver, at) = scene.db.udp(family);
            let cause = |hook| [(scene.first_hook(hook), Reason::NoRule)];
            assert_eq!(web.tcp_connect(to, BRIEF).unwrap_err(), scene.refused());
            assert_eq!(scene.denials().calls(), cause(family.connect_hook()));

            note(&scene, scene.db.addr(family), Some("named"), now() + 1_000);
            let ours = web.tcp_connect(to, LONG).unwrap();
            let theirs = db.accept(listener).unwrap();
            let sender = web.socket(family, Kind::Datagram, 0).unwrap();
            let talks = || {
                web.send(ours, b"tcp").unwrap();
                assert_eq!(db.receive(theirs, 1).unwrap()[0].data, b"tcp");
                web.send_to(sender, at, b"udp").unwrap();
                assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"udp");
            };
            talks();
            note(&scene, scene.db.addr(family), Some("named"), now() - 1);
            talks();
            // Decided again, under another policy.
            again();
            talks();
            let denials = scene.denials();
            assert_eq!(denials.denied(), 0, "{:#?}", denials.records);
            assert_eq!(web.tcp_connect(to, BRIEF).unwrap_err(), scene.refused());
            assert_eq!(scene.denials().calls(), cause(family.connect_hook()));

            // Forgotten, and decided again: it is nobody's.
            note(&scene, scene.db.addr(family), None, 0);
            again();
            web.send(ours, b"late").unwrap();
            assert_eq!(db.receive_for(theirs, 1, BRIEF).unwrap().len(), 0);
            assert!(scene.denials().causes().contains(&(Hook::Egress, Reason::NoRule)));
            // At once: what it could not send would be tried again, and denied, while the next family has its turn.
            let _ = web.disconnect(ours);
            web.close(ours);
            let _ = scene.denials();
        }
    }
}

#[test]
fn every_name_of_an_address_counts_and_no_more_than_its_rules() {
    let Some(scene) = Scene::open(Place::Veth, true) else { return };
    let rules = "    - { from: web, to: b, ports: [tcp/any] }\n    - { from: other, to: d, ports: [tcp/any] }\n  deny:\n    - \
                 { from: web, to: at-db, ports: [tcp/22] }\n";
    scene.guard().apply(&policy(&scene, &["a", "b", "c", "d"], &rules.replace("[tcp/any]", "[tcp/any, tcp/22]")));
    for family in FAMILIES {
        let mut names = AddrNames::default();
        for (place, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            (names.names[place], names.until[place]) = (id(name), now() + 1_000);
        }
        scene.guard().datapath().note_dns(octets(scene.db.addr(family)), &names).unwrap();
        let (listener, to) = scene.db.listen(family);
        for party in [&scene.web, &scene.other] {
            party.actor.tcp_connect(to, LONG).unwrap();
            scene.db.actor.accept(listener).unwrap();
        }
        let (_, at) = scene.db.udp(family);
        let socket = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        assert_eq!(scene.web.actor.send_to(socket, at, b"not tcp"), Err(Errno::PERM));
        // A range is denied, whatever else the address is called.
        let guarded = SocketAddr::new(scene.db.addr(family), 22);
        assert_eq!(scene.web.actor.tcp_connect(guarded, BRIEF), Err(Errno::PERM));
        let causes = scene.denials().causes();
        assert_eq!(causes, [(family.sendmsg_hook(), Reason::NoRule), (family.connect_hook(), Reason::DenyRule)]);
    }
}

/// `db` as a resolver for `web`.
struct Asked<'s> {
    scene: &'s Scene,
    resolver: Socket,
    at: SocketAddr,
}

impl<'s> Asked<'s> {
    fn open(scene: &'s Scene, quota: u32) -> Self {
        let at = scene.db.at(Family::V4, 53);
        let resolvers = Resolvers::try_from(vec![at.ip()]).unwrap();
        scene.guard().answers(resolvers.clone(), &scene.web.net, quota);
        scene.guard().resolvers(resolvers);
        let rules = "    - { from: web, to: named, ports: [tcp/any] }\n";
        scene.guard().apply(&policy(scene, &["named"], rules));
        let (resolver, _) = scene.db.actor.udp_bind(at).unwrap();
        Self { scene, resolver, at }
    }

    /// Has somebody ask for a name, and sends these bytes for an answer, which arrive.
    fn answer(&self, by: &Actor, bytes: &[u8]) {
        let socket = by.socket(Family::V4, Kind::Datagram, 0).unwrap();
        by.send_to(socket, self.at, b"query").unwrap();
        let asked = self.scene.db.actor.receive(self.resolver, 1).unwrap();
        self.scene.db.actor.send_to(self.resolver, asked[0].from.unwrap(), bytes).unwrap();
        assert_eq!(by.receive(socket, 1).unwrap()[0].data, bytes);
        by.close(socket);
    }

    fn known(&self) -> Vec<(IpAddr, u32)> {
        let all = self.scene.guard().datapath().dns_addresses().unwrap();
        let left = |until: u32| until.saturating_sub(now());
        all.into_iter().map(|(addr, names)| (IpAddr::from(addr).to_canonical(), left(names.until[0]))).collect()
    }
}

#[test]
fn an_answer_is_kept_as_long_as_it_says_within_bounds_and_as_far_as_there_is_room() {
    let Some(scene) = Scene::open(Place::Veth, true) else { return };
    let asked = Asked::open(&scene, 4);
    let web = &scene.web.actor;
    let hours = 3_600;
    let records = [
        ("192.0.2.1", 0),
        ("192.0.2.2", 2 * hours),
        ("2001:db8::1", u32::MAX),
        ("127.0.0.1", hours),
        ("fe80::1", hours),
    ];
    asked.answer(web, &dns::answer("named.example", &records));
    let about = |found: &[(IpAddr, u32)], address: &str, ttl: u32| {
        let ttl_found = found.iter().find(|(addr, _)| *addr == address.parse::<IpAddr>().unwrap()).unwrap().1;
        assert!(ttl_found <= ttl && ttl_found + 30 > ttl, "{address}: {ttl_found} s left");
    };
    let found = asked.known();
    assert_eq!(found.len(), 3, "{found:?}");
    // At least a minute; one that would be negative is none.
    about(&found, "192.0.2.1", 60);
    about(&found, "192.0.2.2", 2 * hours);
    about(&found, "2001:db8::1", 60);
    // A later answer that says less shortens nothing; one that says more lasts a week at most.
    asked.answer(web, &dns::answer("NAMED.example", &[("192.0.2.2", 1), ("192.0.2.1", 100 * 24 * hours)]));
    about(&asked.known(), "192.0.2.2", 2 * hours);
    about(&asked.known(), "192.0.2.1", 7 * 24 * hours);
    assert_eq!(count(&scene, DenyCounter::DnsFull), 0);
    // The room of one external.
    let many: Vec<String> = (1..=20).map(|n| format!("198.51.100.{n}")).collect();
    let records: Vec<(&str, u32)> = many.iter().map(|address| (address.as_str(), 60)).collect();
    asked.answer(web, &dns::answer("both.example", &records));
    assert_eq!((asked.known().len(), count(&scene, DenyCounter::DnsFull)), (4, 19));
    assert_eq!((count(&scene, DenyCounter::DnsRead), count(&scene, DenyCounter::DnsUnread)), (3, 0));
    // What has run out makes room, that which ran out first.
    for (n, address) in ["192.0.2.1", "192.0.2.2", "198.51.100.1"].into_iter().enumerate() {
        note(&scene, address.parse().unwrap(), Some("named"), now() - 10 + u32::try_from(n).unwrap());
    }
    let known = scene.guard().datapath().dns_addresses().unwrap();
    let left = forget(&known, now(), 4);
    scene.guard().datapath().forget_dns(&known, &left).unwrap();
    assert_eq!((left.live, left.stale), (1, 1));
    let known: Vec<IpAddr> = asked.known().into_iter().map(|(address, _)| address).collect();
    assert_eq!(known, ["198.51.100.1", "2001:db8::1"].map(|address| address.parse::<IpAddr>().unwrap()));
    asked.answer(web, &dns::answer("named.example", &records));
    assert_eq!((asked.known().len(), count(&scene, DenyCounter::DnsFull)), (4, 19 + 17));
}

#[test]
fn what_is_no_answer_about_an_external_opens_nothing_and_what_cannot_be_read_is_counted() {
    let Some(scene) = Scene::open(Place::Veth, true) else { return };
    let asked = Asked::open(&scene, 100);
    let web = &scene.web.actor;
    let record = [("192.0.2.1", 600)];
    for name in ["other.example", "xnamed.example", "named.example.com", "a.named.example", "example"] {
        asked.answer(web, &dns::answer(name, &record));
    }
    let mut query = dns::answer("named.example", &record);
    query[2] &= 0x7f;
    let mut failed = dns::answer("named.example", &record);
    failed[3] |= 3;
    asked.answer(web, &query);
    asked.answer(web, &failed);
    assert_eq!((asked.known(), count(&scene, DenyCounter::DnsUnread)), (vec![], 0));
    // Cut short, and longer than what is read.
    let whole = dns::answer("named.example", &record);
    asked.answer(web, &whole[..whole.len() - 1]);
    asked.answer(web, &[0; 2_100]);
    assert_eq!((asked.known(), count(&scene, DenyCounter::DnsUnread)), (vec![], 2));
    // What nobody has asked for is no answer.
    let (socket, at) = web.udp_bind(scene.web.at(Family::V4, 0)).unwrap();
    scene.db.actor.send_to(asked.resolver, at, &whole).unwrap_err();
    assert_eq!(web.receive_for(socket, 1, BRIEF).unwrap().len(), 0);
    assert_eq!(asked.known(), []);
    asked.answer(web, &whole);
    assert_eq!(asked.known().len(), 1);
}

#[test]
fn an_answer_that_comes_to_a_network_of_the_workloads_own_names_nobody() {
    let Some(scene) = Scene::open(Place::Veth, true) else { return };
    let asked = Asked::open(&scene, 100);
    let whole = dns::answer("named.example", &[("192.0.2.1", 600)]);
    // The same workload in another network, which has the address of the resolver for its own.
    let net = NetNs::new();
    let far = NetNs::new();
    let end = |netns, device, addrs| VethEnd { netns, device, addrs };
    NetNs::veth(end(&net, "in0", &["10.9.0.1/24"]), end(&far, "out0", &["10.9.0.2/24"]));
    let caller = scene.lab().actor(&scene.web.cgroup, &net);
    let forger = scene.lab().actor(&scene.db.cgroup, &far);
    let (resolver, at) = forger.udp_bind(asked.at).unwrap();
    let socket = caller.socket(Family::V4, Kind::Datagram, 0).unwrap();
    caller.send_to(socket, at, b"query").unwrap();
    let from = forger.receive(resolver, 1).unwrap()[0].from.unwrap();
    forger.send_to(resolver, from, &whole).unwrap();
    assert_eq!(caller.receive(socket, 1).unwrap()[0].data, whole, "it hears it");
    assert_eq!(asked.known(), []);
    asked.answer(&scene.web.actor, &whole);
    assert_eq!(asked.known().len(), 1);
}

#[test]
fn a_workload_of_this_host_is_named_by_no_answer() {
    let Some(scene) = Scene::open(Place::Loopback, true) else { return };
    let is_named = |party: &Party, address: IpAddr| {
        scene.guard().apply(&policy(&scene, &["named"], RULES));
        note(&scene, address, Some("named"), now() + 1_000);
        let (listener, to) = party.listen(Family::of(SocketAddr::new(address, 0)));
        let called = scene.web.actor.tcp_connect(to, BRIEF);
        if called.is_ok() {
            scene.db.actor.accept(listener).unwrap();
        }
        called
    };
    for family in FAMILIES {
        // It is known by its socket, and that is nobody's name.
        assert_eq!(is_named(&scene.db, scene.db.addr(family)).unwrap_err(), Errno::PERM);
    }
}
