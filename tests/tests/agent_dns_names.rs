//! Externals by DNS name: a real resolver answers, and only who it names is reached.
//!
//! ```text
//! web ── near ── far ── db: the resolver, and partners at addresses of their own
//!         └ local, a workload in the network of the host
//! ```
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, json};
use tests::{
    dns,
    frames::FAMILIES,
    lab::{
        Actor, Agent, AgentOptions, Cgroup, Errno, Family, Kind, Need, NetNs, Process, Program, Socket, TwoHosts,
        magic, require_or_skip,
    },
    scene::{BRIEF, LONG, document},
};

/// Partners: the first two by name, the third by a name that no external has.
const API: [&str; 2] = ["10.9.1.10", "fd09:1::10"];
const EDGE: [&str; 2] = ["10.9.1.11", "fd09:1::11"];
const SHOP: [&str; 2] = ["10.9.1.12", "fd09:1::12"];
const RESOLVER: [&str; 2] = ["10.9.1.2", "fd09:1::2"];
const PORT: u16 = 4_430;

fn addr(addrs: [&str; 2], family: Family) -> IpAddr {
    addrs[usize::from(family == Family::V6)].parse().unwrap()
}

/// Where Debian has it.
const DNSMASQ: &str = "/usr/sbin/dnsmasq";

/// Starts a resolver, which ends with what is returned.
fn resolver(cgroup: &Cgroup, net: &NetNs) -> Process {
    let record = |name: &str, at: [&str; 2]| format!("--host-record={name},{},{},600", at[0], at[1]);
    [
        "--keep-in-foreground --pid-file --conf-file --no-resolv --no-hosts --bind-interfaces --user=root --group=root \
         --local=//"
            .to_owned(),
        format!("--listen-address={},{}", RESOLVER[0], RESOLVER[1]),
        record("api.partner.example", API),
        record("edge.elsewhere.example", EDGE),
        record("shop.example", SHOP),
        "--cname=www.cdn.example,edge.elsewhere.example".to_owned(),
        // Of hosts that are not elsewhere.
        "--address=/evil.cdn.example/127.0.0.1 --address=/evil.cdn.example/::1".to_owned(),
        // More than anybody has room for.
        "--synth-domain=many.cdn.example,10.20.0.0/16,h-".to_owned(),
    ]
    .iter()
    .flat_map(|words| words.split_whitespace())
    .fold(Program::new(Path::new(DNSMASQ)), Program::arg)
    .spawn(cgroup, net, None)
    .unwrap()
}

/// Asks a resolver as a program would, and returns the addresses that it says. None: no answer.
fn ask(by: &Actor, resolver: SocketAddr, name: &str, family: Family, connected: bool) -> Option<Vec<IpAddr>> {
    let query = dns::query(name, family);
    let socket = by.socket(Family::of(resolver), Kind::Datagram, 0).unwrap();
    let sent = if connected {
        by.connect(socket, resolver, LONG).and_then(|()| by.send(socket, &query))
    } else {
        by.send_to(socket, resolver, &query)
    };
    let heard = sent.and_then(|_| by.receive_for(socket, 1, Duration::from_secs(1)));
    by.close(socket);
    Some(dns::addresses(&heard.ok()?.pop()?.data))
}

struct Place {
    agent: Agent,
    local: Actor,
    _cgroup: Cgroup,
    hosts: TwoHosts,
    _resolver: Process,
    /// By partner and family.
    listeners: Vec<(SocketAddr, Socket)>,
}

fn policy(hosts: &TwoHosts, rules: &str) -> String {
    let near = hosts.near.cgroup.path();
    format!(
        "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: names }}\nspec:\n  trustDomain: \
         lab.example\n  defaults: {{ mode: enforce }}\n  workloads:\n    - {{ name: web, select: {{ cgroup: {near}/web }} \
         }}\n    - {{ name: local, select: {{ cgroup: {near}/local }} }}\n  externals:\n    - {{ name: partner, dns: \
         [API.partner.example] }}\n    - {{ name: cdn, dns: [\"*.cdn.example\"] }}\n  allow: {rules}\n"
    )
}

const RULES: &str = "[{ from: web, to: partner, ports: [tcp/4430, udp/any] }, { from: web, to: cdn, ports: [tcp/4430] }, { \
                     from: local, to: partner, ports: [tcp/4430] }]";

