//! The two sockets: one for questions, one on which the kernel says what changed.

#![expect(unsafe_code, reason = "setsockopt(2) of netlink has no safe wrapper")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage,
    parse_i32,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::{
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect,
        netlink::SocketAddrNetlink,
        recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::DevicesError;

/// How long an answer may take. It is there when send(2) returns, so this ends what would never end.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than the kernel writes at once, in bytes.
const MESSAGE_MAX: usize = 1 << 16;

/// Types of messages below this are netlink's own.
const FIRST_TYPE: u16 = 16;

/// Most notices that are taken at once, so that whoever floods does not hold the reader.
const NOTICES_MAX: usize = 4096;

/// What is heard: devices, addresses, routes and ids of namespaces. `RTNLGRP_*` of linux/rtnetlink.h.
const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_NSID,
];

/// For questions, one at a time.
#[derive(Debug)]
pub(super) struct Requests {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    pub(super) fn open() -> io::Result<Self> {
        let socket = open()?;
        // Else a question that is not understood in all its parts is answered as if those were missing.
        set_option(&socket, libc::NETLINK_GET_STRICT_CHK)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        connect(&socket, &KERNEL)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; MESSAGE_MAX] })
    }

    /// Asks, and hands every part of the answer to `take`, without the netlink header. Returns false if
    /// what the kernel listed changed meanwhile. Even if `take` fails, the answer is read to its end.
    pub(super) fn ask(
        &mut self,
        question: RouteNetlinkMessage,
        how: u16,
        mut take: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> io::Result<bool> {
        // A list that was not read to its end would keep the next from being begun.
        while recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT).is_ok() {}
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST | how;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        retry_on_intr(|| send(&self.socket, &bytes, SendFlags::empty()))?;
        let mut answer = Answer { sequence: self.sequence, steady: true, taken: Ok(()) };
        loop {
            let received = retry_on_intr(|| recv(&self.socket, &mut self.buffer[..], RecvFlags::TRUNC));
            let (len, whole) = received.map_err(|e| match e {
                Errno::AGAIN => io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer"),
                e => e.into(),
            })?;
            if whole > len {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is longer than 64 KiB"));
            }
            if answer.read(&self.buffer[..len], &mut take)? {
                answer.taken.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                return Ok(answer.steady);
            }
        }
    }
}

/// What has been read of an answer.
struct Answer {
    sequence: u32,
    steady: bool,
    taken: Result<(), DecodeError>,
}

