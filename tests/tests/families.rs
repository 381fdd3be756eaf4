//! Sockets that no hook of ours sees: G11, G17 and G18 of the list of gaps. What can be opened is named as not covered.

use std::os::{
    linux::net::SocketAddrExt as _,
    unix::net::{SocketAddr, UnixDatagram},
};

use eastwall::doctor::{Finding, Outcome, examine};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use tests::{
    lab::{AgentOptions, Command, Exit, NetNs, magic},
    scene::{LONG, LOOPBACK, PORT, Scene},
};

/// Families that the hooks of sockets do see.
const COVERED: [AddressFamily; 2] = [AddressFamily::INET, AddressFamily::INET6];

/// Opens a socket of a family, of whatever kind.
fn opens(family: AddressFamily) -> bool {
    let kinds = [SocketType::STREAM, SocketType::DGRAM, SocketType::RAW, SocketType::RDM, SocketType::SEQPACKET];
    kinds.iter().any(|&kind| {
        let protocols = (0..=8).map(|n| std::num::NonZero::new(n).map(Protocol::from_raw));
        protocols.into_iter().any(|protocol| socket_with(family, kind, SocketFlags::CLOEXEC, protocol).is_ok())
    })
}

fn row<'a>(findings: &'a [Finding], name: &str) -> Option<&'a Finding> {
    findings.iter().find(|finding| finding.check == name)
}

#[test]
fn g11_every_family_that_can_be_opened_is_named_with_what_closes_it() {
    let findings = examine();
    let rows: Vec<&Finding> = findings.iter().filter(|f| f.outcome == Outcome::NotCovered).collect();
    // Beyond the last number that linux/socket.h knows of today.
    let open = (1..64).map(AddressFamily::from_raw).filter(|f| !COVERED.contains(f) && opens(*f));
    let open: Vec<u16> = open.map(AddressFamily::as_raw).collect();
    assert!(open.contains(&1) && open.contains(&16), "AF_UNIX and AF_NETLINK are everywhere: {open:?}");
    for number in &open {
        let named = rows.iter().filter(|row| row.fix.contains(&format!("socket({number},"))).count();
        assert_eq!(named, 1, "family {number}: {rows:#?}");
    }
    for row in rows {
        assert!(row.fix.contains(&format!("RestrictAddressFamilies=~{}", row.check)), "{row:?}");
    }
    println!("families that can be opened here: {open:?}");
}

#[test]
fn g17_sockets_between_machines_of_one_host_have_a_row_where_they_can_be_opened() {
    let vsock = AddressFamily::VSOCK;
    let named = row(&examine(), "AF_VSOCK").is_some();
    if !opens(vsock) {
        // A family that is not there needs no row; there is nothing else to prove.
        println!("this kernel has no AF_VSOCK");
        return;
    }
    assert!(named);
}

#[test]
fn g18_abstract_names_join_workloads_of_one_network_and_doctor_says_so() {
    let found = row(&examine(), "AF_UNIX").unwrap().clone();
    assert_eq!(found.outcome, Outcome::NotCovered);
    assert!(found.fix.contains("PrivateNetwork=yes"), "{found:?}");
    let Some(scene) = Scene::open("[{ from: web, to: db, ports: [udp/1] }]", &AgentOptions::default()) else {
        return;
    };
    let name = magic();
    let addr = SocketAddr::from_abstract_name(&name).unwrap();
    let here = scene.net.run(|| UnixDatagram::bind_addr(&addr).unwrap());
    here.set_read_timeout(Some(LONG)).unwrap();
    // `other` may not reach anybody, and does: it is no flow of a network, and nobody says it was judged.
    let hello = Command::SendAbstract { name: name.clone(), data: b"hello".to_vec() };
    let send = |net: &NetNs| scene.lab.once(&hello).spawn(&scene.cgroups[2], net, None).unwrap().wait();
    let before = scene.agent.counter("denials.denied");
    assert_eq!(send(&scene.net), Exit::Status(0));
    assert_eq!(here.recv(&mut [0; 16]).unwrap(), 5);
    assert_eq!(scene.agent.counter("denials.denied"), before);
    assert!(scene.agent.events().iter().all(|event| !event.to_string().contains("unix")));
    // The same name in another network is another place.
    let elsewhere = NetNs::new();
    assert_eq!(send(&elsewhere), Exit::Status(libc::ECONNREFUSED));
    // The control: what is a flow is judged.
    let to = std::net::SocketAddr::new(LOOPBACK[0], PORT);
    assert!(scene.other.tcp_connect(to, LONG).is_err());
    assert!(scene.agent.counter("denials.denied") > before);
}
