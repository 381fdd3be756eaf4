//! Answers of resolvers: they name externals, before whoever asked can use what they say.

use agent_common::{
    addr::{self, Addr},
    layout::{DNS_NAMES_MAX, DNS_TTL_MAX, DNS_TTL_MIN, DenyCounter},
    parse::dns::{self, LENGTH_MAX, Step},
};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_map_lookup_elem, bpf_skb_load_bytes},
};

use crate::{
    atomic, emit, flows,
    judge::Case,
    maps::{DNS_ADDRS, DNS_NAMES, DNS_ROOM, DNS_USED, DnsRoom},
    peer, policy,
};

/// `BPF_NOEXIST` of linux/bpf.h.
const IF_NEW: u64 = 1;

/// Reads an answer and notes the addresses in it, if it is about an external. `ip` is where the IP header begins.
#[inline(always)]
pub fn hear(skb: *mut __sk_buff, case: &Case, ip: u32) {
    // Behind a header without options or extensions; what is not plain is rare enough to be counted and left.
    let header = if addr::v4(&case.peer_addr).is_some() { 20 } else { 40 };
    if read(skb, ip + header + 8, case.epoch) == UNREAD {
        emit::count(DenyCounter::DnsUnread);
    }
}

/// What [`read`] returns: the answer names nobody, or there is nothing in it.
const NOTHING: u32 = 0;
/// It names an external.
const READ: u32 = 1;
/// It could not be read, or not to its end.
const UNREAD: u32 = 2;

/// This CPU's, and programs that are called for what comes in do not interrupt one another. Each function borrows of it
/// what it uses.
#[inline(always)]
fn room() -> Option<*mut DnsRoom> {
    DNS_ROOM.get_ptr_mut(0)
}

#[inline(always)]
fn read(skb: *mut __sk_buff, offset: u32, epoch: u32) -> u32 {
    let Some(room) = room() else {
        return UNREAD;
    };
    // SAFETY: the context.
    let length = unsafe { (*skb).len }.wrapping_sub(offset);
    if length > LENGTH_MAX {
        return UNREAD;
    }
    // The compiler knows that this changes nothing; the verifier does not, and wants to see it.
    // SAFETY: a value on the stack.
    let length = unsafe { core::ptr::read_volatile(&raw const length) } & LENGTH_MAX;
    // A name, and what is before and behind it. So is none of 0 bytes, which older verifiers take no other word for.
    if length < dns::LENGTH_MIN {
        return UNREAD;
    }
    // SAFETY: at most as many bytes as there is room for, which the verifier checks.
    if unsafe { bpf_skb_load_bytes(skb.cast(), offset, (&raw mut (*room).message).cast(), length) } != 0 {
        return UNREAD;
    }
    let name_length = ew_dns_key(length);
    if name_length == 0 || ew_dns_externals(epoch) == 0 {
        return NOTHING;
    }
    if ew_dns_addresses(length, name_length, epoch) == 0 {
        return UNREAD;
    }
    emit::count(DenyCounter::DnsRead);
    READ
}

/// Reads the question and makes the key of its name. Global, as each step here, so that the verifier checks it once. Returns the length of the name; 0 = it is no answer about
/// addresses.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_dns_key(length: u32) -> u32 {
    let Some(room) = room() else {
        return 0;
    };
    // SAFETY: live, and written by nobody else; see `room`.
    if !dns::is_answer(unsafe { &(*room).message }, length) {
        return 0;
    }
    let at = ew_dns_name(length);
    // SAFETY: as above.
    let (message, name, key) = unsafe { (&(*room).message, &(*room).name, &mut (*room).key) };
    let name_length = if at == 0 { 0 } else { dns::name_length(message, length, at) };
    if name_length != 0 {
        dns::key(name, name_length, key);
    }
    name_length
}

/// Writes the name of the question. Returns where it ends; 0 = it is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_dns_name(length: u32) -> u32 {
    let mut at = dns::NAME_AT;
    for _ in 0..dns::LABELS_MAX {
        let next = ew_dns_label(length, at);
        if next <= at + 1 {
            return if next == 0 { 0 } else { at };
        }
        at = next;
    }
    0
}

