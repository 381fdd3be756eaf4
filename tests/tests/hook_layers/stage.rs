//! A table of what is tried, and what becomes of it under which layers.

use std::{
    cell::RefCell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    frames::{FAMILIES, framed},
    lab::{
        Actor, Cgroup, Command, Errno, Family, GuardOptions, Kind, Layers, Socket, Transmit, VXLAN_PORT, Wall, Witness,
        magic,
    },
    scene::LONG,
};

/// Where nothing comes, this long is waited for it.
pub const BRIEF: Duration = Duration::from_millis(50);
/// On a busy machine a try takes long, so a time alone is no bound.
const TRIES_MIN: usize = 3;
/// A port that is allowed where others are denied. Its bytes are two options of IPv4 that say nothing.
pub const ALLOWED: u16 = 0x0101;

/// What becomes of something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// The socket got it.
    Delivered,
    /// It is in the receiver's namespace, where no socket takes it.
    Arrived,
    /// A hook denied it.
    Stopped(Hook, Reason),
    /// None of these.
    Lost,
}

use Fate::{Arrived, Delivered, Stopped};

/// What is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Policy {
    /// [`ALLOWED`] and the service address, and the door of `db` denies nothing.
    Exit,
    /// The same, and the exit of `web` denies nothing.
    Door,
    /// Everything from `db` to `web`.
    Back,
    /// All that has ports, but no tunnel.
    Ports,
    /// The port of a tunnel.
    Tunnel,
    /// Everything from `web` to `db`, and the service address.
    Open,
}

impl Policy {
    const ALL: [Self; 6] = [Self::Exit, Self::Door, Self::Back, Self::Ports, Self::Tunnel, Self::Open];

    fn apply(self, wall: &Wall) {
        const VIP: &str = "web -> vip: any";
        let few = format!("web -> db: udp/{ALLOWED}");
        let (below, above) = (VXLAN_PORT - 1, VXLAN_PORT + 1);
        let ports = format!("web -> db: tcp/any, icmp/echo, udp/1-{below}, udp/{above}-65535");
        let tunnel = format!("web -> db: udp/{VXLAN_PORT}");
        match self {
            Self::Exit => wall.allow_at_the_exit(&[&few, VIP]),
            Self::Door => wall.allow_at_the_door(&[&few, VIP]),
            Self::Back => wall.allow(&["db -> web: any"]),
            Self::Ports => wall.allow(&[&ports]),
            Self::Tunnel => wall.allow(&[&tunnel]),
            Self::Open => wall.allow(&["web -> db: any", VIP]),
        };
    }
}

/// Who else acts, each in the network of `web` unless it says otherwise.
pub struct Cast {
    /// With the label of `db`.
    pub stranger: Actor,
    /// Without a label.
    pub nobody: Actor,
    /// The same, in the network of `db`.
    pub nobody_there: Actor,
    /// Deep below `web`.
    pub heir: Actor,
    /// In `web`, with a cgroup namespace of its own.
    pub inside: Actor,
    /// In `web`, and sometimes elsewhere.
    pub mover: Actor,
    /// From `web` to the host.
    ethernet: ([u8; 6], [u8; 6]),
    /// After the actors: nothing runs in them any more when they are removed.
    _cgroups: [Cgroup; 2],
}

impl Cast {
    fn of(wall: &Wall) -> Self {
        let (lab, web, db) = (wall.lab(), &wall.web, &wall.db);
        let cgroups = [lab.cgroup().child("nobody"), web.cgroup.child("a/b/c")];
        let cast = Self {
            stranger: lab.actor(&db.cgroup, &web.net),
            nobody: lab.actor(&cgroups[0], &web.net),
            nobody_there: lab.actor(&cgroups[0], &db.net),
            heir: lab.actor(&cgroups[1], &web.net),
            inside: lab.actor(&web.cgroup, &web.net),
            mover: lab.actor(&web.cgroup, &web.net),
            ethernet: wall.ethernet(),
            _cgroups: cgroups,
        };
        cast.inside.call(&Command::UnshareCgroupNs).unwrap();
        cast
    }
}

/// Which way it goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Toward {
    Db,
    Web,
    /// The stranger in the network of `web`.
    Beside,
}

/// What receives.
#[derive(Clone, Copy, Debug)]
pub enum Receiver {
    Messages(Socket),
    Connections(Socket),
}

/// What there is before the policy comes.
pub struct Ends {
    pub receiver: Receiver,
    /// Where to send.
    pub to: SocketAddr,
    /// Sockets of `web` and of `db`.
    pub sockets: [Option<Socket>; 2],
}

