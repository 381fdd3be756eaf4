//! The decoder of ring buffer records: another version of the programs may have written them.
#![no_main]

use agent_common::layout::{DenyRecord, LAYOUT_VERSION};
use eastwall::events::decode::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let is_record = bytes.len() == size_of::<DenyRecord>();
    assert!(is_record || decode(bytes).is_err(), "a record of another length has other fields");
    // The fuzzer seldom finds the one length there is, so it is given to it.
    let mut record = [0; size_of::<DenyRecord>()];
    let length = bytes.len().min(record.len());
    record[..length].copy_from_slice(&bytes[..length]);
    if let Ok(denial) = decode(&record) {
        assert_eq!(u32::from(record[0]), LAYOUT_VERSION, "a record of another version was read: {denial:?}");
    }
});
