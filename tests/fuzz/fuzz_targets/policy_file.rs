//! The policy loader, and the findings that people read. A zero byte separates two files.
#![no_main]

use eastwall::policy::{canonical, finding, load};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (first, second) = text.split_once('\0').unwrap_or((text, ""));
    let files = [("a.yaml", first), ("b.yaml", second)];
    let files = if second.is_empty() { &files[..1] } else { &files[..] };
    let reversed: Vec<_> = files.iter().rev().copied().collect();
    match (load::load(files), load::load(&reversed)) {
        // The result does not depend on the order of the files.
        (Ok(one), Ok(other)) => assert_eq!(canonical::hash(&one.policy), canonical::hash(&other.policy)),
        (Err(one), Err(other)) => {
            assert!(!one.is_empty() && !other.is_empty(), "a refusal has a reason");
            // A file cannot move the cursor of whoever reads why it was refused.
            let shown = finding::render(&one, &files.iter().copied().collect(), false);
            assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        }
        (one, other) => panic!("accepted in one order alone: {} and {}", one.is_ok(), other.is_ok()),
    }
});
