//! Who may ask for what.

use super::wire::Request;

/// The caller, as the kernel names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// It lives in a cgroup of a declared workload: even as root it is what policy guards against.
    pub is_workload: bool,
}

/// What a workload is told.
pub const WORKLOAD: &str = "a workload that policy declares may not speak to the agent, whatever its user";

/// Returns why a request is refused, if it is.
#[must_use]
pub const fn refusal(caller: Caller, request: &Request) -> Option<&'static str> {
    if caller.is_workload {
        return Some(WORKLOAD);
    }
    match request {
        Request::Status
        | Request::Identities
        | Request::Devices
        | Request::Programs
        | Request::Policy
        | Request::Explain { .. }
        | Request::Recent
        | Request::Follow { .. }
        | Request::Edges
        | Request::Stats
        | Request::Raw
        | Request::Check
        | Request::Overrides => None,
        Request::Apply { .. }
        | Request::Reload
        | Request::Revoke(_)
        | Request::BreakGlass(_)
        | Request::Undo { .. } => {
            if caller.uid == 0 {
                None
            } else {
                Some("only root may change what is enforced; try `sudo`")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_outside_of_workloads_changes_anything() {
        let (root, user) = (Caller { uid: 0, is_workload: false }, Caller { uid: 1000, is_workload: false });
        assert_eq!(refusal(root, &Request::Reload), None);
        assert!(refusal(user, &Request::Reload).is_some());
        assert_eq!(refusal(user, &Request::Status), None);
        assert!(refusal(Caller { uid: 0, is_workload: true }, &Request::Status).is_some());
    }
}
