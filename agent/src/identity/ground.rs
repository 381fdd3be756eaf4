//! Which names in a cgroup path root stands behind.
//!
//! A path is followed from the root. As long as it leads through slices, or through the directory of a
//! container runtime, only the system's manager or the runtime can have made the next cgroup. Below a
//! unit, a container or any other cgroup the owner may be a workload, and it can call a child
//! `/…/postgresql.service` (security.md, G87). So the first endpoint on the way ends the search: all
//! that is below it belongs to it.

use super::cgroup_path::{container, is_slice, pod, unit, user_slice};

/// Facts about an endpoint that no workload can write.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Trusted {
    /// The systemd unit.
    pub unit: Option<String>,
    /// The user in whose slice it runs.
    pub user: Option<u32>,
    /// The container id.
    pub container: Option<String>,
    /// The pod UID.
    pub pod: Option<String>,
}

/// Where a cgroup lies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ground {
    /// The root, or a slice: its children are made by the system's manager.
    Slice {
        /// The root itself; only there do the runtimes have their directories.
        is_root: bool,
        /// This is `/user.slice`.
        is_users: bool,
        /// As [`Trusted::user`].
        user: Option<u32>,
        /// As [`Trusted::pod`].
        pod: Option<String>,
    },
    /// The directory of a container runtime or the kubelet: its children are made by it.
    Runtime {
        /// As [`Trusted::pod`].
        pod: Option<String>,
    },
    /// A unit or a container, or a cgroup inside one.
    Endpoint(Trusted),
    /// A cgroup made by hand, or below one: nothing under it is believed.
    Other,
}

/// A step down.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// Where it leads.
    pub ground: Ground,
    /// An endpoint begins here.
    pub begins: bool,
}

/// Directories at the root in which runtimes that do not use systemd make their cgroups.
const RUNTIME_DIRS: [&str; 6] = ["docker", "ecs", "k8s.io", "kubelet", "kubepods", "libpod_parent"];

/// The unit inside which containerd makes the containers of a kubelet that uses systemd when containerd
/// itself does not. Their names have colons, which no cgroup of systemd's has.
const CONTAINERD: &str = "containerd.service";

impl Ground {
    /// The root of the hierarchy, or of the part of it that the agent was told to guard.
    pub const ROOT: Self = Self::Slice { is_root: true, is_users: false, user: None, pod: None };

    /// Goes down into the child named `segment` of the cgroup named `parent`.
    #[must_use]
    pub fn step(&self, parent: Option<&str>, segment: &str) -> Step {
        let stay = |ground: Self| Step { ground, begins: false };
        let begin = |facts: Trusted| Step { ground: Self::Endpoint(facts), begins: true };
        match self {
            Self::Slice { is_root, is_users, user, pod: outer } => {
                if is_slice(segment) {
                    let user = if *is_users { user_slice(segment) } else { *user };
                    let pod = pod(segment).or_else(|| outer.clone());
                    let is_users = *is_root && segment == "user.slice";
                    return stay(Self::Slice { is_root: false, is_users, user, pod });
                }
                if *is_root && RUNTIME_DIRS.contains(&segment) {
                    return stay(Self::Runtime { pod: None });
                }
                let container = container(segment, parent).filter(|c| !c.is_monitor).map(|c| c.id.to_owned());
                let unit = unit(segment).map(str::to_owned);
                if container.is_none() && unit.is_none() {
                    return stay(Self::Other);
                }
                begin(Trusted { unit, user: *user, container, pod: pod(segment).or_else(|| outer.clone()) })
            }
            Self::Runtime { pod: outer } => {
                let pod = pod(segment).or_else(|| outer.clone());
                match container(segment, parent).filter(|c| !c.is_monitor) {
                    Some(found) => begin(Trusted { container: Some(found.id.to_owned()), pod, ..Trusted::default() }),
                    None => stay(Self::Runtime { pod }),
                }
            }
            Self::Endpoint(facts) => {
                let is_containerd = facts.unit.as_deref() == Some(CONTAINERD) && parent == Some(CONTAINERD);
                match container(segment, parent) {
                    Some(found) if is_containerd && segment.contains(':') => {
                        begin(Trusted { container: Some(found.id.to_owned()), pod: pod(segment), ..Trusted::default() })
                    }
                    _ => stay(self.clone()),
                }
            }
            Self::Other => stay(Self::Other),
        }
    }

