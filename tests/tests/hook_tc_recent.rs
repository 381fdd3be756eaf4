//! What passed a device a moment ago passes again without a look at the flow table; nothing else does, and nothing for long.

use std::{net::SocketAddr, thread, time::Duration};

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    frames::{FAMILIES, framed, ip_udp, nothing_arrives},
    lab::{Command, Socket, Wall, magic},
    scene::BRIEF,
};

/// Longer than a CPU remembers, whatever the rate of the timer interrupt.
const FORGOTTEN: Duration = Duration::from_millis(1_000);
/// A busy machine may take longer than a CPU remembers between two datagrams, but not so often.
const TRIES: u32 = 60;

/// A flow from `web` to `db` that both devices have just seen, both ways.
struct Running<'a> {
    wall: &'a Wall,
    caller: (Socket, SocketAddr),
    callee: (Socket, SocketAddr),
}

impl<'a> Running<'a> {
    fn begin(wall: &'a Wall, callee: (Socket, SocketAddr), caller: (Socket, SocketAddr)) -> Self {
        let running = Self { wall, caller, callee };
        running.go_on();
        running
    }

    /// The first of each way is judged or looked up, the second as well, and is noted; the third needs neither.
    fn go_on(&self) {
        for _ in 0..3 {
            self.wall.web.actor.send_to(self.caller.0, self.callee.1, b"ask").expect("ask");
            assert_eq!(self.wall.db.actor.receive(self.callee.0, 1).expect("hear").len(), 1);
            self.wall.db.actor.send_to(self.callee.0, self.caller.1, b"answer").expect("answer");
            assert_eq!(self.wall.web.actor.receive(self.caller.0, 1).expect("hear").len(), 1);
        }
    }

    /// Says whether an answer comes through.
    fn answers(&self) -> bool {
        self.wall.db.actor.send_to(self.callee.0, self.caller.1, b"one more").expect("answer");
        !self.wall.web.actor.receive_for(self.caller.0, 1, BRIEF).expect("hear").is_empty()
    }
}

#[test]
fn an_answer_passes_without_the_flow_table_for_a_moment_only() {
    let Some(wall) = Wall::open(false) else { return };
    for family in FAMILIES {
        wall.open_way("udp/any");
        let running = Running::begin(&wall, wall.db.udp(family), wall.web.udp(family));
        let remembered = (0..TRIES).any(|_| {
            running.go_on();
            // The CPUs remember what they do.
            wall.guard().forget_flows();
            running.answers()
        });
        assert!(remembered, "{family:?}: every answer needs the flow table");
        thread::sleep(FORGOTTEN);
        let _ = wall.denials();
        assert!(!running.answers(), "{family:?}: an answer passes without a flow");
        assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::NoRule)]);
    }
}

#[test]
fn a_device_that_changes_hands_and_a_policy_that_changes_are_seen_by_the_next_packet() {
    let Some(wall) = Wall::open(false) else { return };
    let [web, _] = wall.devices();
    wall.ask_no_neighbour_again();
    for family in FAMILIES {
        wall.open_way("udp/any");
        let running = Running::begin(&wall, wall.db.udp(family), wall.web.udp(family));
        let _ = wall.denials();
        wall.guard_device(web, wall.db.cgroup.id());
        assert!(!running.answers(), "{family:?}: the new owner of a device has a flow of the old one");
        assert_eq!(wall.denials().causes(), [(Hook::TcTo, Reason::NoRule)]);
        wall.guard_device(web, wall.web.cgroup.id());
        running.go_on();
        wall.allow(&[]);
        assert!(!running.answers(), "{family:?}: a flow outlives its rule");
        assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::NoRule)]);
    }
}

#[test]
fn g28_g52_nobody_else_sends_what_passed_a_device_a_moment_ago() {
    let Some(wall) = Wall::open(false) else { return };
    let stranger = wall.lab().actor(&wall.db.cgroup, &wall.web.net);
    let (own, host) = wall.ethernet();
    let other = [own[0], own[1], own[2], own[3], own[4], own[5] ^ 1];
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let from = wall.web.at(family, 40_040);
        wall.allow(&["web -> db: udp/any", "db -> db: udp/any"]);
        let send = |ethernet: [u8; 6], data: &[u8]| Command::SendFrame {
            device: "web0".to_owned(),
            frame: framed((ethernet, host), &ip_udp(from, to, data)),
            bypass: false,
        };
        let go_on = || {
            for _ in 0..3 {
                wall.web.actor.call(&send(own, b"its own")).expect("send");
                assert_eq!(wall.db.actor.receive(receiver, 1).expect("hear").len(), 1);
            }
        };
        go_on();
        assert_eq!(wall.denials().denied(), 0);
        let magic = magic();
        nothing_arrives(&wall, receiver, &magic, || drop(wall.web.actor.call(&send(other, &magic)).expect("send")));
        assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::SpoofedSource)]);
        go_on();
        nothing_arrives(&wall, receiver, &magic, || drop(stranger.call(&send(own, &magic)).expect("send")));
        assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::DeviceMismatch)]);
    }
}