/// How the receiver comes to be.
#[derive(Clone, Copy)]
pub enum Opens {
    /// A socket of `db` for datagrams, by protocol; 0 is UDP.
    Datagrams(u32),
    /// A listener of `db`, by protocol; 0 is TCP.
    Connections(u32),
    /// In a way of its own.
    By(fn(&Wall, &Cast, Family) -> Ends),
    /// The same, while everything is allowed.
    Allowed(fn(&Wall, &Cast, Family) -> Ends),
}

/// Where a case is tried.
pub struct Stage<'a> {
    pub wall: &'a Wall,
    pub cast: &'a Cast,
    pub family: Family,
    pub ends: &'a Ends,
    pub to: SocketAddr,
    /// How long an answer is waited for.
    pub patience: Duration,
    /// Sockets that live as long as what they sent is looked for.
    kept: RefCell<Vec<(&'a Actor, Socket)>>,
}

impl<'a> Stage<'a> {
    pub fn from(&self) -> SocketAddr {
        self.wall.web.at(self.family, 40_000)
    }

    pub fn send_frame(&self, packet: &[u8]) {
        let sent = self.wall.hammer_frames(&[framed(self.cast.ethernet, packet)], 1, Transmit::Bypass);
        assert_eq!(sent, Ok(1));
    }

    /// Sends by a new socket, and forgets what becomes of that: the fate of the payload is looked at elsewhere.
    pub fn send_by(
        &self,
        actor: &'a Actor,
        (family, kind, protocol): (Family, Kind, u32),
        send: impl FnOnce(&Actor, Socket) -> Result<(), Errno>,
    ) {
        let socket = actor.socket(family, kind, protocol).unwrap();
        self.kept.borrow_mut().push((actor, socket));
        let _ = send(actor, socket);
    }

    /// As [`Self::send_by`], of `web`.
    pub fn send(&self, kind: (Family, Kind, u32), send: impl FnOnce(&Actor, Socket) -> Result<(), Errno>) {
        self.send_by(&self.wall.web.actor, kind, send);
    }

    /// As [`Self::send`], by UDP.
    pub fn send_udp(&self, send: impl FnOnce(&Actor, Socket) -> Result<(), Errno>) {
        self.send((self.family, Kind::Datagram, 0), send);
    }

    pub fn datagram_by(&self, actor: &'a Actor, to: SocketAddr, data: &[u8]) {
        let kind = (Family::of(to), Kind::Datagram, 0);
        self.send_by(actor, kind, |actor, socket| actor.send_to(socket, to, data).map(drop));
    }

    pub fn datagram(&self, to: SocketAddr, data: &[u8]) {
        self.datagram_by(&self.wall.web.actor, to, data);
    }

    /// The same address at the port that is allowed.
    pub fn allowed(&self) -> SocketAddr {
        SocketAddr::new(self.to.ip(), ALLOWED)
    }

    /// Whether the receiver got it, waiting for that where it is expected.
    fn is_delivered(&self, receiver: &Actor, magic: &[u8], timeout: Duration) -> bool {
        let messages = match self.ends.receiver {
            Receiver::Messages(socket) => receiver.receive_for(socket, 1, timeout),
            Receiver::Connections(listener) => {
                let accepted =
                    if timeout.is_zero() { receiver.accept_now(listener) } else { receiver.accept(listener) };
                let Ok(accepted) = accepted else { return false };
                let messages = receiver.receive_for(accepted, 1, timeout);
                hang_up(receiver, accepted);
                messages
            }
        };
        messages.unwrap_or_default().iter().any(|m| m.data.windows(magic.len()).any(|window| window == magic))
    }
}

/// Ends a connection at once, so that nothing of it is under way later, and closes the socket.
fn hang_up(actor: &Actor, socket: Socket) {
    let _ = actor.disconnect(socket);
    actor.close(socket);
}

