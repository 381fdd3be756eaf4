//! What can break the promise that only allowed connections pass: number and title of each gap.
//!
//! Numbers never change: names of tests carry them.

/// A gap and the title it is known by. Sorted by number.
pub const GAPS: &[(u16, &str)] = &[
    (1, "UDP without connect"),
    (2, "many messages in one call, segments, another source address"),
    (3, "UDP that connects again, disconnects, sends past its peer"),
    (4, "an address without a family"),
    (5, "IPv4 by an IPv6 socket"),
    (6, "TCP Fast Open"),
    (7, "MPTCP: the first subflow"),
    (9, "UDP-Lite"),
    (10, "protocols that no rule names"),
    (12, "raw sockets, with and without a header of their own"),
    (13, "ping sockets"),
    (14, "frames by AF_PACKET: the door of the receiver"),
    (19, "io_uring"),
    (20, "a socket handed to another workload"),
    (22, "sockets older than the policy or the agent"),
    (30, "traffic before the label"),
    (42, "simultaneous open"),
    (54, "an echo is one way"),
    (62, "replies without a request"),
    (68, "a full map"),
    (70, "revocation of a live flow"),
    (73, "a full event ring, a dead reader"),
    (82, "crash, kill and stop of the agent"),
    (84, "half a policy"),
    (85, "a policy that says less, or more, than it seems to"),
];
