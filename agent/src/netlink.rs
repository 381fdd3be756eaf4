//! A question to the kernel over netlink, and its answer, read to the end.
//!
//! Source: netlink(7).
#![expect(unsafe_code, reason = "setsockopt(2) of netlink has no safe wrapper")]

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use netlink_packet_core::{
    DecodeError, Emitable as _, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader, NetlinkSerializable, NlasIterator, parse_i32,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::{
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect,
        netlink::SocketAddrNetlink,
        recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

/// How long an answer may take. It is there when send(2) returns, so this ends what would never end.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than the kernel writes at once, in bytes.
const MESSAGE_MAX: usize = 1 << 16;

/// Types of messages below this are netlink's own.
const FIRST_TYPE: u16 = 16;

/// For questions, one at a time.
#[derive(Debug)]
pub struct Requests {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    /// Opens a socket in the network namespace of the calling thread; `None` is NETLINK_ROUTE.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = open(protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        connect(&socket, &KERNEL)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; MESSAGE_MAX] })
    }

    /// Lets the kernel refuse a question that it does not understand in all its parts. Else it is answered as if those
    /// were missing.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn strict(self) -> io::Result<Self> {
        set_option(&self.socket, libc::NETLINK_GET_STRICT_CHK)?;
        Ok(self)
    }

    /// Asks NETLINK_ROUTE, as [`Self::ask`] does.
    ///
    /// # Errors
    ///
    /// As [`Self::ask`].
    pub fn ask_route(
        &mut self,
        question: &RouteNetlinkMessage,
        flags: u16,
        take: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> io::Result<bool> {
        let mut body = vec![0; NetlinkSerializable::buffer_len(question)];
        question.serialize(&mut body);
        self.ask(question.message_type(), flags, &body, take)
    }

    /// Asks, and hands every part of the answer to `take`, without the netlink header. Returns false if
    /// what the kernel listed changed meanwhile. Even if `take` fails, the answer is read to its end.
    ///
    /// `body` is what follows the header of netlink, as long as a multiple of four bytes.
    ///
    /// # Errors
    ///
    /// What the kernel said, or InvalidData.
    pub fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> io::Result<bool> {
        // A list that was not read to its end would keep the next from being begun.
        while recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT).is_ok() {}
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.message_type, header.flags) = (kind, NLM_F_REQUEST | flags);
        header.sequence_number = self.sequence;
        let mut bytes = vec![0; header.buffer_len()];
        header.length = u32::try_from(bytes.len() + body.len()).map_err(io::Error::other)?;
        header.emit(&mut bytes);
        bytes.extend_from_slice(body);
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

/// Hands type and value of each attribute behind a header to `take`.
///
/// # Errors
///
/// An attribute is longer than what is there, or what `take` says.
pub fn attributes(
    body: &[u8],
    header_len: usize,
    mut take: impl FnMut(u16, &[u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    for attribute in NlasIterator::new(body.get(header_len..).unwrap_or_default()) {
        let attribute = attribute?;
        take(attribute.kind(), attribute.value())?;
    }
    Ok(())
}

/// Returns the bytes of a string up to its zero byte.
#[must_use]
pub fn text(value: &[u8]) -> &[u8] {
    value.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The kernel's own address. A socket that is connected to it takes nothing from anybody else.
pub const KERNEL: SocketAddrNetlink = SocketAddrNetlink::new(0, 0);

/// Opens a socket; `None` is NETLINK_ROUTE, whose number is 0.
///
/// # Errors
///
/// What the system said.
pub fn open(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?)
}

/// Switches an option of netlink(7) on.
///
/// # Errors
///
/// What the system said.
pub fn set_option(socket: &OwnedFd, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
    // SAFETY: `on` lives across the call and has the `len` bytes that are read; `socket` is open.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{ErrorMessage, NLM_F_DUMP, NLM_F_MULTIPART, NetlinkMessage};
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    fn message(sequence: u32, flags: u16, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(16 + body.len()).unwrap();
        (header.message_type, header.flags, header.sequence_number) = (kind, flags, sequence);
        let mut bytes = vec![0; 16];
        header.emit(&mut bytes);
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
        let mut requests = Requests::open(None).and_then(Requests::strict).unwrap();
        let list = |index: u32| {
            let mut message = LinkMessage::default();
            message.header.index = index;
            RouteNetlinkMessage::GetLink(message)
        };
        // A strict kernel lists nothing for a header that says what a list cannot be limited by.
        let error = requests.ask_route(&list(1), NLM_F_DUMP, |_| Ok(())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let mut devices = 0;
        let take = |_: &[u8]| {
            devices += 1;
            Ok(())
        };
        requests.ask_route(&list(0), NLM_F_DUMP, take).unwrap();
        assert!(devices > 0, "there is a loopback device");
    }
}
