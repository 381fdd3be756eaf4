//! Questions to resolvers and their answers, written and read without a line of what is tested.

use std::net::IpAddr;

use simple_dns::{
    CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, RData},
};

use crate::lab::Family;

/// Any number: answers have that of their question.
const ID: u16 = 7;

fn question(name: &str, family: Family) -> Question<'_> {
    let kind = if family == Family::V4 { TYPE::A } else { TYPE::AAAA };
    let name = Name::new(name).expect("a DNS name");
    Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false)
}

/// A question for the addresses of a name.
///
/// # Panics
///
/// If that is none.
#[must_use]
pub fn query(name: &str, family: Family) -> Vec<u8> {
    let mut packet = Packet::new_query(ID);
    packet.questions.push(question(name, family));
    packet.build_bytes_vec().expect("a message")
}

/// What a resolver answers to a question for the addresses of a name: each with its time to live, in seconds.
///
/// # Panics
///
/// If the name or an address is none.
#[must_use]
pub fn answer(name: &str, addresses: &[(&str, u32)]) -> Vec<u8> {
    let mut packet = Packet::new_reply(ID);
    packet.questions.push(question(name, Family::V4));
    for (address, ttl) in addresses {
        let data = match address.parse().expect("an address") {
            IpAddr::V4(v4) => RData::A(A { address: v4.to_bits() }),
            IpAddr::V6(v6) => RData::AAAA(AAAA { address: v6.to_bits() }),
        };
        let name = Name::new(name).expect("a DNS name");
        packet.answers.push(ResourceRecord::new(name, CLASS::IN, *ttl, data));
    }
    packet.build_bytes_vec_compressed().expect("a message")
}

/// The addresses in an answer.
///
/// # Panics
///
/// If it is none, or says that something failed.
#[must_use]
pub fn addresses(answer: &[u8]) -> Vec<IpAddr> {
    let answer = Packet::parse(answer).expect("a message");
    assert_eq!(answer.rcode(), RCODE::NoError, "{answer:?}");
    let addresses = answer.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(a) => Some(IpAddr::from(a.address.to_be_bytes())),
        RData::AAAA(a) => Some(IpAddr::from(a.address.to_be_bytes())),
        _ => None,
    });
    addresses.collect()
}
