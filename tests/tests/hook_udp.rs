//! UDP under the kernel programs: G1 to G5 of the list of gaps.

use agent_common::{layout::Hook, verdict::Reason};
use tests::lab::{Errno, Family, Kind, everywhere, magic};

/// The hook that refuses a datagram with an address.
fn sendmsg(family: Family) -> Hook {
    if family == Family::V4 { Hook::Sendmsg4 } else { Hook::Sendmsg6 }
}

#[test]
fn g1_unconnected_udp_passes_if_allowed_and_is_refused_if_not() {
    everywhere(|scene, family| {
        let (receiver, to) = scene.db.udp(family);
        let sender = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        scene.allow(&["web -> db: udp/any"]);
        for _ in 0..3 {
            scene.web.actor.send_to(sender, to, b"allowed").unwrap();
        }
        let got = scene.db.actor.receive(receiver, 3).unwrap();
        assert_eq!(got.len(), 3);
        scene.db.actor.send_to(receiver, got[0].from.unwrap(), b"reply").unwrap();
        assert_eq!(scene.web.actor.receive(sender, 1).unwrap()[0].data, b"reply");
        assert_eq!(scene.denials().causes(), []);

        // On the same socket, which has an allowed flow behind it.
        scene.allow(&[]);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        for _ in 0..5 {
            assert_eq!(scene.web.actor.send_to(sender, to, &magic), Err(Errno::PERM));
        }
        assert_eq!(witness.arrived(), 0);
        assert_eq!(scene.db.actor.received(receiver).unwrap(), []);
        let denials = scene.denials();
        assert_eq!(denials.causes(), [(scene.first_hook(sendmsg(family)), Reason::NoRule)]);
        assert_eq!(denials.denied(), 5);
    });
}
