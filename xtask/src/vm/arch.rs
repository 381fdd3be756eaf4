//! The processors that a guest can have, and what differs between them.

use clap::ValueEnum;

use super::machine;

/// A processor, by Debian's name of it, and what the kernel makes of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Arch {
    /// x86-64, as this machine has it
    Amd64,
    /// 64-bit ARM, always emulated
    Arm64,
    /// The same with pages of 16 KiB; from Linux 6.12 on
    #[value(name = "arm64-16k")]
    Arm64With16k,
}

/// What the guest's processor is part of.
pub struct Board {
    /// QEMU's machine.
    pub machine: &'static str,
    /// Parameters of the kernel that go with it: the console, and how time is kept.
    pub parameters: &'static str,
}

impl Arch {
    /// Returns the name that `--arch` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::Arm64With16k => "arm64-16k",
        }
    }

    /// Returns Debian's name of the processor.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 | Self::Arm64With16k => "arm64",
        }
    }

    /// Returns the flavour of the kernel: where there is one, the small one, which has what virtual machines need and all
    /// that eastwall asks for.
    pub const fn flavour(self) -> &'static str {
        match self {
            Self::Amd64 => "cloud-amd64",
            Self::Arm64 => "cloud-arm64",
            Self::Arm64With16k => "arm64-16k",
        }
    }

    /// Returns the emulator.
    pub const fn qemu(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86_64",
            Self::Arm64 | Self::Arm64With16k => "qemu-system-aarch64",
        }
    }

    /// Returns the processor that is emulated: all that QEMU knows, but for what is slow and not asked for.
    pub const fn cpu(self) -> &'static str {
        match self {
            Self::Amd64 => "max,la57=off",
            // Pointers are signed, by a function that is cheap to emulate.
            Self::Arm64 | Self::Arm64With16k => "max,pauth-impdef=on",
        }
    }

    /// Returns the rest of the machine.
    pub const fn board(self) -> Board {
        match self {
            Self::Amd64 => {
                Board { machine: "pc,usb=off,vmport=off", parameters: "console=ttyS0 tsc=reliable no_timer_check" }
            }
            Self::Arm64 | Self::Arm64With16k => Board { machine: "virt", parameters: "console=ttyAMA0" },
        }
    }

    /// Returns what programs are built for, if not for this machine. The linker of the toolchain links them and the C
    /// library comes with the target, so that no compiler of another processor's C is needed.
    pub const fn target(self) -> Option<&'static str> {
        match self {
            Self::Amd64 => None,
            Self::Arm64 | Self::Arm64With16k => Some("aarch64-unknown-linux-musl"),
        }
    }

    /// Says whether the guest's processor is emulated, and not this machine's own.
    pub fn is_emulated(self) -> bool {
        self != Self::Amd64 || !machine::has_kvm()
    }
}
