//! What the kernel programs said about denials between two looks.

use agent_common::{
    flow::{icmp_port, proto},
    layout::{DenyCounter, DenyKey, DenyRecord, DenyStat, Hook},
    parse::tcp,
    verdict::{Mode, Reason},
};

/// Types of ICMPv6 by which a kernel looks for routers, and tells them of groups: RFC 4861, RFC 2710, RFC 3810.
const KERNELS: [u8; 4] = [131, 132, 133, 143];

/// Everything since the last look.
#[derive(Clone, Debug, Default)]
pub struct Denials {
    /// The ring, oldest first: a first denial each.
    pub records: Vec<DenyRecord>,
    /// By how much each counter rose.
    pub counts: [u64; DenyCounter::COUNT as usize],
    /// Repeats that the table of repeats holds.
    pub repeats: u64,
    /// Denials that the table of folded denials holds.
    pub folded: u64,
    /// Repeats of what the kernel of a network says of its own links.
    kernels: Vec<(DenyKey, DenyStat)>,
}

impl Denials {
    /// Notes the repeats of a look.
    pub(super) fn repeated(&mut self, repeats: Vec<(DenyKey, DenyStat)>) {
        self.repeats = repeats.iter().map(|(_, stat)| stat.count).sum();
        let ports = KERNELS.map(|kind| icmp_port(proto::ICMPV6, kind));
        self.kernels = repeats;
        self.kernels.retain(|(key, _)| key.proto == proto::ICMPV6 && ports.contains(&key.port));
    }

    /// By how much a counter rose.
    #[must_use]
    pub fn count(&self, counter: DenyCounter) -> u64 {
        self.counts[counter as usize]
    }

    /// Denials and would-be denials.
    #[must_use]
    pub fn denied(&self) -> u64 {
        self.count(DenyCounter::Denied)
    }

    /// Hook and reason of each record.
    ///
    /// # Panics
    ///
    /// If a record holds numbers that mean nothing.
    #[must_use]
    pub fn causes(&self) -> Vec<(Hook, Reason)> {
        let cause = |r: &DenyRecord| Some((Hook::from_u8(r.hook)?, Reason::from_u8(r.reason)?));
        self.records.iter().map(|r| cause(r).expect("a record names its hook and reason")).collect()
    }

    /// As [`Self::causes`], of attempts to begin a flow: without segments of connections that are open,
    /// which TCP sends again and again.
    ///
    /// # Panics
    ///
    /// As [`Self::causes`].
    #[must_use]
    pub fn calls(&self) -> Vec<(Hook, Reason)> {
        let is_call = |flags: u8| flags == 0 || flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        let causes = self.causes().into_iter().zip(&self.records);
        causes.filter(|(_, record)| is_call(record.tcp_flags)).map(|(cause, _)| cause).collect()
    }

    /// Leaves out what nobody sends: routers that are asked for and groups that are joined, at moments of the kernel's
    /// choice. The books are balanced before and after.
    pub(super) fn leave_out_the_kernels(&mut self) {
        let is_kernels = |record: &mut DenyRecord| record.proto == proto::ICMPV6 && KERNELS.contains(&record.icmp[0]);
        for record in self.records.extract_if(.., is_kernels) {
            let applied = if record.mode == Mode::Audit as u8 { DenyCounter::WouldDeny } else { DenyCounter::Dropped };
            for counter in [DenyCounter::Denied, DenyCounter::Emitted, applied] {
                self.counts[counter as usize] -= 1;
            }
        }
        for (key, stat) in self.kernels.drain(..) {
            let applied = if key.would == 1 { DenyCounter::WouldDeny } else { DenyCounter::Dropped };
            for counter in [DenyCounter::Denied, DenyCounter::Repeated, applied] {
                self.counts[counter as usize] -= stat.count;
            }
            self.repeats -= stat.count;
        }
    }

    /// Adds a later look.
    pub fn extend(&mut self, later: Self) {
        self.records.extend(later.records);
        for (count, more) in self.counts.iter_mut().zip(later.counts) {
            *count += more;
        }
        self.repeats += later.repeats;
        self.kernels.extend(later.kernels);
        self.folded += later.folded;
    }

    /// Checks that every denial is accounted for exactly once.
    ///
    /// # Errors
    ///
    /// What does not add up. A program that was between two of its counters at the look is no loss: what it
    /// owes is in the next look.
    pub fn balance(&self) -> Result<(), String> {
        let [emitted, repeated, folded, ring] =
            [DenyCounter::Emitted, DenyCounter::Repeated, DenyCounter::Folded, DenyCounter::Ring]
                .map(|counter| self.count(counter));
        let applied = self.count(DenyCounter::Dropped) + self.count(DenyCounter::WouldDeny);
        let rules = [
            (emitted + repeated + folded + ring == self.denied(), "each denial has one fate"),
            (applied == self.denied(), "each denial is dropped or let pass"),
            (emitted == self.records.len() as u64, "each emitted denial is in the ring"),
            ((repeated, folded) == (self.repeats, self.folded), "counted denials are in their tables"),
        ];
        rules.iter().try_for_each(|(holds, rule)| holds.then_some(()).ok_or_else(|| format!("{rule}: {self:?}")))
    }
}
