//! Frames at random: a grammar of what hosts send, and damage to it.
//!
//! The bytes are laid by hand after the RFCs and share no code with the parser.

/// Numbers that look random and come again for the same seed: splitmix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 1).expect("64 bits") % n
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    /// Values that lie at a border, or any.
    fn length(&mut self, true_one: usize) -> u16 {
        let near = self.below(17);
        let any = self.next().to_be_bytes();
        let value = match self.below(6) {
            0 => 0,
            1 => near,
            2 => (true_one + near).saturating_sub(8),
            3 => 0xffff - near,
            _ => usize::from(u16::from_be_bytes([any[0], any[1]])),
        };
        u16::try_from(value).unwrap_or(u16::MAX)
    }
}

/// What a later step has to change when the length of a packet changes: offsets of its length fields.
pub struct Laid {
    /// The packet, or the frame.
    pub bytes: Vec<u8>,
    /// Two bytes each, big endian.
    lengths: Vec<usize>,
}

/// A frame, whole in half of the cases, else damaged.
pub fn frame(random: &mut Random) -> Vec<u8> {
    let mut frame = whole(random);
    if random.one_in(2) {
        for _ in 0..=random.below(2) {
            damage(random, &mut frame);
        }
    }
    frame.bytes
}

/// A frame as a host may send it.
pub fn whole(random: &mut Random) -> Laid {
    let mut bytes = random.bytes(12);
    for _ in 0..[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2][random.below(16)] {
        bytes.extend(random.pick(&[[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]]));
        bytes.extend(random.bytes(2));
    }
    match random.below(32) {
        0 => {
            // ARP, nearly always for IPv4 over Ethernet.
            let mut from = bytes[6..12].to_vec();
            bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0]);
            bytes.push(random.pick(&[1, 1, 2, 2, 3, 8]));
            if random.one_in(8) {
                from[5] ^= 1;
            }
            bytes.extend(from);
            bytes.extend(random.bytes(14));
            let padding = random.pick(&[0, 18, 19, 40]);
            bytes.extend(vec![0; padding]);
            Laid { bytes, lengths: vec![16, 18] }
        }
        1 => {
            // Anything else.
            let kind = random.pick(&[0x88cc_u16, 0x8847, 0x8863, 0x88e5, 0x0026, 0x8035, 0xffff]);
            bytes.extend(kind.to_be_bytes());
            let count = random.below(60);
            bytes.extend(random.bytes(count));
            Laid { bytes, lengths: vec![12] }
        }
        n => {
            let is_v6 = n % 2 == 0;
            bytes.extend(if is_v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
            let at = bytes.len();
            let packet = if is_v6 { v6(random, 1) } else { v4(random, 1) };
            bytes.extend(packet.bytes);
            if random.one_in(4) {
                // A short frame is padded, and some devices leave more behind.
                let padding = random.below(20);
                bytes.extend(random.bytes(padding));
            }
            Laid { bytes, lengths: packet.lengths.into_iter().map(|offset| offset + at).collect() }
        }
    }
}

/// A count of words, which is small.
fn narrow(words: usize) -> u8 {
    u8::try_from(words).expect("a short header")
}

/// Cuts the frame, flips bits, or lets a length lie.
fn damage(random: &mut Random, frame: &mut Laid) {
    let bytes = &mut frame.bytes;
    match random.below(4) {
        0 => {
            let length = random.below(bytes.len() + 1);
            bytes.truncate(length);
        }
        1 => {
            for _ in 0..=random.below(3) {
                // Where the headers are.
                let end = bytes.len().min(90);
                if end > 0 {
                    let at = random.below(end);
                    bytes[at] ^= 1 << random.below(8);
                }
            }
        }
        2 if !frame.lengths.is_empty() => {
            let at = random.pick(&frame.lengths);
            if let Some(field) = bytes.get(at..at + 2) {
                let true_one = usize::from(u16::from_be_bytes([field[0], field[1]]));
                let value = random.length(true_one);
                bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
            }
        }
        _ => {
            let end = bytes.len().min(90);
            if end > 12 {
                let at = 12 + random.below(end - 12);
                bytes[at] = random.pick(&[0, 1, 5, 6, 17, 43, 44, 51, 58, 59, 60, 0x45, 0x60, 0x7f, 0x80, 0xff]);
            }
        }
    }
}