impl Place {
    fn open() -> Option<Self> {
        require_or_skip(&[Need::Dnsmasq])?;
        let hosts = TwoHosts::open()?;
        for at in [API, EDGE, SHOP] {
            hosts.far.party.net.ip(&format!("address add {}/24 dev db0", at[0]));
            hosts.far.party.net.ip(&format!("address add {}/64 dev db0", at[1]));
        }
        let resolver = resolver(&hosts.far.party.cgroup, &hosts.far.party.net);
        let cgroup = hosts.near.cgroup.child("local");
        let local = hosts.lab.actor(&cgroup, &hosts.near.net);
        let more: Map<_, _> = [("scope", json!(hosts.near.cgroup.path())), ("dnsResolvers", json!(RESOLVER))]
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect();
        let options = AgentOptions { more, ..AgentOptions::default() };
        let mut agent = Agent::prepare(&hosts.lab, &policy(&hosts, RULES), &options).unwrap();
        agent.live_in(&hosts.near.net);
        agent.restart();
        agent.wait("its device is guarded", |agent| agent.status().devices == 1 && agent.status().addresses > 0);
        let partners = [API, EDGE, SHOP].into_iter().flat_map(|at| FAMILIES.map(|family| addr(at, family)));
        let listeners = partners
            .map(|at| {
                let (listener, at) = hosts.far.party.actor.tcp_listen(SocketAddr::new(at, PORT)).unwrap();
                (at, listener)
            })
            .collect();
        let place = Self { agent, local, _cgroup: cgroup, hosts, _resolver: resolver, listeners };
        place.wait_for_resolver();
        Some(place)
    }

    /// Until it answers somebody whom nobody guards, from its own host.
    fn wait_for_resolver(&self) {
        let end = Instant::now() + LONG;
        let at = SocketAddr::new(addr(RESOLVER, Family::V6), 53);
        while ask(&self.hosts.far.party.actor, at, "shop.example", Family::V4, false).is_none() {
            assert!(Instant::now() < end, "the resolver does not answer");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks for both families, by IPv4 and by a connected socket of IPv6, and returns what is said.
    fn ask(&self, by: &Actor, name: &str) -> Vec<IpAddr> {
        let by_v4 = ask(by, SocketAddr::new(addr(RESOLVER, Family::V4), 53), name, Family::V6, false);
        let by_v6 = ask(by, SocketAddr::new(addr(RESOLVER, Family::V6), 53), name, Family::V4, true);
        [by_v6.unwrap(), by_v4.unwrap()].concat()
    }

    fn call(&self, by: &Actor, at: IpAddr) -> Result<(Socket, Socket), Errno> {
        let to = SocketAddr::new(at, PORT);
        let ours = by.tcp_connect(to, LONG)?;
        let (_, listener) = self.listeners.iter().find(|(other, _)| *other == to).unwrap();
        Ok((ours, self.hosts.far.party.actor.accept(*listener).unwrap()))
    }

    fn refused(&self, by: &Actor, at: [&str; 2]) {
        for family in FAMILIES {
            assert_eq!(self.call(by, addr(at, family)).unwrap_err(), Errno::PERM, "{family:?}");
        }
    }

    fn reached(&self, by: &Actor, at: [&str; 2]) -> Vec<(Socket, Socket)> {
        FAMILIES.map(|family| self.call(by, addr(at, family)).unwrap()).into()
    }

    fn talks(&self, by: &Actor, (ours, theirs): (Socket, Socket)) {
        by.send(ours, b"still there").unwrap();
        assert_eq!(self.hosts.far.party.actor.receive(theirs, 1).unwrap()[0].data, b"still there");
    }
}

#[test]
fn an_external_by_name_is_who_the_resolver_says_it_is_from_the_first_packet_on() {
    let Some(mut place) = Place::open() else { return };
    let web = &place.hosts.near.party.actor;
    for at in [API, EDGE, SHOP] {
        place.refused(web, at);
    }
    // At once: nobody waits for the agent.
    assert_eq!(place.ask(web, "api.PARTNER.example"), FAMILIES.map(|family| addr(API, family)));
    let open = place.reached(web, API);
    place.refused(web, EDGE);
    // A name below, through an alias of somebody else's name.
    assert_eq!(place.ask(web, "www.cdn.example"), FAMILIES.map(|family| addr(EDGE, family)));
    place.reached(web, EDGE);
    // What nobody has named may be asked for, and opens nothing; nor does a name for this host.
    place.ask(web, "shop.example");
    place.ask(web, "evil.cdn.example");
    place.refused(web, SHOP);
    for at in [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])] {
        assert!(web.tcp_connect(SocketAddr::new(at, PORT), BRIEF).is_err());
    }
    // Each workload by its own rules, wherever it asked.
    place.reached(&place.local, API);
    place.refused(&place.local, EDGE);

    let explained = |agent: &Agent, words: &[&str]| document(&agent.cli(&[&["explain", "-o", "json"], words].concat()));
    let answer = explained(&place.agent, &["web", "ip/10.9.1.10:tcp/4430"]);
    assert_eq!(answer["answers"][0]["decision"], "allow", "{answer:#}");
    assert_eq!(answer["answers"][0]["to"], "ip/10.9.1.10 (partner)", "{answer:#}");
    let answer = explained(&place.agent, &["local", "ip/fd09:1::11:tcp/4430"]);
    assert_eq!(answer["answers"][0]["decision"], "deny", "{answer:#}");
    assert!(place.agent.cli(&["map", "check"]).status.success());

