//! Devices, and what is behind them, as the kernel tells of real ones.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::IpAddr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    time::Duration,
};

use eastwall::sources::{
    devices::{Devices, DevicesError, Link},
    netns,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use tests::lab::{Lab, Need, NetNs, VethEnd, require_or_skip};

/// Long enough for what comes. Nothing is waited for that does not come.
const LONG: Duration = Duration::from_secs(20);

/// A host with a device to another namespace, and a view of it.
struct Place {
    host: NetNs,
    other: NetNs,
    devices: Devices,
}

impl Place {
    /// None: this machine cannot have one.
    fn open() -> Option<Self> {
        require_or_skip(&[Need::Root, Need::Ip])?;
        let [host, other] = [(); 2].map(|()| NetNs::new());
        join(&host, "to-other", &["10.9.0.254/24", "fd09::ff/64"], &other, &["10.9.0.1/24", "fd09::1/64"]);
        let devices = host.run(Devices::open).unwrap();
        let place = Self { host, other, devices };
        place.hear();
        Some(place)
    }

    fn link(&self, name: &str) -> Option<Link> {
        self.devices.links().unwrap().into_iter().find(|link| link.name == name)
    }

    fn nsid(&self, netns: &NetNs) -> Option<i32> {
        self.devices.nsid(netns.as_fd()).unwrap()
    }

    /// Hears all that was said until now.
    fn hear(&self) {
        while self.devices.changed().unwrap() {}
    }

    /// Waits until something is said, and hears it.
    fn heard(&self) -> bool {
        let limit = Timespec::try_from(LONG).unwrap();
        let said = poll(&mut [PollFd::new(&self.devices, PollFlags::IN)], Some(&limit)).unwrap() == 1;
        assert_eq!(self.devices.changed().unwrap(), said, "readable only if something changed");
        self.hear();
        said
    }
}

fn join(host: &NetNs, device: &str, addrs: &[&str], other: &NetNs, theirs: &[&str]) {
    NetNs::veth(VethEnd { netns: host, device, addrs }, VethEnd { netns: other, device: "eth0", addrs: theirs });
}

/// Without a device, and without what IPv6 says by itself some time later.
fn quiet() -> NetNs {
    let netns = NetNs::new();
    netns.run(|| {
        for conf in ["all", "default"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{conf}/disable_ipv6"), "1").unwrap();
        }
    });
    netns
}

fn ips<const N: usize>(texts: [&str; N]) -> [IpAddr; N] {
    texts.map(|text| text.parse().unwrap())
}

#[test]
fn a_device_is_listed_with_its_kind_its_controller_and_the_namespace_behind_it() {
    let Some(place) = Place::open() else { return };
    let nsid = place.nsid(&place.other);
    assert!(nsid.is_some(), "a device leads there");
    let link = place.link("to-other").unwrap();
    let index = index_of(&place.host, "to-other");
    let kind = Some("veth".to_owned());
    let found = place.link("to-other").unwrap();
    let (peer, address) = (found.peer, found.address);
    let expected = Link {
        index,
        name: "to-other".into(),
        kind,
        is_loopback: false,
        peer_netns: nsid,
        controller: None,
        peer,
        address,
    };
    assert_eq!(link, expected);

    // A workload may give its device another address, and that is the one it has.
    for last in [8, 9] {
        place.other.ip(&format!("link set eth0 address 02:00:00:00:00:0{last}"));
        let there = place.devices.links_in(nsid.unwrap()).unwrap();
        let end = there.iter().find(|link| Some(link.index) == peer).unwrap();
        assert_eq!((end.address, end.peer_netns.is_some()), (Some([2, 0, 0, 0, 0, last]), true), "{there:?}");
        assert!(there.iter().any(|link| link.name == "lo" && link.is_loopback), "{there:?}");
    }
    // One that nothing leads to is given a number when it is asked for.
    let alone = NetNs::new();
    assert_eq!(place.nsid(&alone), None);
    let given = place.devices.give_nsid(alone.as_fd()).unwrap();
    assert!(given.is_some() && given == place.nsid(&alone));
    assert_eq!(place.devices.give_nsid(alone.as_fd()).unwrap(), given);

    place.host.ip("link add br0 type bridge");
    place.host.ip("link set to-other master br0");
    let bridge = place.link("br0").unwrap();
    assert_eq!((bridge.kind.as_deref(), bridge.peer_netns), (Some("bridge"), None));
    assert_eq!(place.link("to-other").unwrap().controller, Some(bridge.index));
    let loopback = place.link("lo").unwrap();
    assert_eq!((loopback.kind, loopback.peer_netns, loopback.controller), (None, None, None));
    assert!(loopback.is_loopback);

    // Both ends here: no namespace is behind either.
    place.host.ip("link add near type veth peer name far");
    assert_eq!(place.link("near").unwrap().peer_netns, None);
    place.host.ip("link delete near");
    assert_eq!(place.link("near"), None);

    // The caller may be anywhere: the view is of the namespace it was opened in.
    assert!(place.other.run(|| place.link("br0")).is_some());
}

fn index_of(netns: &NetNs, device: &str) -> u32 {
    let line = netns.ip(&format!("-o link show dev {device}"));
    line.split(':').next().unwrap().parse().unwrap()
}

#[test]
fn a_name_that_is_no_text_hides_no_device() {
    let Some(place) = Place::open() else { return };
    let before = place.devices.links().unwrap().len();
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe\"x");
    let run = |words: &[&str], name: &std::ffi::OsStr, more: &[&str]| {
        let status = std::process::Command::new("ip").args(words).arg(name).args(more).status().unwrap();
        assert!(status.success());
    };
    place.host.run(|| run(&["link", "add"], name, &["type", "bridge"]));
    let links = place.devices.links().unwrap();
    assert_eq!(links.len(), before + 1);
    assert!(links.iter().any(|link| link.name == name && link.kind.as_deref() == Some("bridge")), "{links:?}");

    // A workload names its own devices, and the label of an address is the name of its device.
    place.other.run(|| {
        run(&["link", "add"], name, &["type", "bridge"]);
        run(&["address", "add", "10.7.7.7/32", "dev"], name, &[]);
    });
    let addresses = place.devices.addresses(place.nsid(&place.other).unwrap()).unwrap();
    assert!(addresses.contains(&ips(["10.7.7.7"])[0]), "{addresses:?}");
}

