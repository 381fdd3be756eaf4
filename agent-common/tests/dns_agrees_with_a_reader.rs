//! Answers of resolvers, generated and damaged: what is read from them is what an independent reader finds.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "answers/mod.rs"]
mod answers;

use std::net::IpAddr;

use agent_common::parse::dns;
use answers::{compare, ours, theirs};
use proptest::prelude::*;
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, CNAME, RData},
};

#[derive(Clone, Debug)]
enum Record {
    V4(u32),
    V6(u128),
    Alias(String),
}

fn a_name() -> impl Strategy<Value = String> {
    let label = "[a-zA-Z0-9_-]{1,12}";
    prop::collection::vec(label, 1..6).prop_map(|labels| labels.join("."))
}

/// One record in four is an alias, or none is.
fn a_record(aliases: u32) -> impl Strategy<Value = Record> {
    prop_oneof![
        2 => any::<u32>().prop_map(Record::V4),
        1 => any::<u128>().prop_map(Record::V6),
        aliases => a_name().prop_map(Record::Alias),
    ]
}

prop_compose! {
    fn an_answer(aliases: u32)(
        name in a_name(),
        records in prop::collection::vec((a_record(aliases), any::<u32>(), any::<bool>()), 0..12),
        v6 in any::<bool>(),
        compressed in any::<bool>(),
        id in any::<u16>(),
    ) -> (String, Vec<u8>) {
        let mut packet = Packet::new_reply(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
        let kind = if v6 { TYPE::AAAA } else { TYPE::A };
        let asked = Name::new(&name).unwrap();
        packet.questions.push(Question::new(asked.clone(), QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
        for (record, ttl, chaos) in &records {
            let data = match record {
                Record::V4(address) => RData::A(A { address: *address }),
                Record::V6(address) => RData::AAAA(AAAA { address: *address }),
                Record::Alias(name) => RData::CNAME(CNAME(Name::new(name).unwrap())),
            };
            let class = if *chaos && *ttl % 8 == 0 { CLASS::CH } else { CLASS::IN };
            packet.answers.push(ResourceRecord::new(asked.clone(), class, *ttl, data));
        }
        let bytes = if compressed { packet.build_bytes_vec_compressed() } else { packet.build_bytes_vec() };
        (name, bytes.unwrap())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn an_answer_is_read_as_it_was_written((name, bytes) in an_answer(1)) {
        let theirs = theirs(&bytes).unwrap();
        prop_assert_eq!(&theirs.name, &name.to_lowercase());
        prop_assert_eq!(ours(&bytes), Some(theirs));
    }

    #[test]
    fn what_is_read_of_a_damaged_answer_is_what_others_read(
        (_, mut bytes) in an_answer(0),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        compare(&bytes);
    }

    #[test]
    fn any_bytes_are_read_or_not(bytes in prop::collection::vec(any::<u8>(), 0..2_048)) {
        compare(&bytes);
    }
}

#[test]
fn what_is_no_answer_about_addresses_is_not_read() {
    let answer = |change: &dyn Fn(&mut Packet<'_>)| {
        let mut packet = Packet::new_reply(1);
        let name = Name::new_unchecked("a.example");
        let question = |name| Question::new(name, QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false);
        packet.questions.push(question(name.clone()));
        packet.answers.push(ResourceRecord::new(name, CLASS::IN, 60, RData::A(A { address: 0x0a00_0001 })));
        change(&mut packet);
        ours(&packet.build_bytes_vec().unwrap())
    };
    assert_eq!(answer(&|_| {}).unwrap().addresses.len(), 1);
    assert_eq!(answer(&|packet| packet.remove_flags(PacketFlag::RESPONSE)), None, "a query");
    assert_eq!(answer(&|packet| *packet.rcode_mut() = RCODE::NameError), None, "an error");
    assert_eq!(answer(&|packet| packet.questions.clear()), None, "no question");
    assert_eq!(answer(&|packet| packet.questions.push(packet.questions[0].clone())), None, "two of them");
    assert_eq!(answer(&|packet| packet.questions[0].qtype = QTYPE::TYPE(TYPE::MX)), None, "another kind");
    assert_eq!(answer(&|packet| packet.questions[0].qclass = QCLASS::CLASS(CLASS::CH)), None, "another class");
}

#[test]
fn only_an_address_of_one_host_elsewhere_can_be_an_externals() {
    let octets = |text: &str| match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    for (text, can_be) in [
        ("10.0.0.1", true),
        ("203.0.113.9", true),
        ("2001:db8::1", true),
        ("fd00::1", true),
        ("0.0.0.0", false),
        ("127.0.0.1", false),
        ("169.254.169.254", false),
        ("224.0.0.251", false),
        ("255.255.255.255", false),
        ("::", false),
        ("::1", false),
        ("::10.0.0.1", false),
        ("fe80::1", false),
        ("ff02::fb", false),
    ] {
        assert_eq!(dns::is_of_one_host(&agent_common::addr::of_octets(octets(text))), can_be, "{text}");
    }
}