/// A row: how something is sent, and its fate under policies, by [`Layers`].
pub struct Row {
    pub name: &'static str,
    pub family: Family,
    pub toward: Toward,
    pub opens: Opens,
    pub send: fn(&Stage<'_>, &[u8]),
    /// Whether a packet without the payload goes first, and is the one that is judged.
    pub calls: bool,
    pub fates: Vec<(Policy, [Fate; 3])>,
}

impl Row {
    /// A datagram of UDP to `db`.
    pub fn udp(
        family: Family,
        name: &'static str,
        send: fn(&Stage<'_>, &[u8]),
        fates: Vec<(Policy, [Fate; 3])>,
    ) -> Self {
        Self { name, family, toward: Toward::Db, opens: Opens::Datagrams(0), send, calls: false, fates }
    }

    fn open(&self, wall: &Wall, cast: &Cast) -> Result<Ends, Errno> {
        let (db, at) = (&wall.db.actor, wall.db.at(self.family, 0));
        match self.opens {
            Opens::Datagrams(protocol) => {
                let (socket, to) = db.bind(Kind::Datagram, protocol, at)?;
                Ok(Ends { receiver: Receiver::Messages(socket), to, sockets: [None; 2] })
            }
            Opens::Connections(protocol) => {
                let (socket, to) = db.bind(Kind::Stream, protocol, at)?;
                db.listen(socket)?;
                Ok(Ends { receiver: Receiver::Connections(socket), to, sockets: [None; 2] })
            }
            Opens::By(open) | Opens::Allowed(open) => Ok(open(wall, cast, self.family)),
        }
    }

    fn receiver<'a>(&self, wall: &'a Wall, cast: &'a Cast) -> &'a Actor {
        match self.toward {
            Toward::Db => &wall.db.actor,
            Toward::Web => &wall.web.actor,
            Toward::Beside => &cast.stranger,
        }
    }

    /// Sends once and looks what became of it.
    fn fate(&self, stage: &Stage<'_>, witness: &mut Witness<'_>, wanted: Fate) -> Fate {
        let magic = magic();
        let receiver = self.receiver(stage.wall, stage.cast);
        witness.turn_to(&magic);
        (self.send)(stage, &magic);
        let mut delivered = wanted == Delivered && stage.is_delivered(receiver, &magic, LONG);
        let mut causes = Vec::new();
        let mut look = || {
            let arrived = witness.arrived() != 0;
            delivered = delivered || stage.is_delivered(receiver, &magic, Duration::ZERO);
            causes.extend(stage.wall.guard().denials().causes());
            match (delivered, causes.first(), arrived) {
                (true, None, true) => Delivered,
                (false, Some(&(hook, reason)), arrived) if arrived == (hook == Hook::Ingress && !self.calls) => {
                    Stopped(hook, reason)
                }
                (false, None, true) => Arrived,
                _ => Fate::Lost,
            }
        };
        let fate = look();
        // It may be under way from one device to the next.
        if fate == wanted { fate } else { look() }
    }
}

/// By a socket that `first` sees first.
pub fn by_socket(first: Hook) -> Vec<(Policy, [Fate; 3])> {
    let exit = Stopped(first, Reason::NoRule);
    vec![
        (Policy::Open, [Delivered; 3]),
        (Policy::Exit, [exit, exit, Stopped(Hook::TcFrom, Reason::NoRule)]),
        (Policy::Door, AT_THE_DOOR),
    ]
}

/// Past every socket of `web`.
pub fn by_frame() -> Vec<(Policy, [Fate; 3])> {
    let exit = Stopped(Hook::TcFrom, Reason::NoRule);
    vec![(Policy::Open, [Delivered; 3]), (Policy::Exit, [exit, Delivered, exit]), (Policy::Door, AT_THE_DOOR)]
}

pub const AT_THE_DOOR: [Fate; 3] =
    [Stopped(Hook::TcTo, Reason::NoRule), Stopped(Hook::Ingress, Reason::NoRule), Stopped(Hook::TcTo, Reason::NoRule)];

/// The device of `web` stops it.
pub const fn from_device(reason: Reason) -> Fate {
    Stopped(Hook::TcFrom, reason)
}

/// Rows, and without what they are wrong.
pub struct Table {
    pub rows: fn(Family) -> Vec<Row>,
    /// Whether that is so without the device of `web`, and of `db`, where all other layers are there.
    pub devices: [bool; 2],
    /// Programs of sockets: where all other layers are there, and without devices.
    pub programs: [&'static [&'static str]; 2],
}

impl Table {
    /// Tries it with all layers and with some, and with one missing after the other. Before that, `prepare` does what
    /// the rows want.
    pub fn prove(&self, prepare: impl FnOnce(&Wall)) {
        let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
        let cast = Cast::of(&wall);
        wall.guard_devices();
        prepare(&wall);
        self.is_right(&wall, &cast, Layers::Devices);
        self.needs_devices(&wall, &cast, Layers::Devices, [true; 2]);
        wall.guard().reattach().unwrap();
        self.is_right(&wall, &cast, Layers::All);
        self.needs_devices(&wall, &cast, Layers::All, self.devices);
        self.needs_programs(&wall, &cast, Layers::All, self.programs[0]);
        for device in wall.devices() {
            let index = device.index;
            wall.guard().inside(|d| d.release_device(index)).unwrap();
        }
        self.is_right(&wall, &cast, Layers::Sockets);
        self.needs_programs(&wall, &cast, Layers::Sockets, self.programs[1]);
    }

