//! Programs of others as sentences, with which processes hold one open, or a link with it.

use std::{collections::BTreeMap, fs};

/// Who holds each program, by its number: `123 (name)`.
pub type Holders = BTreeMap<u32, Vec<String>>;

/// A program of somebody else, as the kernel tells of it. What could steer a terminal is escaped in its name.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Its number.
    pub id: u32,
    /// As its maker calls it.
    pub name: &'a str,
    /// A hash of its instructions, in hex.
    pub tag: &'a str,
    /// Who loaded it.
    pub loaded_by: u32,
}

impl Program<'_> {
    /// Says what it is, where it is, and in which order with eastwall's it runs there.
    #[must_use]
    pub fn sentence(&self, place: &str, order: &str, holders: &Holders) -> String {
        let Self { id, name, tag, loaded_by } = self;
        let by = held_by(*id, holders);
        let name = if name.is_empty() { "without a name" } else { name };
        format!("{place}: {id} {name}, {order} eastwall's (tag {tag}, loaded by user {loaded_by}{by})")
    }
}

/// Says who holds a program, as it goes on behind what else is said of it; nothing if nobody does.
#[must_use]
pub fn held_by(id: u32, holders: &Holders) -> String {
    holders.get(&id).map(|who| format!(", held by {}", who.join(", "))).unwrap_or_default()
}

/// Returns who holds programs. One that is pinned or attached without a link may be held by nobody, and what this user may
/// not look at is left out.
#[must_use]
pub fn holders() -> Holders {
    let mut holders = Holders::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|p| p.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit)) {
        let infos = fs::read_dir(process.path().join("fdinfo")).into_iter().flatten().flatten();
        let mut programs: Vec<u32> =
            infos.filter_map(|info| program_of(&fs::read_to_string(info.path()).ok()?)).collect();
        programs.sort_unstable();
        programs.dedup();
        if programs.is_empty() {
            continue;
        }
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let who = format!("{} ({})", process.file_name().to_string_lossy(), name.trim_end());
        for program in programs {
            holders.entry(program).or_default().push(who.clone());
        }
    }
    holders
}

/// The number of the program of a descriptor, by its file in `/proc/PID/fdinfo`.
fn program_of(info: &str) -> Option<u32> {
    info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_a_program_or_a_link_names_it() {
        assert_eq!(program_of("pos:\t0\nlink_type:\ttcx\nlink_id:\t7\nprog_id:\t512\nifindex:\t3\n"), Some(512));
        assert_eq!(program_of("pos:\t0\nmap_id:\t3\n"), None);
    }

    #[test]
    fn a_program_is_told_with_its_name_and_who_holds_it() {
        let program = Program { id: 7, name: "drop", tag: "ab12", loaded_by: 1000 };
        let holders = Holders::from([(7, vec!["12 (lb)".to_owned(), "15 (lb)".to_owned()])]);
        let said = program.sentence("eth0 XDP, generic", "BEFORE", &holders);
        let held = ", held by 12 (lb), 15 (lb)";
        assert_eq!(said, format!("eth0 XDP, generic: 7 drop, BEFORE eastwall's (tag ab12, loaded by user 1000{held})"));
        let nameless = Program { id: 8, name: "", ..program }.sentence("eth0 ingress", "behind", &holders);
        assert_eq!(nameless, "eth0 ingress: 8 without a name, behind eastwall's (tag ab12, loaded by user 1000)");
    }
}
