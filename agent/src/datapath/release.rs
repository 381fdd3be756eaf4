//! Whether the running kernel is new enough, and what an older one lacks.

use std::fmt::Write as _;

/// A release, as major and minor number.
type Release = (u32, u32);

/// The oldest that is supported: all that is older has not been tried, whatever it has.
const OLDEST: Release = (6, 1);

/// What eastwall cannot do without, and the release that brought it.
const NEEDS: [(Release, &str); 3] = [
    ((5, 11), "the helper bpf_ktime_get_coarse_ns"),
    ((5, 12), "global functions that take pointers"),
    ((5, 14), "taking entries out of hash maps"),
];

/// Says why the kernel of this machine is refused; `None` if it is not.
#[must_use]
pub fn refusal() -> Option<String> {
    refuse(&rustix::system::uname().release().to_string_lossy())
}

fn refuse(release: &str) -> Option<String> {
    let found = parse(release);
    if found >= OLDEST {
        return None;
    }
    let (major, minor) = OLDEST;
    let mut text = format!("Linux {release} is too old: eastwall needs {major}.{minor} or newer");
    let lacks = NEEDS.iter().filter(|(since, _)| found < *since);
    for (n, ((major, minor), what)) in lacks.enumerate() {
        let before = if n == 0 { "; this one lacks" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(text, "{before} {what} ({major}.{minor})");
    }
    Some(text)
}

/// Reads a release such as `6.1.0-56-amd64`; what is no number counts as 0.
fn parse(release: &str) -> Release {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_old_kernel_lacks_is_named() {
        let text = refuse("5.10.0-46").unwrap();
        let expected = "Linux 5.10.0-46 is too old: eastwall needs 6.1 or newer; this one lacks the helper \
                        bpf_ktime_get_coarse_ns (5.11), global functions that take pointers (5.12), taking entries out \
                        of hash maps (5.14)";
        assert_eq!(text, expected);
        assert!(refuse("5.12.1").unwrap().ends_with("newer; this one lacks taking entries out of hash maps (5.14)"));
        assert_eq!(refuse("6.0.19").unwrap(), "Linux 6.0.19 is too old: eastwall needs 6.1 or newer");
    }

    #[test]
    fn kernels_from_the_oldest_on_are_taken() {
        for release in ["6.1.0-56-amd64", "6.12.118+deb13", "7.3.4", "10.0"] {
            assert_eq!(refuse(release), None, "{release}");
        }
        assert!(refuse("rolling").is_some());
    }
}
