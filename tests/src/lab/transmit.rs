//! AF_PACKET: sends past every socket hook, as often as wanted.
#![expect(unsafe_code, reason = "no library has safe wrappers for AF_PACKET addresses, options and rings")]

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    ptr, slice, thread,
};

use serde::{Deserialize, Serialize};

use super::packet::{address, open, socklen};

/// How a frame leaves.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Transmit {
    /// By the queue of the device, and so by TC in the sender's namespace.
    Queue,
    /// Past it (`PACKET_QDISC_BYPASS`).
    Bypass,
    /// Out of memory that is shared with the kernel (`PACKET_TX_RING`).
    Ring,
}

impl Transmit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Bypass, Self::Ring];
}

/// Sends each of the frames by a device, one after another, as many times over as there are `rounds`.
///
/// A full queue is waited for if `waits`, so that what was sent has left: the kernel has no other way to say that it did
/// not.
pub(crate) fn send(device: &str, frames: &[Vec<u8>], rounds: u32, by: Transmit, waits: bool) -> io::Result<usize> {
    let name = CString::new(device)?;
    // SAFETY: `name` is a string that ends in zero and lives across the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let to = address(i32::try_from(index).map_err(io::Error::other)?);
    // Protocol 0: this socket only sends.
    let socket = open(0)?;
    if by == Transmit::Bypass {
        set(&socket, libc::PACKET_QDISC_BYPASS, &1)?;
    }
    let mut ring = if by == Transmit::Ring { Some(Ring::new(&socket, waits)?) } else { None };
    let mut sent = 0;
    for _ in 0..rounds {
        for frame in frames {
            match &mut ring {
                Some(ring) => ring.put(frame, &socket, &to)?,
                None => send_one(&socket, &to, frame, waits)?,
            }
            sent += 1;
        }
    }
    if let Some(ring) = &mut ring {
        ring.flush(&socket, &to)?;
    }
    Ok(sent)
}

/// sendto(2); nothing if a ring holds the frames.
fn send_one(socket: &OwnedFd, to: &libc::sockaddr_ll, frame: &[u8], waits: bool) -> io::Result<()> {
    loop {
        // SAFETY: `frame` and `to` are readable for the lengths given, and live across the call.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                ptr::from_ref(to).cast(),
                socklen::<libc::sockaddr_ll>(),
            )
        };
        if sent >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            e if waits && e.raw_os_error() == Some(libc::ENOBUFS) => thread::yield_now(),
            e => return Err(e),
        }
    }
}

fn set<T>(socket: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is readable for the length given, and lives across the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, name, ptr::from_ref(value).cast(), socklen::<T>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Frames of a ring: few enough to fit the queue between a device and the stack.
const SLOTS: usize = BLOCKS as usize * SLOTS_OF_BLOCK as usize;
const BLOCKS: u32 = 8;
const SLOTS_OF_BLOCK: u32 = 32;
/// Bytes of one, header included.
const SLOT_BYTES: usize = SLOT_SIZE as usize;
const SLOT_SIZE: u32 = 2048;
/// Where the frame begins: the kernel takes the place of an address behind the header for data.
const DATA: usize = libc::TPACKET2_HDRLEN - size_of::<libc::sockaddr_ll>();

/// A ring of frames to send.
struct Ring {
    memory: *mut u8,
    next: usize,
    waits: bool,
}

impl Ring {
    fn new(socket: &OwnedFd, waits: bool) -> io::Result<Self> {
        set(socket, libc::PACKET_VERSION, &libc::tpacket_versions::TPACKET_V2)?;
        let request = libc::tpacket_req {
            tp_block_size: SLOT_SIZE * SLOTS_OF_BLOCK,
            tp_block_nr: BLOCKS,
            tp_frame_size: SLOT_SIZE,
            tp_frame_nr: SLOTS_OF_BLOCK * BLOCKS,
        };
        set(socket, libc::PACKET_TX_RING, &request)?;
        let (access, descriptor) = (libc::PROT_READ | libc::PROT_WRITE, socket.as_raw_fd());
        // SAFETY: a new mapping, of the size that the kernel was asked for.
        let memory =
            unsafe { libc::mmap(ptr::null_mut(), SLOTS * SLOT_BYTES, access, libc::MAP_SHARED, descriptor, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { memory: memory.cast(), next: 0, waits })
    }

    /// The header of a slot.
    fn header(&self, slot: usize) -> *mut libc::tpacket2_hdr {
        // SAFETY: every slot is inside the mapping, and the size of one is a multiple of the alignment.
        unsafe { self.memory.add(slot * SLOT_BYTES).cast() }
    }

    /// Puts a frame into the next slot. A ring that is full is sent.
    fn put(&mut self, frame: &[u8], socket: &OwnedFd, to: &libc::sockaddr_ll) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        if frame.len() > SLOT_BYTES - DATA {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let header = self.header(self.next);
        // SAFETY: the slot is this side's: all that were sent have been waited for. Its bytes are inside the mapping.
        unsafe {
            slice::from_raw_parts_mut(header.cast::<u8>().add(DATA), frame.len()).copy_from_slice(frame);
            (*header).tp_len = length;
            ptr::write_volatile(&raw mut (*header).tp_status, libc::TP_STATUS_SEND_REQUEST);
        }
        self.next += 1;
        if self.next == SLOTS { self.flush(socket, to) } else { Ok(()) }
    }

    /// Sends what is in the ring, and begins again at the first slot.
    fn flush(&mut self, socket: &OwnedFd, to: &libc::sockaddr_ll) -> io::Result<()> {
        // Returns when the kernel is done with every slot.
        send_one(socket, to, &[], self.waits)?;
        for slot in 0..self.next {
            let header = self.header(slot);
            // SAFETY: inside the mapping.
            let status = unsafe { ptr::read_volatile(&raw const (*header).tp_status) };
            if status != libc::TP_STATUS_AVAILABLE {
                return Err(io::Error::other(format!("slot {slot} of {} was left as {status}", self.next)));
            }
        }
        // The kernel goes on at the slot after the last one.
        self.next %= SLOTS;
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped by this, and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.cast(), SLOTS * SLOT_BYTES) };
    }
}