    /// Says whether endpoints of their own can begin below.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self {
            Self::Slice { .. } | Self::Runtime { .. } => true,
            Self::Endpoint(facts) => facts.unit.as_deref() == Some(CONTAINERD),
            Self::Other => false,
        }
    }

    /// The facts, inside an endpoint.
    #[must_use]
    pub fn facts(&self) -> Option<&Trusted> {
        match self {
            Self::Endpoint(facts) => Some(facts),
            Self::Slice { .. } | Self::Runtime { .. } | Self::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::cgroup_path::segments;

    const CID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn walk(path: &str) -> Ground {
        let path = path.replace("CID", CID);
        let mut parent = None;
        segments(&path)
            .unwrap()
            .fold(Ground::ROOT, |ground, segment| ground.step(parent.replace(segment), segment).ground)
    }

    fn check(path: &str, unit: Option<&str>, container: Option<&str>) {
        let unit = unit.map(|u| u.replace("CID", CID));
        let container = container.map(|c| c.replace("CID", CID));
        let ground = walk(path);
        let facts = ground.facts().cloned().unwrap_or_default();
        assert_eq!((facts.unit, facts.container), (unit, container), "{path}");
    }

    #[test]
    fn what_root_made_is_believed() {
        check("/init.scope", Some("init.scope"), None);
        check("/system.slice/nginx.service", Some("nginx.service"), None);
        check("/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service"), None);
        check("/system.slice/docker-CID.scope", Some("docker-CID.scope"), Some("CID"));
        check("/docker/CID", None, Some("CID"));
        check("/kubepods/burstable/pod2732ca68f6358eba7703fb6f82a25c94/CID", None, Some("CID"));
        check("/kubepods.slice/kubepods-pod2732ca68f6358eba7703fb6f82a25c94.slice/CID", None, Some("CID"));
        check("/system.slice/containerd.service/kubepods-podx.slice:cri-containerd:CID", None, Some("CID"));
    }

    #[test]
    fn what_a_workload_could_have_made_is_not_believed() {
        check("/system.slice/web.service/postgresql.service", Some("web.service"), None);
        check("/system.slice/web.service/system.slice/postgresql.service", Some("web.service"), None);
        check("/system.slice/web.service/docker-CID.scope", Some("web.service"), None);
        check("/system.slice/web.service/x.slice:cri-containerd:CID", Some("web.service"), None);
        check("/system.slice/containerd.service/a/x.slice:cri-containerd:CID", Some("containerd.service"), None);
        check("/system.slice/containerd.service/docker-CID.scope", Some("containerd.service"), None);
        check("/user.slice/user-1000.slice/user@1000.service/nginx.service", Some("user@1000.service"), None);
        check("/user.slice/user-1000.slice/user@1000.service/libpod-CID.scope", Some("user@1000.service"), None);
        check("/lxc.payload.web/system.slice/postgresql.service", None, None);
        check("/lxc.payload.web/docker/CID", None, None);
        check("/system.slice/docker/CID", None, None);
        check("/docker/CID/system.slice/postgresql.service", None, Some("CID"));
        check("/machine.slice/libpod-conmon-CID.scope", Some("libpod-conmon-CID.scope"), None);
    }

    #[test]
    fn the_user_of_a_slice_reaches_its_units_and_only_there() {
        let user = |path: &str| walk(path).facts().and_then(|f| f.user);
        assert_eq!(user("/user.slice/user-1000.slice/session-3.scope"), Some(1000));
        assert_eq!(user("/user.slice/user-1000.slice/user@1000.service/a.service"), Some(1000));
        assert_eq!(user("/system.slice/user-1000.slice/session-3.scope"), None);
        assert_eq!(user("/a.slice/user.slice/user-1000.slice/session-3.scope"), None);
    }
}
