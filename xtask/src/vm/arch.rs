//! The processors that a guest can have, and what differs between them.

use clap::ValueEnum;

use super::machine;

/// A processor, by Debian's name of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Arch {
    /// x86-64, as this machine has it
    Amd64,
    /// 64-bit ARM, always emulated
    Arm64,
}

/// What the guest's processor is part of.
pub struct Board {
    /// QEMU's machine.
    pub machine: &'static str,
    /// Parameters of the kernel that go with it: the console, and how time is kept.
    pub parameters: &'static str,
}

impl Arch {
    /// Returns Debian's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Returns what the small flavour of the kernel is called: it has what virtual machines need, and all that eastwall
    /// asks for.
    pub const fn flavour(self) -> &'static str {
        match self {
            Self::Amd64 => "cloud-amd64",
            Self::Arm64 => "cloud-arm64",
        }
    }

    /// Returns the emulator.
    pub const fn qemu(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// Returns the processor that is emulated: all that QEMU knows, but for what is slow and not asked for.
    pub const fn cpu(self) -> &'static str {
        match self {
            Self::Amd64 => "max,la57=off",
            // Pointers are signed, by a function that is cheap to emulate.
            Self::Arm64 => "max,pauth-impdef=on",
        }
    }

    /// Returns the rest of the machine.
    pub const fn board(self) -> Board {
        match self {
            Self::Amd64 => {
                Board { machine: "pc,usb=off,vmport=off", parameters: "console=ttyS0 tsc=reliable no_timer_check" }
            }
            Self::Arm64 => Board { machine: "virt", parameters: "console=ttyAMA0" },
        }
    }

    /// Returns what programs are built for, if not for this machine. The linker of the toolchain links them and the C
    /// library comes with the target, so that no compiler of another processor's C is needed.
    pub const fn target(self) -> Option<&'static str> {
        match self {
            Self::Amd64 => None,
            Self::Arm64 => Some("aarch64-unknown-linux-musl"),
        }
    }

    /// Says whether the guest's processor is emulated, and not this machine's own.
    pub fn is_emulated(self) -> bool {
        self != Self::Amd64 || !machine::has_kvm()
    }
}