#[test]
fn the_addresses_of_a_namespace_are_those_behind_the_device() {
    let Some(place) = Place::open() else { return };
    let nsid = place.link("to-other").unwrap().peer_netns.unwrap();
    let list = || -> BTreeSet<IpAddr> {
        let found = place.devices.addresses(nsid).unwrap().into_iter();
        // Each device has one of its own making, too.
        found.filter(|addr| !matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())).collect()
    };
    assert_eq!(list(), BTreeSet::from(ips(["10.9.0.1", "fd09::1"])), "no loopback, and none of the host's");

    // The far end of a point-to-point device is not here.
    place.other.ip("address add 10.5.0.1 peer 10.5.0.2/32 dev eth0");
    place.other.ip("address add fd05::1 peer fd05::2/128 dev eth0");
    // A device that is down checks no duplicates: the address stays tentative.
    place.other.run(|| fs::write("/proc/sys/net/ipv6/conf/all/accept_dad", "1").unwrap());
    place.other.run(|| fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "1").unwrap());
    place.other.ip("link set eth0 down");
    place.other.ip("address add fd06::1/64 dev eth0");
    assert!(place.other.ip("-6 address show dev eth0 tentative").contains("fd06::1"), "it is tentative");
    let expected = ips(["10.9.0.1", "10.5.0.1", "fd06::1"]);
    assert!(BTreeSet::from(expected).is_subset(&list()), "{:?}", list());
    place.other.ip("link set eth0 up");
    place.other.ip("address add fd05::3 peer fd05::4/128 dev eth0 nodad");
    let [near, far] = ips(["fd05::3", "fd05::4"]);
    assert!(list().contains(&near) && !list().contains(&far), "{:?}", list());
    assert!(!list().contains(&ips(["10.5.0.2"])[0]));

    let error = place.devices.addresses(nsid + 1000).unwrap_err();
    assert!(matches!(error, DevicesError::NoNamespace { nsid: asked } if asked == nsid + 1000), "{error:?}");
    // Nothing of that list is in the way of the next.
    assert!(!list().is_empty());
}

