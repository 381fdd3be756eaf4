//! What one run of a packet program takes, for policies of different sizes.
//!
//! Established flows and first packets are real traffic under the kernel's own statistics; what these
//! add to a number is taken off by an empty program in the place of ours. Beside that, first packets
//! by test runs, in which nothing but the program is in the caches.

use std::{
    fs,
    net::Ipv4Addr,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use agent_common::{id::IdentityId, layout::names::program};
use anyhow::Context as _;
use eastwall::sources::cgroup::Hierarchy;

use super::{
    Effort,
    load::Kind,
    place::{Place, Places},
    report::{Report, Row, Target},
    sample::{Spread, as_f64},
    synthetic::{self, CALLER},
    worker::{Ends, Pair, Server},
};
use crate::{
    bpf::{At, Attach, Empty, Statistics},
    lab::Cgroup,
};

/// Number of edges and what it is called. What one size costs, every size must.
const SIZES: [(usize, &str); 3] = [(10, "10"), (100_000, "100k"), (1_000_000, "1M")];
/// Most that a size may cost, against the smallest.
const SAME: Target = Target::AtMost(1.05);

/// What is looked at, and what is promised for one run.
const KINDS: [(Kind, &str, Option<Target>); 4] = [
    (Kind::TcpRr, "established TCP", Some(Target::AtMost(60.0))),
    (Kind::UdpRr, "running UDP", None),
    (Kind::TcpFirst, "first of TCP", None),
    (Kind::UdpFirst, "first of UDP", None),
];
const DIRECTIONS: [(&str, Attach, &str); 2] =
    [(program::EGRESS, Attach::Egress, "egress"), (program::INGRESS, Attach::Ingress, "ingress")];

/// See `traffic`: the same reason.
const CPUS: [usize; 2] = [0, 0];

/// Measures all sizes in turns.
pub fn measure(places: &Places, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let mut subjects = vec![Subject::bare(places)?];
    for (edges, _) in SIZES {
        subjects.push(Subject::guarded(places, edges)?);
    }
    let statistics = Statistics::on()?;
    for _ in 0..effort.pick(4, 30) {
        for subject in &mut subjects {
            subject.turn(effort.pick(60, 150))?;
        }
    }
    drop(statistics);
    add(&subjects, report);
    let mut guarded = subjects.into_iter().skip(1).map(|subject| subject.side).collect::<Vec<_>>();
    test_runs(places, &mut guarded, effort, report)
}

/// Programs in a place, and the workers there.
struct Subject<'a> {
    side: Side<'a>,
    pairs: Vec<Pair>,
    /// ns of one run, by turn: of each kind, in each direction.
    runs: [[Vec<f64>; 2]; KINDS.len()],
}

enum Side<'a> {
    /// Empty programs.
    Bare { _cgroup: Cgroup, programs: [Empty; 2] },
    /// Ours.
    Guarded(Box<Place<'a>>),
}

impl<'a> Subject<'a> {
    fn bare(places: &'a Places) -> anyhow::Result<Self> {
        let cgroup = places.lab.cgroup().child("bench-bare");
        let programs = [
            Empty::attach(At::Cgroup(cgroup.as_fd()), DIRECTIONS[0].1)?,
            Empty::attach(At::Cgroup(cgroup.as_fd()), DIRECTIONS[1].1)?,
        ];
        let pairs = start(Ends::on_loopback(&cgroup, &cgroup, &places.netns))?;
        Ok(Self { side: Side::Bare { _cgroup: cgroup, programs }, pairs, runs: Default::default() })
    }

    fn guarded(places: &'a Places, edges: usize) -> anyhow::Result<Self> {
        let mut place = Place::new(places, edges, None)?;
        place.attach()?;
        let pairs = start(place.ends())?;
        Ok(Self { side: Side::Guarded(Box::new(place)), pairs, runs: Default::default() })
    }

    /// One slice of each kind.
    fn turn(&mut self, ms: u32) -> anyhow::Result<()> {
        for (pair, runs) in self.pairs.iter_mut().zip(&mut self.runs) {
            let before = self.side.runs()?;
            pair.slice(ms)?;
            let after = self.side.runs()?;
            for ((before, after), runs) in before.iter().zip(&after).zip(runs) {
                anyhow::ensure!(after.0 > before.0, "a program has not run");
                runs.push((after.1 - before.1) / (after.0 - before.0));
            }
        }
        Ok(())
    }
}

fn start(ends: Ends<'_>) -> anyhow::Result<Vec<Pair>> {
    KINDS.iter().map(|(kind, ..)| Pair::start(*kind, ends, CPUS)).collect()
}

impl Side<'_> {
    /// Number and time in ns of the runs in each direction.
    fn runs(&self) -> anyhow::Result<[(f64, f64); 2]> {
        let of = |i: usize| match self {
            Self::Bare { programs, .. } => programs[i].runs(),
            Self::Guarded(place) => {
                let runs = place.datapath.runs(DIRECTIONS[i].0)?;
                Ok((runs.count as f64, runs.time.as_secs_f64() * 1e9))
            }
        };
        Ok([of(0)?, of(1)?])
    }
}

