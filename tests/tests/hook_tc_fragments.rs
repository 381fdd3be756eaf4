//! Datagrams in pieces at devices: G43 and G44 of the list of gaps, with nothing but the programs at the devices to stop
//! anything.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{net::SocketAddr, ops::Range};

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    frames::{FAMILIES, fragments, framed, ip_tcp, ip_udp, nothing_arrives},
    lab::{Command, Family, GuardOptions, Socket, Transmit, Wall, magic},
    scene::repetitions,
};

/// Behind the IP header of a datagram of [`Sender::data`]: three pieces.
const RANGES: [Range<usize>; 3] = [0..64, 64..128, 128..208];
/// The share of the flow quota that may be datagrams under way: one eighth.
const DATAGRAMS_MAX: u32 = 1024;

/// Datagrams of 200 bytes from `web` to a socket of `db`.
struct Sender<'a> {
    wall: &'a Wall,
    ethernet: ([u8; 6], [u8; 6]),
    family: Family,
    receiver: Socket,
    from: SocketAddr,
    to: SocketAddr,
    magic: Vec<u8>,
}

impl Sender<'_> {
    /// Each piece of it has the magic bytes within.
    fn data(&self) -> Vec<u8> {
        let mut data: Vec<u8> = self.magic.iter().copied().cycle().take(200).collect();
        for Range { start, .. } in &RANGES[1..] {
            data[start - 8..][..self.magic.len()].copy_from_slice(&self.magic);
        }
        data
    }

    fn whole(&self, to: SocketAddr) -> Vec<u8> {
        ip_udp(self.from, to, &self.data())
    }

    fn pieces(&self, id: u16) -> Vec<Vec<u8>> {
        fragments(&self.whole(self.to), id, &RANGES)
    }

    fn send(&self, pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        for piece in pieces {
            self.wall.send_frame(&framed(self.ethernet, piece.as_ref()), true).unwrap();
        }
    }

    fn arrives(&self, pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        self.send(pieces);
        assert_eq!(self.wall.db.actor.receive(self.receiver, 1).unwrap()[0].data, self.data());
        assert_eq!(self.wall.denials().denied(), 0);
    }

    /// Sends what is put together nowhere; returns how many of the pieces came as far as the receiver's namespace, and
    /// why the rest did not.
    fn is_lost(&self, pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> (u64, Vec<Reason>) {
        let mut sniffer = self.wall.watch(&self.magic);
        self.send(pieces);
        let arrived = sniffer.arrived();
        assert_eq!(self.wall.db.actor.received(self.receiver), Ok(vec![]), "the socket got a datagram");
        let denials = self.wall.denials();
        let causes = denials.causes();
        assert!(causes.iter().all(|(hook, _)| *hook == Hook::TcFrom), "{causes:?}");
        let mut reasons: Vec<Reason> = causes.into_iter().map(|(_, reason)| reason).collect();
        // With and without ports.
        reasons.dedup();
        (arrived, reasons)
    }
}

