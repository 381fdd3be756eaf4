//! Which processes hold a program open, or a link with it.

use std::{collections::BTreeMap, fs};

/// Returns who holds each program, by its number: `123 (name)`. A program that is pinned or attached without a link may be
/// held by nobody, and what this user may not look at is left out.
#[must_use]
pub fn holders() -> BTreeMap<u32, Vec<String>> {
    let mut holders: BTreeMap<u32, Vec<String>> = BTreeMap::new();
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
}
