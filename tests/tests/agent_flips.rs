//! Policies replace each other under traffic: every packet is judged by one of them, never by a mixture.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by the one and shows figures by the other")]

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use tests::{
    lab::{AgentOptions, Family, Kind, Witness, magic},
    scene::{BRIEF, LONG, LOOPBACK, PORT, Scene, renamed, rounds},
};

fn flips_deliver_nothing_that_only_a_mixture_allows(fast_refusal: bool) {
    let flips = rounds(100, 1_000);
    let options = AgentOptions { fast_refusal, ..AgentOptions::default() };
    let Some(scene) = Scene::open_by(|lab| renamed(lab, "alpha", "alpha", PORT), &options) else { return };
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let sender = scene.web.socket(Family::V4, Kind::Datagram, 0).unwrap();
    scene.web.send_to(sender, to, b"control").unwrap();
    assert_eq!(scene.db.receive(receiver, 1).unwrap()[0].data, b"control");

    let a = renamed(&scene.lab, "alpha", "beta", PORT);
    let b = renamed(&scene.lab, "beta", "alpha", PORT);
    scene.agent.apply(&a);
    let (listener, addr) = scene.db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let caller = scene.other.tcp_connect(addr, LONG).unwrap();
    let callee = scene.db.accept(listener).unwrap();
    let denied = magic();
    let mut witness = Witness::new(&scene.net, &denied);
    let (sent, kept) = (AtomicU64::new(0), AtomicU64::new(0));
    let burst = vec![(to, denied.clone()); 16];
    let refused = || {
        let _ = scene.web.send_many(sender, burst.clone());
        sent.fetch_add(1, Ordering::Relaxed);
        // A flip waits until every CPU has left every program; a machine of two CPUs that does nothing but send
        // makes that wait the whole test.
        thread::sleep(Duration::from_micros(500));
    };
    let allowed = || {
        scene.other.send(caller, b"kept").expect("a flow that stays allowed is never cut");
        assert_eq!(scene.db.receive(callee, 1).expect("it carries payload").len(), 1);
        kept.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    };
    witness.during(&[&refused, &allowed], || {
        for flip in 0..flips {
            scene.agent.apply(if flip % 2 == 0 { &b } else { &a });
        }
    });
    assert_eq!(scene.db.receive_for(receiver, 1, BRIEF), Ok(vec![]));
    assert_eq!(witness.arrived(), 0, "payloads that only a mixture allows");
    println!(
        "{flips} flips, early refusal {fast_refusal}: {} bursts of denied datagrams, 0 delivered; {} messages of a flow \
         that stays allowed, 0 lost",
        sent.into_inner(),
        kept.into_inner()
    );
    // The same flow, under the mixture that neither is.
    scene.agent.apply(&renamed(&scene.lab, "beta", "beta", PORT));
    scene.web.send_to(sender, to, b"control").unwrap();
    assert_eq!(scene.db.receive(receiver, 1).unwrap()[0].data, b"control");
    let status = scene.agent.balance();
    assert!(status.denied > 0);
    println!("{} denied, {} lost as records", status.denied, status.lost);
}

#[test]
fn g84_no_packet_is_judged_by_a_mixture_of_two_policies_when_calls_are_refused_early() {
    flips_deliver_nothing_that_only_a_mixture_allows(true);
}

#[test]
fn g84_no_packet_is_judged_by_a_mixture_of_two_policies_when_only_packets_are_judged() {
    flips_deliver_nothing_that_only_a_mixture_allows(false);
}
