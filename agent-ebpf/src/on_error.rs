//! Every error on the kernel side -> a decision. The one place.

use agent_common::{
    parse::{ParseError, frame::FrameError},
    verdict::{Decision, Reason},
};

/// What can go wrong besides policy.
pub enum Error {
    /// The packet cannot be read to its end.
    Parse(ParseError),
    /// The frame cannot be read to its end, or is of no protocol that could be judged.
    Frame(FrameError),
    /// The flow table, or the owner's share of it, is full.
    FlowTableFull,
    /// A reply to nothing.
    NoFlow,
    /// A packet without a socket that could be judged.
    NoSocket,
}

/// Turns an error into a decision. Every arm denies; the workload's mode applies as to any denial.
#[inline(always)]
pub const fn on_error(error: &Error) -> Decision {
    match error {
        // The ports were in another fragment: this may be any packet at all.
        Error::Parse(ParseError::Fragment) | Error::Frame(FrameError::Packet(ParseError::Fragment)) => {
            Decision::deny(Reason::Fragment)
        }
        // What cannot be read to its ports may be any packet at all.
        Error::Parse(
            ParseError::Version | ParseError::Truncated | ParseError::Length | ParseError::Headers | ParseError::Mapped,
        )
        | Error::Frame(FrameError::Short | FrameError::Packet(_)) => Decision::deny(Reason::Malformed),
        // Whatever is not IP, and IP in a tag, is out of reach of every rule.
        Error::Frame(FrameError::Vlan | FrameError::EtherType) => Decision::deny(Reason::LinkProtocol),
        // A flow that is not recorded has replies that look like new flows.
        Error::FlowTableFull => Decision::deny(Reason::Internal),
        // A reply opens nothing by itself, or every port would be open to packets that look like one.
        Error::NoFlow => Decision::deny(Reason::NoFlow),
        // Whose packet it is cannot be known.
        Error::NoSocket => Decision::deny(Reason::UnknownSelf),
    }
}