#[test]
fn a_workload_with_addresses_without_end_is_an_error_and_not_a_list() {
    let Some(place) = Place::open() else { return };
    let nsid = place.nsid(&place.other).unwrap();
    let batch = tempfile::NamedTempFile::new().unwrap();
    let lines: String = (0..5000).map(|n| format!("address add 10.6.{}.{}/32 dev eth0\n", n / 250, n % 250)).collect();
    fs::write(batch.path(), lines).unwrap();
    place.other.ip(&format!("-batch {}", batch.path().display()));
    let error = place.devices.addresses(nsid).unwrap_err();
    assert!(matches!(error, DevicesError::TooMany { .. }), "{error:?}");
    assert!(place.heard());
    assert!(place.link("to-other").is_some(), "the list was read to its end");
}

#[test]
fn what_changes_here_and_behind_a_device_is_heard() {
    if require_or_skip(&[Need::Root, Need::Ip]).is_none() {
        return;
    }
    let [host, other, stranger] = [(); 3].map(|()| quiet());
    join(&host, "to-other", &["10.9.0.254/24"], &other, &["10.9.0.1/24"]);
    let devices = host.run(Devices::open).unwrap();
    let place = Place { host, other, devices };
    place.hear();
    let silent = || !place.devices.changed().unwrap();

    assert!(silent());
    place.other.ip("address add 10.9.0.7/24 dev eth0");
    assert!(place.heard(), "an address behind the device");
    assert!(silent());
    place.other.ip("address delete 10.9.0.7/24 dev eth0");
    assert!(place.heard(), "one less");

    assert_eq!(place.nsid(&stranger), None);
    stranger.ip("link add br0 type bridge");
    stranger.ip("address add 10.8.0.1/24 dev br0");
    assert!(silent(), "no device leads there");

    // Asking is no change.
    place.devices.addresses(place.nsid(&place.other).unwrap()).unwrap();
    place.devices.way_to(ips(["10.9.0.1"])[0]).unwrap();
    assert!(place.link("to-other").is_some());
    assert!(silent());

    place.host.ip("route add 10.77.0.0/16 via 10.9.0.1");
    assert!(place.heard(), "a route");
    place.host.ip("link add br0 type bridge");
    assert!(place.heard(), "a device");
    place.host.ip("link set to-other master br0");
    assert!(place.heard(), "a port of a bridge");
    place.host.ip("link delete to-other");
    assert!(place.heard(), "a device less");
    assert_eq!(place.link("to-other"), None);
}

#[test]
fn an_ipv6_address_behind_a_device_is_heard() {
    let Some(place) = Place::open() else { return };
    let nsid = place.nsid(&place.other).unwrap();
    place.other.ip("address add fd09::7/64 dev eth0 nodad");
    assert!(place.heard());
    assert!(place.devices.addresses(nsid).unwrap().contains(&ips(["fd09::7"])[0]));
}

#[test]
fn notices_that_were_lost_are_a_change() {
    if require_or_skip(&[Need::Root, Need::Ip]).is_none() {
        return;
    }
    let [host, other] = [(); 2].map(|()| quiet());
    join(&host, "to-other", &["10.9.0.254/24"], &other, &["10.9.0.1/24"]);
    let devices = host.run(Devices::open).unwrap();
    let place = Place { host, other, devices };
    rustix::net::sockopt::set_socket_recv_buffer_size(&place.devices, 0).unwrap();
    place.hear();
    let batch = tempfile::NamedTempFile::new().unwrap();
    let lines: String = (1..200).map(|n| format!("address add 10.6.0.{n}/32 dev eth0\n")).collect();
    fs::write(batch.path(), lines).unwrap();
    place.other.ip(&format!("-batch {}", batch.path().display()));
    let lost = rustix::net::sockopt::socket_error(&place.devices);
    assert_eq!(lost, Ok(Err(rustix::io::Errno::NOBUFS)), "the queue holds few");
    assert!(place.heard());
    place.other.ip("address add 10.6.1.1/32 dev eth0");
    assert!(place.heard(), "the queue is in use again");
}

