//! Policies replace each other under traffic, as fast as the kernel takes them: every packet is judged by one
//! of them, never by a mixture.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by the one and shows figures by the other")]

use std::{thread, time::Duration};

use tests::{
    lab::{Family, Kind, Place, Scene, Witness, magic},
    scene::{BRIEF, renamed, rounds},
};

fn flips_deliver_nothing_that_only_a_mixture_allows(fast_refusal: bool) {
    let flips = rounds(300, 5_000);
    let Some(scene) = Scene::open(Place::Loopback, fast_refusal) else { return };
    let (receiver, to) = scene.db.udp(Family::V4);
    let sender = scene.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
    let passes = |is: &str, allowed: &str| {
        scene.guard().apply(&renamed(scene.lab(), is, allowed, to.port()));
        scene.web.actor.send_to(sender, to, b"control").unwrap();
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"control");
    };
    passes("alpha", "alpha");

    let [a, b] = [("alpha", "beta"), ("beta", "alpha")].map(|(is, to_db)| renamed(scene.lab(), is, to_db, to.port()));
    scene.guard().apply(&a);
    let denied = magic();
    let mut witness = Witness::new(&scene.db.net, &denied);
    let web = &scene.web.actor;
    let mut guard = scene.guard();
    let burst = vec![(to, denied.clone()); 16];
    let refused = || {
        let _ = web.send_many(sender, burst.clone());
        // A flip waits until every CPU has left every program.
        thread::sleep(Duration::from_micros(200));
    };
    witness.during(&[&refused], || {
        for flip in 0..flips {
            guard.apply(if flip % 2 == 0 { &b } else { &a });
        }
    });
    drop(guard);
    assert_eq!(scene.db.actor.receive_for(receiver, 1, BRIEF), Ok(vec![]));
    assert_eq!(witness.arrived(), 0, "payloads that only a mixture allows");
    let denials = scene.denials();
    println!("{flips} flips, early refusal {fast_refusal}: {} datagrams denied, 0 delivered", denials.denied());
    assert!(denials.denied() > 0);
    // The same flow, under the mixture that neither is.
    passes("beta", "beta");
}

#[test]
fn g84_no_packet_is_judged_by_a_mixture_of_two_policies_that_flip_fast_when_calls_are_refused_early() {
    flips_deliver_nothing_that_only_a_mixture_allows(true);
}

#[test]
fn g84_no_packet_is_judged_by_a_mixture_of_two_policies_that_flip_fast_when_only_packets_are_judged() {
    flips_deliver_nothing_that_only_a_mixture_allows(false);
}
