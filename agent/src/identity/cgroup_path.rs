//! Cgroup path -> pod UID, container id, unit.
//!
//! Source: policy.md, "Cgroup path forms". The path is the only input; mountinfo is never read,
//! because a workload can forge its mount namespace.
//!
//! Every cgroup that is delegated to a workload can be given any name. So these facts say what a path
//! *claims*; [`super::ground`] says which of the claims root stands behind.

/// What a path claims.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PathFacts {
    /// The systemd unit below the leading slices: `nginx.service`, `session-3.scope`.
    pub unit: Option<String>,
    /// The unit of a user's own systemd, below `user@<uid>.service`.
    pub user_unit: Option<String>,
    /// The user of the slice `/user.slice/user-<uid>.slice`.
    pub user: Option<u32>,
    /// The innermost container: 64 hex digits, or `<32 hex>-<digits>` on ECS.
    pub container: Option<String>,
    /// The innermost pod: `8-4-4-4-12` hex digits with `-`, or 32 hex digits (a static pod).
    pub pod: Option<String>,
    /// The container is only looked after here (`crio-conmon-<id>.scope`); its processes are elsewhere.
    pub is_monitor: bool,
}

/// Why a path gives no facts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidPath {
    /// It does not begin at a root.
    #[error("a cgroup path begins with `/`")]
    Relative,
    /// It was read through a cgroup namespace, so it is relative to a place nobody here knows.
    #[error("the path leaves its cgroup namespace by `..`; read it in the cgroup namespace of the host")]
    OutsideNamespace,
}

impl PathFacts {
    /// Reads a path from the root of the hierarchy.
    ///
    /// Pod and container are the last pair, seen from the root: a pod inside a container counts, the
    /// container around it does not. Two pods with no container between them are no answer at all.
    ///
    /// # Errors
    ///
    /// [`InvalidPath`]: the path is not one of this host's hierarchy, and nothing in it may be used.
    pub fn parse(path: &str) -> Result<Self, InvalidPath> {
        let segments: Vec<&str> = segments(path)?.collect();
        let mut facts = Self::default();
        facts.read_units(&segments);
        facts.read_containers(&segments);
        Ok(facts)
    }

    /// Takes units as systemd does: the first unit below the slices, and once more below `user@`.
    fn read_units(&mut self, segments: &[&str]) {
        self.user = match segments {
            ["user.slice", slice, ..] => user_slice(slice),
            _ => None,
        };
        let mut below = segments.iter().skip_while(|s| is_slice(s));
        self.unit = below.next().and_then(|s| unit(s)).map(str::to_owned);
        if self.user.is_some() && self.unit.as_deref().is_some_and(|u| u.starts_with("user@")) {
            self.user_unit = below.find(|s| !is_slice(s)).and_then(|s| unit(s)).map(str::to_owned);
        }
    }

    /// Walks from the end, so that what is innermost is found first.
    fn read_containers(&mut self, segments: &[&str]) {
        for (i, segment) in segments.iter().enumerate().rev() {
            let parent = i.checked_sub(1).map(|i| segments[i]);
            let (container, pod) = (container(segment, parent), pod(segment));
            match (&self.pod, &pod) {
                // The pair is complete, and this is the container around it.
                (Some(_), None) if container.is_some() => return,
                (Some(known), Some(other)) if known != other => {
                    (self.container, self.pod, self.is_monitor) = (None, None, false);
                    return;
                }
                (Some(_), _) => {}
                (None, _) => {
                    if let (None, Some(found)) = (&self.container, container) {
                        self.is_monitor = found.is_monitor;
                        self.container = Some(found.id.to_owned());
                    }
                    self.pod = pod;
                }
            }
        }
    }
}

/// Splits a path into its segments.
///
/// # Errors
///
/// As [`PathFacts::parse`].
pub fn segments(path: &str) -> Result<impl Iterator<Item = &str>, InvalidPath> {
    let rest = path.strip_prefix('/').ok_or(InvalidPath::Relative)?;
    let segments = rest.split('/').filter(|s| !s.is_empty());
    if segments.clone().any(|s| s == "..") {
        return Err(InvalidPath::OutsideNamespace);
    }
    Ok(segments)
}

/// A container id in one segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Container<'a> {
    pub id: &'a str,
    /// As [`PathFacts::is_monitor`].
    pub is_monitor: bool,
}

/// Reads `<id>`, `<runtime>-<id>[.scope]`, `<pod slice>:<runtime>:<id>`; on ECS `<task>-<digits>` below
/// `<task>`.
pub(super) fn container<'a>(segment: &'a str, parent: Option<&str>) -> Option<Container<'a>> {
    let name = segment.rsplit(':').next().unwrap_or(segment);
    let name = name.strip_suffix(".scope").unwrap_or(name);
    if is_hex(name, 64) {
        return Some(Container { id: name, is_monitor: false });
    }
    let (prefix, last) = name.rsplit_once('-')?;
    if is_hex(last, 64) {
        return Some(Container { id: last, is_monitor: prefix.ends_with("conmon") });
    }
    let numbered = !last.is_empty() && last.bytes().all(|c| c.is_ascii_digit());
    (numbered && is_hex(prefix, 32) && parent == Some(prefix)).then_some(Container { id: name, is_monitor: false })
}

