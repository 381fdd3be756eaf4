//! The reader of cgroup paths: whoever may make a cgroup chooses its name.
#![no_main]

use eastwall::identity::cgroup_path::PathFacts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|path: &str| {
    let Ok(facts) = PathFacts::parse(path) else { return };
    // What is claimed stands in the path; nothing is made up.
    if let Some(container) = &facts.container {
        assert!(path.contains(container.as_str()), "{facts:?}");
    }
    if let Some(pod) = &facts.pod {
        // The systemd driver writes `_` for `-`.
        assert!(path.replace('_', "-").contains(pod.as_str()), "{facts:?}");
    }
    assert!(path.starts_with('/'));
    // An empty segment is no level of the hierarchy.
    assert_eq!(PathFacts::parse(&path.replace('/', "//")).as_ref(), Ok(&facts));
});
