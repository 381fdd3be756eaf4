//! Programs of XDP at the devices of a flow. They have each packet that comes in there before any hook of eastwall's.

use std::{collections::BTreeSet, io};

use netlink_packet_core::{DecodeError, Emitable as _, NLM_F_ACK, parse_u32};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkHeader, LinkMessage},
};

use super::{Clue, Weight};
use crate::{
    datapath::{self, ProgramInfo},
    doctor::{Holders, Program, held_by},
    events::escape::{KERNEL_NAME_CHARS_MAX, escape},
    netlink::{Requests, attributes, text},
};

const LAYER: &str = "programs";

/// How a program of XDP is run, by the attribute that holds its number (include/uapi/linux/if_link.h).
const MODES: [(u16, &str); 3] = [(5, "in the driver"), (6, "generic"), (7, "in hardware")];

/// A device, as far as XDP is concerned.
#[derive(Debug, Default, Eq, PartialEq)]
struct Device {
    name: String,
    /// Numbers of programs, each with how it is run.
    programs: Vec<(u32, &'static str)>,
}

/// Looks at devices of this network namespace, by index.
pub(super) fn look(devices: &[u32], holders: &Holders) -> Vec<Clue> {
    let devices: BTreeSet<u32> = devices.iter().copied().collect();
    if devices.is_empty() {
        return Vec::new();
    }
    let mut requests = match Requests::open(None) {
        Ok(requests) => requests,
        Err(e) => return vec![Clue::new(Weight::Unknown, LAYER, format!("the kernel cannot be asked about XDP: {e}"))],
    };
    let (mut clues, mut without) = (Vec::new(), Vec::new());
    for index in devices {
        match ask(&mut requests, index) {
            Ok(device) if device.programs.is_empty() => without.push(device.name),
            Ok(device) => clues.extend(device.programs.iter().map(|&(id, mode)| {
                let place = format!("{} XDP, {mode}", device.name);
                Clue::new(Weight::Suspect, LAYER, sentence(&place, id, datapath::program_by_id(id), holders))
            })),
            Err(e) => {
                let found = format!("the kernel cannot be asked about XDP at device {index}: {e}");
                clues.push(Clue::new(Weight::Unknown, LAYER, found));
            }
        }
    }
    if !without.is_empty() {
        clues.push(Clue::new(Weight::Cleared, LAYER, format!("no program of XDP at {}", without.join(", "))));
    }
    clues
}

/// Says what a program is, or at least its number: it may be gone, or not for this user to see.
fn sentence(place: &str, id: u32, info: io::Result<Option<ProgramInfo>>, holders: &Holders) -> String {
    let why = match info {
        Ok(Some(info)) => {
            let name = escape(&info.name, KERNEL_NAME_CHARS_MAX).text;
            let program = Program { id, name: &name, tag: &info.tag_text(), loaded_by: info.uid };
            return program.sentence(place, "BEFORE", holders);
        }
        Ok(None) => "it is gone".to_owned(),
        Err(e) => format!("what it is cannot be seen: {e}"),
    };
    format!("{place}: {id}, BEFORE eastwall's ({why}{})", held_by(id, holders))
}

fn ask(requests: &mut Requests, index: u32) -> io::Result<Device> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let mut found = None;
    requests.ask_route(&RouteNetlinkMessage::GetLink(message), NLM_F_ACK, |answer| {
        found = Some(device(answer)?);
        Ok(())
    })?;
    found.ok_or_else(|| io::Error::other("it says nothing"))
}

/// Reads a device.
fn device(answer: &[u8]) -> Result<Device, DecodeError> {
    let header = LinkHeader::parse(answer)?;
    let mut device = Device::default();
    attributes(answer, header.buffer_len(), |attribute, value| {
        match attribute {
            libc::IFLA_IFNAME => device.name = escape(text(value), KERNEL_NAME_CHARS_MAX).text,
            libc::IFLA_XDP => attributes(value, 0, |attribute, value| {
                if let Some((_, mode)) = MODES.iter().find(|(kind, _)| *kind == attribute) {
                    device.programs.push((parse_u32(value)?, mode));
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
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

    #[test]
    fn what_is_not_known_of_a_program_is_not_said() {
        let holders = Holders::from([(7, vec!["12 (lb)".to_owned()])]);
        let said = |info| sentence("eth0 XDP, generic", 7, info, &holders);
        assert_eq!(said(Ok(None)), "eth0 XDP, generic: 7, BEFORE eastwall's (it is gone, held by 12 (lb))");
        let hidden = said(Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert!(hidden.contains("cannot be seen: Operation not permitted"), "{hidden}");
        assert!(!hidden.contains("loaded by"), "{hidden}");
        let info = ProgramInfo { id: 7, name: b"drop".to_vec(), tag: [0xab; 8], uid: 0 };
        assert!(said(Ok(Some(info))).contains("7 drop, BEFORE eastwall's (tag abababababababab, loaded by user 0"));
    }

    #[test]
    fn a_device_that_cannot_be_asked_hides_no_other() {
        // No device has the highest index; one has the lowest, which is lo.
        let clues = look(&[u32::MAX >> 1, 1], &Holders::new());
        let weights: Vec<Weight> = clues.iter().map(|clue| clue.weight).collect();
        assert_eq!(weights, [Weight::Unknown, Weight::Cleared], "{clues:?}");
    }
}
