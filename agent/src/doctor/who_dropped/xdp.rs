//! Programs of XDP at the devices of a flow. They have each packet that comes in there before any hook of eastwall's.

use std::{collections::BTreeSet, io};

use netlink_packet_core::{DecodeError, Emitable as _, NLM_F_ACK, NetlinkSerializable, NlasIterator, parse_u32};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkHeader, LinkMessage},
};

use super::{Clue, Weight};
use crate::{
    datapath,
    doctor::{Program, holders},
    events::escape::escape,
    netlink::Requests,
};

const LAYER: &str = "programs";

/// How a program of XDP is run, by the attribute that holds its number (include/uapi/linux/if_link.h).
const MODES: [(u16, &str); 3] = [(5, "in the driver"), (6, "generic"), (7, "in hardware")];

/// Names are cut there, in characters: the kernel's are shorter, unless they hold what cannot be shown.
const NAME_CHARS_MAX: usize = 60;

/// A device, as far as XDP is concerned.
#[derive(Debug, Default, Eq, PartialEq)]
struct Device {
    name: String,
    /// Numbers of programs, each with how it is run.
    programs: Vec<(u32, &'static str)>,
}

/// Looks at devices of this network namespace, by index.
pub(super) fn look(devices: &[u32]) -> Vec<Clue> {
    let devices: BTreeSet<u32> = devices.iter().copied().collect();
    if devices.is_empty() {
        return Vec::new();
    }
    let found = match Requests::open(None).and_then(|mut requests| {
        devices.iter().map(|&index| ask(&mut requests, index)).collect::<io::Result<Vec<Device>>>()
    }) {
        Ok(found) => found,
        Err(e) => return vec![Clue::new(Weight::Unknown, LAYER, format!("the kernel cannot be asked about XDP: {e}"))],
    };
    if found.iter().all(|device| device.programs.is_empty()) {
        let names: Vec<&str> = found.iter().map(|device| device.name.as_str()).collect();
        return vec![Clue::new(Weight::Cleared, LAYER, format!("no program of XDP at {}", names.join(", ")))];
    }
    let holders = holders();
    let mut clues = Vec::new();
    for Device { name: device, programs } in found {
        for (id, mode) in programs {
            let info = datapath::describe(id);
            let name = escape(&info.name, NAME_CHARS_MAX).text;
            let program = Program { id, name: &name, tag: &info.tag_text(), loaded_by: info.uid };
            let said = program.sentence(&format!("{device} XDP, {mode}"), "BEFORE", &holders);
            clues.push(Clue::new(Weight::Suspect, LAYER, said));
        }
    }
    clues
}

fn ask(requests: &mut Requests, index: u32) -> io::Result<Device> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let question = RouteNetlinkMessage::GetLink(message);
    let mut body = vec![0; NetlinkSerializable::buffer_len(&question)];
    question.serialize(&mut body);
    let mut found = None;
    requests.ask(question.message_type(), NLM_F_ACK, &body, |answer| {
        found = Some(device(answer)?);
        Ok(())
    })?;
    found.ok_or_else(|| io::Error::other(format!("the kernel says nothing about device {index}")))
}

/// Reads a device.
fn device(answer: &[u8]) -> Result<Device, DecodeError> {
    let header = LinkHeader::parse(answer)?;
    let mut device = Device::default();
    for attribute in NlasIterator::new(answer.get(header.buffer_len()..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() {
            libc::IFLA_IFNAME => {
                let name = attribute.value().split(|byte| *byte == 0).next().unwrap_or_default();
                device.name = escape(name, NAME_CHARS_MAX).text;
            }
            libc::IFLA_XDP => {
                for attribute in NlasIterator::new(attribute.value()) {
                    let attribute = attribute?;
                    if let Some((_, mode)) = MODES.iter().find(|(kind, _)| *kind == attribute.kind()) {
                        device.programs.push((parse_u32(attribute.value())?, mode));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkXdp, XdpAttached};

    use super::*;

    fn message(attributes: Vec<LinkAttribute>) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    #[test]
    fn programs_are_read_with_how_they_run_and_each_once() {
        let xdp = vec![LinkXdp::Attached(XdpAttached::Multiple), LinkXdp::DrvProgId(7), LinkXdp::SkbProgId(9)];
        let bytes = message(vec![LinkAttribute::IfName("to-\x1bdb".into()), LinkAttribute::Xdp(xdp)]);
        let expected = vec![(7, "in the driver"), (9, "generic")];
        let found = device(&bytes).unwrap();
        assert_eq!(found.programs, expected);
        assert!(!found.name.contains('\x1b'), "{found:?}");
        // One alone is told twice, the second time without how it runs.
        let one = vec![LinkXdp::Attached(XdpAttached::SocketBuffer), LinkXdp::ProgId(9), LinkXdp::SkbProgId(9)];
        assert_eq!(device(&message(vec![LinkAttribute::Xdp(one)])).unwrap().programs, [(9, "generic")]);
        let none = message(vec![LinkAttribute::Xdp(vec![LinkXdp::Attached(XdpAttached::None)])]);
        assert_eq!(device(&none).unwrap().programs, []);
        assert!(device(&bytes[..bytes.len() - 3]).is_err());
    }
}
