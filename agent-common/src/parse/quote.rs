//! The packet that an ICMP error quotes: it says which flow the error is about.

use super::{
    Packet, ParseError, Piece, Source,
    frame::{Behind, HEADER_BYTES},
    ip, transport,
};
use crate::flow::proto;

/// Bytes of an ICMP or ICMPv6 error before its quote.
const ERROR_BYTES: usize = 8;
/// Of a transport header, an error quotes at least this much. RFC 792.
const QUOTED_BYTES: usize = 8;

/// A quote: it may end long before its packet does.
struct Quote<'a, S: ?Sized>(Behind<'a, S>);

impl<S: Source + ?Sized> Source for Quote<'_, S> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize, out: &mut [u8; N]) -> bool {
        self.0.load(offset, out)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // More than any packet has, and no more than offsets can be added to.
        usize::MAX / 2
    }

    #[inline(always)]
    fn is_offload(&self) -> bool {
        false
    }
}

/// Reads the quote of a frame that [`super::frame::read`] took for an error of ICMP, into a packet that is all zero. What
/// is behind the ports is not looked at: TCP flags and `has_payload` stay 0.
///
/// # Errors
///
/// See [`ParseError`]: the quote ends before the ports, is of the other family, or cannot be found because there are
/// extension headers before the error. The packet is then partly filled.
#[inline(always)]
pub fn read<S: Source + ?Sized>(frame: &S, packet: &mut Packet) -> Result<(), ParseError> {
    let error = Behind { frame, offset: HEADER_BYTES };
    let mut h = [0; 8];
    if !error.load(0, &mut h) {
        return Err(ParseError::Truncated);
    }
    let header = match h[0] >> 4 {
        4 => usize::from(h[0] & 0xf) * 4,
        _ if h[6] == proto::ICMPV6 => 40,
        _ => return Err(ParseError::Headers),
    };
    let quote = Quote(Behind { frame, offset: HEADER_BYTES + header + ERROR_BYTES });
    let (offset, _) = ip::headers(&quote, packet, &mut Piece::default())?;
    if packet.v6 != u8::from(h[0] >> 4 != 4) {
        return Err(ParseError::Version);
    }
    let mut first = [0; QUOTED_BYTES];
    if !quote.load(offset, &mut first) {
        return Err(ParseError::Truncated);
    }
    transport::flow(packet, first);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::frame;

    const UDP_V4: [u8; 28] =
        [0x45, 0, 0, 40, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0x15, 0x38, 0, 20, 0, 0];

    fn v4(quote: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        let total = u8::try_from(28 + quote.len()).unwrap();
        bytes.extend([8, 0, 0x45, 0, 0, total, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
        bytes.extend([3, 4, 0, 0, 0, 0, 5, 0]);
        bytes.extend(quote);
        bytes
    }

    fn v6(quote: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        let length = u8::try_from(8 + quote.len()).unwrap();
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length, 58, 64]);
        bytes.extend([0xfd; 32]);
        bytes.extend([2, 0, 0, 0, 0, 0, 5, 0]);
        bytes.extend(quote);
        bytes
    }

    fn udp_v6() -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 20, 17, 64];
        bytes.extend([1; 16]);
        bytes.extend([2; 16]);
        bytes.extend([0x9c, 0x40, 0x15, 0x38, 0, 20, 0, 0]);
        bytes
    }

    fn quoted(bytes: &[u8]) -> Result<Packet, ParseError> {
        let mut error = Packet::default();
        frame::read(bytes, &mut error, &mut Piece::default()).unwrap();
        assert!(error.is_icmp_error());
        let mut packet = Packet::default();
        read(bytes, &mut packet).map(|()| packet)
    }

    #[test]
    fn the_flow_of_a_quote_is_read_and_its_length_is_not_that_of_the_error() {
        for bytes in [v4(&UDP_V4), v6(&udp_v6())] {
            let packet = quoted(&bytes).unwrap();
            assert_eq!((packet.src_port, packet.dst_port, packet.proto), (40_000, 5432, proto::UDP));
        }
        // Of a segment of TCP, eight bytes are enough.
        let mut tcp = UDP_V4;
        tcp[9] = proto::TCP;
        assert_eq!(quoted(&v4(&tcp)).unwrap().dst_port, 5432);
        let mut echo = UDP_V4;
        echo[9] = proto::ICMP;
        echo[20..].copy_from_slice(&[8, 0, 0, 0, 0x12, 0x34, 0, 1]);
        assert_eq!(quoted(&v4(&echo)).unwrap().icmp_id, 0x1234);
    }

    #[test]
    fn a_quote_that_ends_before_the_ports_is_none() {
        for length in 0..UDP_V4.len() {
            assert!(quoted(&v4(&UDP_V4[..length])).is_err(), "{length}");
        }
        let udp = udp_v6();
        for length in 0..udp.len() {
            assert!(quoted(&v6(&udp[..length])).is_err(), "{length}");
        }
    }

    #[test]
    fn a_quoted_fragment_that_does_not_say_how_long_it_is_is_none() {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, 0, 64];
        bytes.extend([1; 32]);
        // Options of a jumbogram, and behind them the header of a first fragment.
        bytes.extend([44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9]);
        assert_eq!(quoted(&v6(&bytes)), Err(ParseError::Length));
    }

    #[test]
    fn a_quote_is_of_the_family_of_its_error_and_no_later_fragment() {
        assert_eq!(quoted(&v4(&udp_v6())), Err(ParseError::Version));
        assert_eq!(quoted(&v6(&UDP_V4)), Err(ParseError::Version));
        let mut later = UDP_V4;
        later[7] = 1;
        assert_eq!(quoted(&v4(&later)), Err(ParseError::Fragment));
    }
}