#[test]
fn without_the_right_to_hear_of_workloads_nothing_is_opened() {
    if require_or_skip(&[Need::Root]).is_none() {
        return;
    }
    let host = NetNs::new();
    host.run(Devices::open).unwrap();
    let error = host.run(|| {
        // Of this thread alone, which ends here.
        let mut rights = capabilities(None).unwrap();
        rights.effective.remove(CapabilitySet::NET_BROADCAST);
        set_capabilities(None, rights).unwrap();
        Devices::open().unwrap_err()
    });
    assert!(matches!(error, DevicesError::Broadcast { .. }), "{error:?}");
    assert!(error.to_string().contains("CAP_NET_BROADCAST"), "{error}");
}

#[test]
fn the_way_to_an_address_is_the_device_that_its_route_names() {
    let Some(place) = Place::open() else { return };
    let [to_other, loopback] = ["to-other", "lo"].map(|name| Some(place.link(name).unwrap().index));
    let way = |addr| place.devices.way_to(ips([addr])[0]).unwrap();
    assert_eq!((way("10.9.0.1"), way("fd09::1")), (to_other, to_other));
    assert_eq!((way("10.9.0.254"), way("fd09::ff")), (loopback, loopback), "its own addresses");
    assert_eq!((way("192.0.2.1"), way("2001:db8::1")), (None, None), "no route");

    place.host.ip("route add 192.0.2.0/24 via 10.9.0.1");
    place.host.ip("route add 2001:db8::/64 via fd09::1");
    assert_eq!((way("192.0.2.1"), way("2001:db8::1")), (to_other, to_other), "through a router");
    for kind in ["unreachable", "prohibit", "blackhole"] {
        place.host.ip(&format!("route add {kind} 192.0.2.1/32"));
        place.host.ip(&format!("route add {kind} 2001:db8::1/128 metric 1"));
        assert_eq!((way("192.0.2.1"), way("2001:db8::1")), (None, None), "{kind}");
        place.host.ip(&format!("route delete {kind} 192.0.2.1/32"));
        place.host.ip(&format!("route delete {kind} 2001:db8::1/128 metric 1"));
    }
    assert_eq!((way("192.0.2.1"), way("2001:db8::1")), (to_other, to_other));
}

#[test]
fn the_id_of_a_namespace_is_that_of_the_device() {
    let Some(place) = Place::open() else { return };
    let of_link = place.link("to-other").unwrap().peer_netns;
    assert_eq!(place.nsid(&place.other), of_link);
    let stranger = NetNs::new();
    assert_eq!(place.nsid(&stranger), None);
    let file: OwnedFd = File::open("/proc/self/status").unwrap().into();
    let error = place.devices.nsid(file.as_fd()).unwrap_err();
    assert!(matches!(error, DevicesError::Ask { .. }), "{error:?}");
}

#[test]
fn whoever_lives_in_another_namespace_is_found_there_with_its_cgroup() {
    let Some(lab) = Lab::open(&[]) else { return };
    let [host, other, empty] = [(); 3].map(|()| NetNs::new());
    let [web, db, here] = ["web", "db", "here"].map(|name| lab.cgroup().child(name));
    let mut actors = vec![lab.actor(&web, &other), lab.actor(&web, &other), lab.actor(&here, &host)];
    let inode = |netns: &NetNs| File::from(netns.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino();
    let found_in = |netns: &NetNs| {
        let found = host.run(netns::others).unwrap();
        let found = found.into_iter().find(|namespace| namespace.inode == inode(netns))?;
        assert_eq!(found.netns.metadata().unwrap().ino(), found.inode);
        Some(found.cgroups)
    };
    let paths = |cgroups: &[&str]| cgroups.iter().map(|path| (*path).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(found_in(&other), Some(paths(&[web.path()])));
    assert_eq!(found_in(&host), None, "the caller's own");
    assert_eq!(found_in(&empty), None, "nobody lives there");
    let mut all = Vec::new();
    host.run(|| netns::all(&mut all)).unwrap();
    let own = all.iter().find(|namespace| namespace.inode == inode(&host)).unwrap();
    assert_eq!(own.cgroups, paths(&[here.path()]));

    actors.push(lab.actor(&db, &other));
    assert_eq!(found_in(&other), Some(paths(&[web.path(), db.path()])));
    // Both are gone, or about to be: killed, and reaped.
    drop(actors);
    assert_eq!(found_in(&other), None);
}
