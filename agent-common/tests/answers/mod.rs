//! Answers of resolvers as the kernel programs read them, and as an independent reader does.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "shared by a test and a fuzz target, which fail by it and use what they need"
)]

use std::{collections::BTreeSet, net::IpAddr};

use agent_common::{
    addr::Addr,
    parse::dns::{self, LABELS_MAX, LENGTH_MAX, MESSAGE_BYTES, NAME_AT, NAME_BYTES},
};
use simple_dns::{
    CLASS, Packet,
    rdata::{A, AAAA, RData},
};

/// The name that was asked for, and each address with its time to live.
#[derive(Debug, Eq, PartialEq)]
pub struct Answer {
    /// In lower case.
    pub name: String,
    /// With seconds.
    pub addresses: BTreeSet<(IpAddr, u32)>,
}

fn address(addr: Addr) -> IpAddr {
    let [a, b] = addr.map(u64::to_ne_bytes);
    let octets: Vec<u8> = [a, b].concat();
    IpAddr::from(<[u8; 16]>::try_from(octets).unwrap()).to_canonical()
}

/// As the kernel programs do it, step by step.
pub fn ours(bytes: &[u8]) -> Option<Answer> {
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= LENGTH_MAX)?;
    // What lies behind the message is left over from another one.
    let mut message = [0xaa; MESSAGE_BYTES];
    message[..bytes.len()].copy_from_slice(bytes);
    if !dns::is_answer(&message, length) {
        return None;
    }
    let (mut name, mut at, mut end) = ([0; NAME_BYTES], NAME_AT, 0);
    for _ in 0..LABELS_MAX {
        let next = dns::label(&message, length, at, &mut name);
        if next <= at + 1 {
            end = if next == 0 { 0 } else { at };
            break;
        }
        at = next;
    }
    let name_length = if end == 0 { 0 } else { dns::name_length(&message, length, end) };
    if name_length == 0 {
        return None;
    }
    let mut addresses = BTreeSet::new();
    let whole = dns::addresses(&message, length, name_length, |at| {
        dns::step(&message, length, at, |addr, ttl| {
            addresses.insert((address(addr), ttl));
        })
    });
    let name = String::from_utf8_lossy(&name[..name_length as usize]).into_owned();
    whole.then_some(Answer { name, addresses })
}

/// As a resolver's client does it.
pub fn theirs(bytes: &[u8]) -> Option<Answer> {
    let packet = Packet::parse(bytes).ok()?;
    let name = packet.questions.first()?.qname.to_string().to_lowercase();
    let mut addresses = BTreeSet::new();
    for record in packet.answers.iter().filter(|record| record.class == CLASS::IN) {
        match &record.rdata {
            RData::A(A { address }) => addresses.insert((IpAddr::from(address.to_be_bytes()), record.ttl)),
            RData::AAAA(AAAA { address }) => {
                addresses.insert((IpAddr::from(address.to_be_bytes()).to_canonical(), record.ttl))
            }
            _ => false,
        };
    }
    Some(Answer { name, addresses })
}

/// Holds the two against each other, on any bytes: no address is read that others do not read, nor under another name.
pub fn compare(bytes: &[u8]) {
    let (Some(ours), Some(theirs), Ok(packet)) = (ours(bytes), theirs(bytes), Packet::parse(bytes)) else { return };
    // Of data that holds a name others believe the name, not the length beside it.
    let is_address = |data: &RData<'_>| matches!(data, RData::A(_) | RData::AAAA(_));
    if !packet.answers.iter().all(|record| is_address(&record.rdata)) {
        return;
    }
    assert!(ours.addresses.is_subset(&theirs.addresses), "{ours:?} {theirs:?}");
    // Bytes that are no text are shown in two ways.
    if theirs.name.is_ascii() && !theirs.name.contains('\\') {
        assert_eq!(ours.name, theirs.name);
    }
}