impl Answer {
    /// Reads the messages of one datagram. Returns true at the end of the answer.
    fn read(&mut self, mut bytes: &[u8], take: &mut impl FnMut(&[u8]) -> Result<(), DecodeError>) -> io::Result<bool> {
        let invalid = |e| io::Error::new(io::ErrorKind::InvalidData, e);
        while !bytes.is_empty() {
            let message = NetlinkBuffer::new_checked(bytes).map_err(invalid)?;
            let len = usize::try_from(message.length()).unwrap_or(usize::MAX);
            bytes = bytes.get(len.next_multiple_of(NLMSG_ALIGNTO.into())..).unwrap_or_default();
            // Left from a question whose answer came too late.
            if message.sequence_number() != self.sequence {
                continue;
            }
            self.steady &= message.flags() & NLM_F_DUMP_INTR == 0;
            let body = message.payload();
            match message.message_type() {
                // Both begin with an errno, if with anything.
                NLMSG_ERROR | NLMSG_DONE => {
                    let errno = body.get(..4).map_or(Ok(0), parse_i32).map_err(invalid)?;
                    return if errno == 0 {
                        Ok(true)
                    } else {
                        Err(io::Error::from_raw_os_error(errno.saturating_neg()))
                    };
                }
                FIRST_TYPE.. if self.taken.is_ok() => self.taken = take(body),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// On which the kernel says what changed.
#[derive(Debug)]
pub(super) struct Notices {
    socket: OwnedFd,
}

impl Notices {
    pub(super) fn open() -> Result<Self, DevicesError> {
        let socket = open().map_err(|source| DevicesError::Open { source })?;
        set_option(&socket, libc::NETLINK_LISTEN_ALL_NSID).map_err(|source| DevicesError::Broadcast { source })?;
        let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        bind(&socket, &SocketAddrNetlink::new(0, groups))
            .and_then(|()| connect(&socket, &KERNEL))
            .map_err(|e| DevicesError::Open { source: e.into() })?;
        Ok(Self { socket })
    }

    /// Takes what is there; returns whether there was anything.
    pub(super) fn take(&self) -> io::Result<bool> {
        let mut any = false;
        for _ in 0..NOTICES_MAX {
            match recv(&self.socket, &mut [0_u8; 1], RecvFlags::DONTWAIT) {
                // NOBUFS: there were more than the queue holds.
                Ok(_) | Err(Errno::NOBUFS) => any = true,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(any)
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The kernel's own address. A socket that is connected to it takes nothing from anybody else.
const KERNEL: SocketAddrNetlink = SocketAddrNetlink::new(0, 0);

fn open() -> io::Result<OwnedFd> {
    // Protocol 0 is NETLINK_ROUTE.
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// Switches an option of netlink(7) on.
fn set_option(socket: &OwnedFd, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
    // SAFETY: `on` lives across the call and has the `len` bytes that are read; `socket` is open.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{ErrorMessage, NLM_F_MULTIPART, NetlinkHeader};
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    fn message(sequence: u32, flags: u16, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(16 + body.len()).unwrap();
        (header.message_type, header.flags, header.sequence_number) = (kind, flags, sequence);
        let mut bytes = vec![0; 16];
        netlink_packet_core::Emitable::emit(&header, &mut bytes);
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn read(bytes: &[u8]) -> (io::Result<bool>, Answer, Vec<Vec<u8>>) {
        let (mut answer, mut taken) = (Answer { sequence: 7, steady: true, taken: Ok(()) }, Vec::new());
        let result = answer.read(bytes, &mut |body: &[u8]| {
            taken.push(body.to_vec());
            if body == b"bad" { Err("bad".into()) } else { Ok(()) }
        });
        (result, answer, taken)
    }

    #[test]
    fn an_answer_is_what_has_the_number_of_the_question_up_to_its_end() {
        let parts = [
            message(6, 0, FIRST_TYPE, b"late"),
            message(6, 0, NLMSG_DONE, &[0; 4]),
            message(7, NLM_F_MULTIPART, FIRST_TYPE, b"odd"),
            message(7, NLM_F_MULTIPART, FIRST_TYPE, b"last"),
        ];
        let (result, answer, taken) = read(&parts.concat());
        assert!(!result.unwrap(), "more is to come");
        assert!(answer.steady);
        assert_eq!(taken, [b"odd".to_vec(), b"last".to_vec()]);
        for end in [&[][..], &[0; 4]] {
            assert!(read(&message(7, 0, NLMSG_DONE, end)).0.unwrap());
        }
    }

    #[test]
    fn an_error_is_one_in_either_kind_of_end() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let error = read(&message(7, 0, kind, &(-libc::ENODEV).to_ne_bytes())).0.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        }
        let mut acknowledged = NetlinkMessage::<RouteNetlinkMessage>::new(
            NetlinkHeader::default(),
            netlink_packet_core::NetlinkPayload::Error(ErrorMessage::default()),
        );
        acknowledged.header.sequence_number = 7;
        acknowledged.finalize();
        let mut bytes = vec![0; acknowledged.buffer_len()];
        acknowledged.serialize(&mut bytes);
        assert!(read(&bytes).0.unwrap());
    }

    #[test]
    fn a_list_that_changed_meanwhile_says_so_in_any_part() {
        let parts = [message(7, NLM_F_DUMP_INTR, FIRST_TYPE, b"a"), message(7, 0, NLMSG_DONE, &[0; 4])];
        let (result, answer, _) = read(&parts.concat());
        assert!(result.unwrap());
        assert!(!answer.steady);
    }

    #[test]
    fn what_cannot_be_taken_ends_no_answer_early() {
        let parts =
            [message(7, 0, FIRST_TYPE, b"bad"), message(7, 0, FIRST_TYPE, b"good"), message(7, 0, NLMSG_DONE, &[0; 4])];
        let (result, answer, taken) = read(&parts.concat());
        assert!(result.unwrap());
        answer.taken.unwrap_err();
        assert_eq!(taken.len(), 1);
    }

    #[test]
    fn a_broken_header_is_an_error() {
        let whole = message(7, 0, FIRST_TYPE, b"body");
        for len in 1..whole.len() {
            assert_eq!(read(&whole[..len]).0.unwrap_err().kind(), io::ErrorKind::InvalidData, "{len} bytes");
        }
        let mut short = whole;
        short[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(read(&short).0.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_question_that_is_refused_leaves_the_socket_usable() {
        let mut requests = Requests::open().unwrap();
        let mut message = LinkMessage::default();
        let list = RouteNetlinkMessage::GetLink(message.clone());
        // A strict kernel lists nothing for a header that says what a list cannot be limited by.
        message.header.index = 1;
        let limited = RouteNetlinkMessage::GetLink(message);
        let error = requests.ask(limited, netlink_packet_core::NLM_F_DUMP, |_| Ok(())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let mut devices = 0;
        let take = |_: &[u8]| {
            devices += 1;
            Ok(())
        };
        requests.ask(list, netlink_packet_core::NLM_F_DUMP, take).unwrap();
        assert!(devices > 0, "there is a loopback device");
    }
}
