//! A device whose other end is a process.
#![expect(unsafe_code, reason = "no library has a safe wrapper for TUNSETIFF")]

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use super::NetNs;

/// `TUNSETIFF` of linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
/// `IFF_TUN | IFF_NO_PI`: packets from their IP header on.
const FLAGS: i16 = 0x1001;

/// The end that reads what is sent by a tun device.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Makes a device in a network; it goes when this is dropped. None if this machine has no such devices.
    ///
    /// # Panics
    ///
    /// If the kernel refuses, or the name is too long.
    #[must_use]
    pub fn open(netns: &NetNs, name: &str) -> Option<Self> {
        netns.run(|| {
            let file = File::options().read(true).write(true).open("/dev/net/tun").ok()?;
            // `struct ifreq`: the name, then a union of 24 bytes that begins with the flags.
            let mut request = [0_u8; 40];
            request[..name.len()].copy_from_slice(name.as_bytes());
            request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
            // SAFETY: `request` is as long as the kernel reads and writes, and lives across the call.
            let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
            assert_eq!(made, 0, "make a tun device: {}", io::Error::last_os_error());
            // SAFETY: takes numbers only.
            let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
            assert_eq!(set, 0, "read without waiting: {}", io::Error::last_os_error());
            Some(Self(file))
        })
    }

    /// The next packet that has `bytes` in it; None if none comes in time.
    ///
    /// # Panics
    ///
    /// If the device cannot be read.
    pub fn next_with(&mut self, bytes: &[u8], time: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + time;
        let mut packet = vec![0; 1 << 16];
        while Instant::now() < end {
            match self.0.read(&mut packet) {
                Ok(len) if packet[..len].windows(bytes.len()).any(|window| window == bytes) => {
                    return Some(packet[..len].to_vec());
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => panic!("read a tun device: {e}"),
            }
        }
        None
    }
}