/// Writes one label of it. Returns where the next one begins; 0 = it is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_dns_label(length: u32, at: u32) -> u32 {
    let Some(room) = room() else {
        return 0;
    };
    // SAFETY: as in `ew_dns_key`.
    let (message, name) = unsafe { (&(*room).message, &mut (*room).name) };
    dns::label(message, length, at, name)
}

/// Looks for the externals that have the name. Returns 0 if there are none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_dns_externals(epoch: u32) -> u32 {
    let (Some(room), Some(trie)) = (room(), DNS_NAMES.get(epoch & 1)) else {
        return 0;
    };
    // SAFETY: an inner map of `dns_names`; its values are not written while their side is used.
    let found = unsafe {
        bpf_map_lookup_elem(core::ptr::from_ref(trie).cast_mut().cast(), (&raw const (*room).key).cast())
            .cast::<[u64; DNS_NAMES_MAX]>()
            .as_ref()
    };
    let Some(found) = found else {
        return 0;
    };
    // SAFETY: as in `ew_dns_key`.
    unsafe { (*room).externals = *found };
    u32::from(found[0] != 0)
}

/// Notes each address of the answer. Returns 0 if some could not be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_dns_addresses(length: u32, name_length: u32, epoch: u32) -> u32 {
    let Some(room) = room() else {
        return 0;
    };
    // SAFETY: as in `ew_dns_key`.
    let message = unsafe { &(*room).message };
    u32::from(dns::addresses(message, length, name_length, |at| Step(ew_dns_step(length, at, epoch))))
}

/// Reads one label or one record, and notes the address that is in it: see [`Step`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_dns_step(length: u32, at: u32, epoch: u32) -> u64 {
    let Some(room) = room() else {
        return Step::UNREAD.0;
    };
    // SAFETY: as in `ew_dns_key`.
    let message = unsafe { &(*room).message };
    let step = dns::step(message, length, at, |addr, ttl| {
        ew_dns_note(addr[0], addr[1], ttl, epoch);
    });
    step.0
}

/// Notes that an address has the externals of the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_dns_note(first: u64, second: u64, ttl: u32, epoch: u32) -> u32 {
    let addr = [first, second];
    // An external is nobody of this host.
    if !dns::is_of_one_host(&addr) || peer::owner_of(&addr).is_some() {
        return 0;
    }
    let Some(room) = room() else {
        return 0;
    };
    // RFC 2181, section 8: one that would be negative is none.
    let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
    let until = policy::boot_seconds() + ttl.clamp(DNS_TTL_MIN, DNS_TTL_MAX);
    let quota = policy::settings(epoch & 1).map_or(0, |settings| settings.dns_quota);
    for place in 0..DNS_NAMES_MAX {
        // SAFETY: as in `ew_dns_key`.
        let name = unsafe { (*room).externals[place] };
        if name != 0 && !note(&addr, name, until, quota) {
            emit::count(DenyCounter::DnsFull);
        }
    }
    0
}

/// Notes one name of an address. False: there is no room.
#[inline(always)]
fn note(addr: &Addr, name: u64, until: u32, quota: u32) -> bool {
    let Some(known) = DNS_ADDRS.get_ptr_mut(addr) else {
        let Some(room) = room() else {
            return false;
        };
        // Not on the stack, which is short.
        // SAFETY: see `room`; what is not the first place is never written.
        let new = unsafe {
            (*room).new.names[0].0 = name;
            (*room).new.until[0] = until;
            &(*room).new
        };
        // If another CPU was first, the next answer is in time.
        return takes_room(name, quota) && DNS_ADDRS.insert(addr, new, IF_NEW).is_ok();
    };
    for place in 0..DNS_NAMES_MAX {
        // SAFETY: a live element.
        unsafe {
            if (*known).names[place].0 == name {
                if (*known).until[place] < until {
                    (*known).until[place] = until;
                }
                return true;
            }
        }
    }
    for place in 0..DNS_NAMES_MAX {
        // SAFETY: a live element.
        unsafe {
            let place_of_name = (&raw mut (*known).names[place]).cast::<u64>();
            if (*known).names[place].0 == 0 && takes_room(name, quota) && atomic::replace(place_of_name, 0, name) {
                (*known).until[place] = until;
                return true;
            }
        }
    }
    false
}

/// Counts one more address of an external. False: it has as many as it may have.
#[inline(always)]
fn takes_room(name: u64, quota: u32) -> bool {
    flows::takes_room_in(&DNS_USED, name, quota)
}
