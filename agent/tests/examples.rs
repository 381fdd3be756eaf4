//! The ready policies under `policies/`: each must be valid, and keep what its tests promise.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use eastwall::{
    policy::{
        assertions,
        compile::{CompileInput, compile},
        lint::{self, lint},
        load::load,
    },
    sources::policy_dir::{self, Trust},
};

/// Every directory of examples is one set.
fn sets() -> Vec<PathBuf> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples");
    let entries = fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

#[test]
fn every_ready_policy_is_valid_and_keeps_its_promises() {
    let sets = sets();
    assert!(!sets.is_empty());
    for path in sets {
        let files = policy_dir::read(&[&path], Trust::Anyone).unwrap();
        let files: Vec<(&str, &str)> = files.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
        let loaded = load(&files).unwrap_or_else(|findings| panic!("{}: {findings:#?}", path.display()));
        let map = compile(&loaded.policy, &CompileInput::default()).unwrap();
        // The moment does not matter to a ready policy: its tests name theirs where it does.
        let now = 1_900_000_000;
        let outcomes = assertions::run(&loaded.policy, &map, now);
        assert!(outcomes.len() >= 5, "{}: too few tests to show how they are written", path.display());
        for outcome in outcomes {
            assert_eq!(outcome.failures, [], "{}: {:?}", path.display(), outcome.test);
        }
        let lints = lint(&loaded.policy, &lint::Options { now, ..lint::Options::default() });
        let refusing: Vec<_> = lints.iter().filter(|lint| lint.refuses).collect();
        assert!(refusing.is_empty(), "{}: {refusing:#?}", path.display());
    }
}