/// Reads `pod<uid>` and `…-pod<uid>.slice`, alone or in front of a `:`.
pub(super) fn pod(segment: &str) -> Option<String> {
    let name = segment.split(':').next().unwrap_or(segment);
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let at = name.rfind("pod")?;
    if at != 0 && !name[..at].ends_with('-') {
        return None;
    }
    let uid = &name[at + 3..];
    // The systemd driver writes `_` for `-`, because `-` in a slice name means "inside".
    let dashed = uid.replace('_', "-");
    let groups: Vec<&str> = dashed.split('-').collect();
    let is_uid = groups.len() == 5 && groups.iter().zip([8, 4, 4, 4, 12]).all(|(group, len)| is_hex(group, len));
    (is_uid || is_hex(uid, 32)).then_some(dashed)
}

/// Returns the unit that a segment is named for, unless it is a slice or no unit at all.
pub(super) fn unit(segment: &str) -> Option<&str> {
    let name = unescape(segment);
    let (prefix, suffix) = name.rsplit_once('.')?;
    let has_cgroup = matches!(suffix, "service" | "scope" | "socket" | "mount" | "swap");
    (has_cgroup && is_unit_name(prefix)).then_some(name)
}

/// Says whether a segment is a slice.
pub(super) fn is_slice(segment: &str) -> bool {
    unescape(segment).strip_suffix(".slice").is_some_and(is_unit_name)
}