    // Neither another policy nor another agent forgets who it is, or cuts what is open.
    place.agent.apply(&policy(&place.hosts, &RULES.replace("udp/any", "udp/123")));
    place.agent.kill();
    place.reached(web, API);
    place.agent.restart();
    for pair in open {
        place.talks(web, pair);
    }
    place.reached(web, API);
    // Who loses its rule is cut.
    place.agent.change(&["revoke", "web", "partner", "--reason", "test"]);
    place.refused(web, API);
    place.reached(&place.local, API);
    place.agent.wait("the names are counted", |agent| agent.counter("dns.addresses") == 4);
    assert!(place.agent.counter("dns.answers") >= 6, "{}", place.agent.counter("dns.answers"));
    assert_eq!((place.agent.counter("dns.answers-unread"), place.agent.counter("dns.no-room")), (0, 0));
    let status = place.agent.balance();
    assert_eq!((status.lost, status.problems), (0, vec![]));
}

#[test]
fn an_external_that_has_all_its_addresses_is_named() {
    const ROOM: u32 = 1_000;
    let Some(mut place) = Place::open() else { return };
    let web = &place.hosts.near.party.actor;
    let resolver = SocketAddr::new(addr(RESOLVER, Family::V4), 53);
    let fill = |numbers: Range<u32>| {
        for n in numbers {
            let name = format!("h-10-20-{}-{}.many.cdn.example", 1 + n / 200, 1 + n % 200);
            let said = ask(web, resolver, &name, Family::V4, false).unwrap();
            assert_eq!(said.len(), 1, "{name}");
        }
    };
    fill(0..ROOM);
    // The agent counts what there is now and then, and does not count what is noted meanwhile: it has seen all of it when it
    // says so.
    let is_named = |agent: &Agent| {
        let problems = agent.status().problems;
        problems.iter().any(|problem| problem.starts_with("`cdn` has all the 1000 addresses by DNS"))
    };
    place.agent.wait("it is named", is_named);
    fill(ROOM..ROOM + 3);
    // Others are as they were.
    place.ask(web, "api.partner.example");
    place.reached(web, API);
    assert_eq!(place.agent.counter("dns.no-room"), 3);
}

#[test]
fn an_answer_of_somebody_else_names_nobody() {
    let Some(place) = Place::open() else { return };
    let web = &place.hosts.near.party.actor;
    // A resolver of its own, in its own network, whose answers are whatever it likes: of an address that is none of the
    // node's, and of one that is, which it has given itself.
    let mine = NetNs::new();
    mine.ip("address add 10.9.1.2/32 dev lo");
    mine.ip("address add 10.9.9.9/32 dev lo");
    mine.ip("address add fd09:1::2/128 dev lo");
    let nested = place.hosts.near.party.cgroup.child("nested");
    let _resolver = resolver(&nested, &mine);
    let caller = place.hosts.lab.actor(&nested, &mine);
    let end = Instant::now() + LONG;
    while ask(&caller, SocketAddr::new(addr(RESOLVER, Family::V4), 53), "api.partner.example", Family::V4, false)
        .is_none()
    {
        assert!(Instant::now() < end, "its own resolver answers");
        thread::sleep(Duration::from_millis(20));
    }
    place.refused(web, API);
    // Nor does one on another host that is no resolver of this one.
    place.hosts.far.party.net.ip("address add 10.9.1.99/24 dev db0");
    place.agent.apply(&policy(&place.hosts, &RULES.replacen('[', "[{ from: web, to: world, ports: [udp/53] }, ", 1)));
    let far = SocketAddr::new("10.9.1.99".parse().unwrap(), 53);
    let (forger, _) = place.hosts.far.party.actor.udp_bind(far).unwrap();
    let socket = web.socket(Family::V4, Kind::Datagram, 0).unwrap();
    web.send_to(socket, far, &dns::query("api.partner.example", Family::V4)).unwrap();
    let from = place.hosts.far.party.actor.receive(forger, 1).unwrap()[0].from.unwrap();
    let answer = dns::answer("api.partner.example", &[(API[0], 600)]);
    place.hosts.far.party.actor.send_to(forger, from, &answer).unwrap();
    assert_eq!(web.receive(socket, 1).unwrap().len(), 1, "it hears it");
    place.refused(web, API);
    assert_eq!(place.agent.counter("dns.answers"), 0);
    // What came from the node's resolver would.
    place.ask(web, "api.partner.example");
    place.reached(web, API);
    let magic = magic();
    let mut sniffer = place.hosts.far.party.watch(&magic);
    let other = web.socket(Family::V4, Kind::Datagram, 0).unwrap();
    assert_eq!(web.send_to(other, SocketAddr::new(addr(SHOP, Family::V4), 9), &magic), Err(Errno::PERM));
    assert_eq!(sniffer.arrived(), 0);
}
