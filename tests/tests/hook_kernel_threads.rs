//! What the kernel does on behalf of a workload: G8 and G19 of the list of gaps. Workers and rings act for
//! the socket's workload, and gain nothing for anybody else.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use agent_common::{layout::Hook, parse::tcp, verdict::Reason};
use tests::lab::{
    Command, Errno, Family, GuardOptions, Kind, Layers, UringOperation, Wall, Witness, everywhere, magic,
};

/// Long enough for every answer that comes.
const LONG: Duration = Duration::from_secs(20);
/// linux/in.h.
const IPPROTO_MPTCP: u32 = 262;

#[test]
fn g8_a_subflow_that_the_kernel_adds_is_judged_by_its_own_address() {
    let early = [true, false].map(|fast_refusal| (Layers::Sockets, fast_refusal));
    for (layers, fast_refusal) in [(Layers::All, true), (Layers::Devices, true)].into_iter().chain(early) {
        let Some(wall) = Wall::by(layers, GuardOptions { fast_refusal, ..GuardOptions::default() }) else { return };
        for (family, second) in [(Family::V4, "10.9.1.3"), (Family::V6, "fd09:1::3")] {
            eprintln!("{layers:?}, fast refusal {fast_refusal}, {family:?}");
            added_subflow(&wall, layers, family, second.parse().unwrap());
        }
    }
}

/// `db` announces a second address, which is not known to be its own, and later is.
fn added_subflow(wall: &Wall, layers: Layers, family: Family, second: IpAddr) {
    let (web, db) = (&wall.web, &wall.db);
    let prefix = if family == Family::V4 { "24" } else { "64 nodad" };
    db.net.ip(&format!("address add {second}/{prefix} dev db0"));
    // The kernel of `web` may use it.
    db.net.ip(&format!("mptcp endpoint add {second} dev db0 signal"));
    web.net.ip("mptcp limits set subflow 2 add_addr_accepted 2");
    db.net.ip("mptcp limits set subflow 2 add_addr_accepted 2");
    let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
    let (listener, bound) = db.actor.bind(Kind::Stream, IPPROTO_MPTCP, any.parse().unwrap()).unwrap();
    db.actor.listen(listener).unwrap();
    let to = db.at(family, bound.port());
    // Every IP packet from `web` to the second address has both side by side in its header.
    let header = match (web.addr(family), second) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => panic!("both are of one family"),
    };
    let connect = || {
        let caller = web.actor.socket(family, Kind::Stream, IPPROTO_MPTCP).unwrap();
        web.actor.connect(caller, to, LONG).unwrap();
        let callee = db.actor.accept(listener).unwrap();
        for (from, socket, peer, end) in
            [(&web.actor, caller, &db.actor, callee), (&db.actor, callee, &web.actor, caller)]
        {
            from.send(socket, b"payload").unwrap();
            assert_eq!(peer.receive(end, 1).unwrap()[0].data, b"payload");
        }
        (caller, callee)
    };
    let wait = |what: &str, holds: &mut dyn FnMut() -> bool| {
        let end = Instant::now() + LONG;
        while !holds() {
            assert!(Instant::now() < end, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    };
    wall.open_way("tcp/any");
    let _ = wall.guard().look();
    let mut witness = Witness::new(&db.net, &header);
    let (caller, callee) = connect();
    let mut told = Vec::new();
    wait("a denied subflow", &mut || {
        told.extend(wall.guard().look().records);
        told.iter().any(|r| r.peer_addr == mapped(second) && r.tcp_flags == tcp::SYN)
    });
    let record = told.iter().find(|r| r.peer_addr == mapped(second) && r.tcp_flags != 0).unwrap();
    let hook = if layers.has_sockets() { Hook::Egress } else { Hook::TcFrom };
    assert_eq!((record.hook, record.reason), (hook as u8, Reason::NoRule as u8));
    assert_eq!((record.local_id, record.cgroup), (web.id().0, web.cgroup.id()));
    // The first subflow goes on.
    web.actor.send(caller, b"more").unwrap();
    assert_eq!(db.actor.receive(callee, 1).unwrap()[0].data, b"more");
    assert_eq!(witness.arrived(), 0);
    web.actor.close(caller);
    db.actor.close(callee);

    // The control: once it is an address of `db`, the worker uses it.
    wall.give_address(second, db.cgroup.id());
    let (caller, callee) = connect();
    wait("a second subflow", &mut || witness.arrived() > 0);
    web.actor.close(caller);
    db.actor.close(callee);
}

fn mapped(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[test]
fn g19_a_ring_acts_for_where_its_process_is_and_a_socket_stays_its_makers() {
    everywhere(|scene, family| {
        let (receiver, udp) = scene.db.udp(family);
        let (listener, tcp) = scene.db.listen(family);
        for by_kernel_thread in [false, true] {
            scene.allow(&["web -> db: tcp/any, udp/any"]);
            let actor = scene.lab().actor(&scene.web.cgroup, &scene.web.net);
            actor.call(&Command::KeepRing { by_kernel_thread }).unwrap();
            let make = |kind| actor.uring_socket(family, kind).unwrap();
            let send = |socket, data: &[u8]| {
                let operation = UringOperation::SendMsg { to: udp, data: data.to_vec() };
                actor.uring(socket, operation, by_kernel_thread).map(drop)
            };
            let connect = |socket, to: SocketAddr| {
                actor.uring(socket, UringOperation::Connect { to, timeout_ms: 200 }, by_kernel_thread).map(drop)
            };
            let [datagram, stream, idle] = [Kind::Datagram, Kind::Stream, Kind::Stream].map(make);
            assert_eq!((send(datagram, b"control"), connect(stream, tcp)), (Ok(()), Ok(())));
            assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"control");
            scene.db.actor.accept(listener).unwrap();
            assert_eq!(scene.denials().calls(), []);

            // The process moves on, its ring and its sockets with it.
            actor.move_to(&scene.other.cgroup);
            let expected = if scene.fast_refusal { Err(Errno::PERM) } else { Ok(()) };
            assert_eq!(send(datagram, b"moved"), expected, "by a kernel thread: {by_kernel_thread}");
            assert_eq!(connect(idle, tcp), expected, "by a kernel thread: {by_kernel_thread}");
            let denials = scene.denials();
            let mismatch = [family.sendmsg_hook(), family.connect_hook()].map(|hook| (hook, Reason::TaskMismatch));
            assert_eq!(denials.calls(), if scene.fast_refusal { &mismatch[..] } else { &[] });
            assert!(denials.records.iter().all(|r| r.task_id == scene.other.id().0 || r.task_id == 0));
            let passed = usize::from(!scene.fast_refusal);
            assert_eq!(scene.db.actor.received(receiver).unwrap().len(), passed);
            assert_eq!(scene.db.actor.accept_now(listener).is_ok(), !scene.fast_refusal);

            // What the ring makes now is of the new place.
            let magic = magic();
            let mut witness = scene.watch(&magic);
            let [datagram, stream] = [Kind::Datagram, Kind::Stream].map(make);
            assert_eq!(send(datagram, &magic), Err(Errno::PERM));
            assert_eq!(connect(stream, tcp), Err(scene.refused()));
            assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
            assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
            let denials = scene.denials();
            let hooks = [family.sendmsg_hook(), family.connect_hook()];
            assert_eq!(denials.calls(), hooks.map(|hook| (scene.first_hook(hook), Reason::NoRule)));
            assert!(denials.records.iter().any(|r| r.local_id == scene.other.id().0));
        }
    });
}