/// Reads the user of `user-<uid>.slice`.
pub(super) fn user_slice(segment: &str) -> Option<u32> {
    let digits = segment.strip_prefix("user-")?.strip_suffix(".slice")?;
    digits.bytes().all(|c| c.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// systemd puts `_` before names that the kernel could take for one of its own files.
fn unescape(segment: &str) -> &str {
    segment.strip_prefix('_').unwrap_or(segment)
}

/// systemd.unit(5): letters, digits, `: - _ . \`, and `@` for templates.
fn is_unit_name(prefix: &str) -> bool {
    let legal = |c: u8| c.is_ascii_alphanumeric() || b":-_.\\@".contains(&c);
    !prefix.is_empty() && prefix.len() < 256 && prefix.bytes().all(legal)
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OUTER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
    const UID: &str = "2732ca68-f635-8eba-7703-fb6f82a25c94";
    const UID_: &str = "2732ca68_f635_8eba_7703_fb6f82a25c94";
    const STATIC: &str = "2732ca68f6358eba7703fb6f82a25c94";

    fn check(path: &str, expected: &PathFacts) {
        let path = path.replace("CID", CID).replace("OUTER", OUTER).replace("UID_", UID_).replace("UID", UID);
        assert_eq!(PathFacts::parse(&path).as_ref(), Ok(expected), "{path}");
    }

    fn in_pod(pod: &str, unit: Option<&str>) -> PathFacts {
        PathFacts { pod: Some(pod.into()), ..contained(CID, unit) }
    }

    fn contained(id: &str, unit: Option<&str>) -> PathFacts {
        PathFacts { container: Some(id.into()), unit: unit.map(str::to_owned), ..PathFacts::default() }
    }

    fn plain(unit: &str) -> PathFacts {
        PathFacts { unit: Some(unit.into()), ..PathFacts::default() }
    }

    #[test]
    fn pods_are_found_in_every_form_of_every_driver() {
        let scope = format!("cri-containerd-{CID}.scope");
        check("/kubepods/podUID/CID", &in_pod(UID, None));
        check("/kubepods/burstable/podUID/CID", &in_pod(UID, None));
        check("/kubepods/besteffort/podUID/CID", &in_pod(UID, None));
        for pod in ["UID", "UID_"] {
            let slice = format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod}.slice");
            check(&format!("{slice}/cri-containerd-CID.scope"), &in_pod(UID, Some(&scope)));
        }
        check(
            "/kubepods.slice/kubepods-podUID_.slice/crio-CID.scope",
            &in_pod(UID, Some(&format!("crio-{CID}.scope"))),
        );
        check(
            "/kubepods.slice/kubepods-podUID_.slice/docker-CID.scope",
            &in_pod(UID, Some(&format!("docker-{CID}.scope"))),
        );
        check(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podUID_.slice/cri-containerd-CID.scope",
            &in_pod(UID, Some(&scope)),
        );
        check(
            "/system.slice/containerd.service/kubepods-besteffort-podUID_.slice:cri-containerd:CID",
            &in_pod(UID, Some("containerd.service")),
        );
        check(&format!("/kubepods/pod{STATIC}"), &PathFacts { pod: Some(STATIC.into()), ..PathFacts::default() });
    }

    #[test]
    fn nested_paths_give_the_last_pair() {
        check("/docker/OUTER/kubepods/besteffort/podUID/CID", &in_pod(UID, None));
        check(&format!("/kubepods/pod{STATIC}/OUTER/kubepods/podUID/CID"), &in_pod(UID, None));
        check("/docker/OUTER/docker/CID", &contained(CID, None));
    }

    #[test]
    fn conflicting_pods_are_no_answer() {
        check(&format!("/kubepods/pod{STATIC}/podUID/CID"), &PathFacts::default());
    }

    #[test]
    fn containers_outside_kubernetes_are_found() {
        check("/docker/CID", &contained(CID, None));
        check("/system.slice/docker-CID.scope", &contained(CID, Some(&format!("docker-{CID}.scope"))));
        for rest in ["", "/container"] {
            let path = format!("/machine.slice/libpod-CID.scope{rest}");
            check(&path, &contained(CID, Some(&format!("libpod-{CID}.scope"))));
        }
        check(
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-CID.scope",
            &PathFacts {
                user: Some(1000),
                user_unit: Some(format!("libpod-{CID}.scope")),
                ..contained(CID, Some("user@1000.service"))
            },
        );
        check(&format!("/ecs/{STATIC}/{STATIC}-42"), &contained(&format!("{STATIC}-42"), None));
        check(&format!("/ecs/other/{STATIC}-42"), &PathFacts::default());
    }

    #[test]
    fn a_monitor_is_not_its_container() {
        let unit = format!("crio-conmon-{CID}.scope");
        check(
            "/kubepods.slice/kubepods-podUID_.slice/crio-conmon-CID.scope",
            &PathFacts { is_monitor: true, ..in_pod(UID, Some(&unit)) },
        );
    }

    #[test]
    fn units_are_found_below_their_slices_only() {
        check("/", &PathFacts::default());
        check("/system.slice", &PathFacts::default());
        check("/init.scope", &plain("init.scope"));
        check("/system.slice/nginx.service", &plain("nginx.service"));
        check("/system.slice/nginx.service/other.service", &plain("nginx.service"));
        check("/system.slice/system-getty.slice/getty@tty1.service", &plain("getty@tty1.service"));
        check("/system.slice/_memory.service", &plain("memory.service"));
        check("/lxc.payload.web/system.slice/nginx.service", &PathFacts::default());
        let user = PathFacts { user: Some(1000), ..plain("user@1000.service") };
        let app = PathFacts { user_unit: Some("x.service".into()), ..user.clone() };
        check("/user.slice/user-1000.slice/user@1000.service", &user);
        check("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", &app);
        check(
            "/user.slice/user-1000.slice/session-3.scope",
            &PathFacts { user: Some(1000), ..plain("session-3.scope") },
        );
        check("/user.slice/user-+1.slice", &PathFacts::default());
    }

    #[test]
    fn paths_of_another_namespace_are_refused() {
        assert_eq!(PathFacts::parse(&format!("/../crio-{CID}.scope")), Err(InvalidPath::OutsideNamespace));
        assert_eq!(PathFacts::parse("/../../kubepods/x"), Err(InvalidPath::OutsideNamespace));
        assert_eq!(PathFacts::parse("system.slice"), Err(InvalidPath::Relative));
        assert_eq!(PathFacts::parse(""), Err(InvalidPath::Relative));
    }

    proptest! {
        #[test]
        fn no_path_panics(path in any::<String>()) {
            let _ = PathFacts::parse(&path);
            let _ = PathFacts::parse(&format!("/{path}"));
        }

        #[test]
        fn facts_always_have_their_shape(parts in prop::collection::vec(part(), 0..6)) {
            let path = format!("/{}", parts.concat());
            let leaves = path.split('/').any(|segment| segment == "..");
            let facts = match PathFacts::parse(&path) {
                Err(error) => {
                    prop_assert!(leaves && error == InvalidPath::OutsideNamespace);
                    return Ok(());
                }
                Ok(facts) => facts,
            };
            prop_assert!(!leaves);
            if let Some(id) = facts.container {
                prop_assert!(is_hex(&id, 64) || id.len() > 33);
            }
            if let Some(uid) = facts.pod {
                prop_assert!(uid.len() == 36 || uid.len() == 32);
            }
        }
    }

    /// Pieces of real paths, so that random paths come near the forms.
    fn part() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("/".to_owned()),
            Just(CID.to_owned()),
            Just(format!("pod{UID}")),
            Just(format!("-pod{UID_}.slice")),
            Just(format!("/pod{STATIC}/")),
            Just(format!("/{STATIC}/{STATIC}-")),
            Just("docker-".to_owned()),
            Just(".scope".to_owned()),
            Just("/user.slice/user-1.slice/".to_owned()),
            Just("user@1.service".to_owned()),
            Just("é:".to_owned()),
            "[a-z0-9:._@-]{0,5}",
        ]
    }
}
