//! Answers of resolvers: which name was asked for, and which addresses it has. RFC 1035, section 4.
//!
//! Not a parser of DNS: everything but the addresses of one name is passed over, and what has a form that resolvers do
//! not send is not read at all.

use crate::{
    addr::{Addr, mapped, pair, v4},
    layout::{DNS_TEXT_MAX, NameKey},
};

/// The longest message that is read, in bytes. Resolvers send up to 1,232 by UDP, and 4,096 at most.
pub const LENGTH_MAX: u32 = 2_047;
/// Room for a message, in bytes; the index of each read is cut to it, so that none can be outside.
pub const MESSAGE_BYTES: usize = LENGTH_MAX as usize + 1;
/// The shortest one: a header, one label, type and class.
pub const LENGTH_MIN: u32 = HEADER + 3 + 4;
/// The longest name that is read, in bytes: one has at most 253.
const NAME_MAX: u32 = 255;
/// Room for a name, in bytes.
pub const NAME_BYTES: usize = NAME_MAX as usize + 1;

const HEADER: u32 = 12;
/// Longest label, in bytes; what begins with more is a pointer, or nothing.
const LABEL_MAX: u8 = 63;
const INTERNET: u16 = 1;
const A: u16 = 1;
const AAAA: u16 = 28;
/// Most labels and records that are looked at behind the question: a label of an uncompressed name counts as one, and so
/// does a record.
const STEPS: u32 = 128;

/// Says whether a message begins like an answer to a standard query: no error, and one question.
#[inline(always)]
#[must_use]
pub const fn is_answer(message: &[u8; MESSAGE_BYTES], length: u32) -> bool {
    length >= HEADER && byte(message, 2) & 0xf8 == 0x80 && byte(message, 3) & 0x0f == 0 && half(message, 4) == 1
}

/// Where the name in the question begins, with the length of its first label.
pub const NAME_AT: u32 = HEADER;
/// Most labels of a name that is looked at: one of a tree of addresses, the longest in use, has 34.
pub const LABELS_MAX: u32 = 40;

/// Writes the label at `at` behind those before it, in lower case. Returns where the next one begins; 0 = it is none.
///
/// Behind the first length, each byte of the question is one of the name: where a label begins, a dot.
#[inline(always)]
pub fn label(message: &[u8; MESSAGE_BYTES], length: u32, at: u32, name: &mut [u8; NAME_BYTES]) -> u32 {
    let size = byte(message, at) as u32;
    let next = at + 1 + size;
    if size > LABEL_MAX as u32 || next >= length || next > NAME_AT + 1 + NAME_MAX {
        return 0;
    }
    if at > NAME_AT {
        name[at.wrapping_sub(NAME_AT + 1) as usize % NAME_BYTES] = b'.';
    }
    for i in 0..LABEL_MAX as u32 {
        if i >= size {
            break;
        }
        let read = byte(message, at + 1 + i);
        // It would look like the end of the label, or of the name.
        if read == b'.' || read == 0 {
            return 0;
        }
        name[(at.wrapping_sub(NAME_AT) + i) as usize % NAME_BYTES] = read.to_ascii_lowercase();
    }
    next
}

/// Returns the length of the name that ends before the 0 at `at`, if the question is for addresses; else 0.
#[inline(always)]
#[must_use]
pub fn name_length(message: &[u8; MESSAGE_BYTES], length: u32, at: u32) -> u32 {
    let at = bounded(at, LENGTH_MAX);
    let (kind, class) = (half(message, at + 1), half(message, at + 3));
    if (kind == A || kind == AAAA) && class == INTERNET && at > NAME_AT && at + 5 <= length {
        at - NAME_AT - 1
    } else {
        0
    }
}

/// Writes the key under which a name is looked up; what is behind the end of it is nothing.
///
/// Of one that is longer than the key the end is cut off, which is its beginning: it can still be found below another.
#[inline(always)]
pub fn key(name: &[u8; NAME_BYTES], length: u32, key: &mut NameKey) {
    for i in 0..=DNS_TEXT_MAX {
        key.text[i as usize] = name[length.wrapping_sub(1).wrapping_sub(i) as usize % NAME_BYTES];
    }
    if length <= DNS_TEXT_MAX {
        key.text[bounded(length, DNS_TEXT_MAX) as usize] = 0;
    }
    key.bits = 8 * (1 + if length < DNS_TEXT_MAX { length } else { DNS_TEXT_MAX });
}

