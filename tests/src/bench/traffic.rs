//! What a request, a connection, a packet and a byte cost with the programs attached, against the same
//! processes and sockets without them. Beside that, what empty programs in their place cost, at the hooks of
//! packets alone and at all hooks: less is not to be had from these hooks.

use super::{
    Effort,
    load::Kind,
    place::Place,
    report::{Report, Row, Target},
    sample::Spread,
    worker::{Pair, Slice},
};

/// A pattern, what a unit of it is called, and what was promised for its cost: over loopback, and between two
/// devices with both layers on.
struct Case {
    kind: Kind,
    name: &'static str,
    targets: [Option<Target>; 2],
}

const fn most(loopback: f64, devices: f64) -> [Option<Target>; 2] {
    [Some(Target::AtMost(loopback)), Some(Target::AtMost(devices))]
}

/// Bulk is promised as throughput, the inverse of cost; see [`add`].
const CASES: &[Case] = &[
    Case { kind: Kind::TcpRr, name: "TCP request-response", targets: most(1.03, 1.045) },
    Case { kind: Kind::TcpCrr, name: "TCP connect-request-close", targets: most(1.04, 1.06) },
    Case { kind: Kind::UdpRr, name: "UDP request-response", targets: most(1.03, 1.03) },
    Case { kind: Kind::UdpSmall, name: "UDP small packets", targets: most(1.09, 1.11) },
    Case { kind: Kind::UdpSmallOpen, name: "UDP small packets, no socket connected", targets: [None; 2] },
    Case { kind: Kind::TcpBulk, name: "TCP bulk", targets: [Some(Target::AtLeast(0.98)), Some(Target::AtLeast(0.97))] },
];

/// Client and server share a CPU: one of them waits while the other works, so nothing is lost, and the
/// cost of waking another CPU, which differs from run to run and dwarfs a program, is not in the sums.
const CPUS: [usize; 2] = [0, 0];

/// One turn of one pattern. A shared machine changes its speed within seconds, so turns are short and many.
const SLICE_MS: u32 = 50;

/// The patterns, by the word on the command line.
pub fn words() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.kind.word())
}

/// What is attached to the cgroup of both ends.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Nothing,
    /// Empty programs for packets.
    Empty,
    /// And for sockets that are made, that call, and whose options are set.
    EmptyEverywhere,
    Ours,
}

/// Measures patterns in turns: all of them with nothing attached, with empty programs, with ours, and again.
pub fn measure(place: &mut Place<'_>, words: &[&str], effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let cases: Vec<&Case> = CASES.iter().filter(|case| words.contains(&case.kind.word())).collect();
    let rounds = effort.pick(10, 200);
    place.attach()?;
    let mut pairs = Vec::new();
    for case in &cases {
        pairs.push(Pair::start(case.kind, place.ends(), CPUS)?);
    }
    // The first slices fill caches, and the ports of closed connections: connecting finds its steady
    // state when every port has been used once.
    for (case, pair) in cases.iter().zip(&mut pairs) {
        pair.slice(if case.kind == Kind::TcpCrr { effort.pick(1_000, 4_000) } else { SLICE_MS })?;
    }
    let mut turns: Vec<Turns> = cases.iter().map(|_| Turns::default()).collect();
    for round in 0..rounds {
        // Each round begins with what the last one ended with: fewer changes, and no side is always first.
        let mut sides = [Side::Ours, Side::EmptyEverywhere, Side::Empty, Side::Nothing];
        if round % 2 != 0 {
            sides.reverse();
        }
        for side in sides {
            // Waits for the last side to come off as well.
            place.detach()?;
            let _empty = match side {
                Side::Nothing => Vec::new(),
                Side::Empty => place.attach_empty()?,
                Side::EmptyEverywhere => place.attach_empty_everywhere()?,
                Side::Ours => {
                    place.attach()?;
                    Vec::new()
                }
            };
            for (pair, turns) in pairs.iter_mut().zip(&mut turns) {
                turns.of(side).push(pair.slice(SLICE_MS)?);
            }
        }
    }
    let way = usize::from(place.has_devices());
    cases.iter().zip(&turns).for_each(|(case, turns)| add(case, way, turns, report));
    Ok(())
}

/// The slices of one pattern, by round.
#[derive(Default)]
struct Turns {
    ours: Vec<Slice>,
    everywhere: Vec<Slice>,
    empty: Vec<Slice>,
    nothing: Vec<Slice>,
}

impl Turns {
    fn of(&mut self, side: Side) -> &mut Vec<Slice> {
        match side {
            Side::Ours => &mut self.ours,
            Side::EmptyEverywhere => &mut self.everywhere,
            Side::Empty => &mut self.empty,
            Side::Nothing => &mut self.nothing,
        }
    }
}

/// How the rows begin, by what is between the two ends.
const WAYS: [&str; 2] = ["", "devices: "];

fn add(case: &Case, way: usize, turns: &Turns, report: &mut Report) {
    let title = format!("{}{}", WAYS[way], case.name);
    let ratio = |with: &Slice, without: &Slice| {
        let cost = with.cost() / without.cost();
        if case.kind == Kind::TcpBulk { 1.0 / cost } else { cost }
    };
    let ratios = |side: &[Slice]| Spread::of(side.iter().zip(&turns.nothing).map(|(with, bare)| ratio(with, bare)));
    let us = |slices: &[Slice]| Spread::of(slices.iter().map(Slice::cost)).median / 1000.0;
    let rate = |slices: &[Slice]| Spread::of(slices.iter().map(|s| s.units / s.wall_ns * 1e9)).median;
    let unit = if case.kind == Kind::TcpBulk { "MiB" } else { "unit" };
    let note = format!(
        "CPU {:.3} -> {:.3} us/{unit}, {:.0} -> {:.0}/s",
        us(&turns.nothing),
        us(&turns.ours),
        rate(&turns.nothing),
        rate(&turns.ours),
    );
    let name = if case.kind == Kind::TcpBulk { "bytes per CPU time" } else { "CPU time" };
    let row = Row::new(format!("{title}: {name}"), ratios(&turns.ours), "x").note(note);
    report.add(match case.targets[way] {
        Some(target) => row.target(target),
        None => row,
    });
    for (programs, side) in [("for packets", &turns.empty), ("at all hooks", &turns.everywhere)] {
        report.add(Row::new(format!("{title}: empty programs {programs}"), ratios(side), "x"));
    }
}
