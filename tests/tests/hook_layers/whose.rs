//! Whose a socket is: who made it, who uses it, when and where.

use std::net::SocketAddr;

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    lab::{Family, Kind, Socket, Wall},
    scene::LONG,
};

use crate::stage::{
    AT_THE_DOOR, BRIEF, Cast, Ends, Fate, Opens, Policy, Receiver, Row, Toward, by_socket, from_device,
};

use Fate::{Delivered, Stopped};
use Reason::{DeviceMismatch, NoRule, TaskMismatch};

/// A socket of nobody in the hands of `db`.
fn inherit(wall: &Wall, cast: &Cast, made: Socket) -> Socket {
    let inherited = cast.nobody_there.give(made, &wall.db.actor);
    cast.nobody_there.close(made);
    inherited
}

/// An open connection: the ends of `web` and of `db`.
fn connection(wall: &Wall, family: Family) -> (Socket, Socket) {
    let (listener, to) = wall.db.listen(family);
    let ours = wall.web.actor.tcp_connect(to, LONG).unwrap();
    let theirs = wall.db.actor.accept(listener).unwrap();
    wall.db.actor.close(listener);
    (ours, theirs)
}

#[expect(clippy::too_many_lines, reason = "one table")]
pub fn rows(family: Family) -> Vec<Row> {
    let udp = |name, send, fates| Row::udp(family, name, send, fates);
    let sendmsg = family.sendmsg_hook();
    // The socket stays what it is; who uses it is seen where it is used.
    let used_by_another =
        || vec![(Policy::Open, [Stopped(sendmsg, TaskMismatch), Stopped(sendmsg, TaskMismatch), Delivered])];
    let of_another =
        || vec![(Policy::Open, [Stopped(sendmsg, NoRule), Stopped(sendmsg, NoRule), from_device(DeviceMismatch)])];
    vec![
        udp(
            "g20 a socket handed to another",
            |stage, data| {
                let web = &stage.wall.web.actor;
                let theirs = web.socket(stage.family, Kind::Datagram, 0).unwrap();
                let given = web.give(theirs, &stage.cast.stranger);
                let _ = stage.cast.stranger.send_to(given, stage.to, data);
                web.close(theirs);
                stage.cast.stranger.close(given);
            },
            used_by_another(),
        ),
        udp(
            "g20 a socket of another",
            |stage, data| {
                let web = &stage.wall.web.actor;
                let theirs = stage.cast.stranger.socket(stage.family, Kind::Datagram, 0).unwrap();
                let given = stage.cast.stranger.give(theirs, web);
                let _ = web.send_to(given, stage.to, data);
                web.close(given);
                stage.cast.stranger.close(theirs);
            },
            of_another(),
        ),
        Row {
            opens: Opens::Allowed(|wall, _, family| {
                let (receiver, to) = wall.db.udp(family);
                let ours = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
                wall.web.actor.connect(ours, to, BRIEF).unwrap();
                Ends { receiver: Receiver::Messages(receiver), to, sockets: [Some(ours), None] }
            }),
            ..udp(
                "g22 connected before the policy",
                |stage, data| {
                    let _ = stage.wall.web.actor.send(stage.ends.sockets[0].unwrap(), data);
                },
                by_socket(Hook::Egress),
            )
        },
        Row {
            opens: Opens::By(|wall, cast, family| {
                let (made, to) = cast.nobody_there.udp_bind(wall.db.at(family, 0)).unwrap();
                Ends { receiver: Receiver::Messages(inherit(wall, cast, made)), to, sockets: [None; 2] }
            }),
            ..udp(
                "g23 a socket made without a label",
                |stage, data| stage.datagram(stage.to, data),
                // A device knows whose the address is, and no socket behind it.
                vec![(Policy::Open, [Stopped(Hook::Ingress, NoRule), Stopped(Hook::Ingress, NoRule), Delivered])],
            )
        },
        Row {
            calls: true,
            opens: Opens::By(|wall, cast, family| {
                let (made, to) = cast.nobody_there.tcp_listen(wall.db.at(family, 0)).unwrap();
                Ends { receiver: Receiver::Connections(inherit(wall, cast, made)), to, sockets: [None; 2] }
            }),
            ..udp(
                "g23 a listener made without a label",
                |stage, data| {
                    stage.send((stage.family, Kind::Stream, 0), |web, socket| {
                        web.connect(socket, stage.to, stage.patience).and_then(|()| web.send(socket, data).map(drop))
                    });
                },
                // The answer of such a socket does not leave.
                vec![(
                    Policy::Open,
                    [Stopped(Hook::Ingress, NoRule), Stopped(Hook::Ingress, NoRule), from_device(DeviceMismatch)],
                )],
            )
        },
        Row {
            toward: Toward::Web,
            opens: Opens::Allowed(|wall, _, family| {
                let (ours, theirs) = connection(wall, family);
                let to = wall.web.actor.local_addr(ours).unwrap();
                Ends { receiver: Receiver::Messages(ours), to, sockets: [None, Some(theirs)] }
            }),
            ..udp(
                "g23 by an accepted socket",
                |stage, data| {
                    let _ = stage.wall.db.actor.send(stage.ends.sockets[1].unwrap(), data);
                },
                // The flow is a call of `web`, so what `web` may not call does not come back to it.
                vec![
                    (Policy::Open, [Delivered; 3]),
                    (
                        Policy::Exit,
                        [Stopped(Hook::TcTo, NoRule), Stopped(Hook::Ingress, NoRule), Stopped(Hook::TcTo, NoRule)],
                    ),
                    (Policy::Door, [Stopped(Hook::Egress, NoRule), Stopped(Hook::Egress, NoRule), from_device(NoRule)]),
                ],
            )
        },
        udp(
            "g24 a socket that its process took along",
            |stage, data| {
                let mover = &stage.cast.mover;
                stage.send_by(mover, (stage.family, Kind::Datagram, 0), |mover, socket| {
                    mover.move_to(&stage.wall.db.cgroup);
                    let sent = mover.send_to(socket, stage.to, data);
                    mover.move_to(&stage.wall.web.cgroup);
                    sent.map(drop)
                });
            },
            used_by_another(),
        ),
        udp(
            "g24 a socket of where its process has moved",
            |stage, data| {
                stage.cast.mover.move_to(&stage.wall.db.cgroup);
                stage.datagram_by(&stage.cast.mover, stage.to, data);
                stage.cast.mover.move_to(&stage.wall.web.cgroup);
            },
            of_another(),
        ),
        udp("g25 nested deep", |stage, data| stage.datagram_by(&stage.cast.heir, stage.to, data), by_socket(sendmsg)),
        udp(
            "g27 in a cgroup namespace",
            |stage, data| stage.datagram_by(&stage.cast.inside, stage.to, data),
            by_socket(sendmsg),
        ),
        udp(
            "g28 in the network of another",
            |stage, data| stage.datagram_by(&stage.cast.stranger, stage.to, data),
            of_another(),
        ),
        udp("g30 without a label", |stage, data| stage.datagram_by(&stage.cast.nobody, stage.to, data), of_another()),
        Row {
            toward: Toward::Beside,
            opens: Opens::By(|wall, cast, family| {
                let (receiver, to) = cast.stranger.udp_bind(wall.web.at(family, 0)).unwrap();
                Ends { receiver: Receiver::Messages(receiver), to, sockets: [None; 2] }
            }),
            ..udp(
                "g57 in one network",
                |stage, data| stage.datagram(stage.to, data),
                // It passes no device.
                vec![
                    (Policy::Open, [Delivered; 3]),
                    (Policy::Exit, [Stopped(sendmsg, NoRule), Stopped(sendmsg, NoRule), Delivered]),
                    (Policy::Door, [Stopped(Hook::Ingress, NoRule), Stopped(Hook::Ingress, NoRule), Delivered]),
                ],
            )
        },
        Row {
            opens: Opens::Allowed(|wall, _, family| {
                let (ours, theirs) = connection(wall, family);
                let to = SocketAddr::new(wall.db.addr(family), 0);
                Ends { receiver: Receiver::Messages(theirs), to, sockets: [Some(ours), None] }
            }),
            ..udp(
                "g70 an open connection",
                |stage, data| {
                    let _ = stage.wall.web.actor.send(stage.ends.sockets[0].unwrap(), data);
                },
                vec![
                    (Policy::Open, [Delivered; 3]),
                    (Policy::Exit, [Stopped(Hook::Egress, NoRule), Stopped(Hook::Egress, NoRule), from_device(NoRule)]),
                    (Policy::Door, AT_THE_DOOR),
                ],
            )
        },
    ]
}