/// Goes over what stands behind the question, and says whether it was read to its end.
///
/// `name_length` is what [`name_length`] has returned; `step` is [`step`], at a place.
/// The owners of the records are not compared: a resolver answers with the name that was asked for and with what that
/// is an alias of, and with nothing else.
#[inline(always)]
pub fn addresses(
    message: &[u8; MESSAGE_BYTES],
    length: u32,
    name_length: u32,
    mut step: impl FnMut(u32) -> Step,
) -> bool {
    // A name has a length before it and a 0 behind it; type and class follow.
    let (mut at, mut left) = (HEADER + name_length + 2 + 4, half(message, 6) as u32);
    if left > STEPS {
        return false;
    }
    for _ in 0..STEPS {
        if left == 0 {
            return true;
        }
        if at >= length {
            return false;
        }
        let found = step(at);
        if found.0 == Step::UNREAD.0 {
            return false;
        }
        (at, left) = (found.next(), bounded(left, 255) - found.records());
    }
    left == 0
}

/// What one step finds, as one number: what crosses the border of a function that a verifier checks by itself.
///
/// Shape: where the next step is in the lower half, and in the upper one how many records have ended, 0 or 1; 0 in all =
/// what is there could not be read.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Step(pub u64);

impl Step {
    /// What is there could not be read.
    pub const UNREAD: Self = Self(0);
    const RECORD: u64 = 1 << 32;

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    const fn next(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    const fn records(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Reads what is at `at`, one label or one record, and hands on the address that is in it, with its time to live in
/// seconds.
#[inline(always)]
pub fn step(message: &[u8; MESSAGE_BYTES], length: u32, at: u32, each: impl FnOnce(Addr, u32)) -> Step {
    let at = bounded(at, LENGTH_MAX);
    let read = byte(message, at);
    if read != 0 && read <= LABEL_MAX {
        return Step(u64::from(at + 1 + u32::from(read)));
    }
    // A pointer: what is left of the name stands elsewhere.
    let record = if read == 0 { at + 1 } else { at + 2 };
    let data = record + 10;
    let size = u32::from(half(message, record + 8));
    if read != 0 && read < 192 || data + size > length {
        return Step::UNREAD;
    }
    if half(message, record + 2) == INTERNET {
        let ttl = u32::from(half(message, record + 4)) << 16 | u32::from(half(message, record + 6));
        match (half(message, record), size) {
            (A, 4) => each(mapped(word(message, data)), ttl),
            (AAAA, 16) => {
                let [a, b, c, d] = [0, 4, 8, 12].map(|n| word(message, data + n));
                each([pair(a, b), pair(c, d)], ttl);
            }
            _ => {}
        }
    }
    Step(u64::from(data + size) | Step::RECORD)
}

/// Returns a number that is at most `mask`, a row of ones. It says so to the verifier, to which the iterations of a loop
/// look more alike by it; the compiler would leave out what changes nothing.
#[inline(always)]
fn bounded(n: u32, mask: u32) -> u32 {
    core::hint::black_box(n) & mask
}

/// Says whether an address can be that of somebody outside: none that means this host, a link, or many hosts.
#[inline(always)]
#[must_use]
pub const fn is_of_one_host(addr: &Addr) -> bool {
    if let Some(v4) = v4(addr) {
        let [a, b, _, _] = v4.to_ne_bytes();
        return !(matches!(a, 0 | 127 | 224..) || a == 169 && b == 254);
    }
    let [a, b, ..] = addr[0].to_ne_bytes();
    // ::/64 holds the unspecified address, that of loopback and IPv4 in other guises; then fe80::/10 and ff00::/8.
    addr[0] != 0 && !(a == 0xfe && b & 0xc0 == 0x80) && a != 0xff
}

#[inline(always)]
const fn byte(message: &[u8; MESSAGE_BYTES], at: u32) -> u8 {
    message[at as usize % MESSAGE_BYTES]
}

#[inline(always)]
const fn half(message: &[u8; MESSAGE_BYTES], at: u32) -> u16 {
    u16::from_be_bytes([byte(message, at), byte(message, at + 1)])
}

/// As it lies in memory.
#[inline(always)]
const fn word(message: &[u8; MESSAGE_BYTES], at: u32) -> u32 {
    u32::from_ne_bytes([byte(message, at), byte(message, at + 1), byte(message, at + 2), byte(message, at + 3)])
}
