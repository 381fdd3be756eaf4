//! The parser of answers of resolvers, beside another reader: whoever answers for a name chooses their bytes.
#![no_main]

#[path = "../../../agent-common/tests/answers/mod.rs"]
mod answers;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| answers::compare(bytes));
