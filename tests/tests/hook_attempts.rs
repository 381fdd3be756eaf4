//! However often it is tried: a denied flow delivers nothing, and every attempt is in the books.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use tests::{
    lab::{Family, Place, Scene, magic},
    scene::repetitions,
};

/// Attempts between two looks at the witness: its buffer holds what passes of a batch even if all did.
const BATCH: u32 = 1_000;
/// Longer than a datagram is under way.
const BRIEF: Duration = Duration::from_millis(200);

/// Where the flow is denied.
#[derive(Clone, Copy, Debug)]
enum Wall {
    /// At the caller's exit: no frame leaves it.
    Exit,
    /// At the callee's door: frames arrive, and no socket gets one.
    Door,
}

#[test]
fn a_denied_flow_delivers_nothing_in_many_attempts_without_the_fast_refusal() {
    let attempts = repetitions(40_000, 1_000_000);
    let mut made = 0;
    for (place, wall) in [(Place::Loopback, Wall::Exit), (Place::Veth, Wall::Exit), (Place::Veth, Wall::Door)] {
        // Without connect and sendmsg hooks: the boundary is alone.
        let Some(scene) = Scene::open(place, false) else { return };
        for (family, connected) in [(Family::V4, false), (Family::V4, true), (Family::V6, false), (Family::V6, true)] {
            let batches = attempts.div_ceil(3 * 4 * BATCH as usize);
            made += batches * BATCH as usize;
            deny_many(&scene, wall, family, connected, batches);
        }
    }
    println!("{made} attempts, none delivered");
    assert!(made >= attempts);
}

fn deny_many(scene: &Scene, wall: Wall, family: Family, connected: bool, batches: usize) {
    let (receiver, addr) = scene.db.udp(family);
    let (sender, _) = scene.web.udp(family);
    let payload = magic();
    // The same traffic passes while it is allowed.
    scene.allow(&["web -> db: udp/any"]);
    if connected {
        scene.web.actor.connect(sender, addr, BRIEF).unwrap();
    }
    let to = (!connected).then_some(addr);
    let mut witness = scene.watch(&payload);
    assert_eq!(scene.web.actor.hammer(sender, to, 10, &payload), Ok(10));
    assert_eq!(scene.db.actor.receive(receiver, 10).unwrap().len(), 10);
    assert_eq!(witness.arrived(), 10);
    assert_eq!(scene.denials().denied(), 0);

    match wall {
        Wall::Exit => scene.allow(&[]),
        Wall::Door => scene.allow(&["exit web -> db: udp/any"]),
    };
    let mut witness = scene.watch(&payload);
    let mut denied = 0;
    for _ in 0..batches {
        let taken = scene.web.actor.hammer(sender, to, BATCH, &payload).unwrap();
        assert_eq!(scene.db.actor.received(receiver).unwrap(), vec![], "a payload was delivered: {wall:?} {family:?}");
        match wall {
            Wall::Exit => assert_eq!((taken, witness.arrived()), (0, 0), "a frame left the exit"),
            Wall::Door => assert_eq!(taken, BATCH as usize),
        }
        denied += scene.denials().denied();
    }
    assert_eq!(denied, u64::try_from(batches).unwrap() * u64::from(BATCH), "every attempt is in the books");
    assert_eq!(scene.db.actor.receive_for(receiver, 1, BRIEF), Ok(vec![]));
    scene.web.actor.close(sender);
    scene.db.actor.close(receiver);
}