/// RFC 791, section 3.1. `depth` is how many packets may be quoted within it.
fn v4(random: &mut Random, depth: u32) -> Laid {
    let protocol = protocol(random, false);
    let transport = transport(random, protocol, depth);
    let words = if random.one_in(3) { random.below(11) } else { 0 };
    let header = 20 + words * 4;
    let (field, keep) = fragment(random, transport.bytes.len());
    let total = u16::try_from(header + keep).expect("a short packet");
    let mut bytes = vec![0x45 + narrow(words), random.byte()];
    bytes.extend(total.to_be_bytes());
    bytes.extend(random.bytes(2));
    // Don't fragment, more fragments, offset in units of 8 bytes.
    let flags = if field == 0 && random.one_in(2) { 0x4000 } else { (field & 1) << 13 };
    bytes.extend((flags | field >> 3).to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    bytes.extend(random.bytes(8));
    bytes.extend(random.bytes(words * 4));
    bytes.extend(&transport.bytes[..keep]);
    let behind = transport.lengths.into_iter().map(|offset| offset + header);
    Laid { bytes, lengths: [2, 6].into_iter().chain(behind).collect() }
}

/// RFC 8200, sections 3 and 4.
fn v6(random: &mut Random, depth: u32) -> Laid {
    let protocol = protocol(random, true);
    let transport = transport(random, protocol, depth);
    let count = random.pick(&[0, 0, 0, 1, 1, 2, 3, 7, 8]);
    let mut kinds: Vec<u8> = (0..count).map(|_| random.pick(&[0, 43, 44, 44, 60, 60, 51])).collect();
    if !random.one_in(4) {
        // As the RFC recommends: hop by hop, destination, routing, fragment, authentication, destination.
        kinds.sort_by_key(|kind| match kind {
            0 => 0,
            43 => 2,
            44 => 3,
            51 => 4,
            _ => 1,
        });
        kinds.dedup();
    }
    let (field, keep) = fragment(random, transport.bytes.len());
    let (mut next, mut bytes) = (protocol, transport.bytes[..keep].to_vec());
    let mut lengths = transport.lengths;
    for kind in kinds.into_iter().rev() {
        let mut header = vec![next];
        match kind {
            44 => {
                header.push(random.byte());
                header.extend(field.to_be_bytes());
                header.extend(random.bytes(4));
            }
            51 => {
                // RFC 4302: in words of 4 bytes, less 2.
                header.extend([4, 0, 0]);
                header.extend(random.bytes(20));
            }
            _ => {
                let units = random.pick(&[0, 0, 0, 1, 2]);
                header.push(units);
                header.extend(random.bytes(6 + usize::from(units) * 8));
            }
        }
        lengths.iter_mut().for_each(|offset| *offset += header.len());
        lengths.extend([0, 2]);
        header.extend(bytes);
        (next, bytes) = (kind, header);
    }
    lengths.iter_mut().for_each(|offset| *offset += 40);
    lengths.push(4);
    let payload = if random.one_in(40) { 0 } else { u16::try_from(bytes.len()).expect("a short packet") };
    let mut packet = vec![0x60 | random.byte() & 0xf];
    packet.extend(random.bytes(3));
    packet.extend(payload.to_be_bytes());
    packet.extend([next, random.pick(&[1, 64, 255])]);
    for _ in 0..2 {
        let mut address = random.bytes(16);
        if random.one_in(50) {
            address[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        }
        packet.extend(address);
    }
    packet.extend(bytes);
    Laid { bytes: packet, lengths }
}

/// Offset in bytes, its lowest bit for more fragments, as in a fragment header; and how much of the data this is.
fn fragment(random: &mut Random, there: usize) -> (u16, usize) {
    let whole_units = there / 8 * 8;
    let offset = match random.below(3) {
        0 => 8,
        1 => 1 << (3 + random.below(13)),
        _ => random.next().to_be_bytes()[0].into(),
    } & 0xfff8_u16;
    match random.below(8) {
        // The first.
        0 if random.one_in(4) => (1, there),
        0 => (1, whole_units),
        // One in between, the last.
        1 => (offset | 1, whole_units),
        2 => (offset, there),
        _ => (0, there),
    }
}

fn protocol(random: &mut Random, is_v6: bool) -> u8 {
    let icmp = if is_v6 != random.one_in(20) { 58 } else { 1 };
    match random.below(16) {
        0..5 => 6,
        5..9 => 17,
        9..12 => icmp,
        12 => 136,
        13 => 132,
        // IGMP, IPv4, IPv6, GRE, ESP, AH, none, OSPF, mobility, HIP, shim6, any.
        _ => {
            let any = random.byte();
            random.pick(&[2, 4, 41, 47, 50, 51, 59, 89, 135, 139, 140, any])
        }
    }
}

fn transport(random: &mut Random, protocol: u8, depth: u32) -> Laid {
    let count = random.below(32);
    let data = random.bytes(count);
    let mut bytes = random.bytes(4);
    let mut lengths = Vec::new();
    match protocol {
        // RFC 9293, section 3.1.
        6 => {
            let words = if random.one_in(2) { random.below(11) } else { 0 };
            bytes.extend(random.bytes(8));
            bytes.extend([(5 + narrow(words)) << 4, random.byte(), 2, 0, 0, 0, 0, 0]);
            bytes.extend(random.bytes(words * 4));
            bytes.extend(data);
            lengths.push(12);
        }
        // RFC 768; RFC 3828, where it is how much the checksum covers.
        17 | 136 => {
            bytes.extend(u16::try_from(8 + data.len()).expect("a short packet").to_be_bytes());
            bytes.extend([0; 2]);
            bytes.extend(data);
            lengths.push(4);
        }
        // RFC 792; RFC 4443: echo, time, error with the packet that it is about, neighbour discovery, any.
        1 | 58 => {
            let any = random.byte();
            bytes[0] = random.pick(&[0, 8, 128, 129, 13, 14, 3, 11, 1, 135, 136, any]);
            bytes[1] = random.pick(&[0, 0, 3]);
            bytes.extend(random.bytes(4));
            match bytes[0] {
                13 | 14 => bytes.extend(random.bytes(12)),
                1 | 3 | 11 if depth > 0 => {
                    let quoted = if protocol == 58 { v6(random, depth - 1) } else { v4(random, depth - 1) };
                    let keep = random.below(quoted.bytes.len() + 1);
                    bytes.extend(&quoted.bytes[..keep]);
                }
                _ => bytes.extend(data),
            }
        }
        // RFC 9260, section 3.1.
        132 => {
            bytes.extend(random.bytes(8));
            bytes.extend(data);
        }
        _ => bytes.extend(data),
    }
    Laid { bytes, lengths }
}
