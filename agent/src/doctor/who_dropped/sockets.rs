//! Does anybody on this host listen where the flow goes?

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt as _,
};

use agent_common::flow::proto;

use super::{Clue, Tuple, Weight};

const LAYER: &str = "socket";

pub(super) fn look(tuple: &Tuple) -> Vec<Clue> {
    let Some(port) = tuple.to_port.filter(|_| matches!(tuple.proto, proto::TCP | proto::UDP)) else {
        return Vec::new();
    };
    let mut networks = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|p| p.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit)) {
        if let Ok(netns) = fs::metadata(process.path().join("ns/net")) {
            networks.entry(netns.ino()).or_insert_with(|| process.path());
        }
    }
    let word = if tuple.proto == proto::TCP { "tcp" } else { "udp" };
    let read = |path: &std::path::Path, name: &str| fs::read_to_string(path.join("net").join(name)).unwrap_or_default();
    let mut here = false;
    for path in networks.values() {
        if !tuple.to.is_loopback() && !is_local(&read(path, "fib_trie"), &read(path, "if_inet6"), tuple.to) {
            continue;
        }
        here = true;
        if [word.to_owned(), format!("{word}6")].iter().any(|name| listens(&read(path, name), tuple, port)) {
            let found = format!("a socket listens at {}", tuple.port_word());
            return vec![Clue::new(Weight::Cleared, LAYER, found)];
        }
    }
    if !here {
        return vec![Clue::new(Weight::Cleared, LAYER, format!("{} is in no network of this host", tuple.to))];
    }
    let found = format!(
        "no socket listens at {} {}: who calls is refused by the kernel of the target",
        tuple.to,
        tuple.port_word()
    );
    vec![Clue::new(Weight::Evidence, LAYER, found)]
}

/// Says whether a network has an address, by `/proc/PID/net/fib_trie` and `if_inet6`.
fn is_local(fib_trie: &str, if_inet6: &str, addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            let leaf = format!("|-- {addr}");
            let mut lines = fib_trie.lines();
            while let Some(line) = lines.next() {
                if line.trim() == leaf && lines.clone().next().is_some_and(|next| next.contains("/32 host LOCAL")) {
                    return true;
                }
            }
            false
        }
        IpAddr::V6(addr) => {
            let hex: String = addr.octets().iter().map(|byte| format!("{byte:02x}")).collect();
            if_inet6.lines().any(|line| line.starts_with(&hex))
        }
    }
}

/// Says whether a table of sockets, such as `/proc/PID/net/tcp`, has one that listens at the target.
fn listens(table: &str, tuple: &Tuple, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (Some(local), Some(_), Some(state)) = (fields.next(), fields.next(), fields.next()) else { return false };
        let Some((addr, at)) = local.split_once(':') else { return false };
        let listening = if tuple.proto == proto::TCP { state == "0A" } else { state == "07" };
        let is_it = |addr: IpAddr| addr.is_unspecified() || addr.to_canonical() == tuple.to;
        listening && u16::from_str_radix(at, 16) == Ok(port) && address(addr).is_some_and(is_it)
    })
}

/// Reads an address as the kernel prints it: words in the order of the machine.
fn address(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<u32>> =
        (0..hex.len() / 8).map(|word| u32::from_str_radix(hex.get(word * 8..word * 8 + 8)?, 16).ok()).collect();
    let bytes: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(Ipv4Addr::from).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(Ipv6Addr::from).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn found(table: &str, to: &str) -> bool {
        let tuple = Tuple::parse(if to.starts_with("fd") { "fd00::9" } else { "10.9.0.1" }, to).unwrap();
        listens(&format!("{HEAD}{table}"), &tuple, tuple.to_port.unwrap())
    }

    #[test]
    fn a_listener_is_found_at_its_address_and_at_any() {
        let at =
            |addr: &str, state: &str| format!("   0: {addr} 00000000:0000 {state} 00000000:00000000 00:00000000\n");
        let addr = u32::from_ne_bytes([10, 9, 1, 2]);
        assert!(found(&at(&format!("{addr:08X}:01BB"), "0A"), "10.9.1.2:tcp/443"));
        assert!(found(&at("00000000:01BB", "0A"), "10.9.1.2:tcp/443"));
        assert!(found(&at(&format!("{}:01BB", "0".repeat(32)), "0A"), "fd00::2:tcp/443"));
        assert!(!found(&at("00000000:01BC", "0A"), "10.9.1.2:tcp/443"), "another port");
        assert!(!found(&at("00000000:01BB", "01"), "10.9.1.2:tcp/443"), "a connection is no listener");
        assert!(!found(&at(&format!("{:08X}:01BB", addr + 1), "0A"), "10.9.1.2:tcp/443"), "another address");
        assert!(found(&at("00000000:0035", "07"), "10.9.1.2:udp/53"));
    }

    #[test]
    fn an_address_is_local_where_the_kernel_says_so() {
        let trie = "Local:\n        |-- 10.9.1.2\n           /32 host LOCAL\n        |-- 10.9.1.0\n           /24 link UNICAST\n";
        assert!(is_local(trie, "", "10.9.1.2".parse().unwrap()));
        assert!(!is_local(trie, "", "10.9.1.0".parse().unwrap()));
        let six = "fd000000000000000000000000000002 02 40 00 80     eth0\n";
        assert!(is_local("", six, "fd00::2".parse().unwrap()));
        assert!(!is_local("", six, "fd00::3".parse().unwrap()));
    }
}
