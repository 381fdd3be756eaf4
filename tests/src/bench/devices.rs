//! Both layers at once: two workloads behind devices of one host, and what the programs at a device take.

use std::net::{SocketAddr, SocketAddrV4};

use agent_common::layout::names::program;
use eastwall::datapath::test_run;

use super::{
    EDGES, Effort,
    place::{Place, Places, Wires},
    programs::{own_cgroup, same_as_smallest},
    report::{Report, Row, Target},
    sample::Spread,
    synthetic::{self, CALLER},
    traffic,
};
use crate::frames::{framed, ip_tcp, ip_udp};

/// Known addresses of other hosts and what that number is called. What one number costs, every number must.
const SIZES: [(u32, &str); 2] = [(10, "10"), (100_000, "100k")];

/// What is promised for a packet of a flow that runs, with warm caches.
const RUNNING: Target = Target::AtMost(60.0);

/// Codes of the programs: `TCX_NEXT` and `TCX_DROP`.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;

/// Measures traffic, and then single packets.
pub fn measure(places: &Places, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let wires = Wires::join(places)?;
    let mut place = Place::new(places, EDGES, Some(&wires))?;
    traffic::measure(&mut place, &traffic::words().collect::<Vec<_>>(), effort, report)?;
    drop(place);
    single_packets(places, &wires, effort, report)
}

/// A packet that is run again and again.
struct Case {
    name: &'static str,
    program: &'static str,
    /// The device, as an index.
    device: usize,
    frame: Vec<u8>,
    code: u32,
    target: Option<Target>,
}

fn single_packets(places: &Places, wires: &Wires, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let (mut subjects, cases) = (Vec::new(), cases(wires));
    for (addresses, _) in SIZES {
        let mut place = Place::new(places, EDGES, Some(wires))?;
        place.put_in_force(&synthetic::compiled_with_addresses(EDGES, addresses))?;
        // A packet of a test run belongs to a socket of this process.
        let own = own_cgroup()?;
        place.datapath.label(own, synthetic::slot(CALLER))?;
        place.guard_devices([own, place.server()])?;
        begin(&place, wires)?;
        subjects.push((place, cases.iter().map(|_| Vec::new()).collect::<Vec<_>>()));
    }
    let repeat = effort.pick(2_000, 20_000);
    for _ in 0..effort.pick(4, 30) {
        for (place, times) in &mut subjects {
            for (case, times) in cases.iter().zip(times) {
                let index = wires.devices[case.device].index;
                let run = test_run(place.datapath.program(case.program)?, &case.frame, index, repeat)?;
                anyhow::ensure!(run.code == case.code, "a test run of {} gives {:#x}", case.name, run.code);
                times.push(f64::from(run.duration_ns));
            }
        }
    }
    for (i, case) in cases.iter().enumerate() {
        let mut smallest = None;
        for ((_, times), (_, size)) in subjects.iter().zip(SIZES) {
            let spread = Spread::of(times[i].iter().copied());
            let row = Row::new(format!("devices: {}, {size} addresses", case.name), spread, "ns");
            report.add(match case.target {
                Some(target) => row.target(target),
                None => row,
            });
            same_as_smallest(&mut smallest, spread, &format!("devices: {}", case.name), size, report);
        }
    }
    Ok(())
}

/// Begins the flows that the packets of [`cases`] belong to, as both ends see them.
fn begin(place: &Place<'_>, wires: &Wires) -> anyhow::Result<()> {
    let syn = framed(wires.ethernet(), &ip_tcp(client(), server(), |tcp| tcp.syn(), &[]));
    let first = framed(wires.ethernet(), &ip_udp(client(), server(), &[0; 64]));
    for frame in [&syn, &first] {
        for (name, device) in [(program::TC_FROM, wires.devices[0]), (program::TC_TO, wires.devices[1])] {
            let run = test_run(place.datapath.program(name)?, frame, device.index, 1)?;
            anyhow::ensure!(run.code == NEXT, "a flow does not begin: {name} gives {:#x}", run.code);
        }
    }
    Ok(())
}

fn cases(wires: &Wires) -> Vec<Case> {
    let segment = framed(wires.ethernet(), &ip_tcp(client(), server(), |tcp| tcp.ack(1), &[0; 64]));
    let datagram = framed(wires.ethernet(), &ip_udp(client(), server(), &[0; 64]));
    let elsewhere = SocketAddr::V4(SocketAddrV4::new([192, 0, 2, 1].into(), 9));
    let denied = framed(wires.ethernet(), &ip_udp(client(), elsewhere, &[0; 64]));
    let case = |name, program, device, frame: &Vec<u8>, code, target| {
        let frame = frame.clone();
        Case { name, program, device, frame, code, target }
    };
    vec![
        case("established TCP, leaves", program::TC_FROM, 0, &segment, NEXT, Some(RUNNING)),
        case("established TCP, enters", program::TC_TO, 1, &segment, NEXT, Some(RUNNING)),
        case("running UDP, leaves", program::TC_FROM, 0, &datagram, NEXT, Some(RUNNING)),
        case("running UDP, enters", program::TC_TO, 1, &datagram, NEXT, Some(RUNNING)),
        case("first of UDP, denied", program::TC_FROM, 0, &denied, DROP, None),
    ]
}

fn client() -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Wires::ADDRS[0], 40_000))
}

fn server() -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Wires::ADDRS[1], 5_000))
}