/// For each family, with the way open.
fn with(test: impl Fn(&Sender<'_>)) {
    let options = GuardOptions { flow_quota: DATAGRAMS_MAX * 8, ..GuardOptions::default() };
    let Some(wall) = Wall::unguarded(options) else { return };
    wall.guard_devices();
    for (n, family) in FAMILIES.into_iter().enumerate() {
        let (receiver, to) = wall.db.udp(family);
        wall.open_way(&format!("udp/{}, tcp/any", to.port()));
        let from = wall.web.at(family, 41_000 + u16::try_from(n).unwrap());
        test(&Sender { wall: &wall, ethernet: wall.ethernet(), family, receiver, from, to, magic: magic() });
    }
}

#[test]
fn g43_the_pieces_of_a_datagram_pass_behind_the_first_one_and_only_then() {
    with(|sender| {
        sender.arrives([sender.whole(sender.to)]);
        for id in [7, 8, 7] {
            sender.arrives(sender.pieces(id));
        }
        // Two at a time.
        let both = [sender.pieces(20), sender.pieces(21)];
        sender.send((0..3).flat_map(|n| both.each_ref().map(|pieces| &pieces[n])));
        assert_eq!(sender.wall.db.actor.receive(sender.receiver, 2).unwrap().len(), 2);
        assert_eq!(sender.wall.denials().denied(), 0);
        // Whoever may not send the first may send none of the others.
        sender.wall.allow(&[]);
        nothing_arrives(sender.wall, sender.receiver, &sender.magic, || sender.send(sender.pieces(9)));
        let denials = sender.wall.denials();
        assert_eq!(denials.causes(), [(Hook::TcFrom, Reason::NoRule), (Hook::TcFrom, Reason::Fragment)]);
        assert_eq!(denials.denied(), 3);
    });
}

#[test]
fn g43_what_is_approved_ends_with_the_policy_that_did() {
    with(|sender| {
        let pieces = sender.pieces(7);
        sender.send(&pieces[..2]);
        sender.wall.open_way(&format!("udp/{}", sender.to.port()));
        assert_eq!(sender.is_lost(&pieces[2..]), (0, vec![Reason::Fragment]));
        sender.arrives(pieces);
    });
}

#[test]
fn g43_pieces_out_of_turn_are_dropped() {
    with(|sender| {
        let [first, second, third] = <[Vec<u8>; 3]>::try_from(sender.pieces(7)).unwrap();
        // Nothing came before.
        assert_eq!(sender.is_lost([&second, &third]), (0, vec![Reason::Fragment]));
        assert_eq!(sender.is_lost([&third, &second, &first]), (1, vec![Reason::Fragment]));
        // That first one has begun a datagram. It comes again: an overlap.
        assert_eq!(sender.is_lost([&first, &second]), (0, vec![Reason::Fragment]));
        let other = sender.pieces(8);
        assert_eq!(sender.is_lost([&other[0], &other[2], &other[1]]), (1, vec![Reason::Fragment]));
        sender.arrives(sender.pieces(9));
    });
}

#[test]
fn g43_a_number_that_a_denied_flow_uses_again_carries_nothing() {
    with(|sender| {
        let other = SocketAddr::new(sender.to.ip(), sender.to.port() ^ 1);
        let denied = |id| fragments(&sender.whole(other), id, &RANGES);
        // After a datagram that has arrived.
        sender.arrives(sender.pieces(7));
        assert_eq!(sender.is_lost(denied(7)), (0, vec![Reason::NoRule, Reason::Fragment]));
        // Into one that is under way: it ends.
        let allowed = sender.pieces(8);
        assert_eq!(sender.is_lost(&allowed[..1]), (1, vec![]));
        assert_eq!(sender.is_lost(denied(8)), (0, vec![Reason::Fragment]));
        assert_eq!(sender.is_lost(&allowed[1..]), (0, vec![Reason::Fragment]));
        sender.arrives(sender.pieces(9));
    });
}

#[test]
fn g44_a_first_piece_without_its_whole_header_is_dropped() {
    with(|sender| {
        // UDP has its whole header in eight bytes.
        sender.arrives(fragments(&sender.whole(sender.to), 7, &[0..8, 8..208]));
        let segment = ip_tcp(sender.from, sender.to, |tcp| tcp.syn(), &sender.data());
        let cut = |id, ranges: &[Range<usize>]| fragments(&segment, id, ranges);
        // A header of 20 bytes: flags are in the second piece, or the end of the header is.
        for (n, end) in [8, 16].into_iter().enumerate() {
            let ranges = [0..end, end..64];
            let id = 10 + u16::try_from(n).unwrap();
            assert_eq!(sender.is_lost(cut(id, &ranges)), (0, vec![Reason::Malformed, Reason::Fragment]), "{end}");
        }
        // The first one is whole, and the second writes over its flags.
        let behind_header: [Range<usize>; 2] = [0..64, 64..128];
        assert_eq!(sender.is_lost(cut(12, &behind_header)).1, vec![]);
        assert_eq!(sender.is_lost(cut(13, &[0..64, 8..64])), (1, vec![Reason::Fragment]));
    });
}

#[test]
fn g44_an_overlap_ends_its_datagram() {
    with(|sender| {
        let whole = sender.whole(sender.to);
        for (n, second) in [56..128, 0..64, 8..16, 64..208].into_iter().enumerate() {
            let id = 20 + u16::try_from(n).unwrap();
            let pieces = fragments(&whole, id, &[0..64, 64..128, second.clone(), 128..208]);
            // The piece that overlaps and what would come behind it.
            assert_eq!(sender.is_lost(pieces), (2, vec![Reason::Fragment]), "{second:?}");
        }
        sender.arrives(sender.pieces(7));
    });
}

#[test]
fn g43_datagrams_that_never_end_use_up_the_room_of_their_sender_alone() {
    with(|sender| {
        let count = repetitions(1_200, 100_000);
        let wall = sender.wall;
        let (socket, back) = wall.web.udp(sender.family);
        wall.allow(&["web -> db: udp/any", "db -> web: udp/any"]);
        let whole = sender.whole(sender.to);
        // More than there are numbers: then the others of the same number have begun.
        let ids = (0..count).map(|n| u16::try_from(n % 65_521).unwrap());
        let begun: Vec<_> = ids.flat_map(|id| fragments(&whole, id, &RANGES[..1])).collect();
        for some in begun.chunks(1_000) {
            let frames: Vec<_> = some.iter().map(|piece| framed(sender.ethernet, piece)).collect();
            assert_eq!(wall.hammer_frames(&frames, 1, Transmit::Bypass), Ok(some.len()));
        }
        let denials = wall.denials();
        let causes = denials.causes();
        assert!(causes.contains(&(Hook::TcFrom, Reason::Internal)), "{causes:?}");
        assert!(denials.denied() >= (count - DATAGRAMS_MAX as usize - 1) as u64, "{} of {count}", denials.denied());
        // In one piece it goes on, and the other workload has room of its own.
        sender.arrives([sender.whole(sender.to)]);
        let data = sender.data();
        let from = SocketAddr::new(sender.to.ip(), 41_100);
        for piece in fragments(&ip_udp(from, back, &data), 7, &RANGES) {
            let frame = framed(wall.ethernet_of_db(), &piece);
            let command = Command::SendFrame { device: "db0".to_owned(), frame, bypass: true };
            wall.db.actor.call(&command).unwrap();
        }
        assert_eq!(wall.web.actor.receive(socket, 1).unwrap()[0].data, data);
        assert_eq!(wall.denials().denied(), 0);
    });
}