    fn needs_devices(&self, wall: &Wall, cast: &Cast, layers: Layers, needed: [bool; 2]) {
        let names = ["the device of web", "the device of db"];
        for ((device, name), needed) in wall.devices().iter().zip(names).zip(needed) {
            if needed {
                let index = device.index;
                wall.guard().inside(|d| d.release_device(index)).unwrap();
                self.is_found_out(wall, cast, layers, name);
                wall.guard_devices();
            }
        }
    }

    fn needs_programs(&self, wall: &Wall, cast: &Cast, layers: Layers, names: &[&'static str]) {
        for name in names {
            wall.guard().detach(&[name]);
            self.is_found_out(wall, cast, layers, name);
            wall.guard().reattach().unwrap();
        }
    }

    /// A program may run for a moment after it was taken away.
    fn is_right(&self, wall: &Wall, cast: &Cast, layers: Layers) {
        let end = Instant::now() + LONG;
        for tries in 1.. {
            let Some(wrong) = self.wrong(wall, cast, layers) else { return };
            assert!(tries < TRIES_MIN || Instant::now() < end, "{wrong}");
        }
    }

    /// A layer that is missing contradicts the table.
    fn is_found_out(&self, wall: &Wall, cast: &Cast, layers: Layers, missing: &str) {
        let end = Instant::now() + LONG;
        for tries in 1.. {
            if self.wrong(wall, cast, layers).is_some() {
                return;
            }
            assert!(tries < TRIES_MIN || Instant::now() < end, "{layers:?} without {missing}: nobody notices");
        }
    }

    /// Tries the table until it is wrong, and says where.
    fn wrong(&self, wall: &Wall, cast: &Cast, layers: Layers) -> Option<String> {
        let mut wrong = None;
        for policy in Policy::ALL {
            let fates_of = |row: &Row| row.fates.iter().find(|(of, _)| *of == policy).map(|(_, fates)| *fates);
            let rows = FAMILIES.into_iter().flat_map(self.rows);
            let rows: Vec<(Row, [Fate; 3])> = rows.filter_map(|row| fates_of(&row).map(|fates| (row, fates))).collect();
            if rows.is_empty() {
                continue;
            }
            if rows.iter().any(|(row, _)| matches!(row.opens, Opens::Allowed(_))) {
                Policy::Open.apply(wall);
            }
            let mut tries: Vec<(Row, [Fate; 3], Ends)> = Vec::new();
            for (row, fates) in rows {
                match row.open(wall, cast) {
                    Ok(ends) => tries.push((row, fates, ends)),
                    Err(errno) => eprintln!("SKIP {}: this kernel has no such sockets ({errno})", row.name),
                }
            }
            policy.apply(wall);
            // Each costs a grace period of the kernel.
            let (mut at_web, mut at_db) = (None, None);
            for (row, fates, ends) in tries {
                let wanted = fates[layers as usize];
                if wrong.is_none() {
                    // Without what others have left behind.
                    let _ = wall.guard().denials();
                    let witness = match row.toward {
                        Toward::Db => at_db.get_or_insert_with(|| wall.db.watch(b"none yet")),
                        Toward::Web | Toward::Beside => at_web.get_or_insert_with(|| wall.web.watch(b"none yet")),
                    };
                    let patience = if wanted == Delivered { LONG } else { BRIEF };
                    let stage = Stage {
                        wall,
                        cast,
                        family: row.family,
                        ends: &ends,
                        to: ends.to,
                        patience,
                        kept: RefCell::default(),
                    };
                    let is = row.fate(&stage, witness, wanted);
                    stage.kept.into_inner().into_iter().for_each(|(actor, socket)| hang_up(actor, socket));
                    if is != wanted {
                        let (family, name) = (row.family, row.name);
                        wrong = Some(format!("{layers:?} {family:?} {name} {policy:?}: {is:?}, not {wanted:?}"));
                    }
                }
                let (Receiver::Messages(socket) | Receiver::Connections(socket)) = ends.receiver;
                hang_up(row.receiver(wall, cast), socket);
                for (party, socket) in [&wall.web, &wall.db].into_iter().zip(ends.sockets) {
                    socket.into_iter().for_each(|socket| hang_up(&party.actor, socket));
                }
            }
            if wrong.is_some() {
                break;
            }
        }
        wrong
    }
}