fn add(subjects: &[Subject<'_>], report: &mut Report) {
    for (k, (_, name, target)) in KINDS.iter().enumerate() {
        for (d, (.., direction)) in DIRECTIONS.iter().enumerate() {
            let mut smallest = None;
            let empty = &subjects[0].runs[k][d];
            for (subject, (_, size)) in subjects[1..].iter().zip(SIZES) {
                // Turn by turn: the clock of the statistics is as dear as the machine is busy.
                let spread = Spread::of(subject.runs[k][d].iter().zip(empty).map(|(ours, empty)| ours - empty));
                let row = Row::new(format!("{name}, {direction}, {size} edges"), spread, "ns");
                let note = format!("empty program: {:.1} ns", Spread::of(empty.iter().copied()).median);
                report.add(
                    match target {
                        Some(target) => row.target(*target),
                        None => row,
                    }
                    .note(note),
                );
                same_as_smallest(&mut smallest, spread, &format!("{name}, {direction}"), size, report);
            }
        }
    }
}

/// Adds what a size costs against the smallest, which is the first.
pub fn same_as_smallest(smallest: &mut Option<f64>, spread: Spread, what: &str, size: &str, report: &mut Report) {
    let Some(smallest) = *smallest else {
        *smallest = Some(spread.median);
        return;
    };
    let ratio = Spread::exactly(spread.median / smallest);
    report.add(Row::new(format!("{what}, {size} to {} edges", SIZES[0].1), ratio, "x").target(SAME));
}

/// What is promised for a first packet, with warm caches.
const FIRST: Target = Target::AtMost(400.0);
/// Callees whose listeners the test runs call, each in a cgroup of its own.
const CALLEES: u64 = 8;
/// The caller's ports; each is another flow.
const FIRST_PORT: u16 = 20_000;

fn test_runs(places: &Places, guarded: &mut [Side<'_>], effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let ids: Vec<IdentityId> = (0..CALLEES).map(|n| IdentityId(2000 + n)).collect();
    let (mut cgroups, mut listeners) = (Vec::new(), Vec::new());
    for id in &ids {
        let cgroup = places.lab.cgroup().child(&format!("bench-callee-{}", id.0));
        listeners.push(Server::start(Kind::TcpRr, CPUS[1], &cgroup, &places.netns, Ipv4Addr::LOCALHOST)?);
        cgroups.push(cgroup);
    }
    let mut times = vec![(Vec::new(), Vec::new()); guarded.len()];
    for (side, (size, _)) in guarded.iter_mut().zip(SIZES) {
        let Side::Guarded(place) = side else { continue };
        place.apply(size, &ids)?;
        // A packet of a test run belongs to a socket of this process.
        place.datapath.label(own_cgroup()?, synthetic::slot(CALLER))?;
        for (cgroup, id) in cgroups.iter().zip(&ids) {
            place.datapath.label(cgroup.id(), synthetic::slot(*id))?;
        }
    }
    let repeat = effort.pick(2_000, 20_000);
    for turn in 0..u16::try_from(effort.pick(4, 30))? {
        for (side, (allowed, denied)) in guarded.iter().zip(&mut times) {
            let Side::Guarded(place) = side else { continue };
            let run = |port: u16, expected: u32| -> anyhow::Result<f64> {
                let (code, ns) = place.datapath.test_run(program::EGRESS, &syn(FIRST_PORT + turn, port), repeat)?;
                anyhow::ensure!(code == expected, "a test run gives {code}, not {expected}");
                Ok(f64::from(ns))
            };
            let sum = listeners.iter().map(|l| run(l.port(), 1)).sum::<anyhow::Result<f64>>()?;
            allowed.push(sum / as_f64(listeners.len()));
            denied.push(run(NOBODY, 0)?);
        }
    }
    for (what, pick) in [("allowed", 0), ("denied", 1)] {
        let mut smallest = None;
        for ((_, size), times) in SIZES.iter().zip(&times) {
            let times = if pick == 0 { &times.0 } else { &times.1 };
            let spread = Spread::of(times.iter().copied());
            report.add(Row::new(format!("test run of a SYN, {what}, {size} edges"), spread, "ns").target(FIRST));
            same_as_smallest(&mut smallest, spread, &format!("test run of a SYN, {what}"), size, report);
        }
    }
    Ok(())
}

/// A port that no worker has.
const NOBODY: u16 = 9;

/// An Ethernet frame with a SYN over loopback.
fn syn(from: u16, to: u16) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([8, 0]);
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    frame.extend(from.to_be_bytes());
    frame.extend(to.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
    frame
}

/// The cgroup that this process is in.
pub fn own_cgroup() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).context("find the own cgroup")?;
    Ok(fs::metadata(Hierarchy::find()?.dir(path))?.ino())
}
