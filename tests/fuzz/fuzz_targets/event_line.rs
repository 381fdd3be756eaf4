//! The reader of our own log lines: whoever may write into the log directory chooses them.
#![no_main]

use std::sync::Arc;

use eastwall::events::{
    ocsf::{LINE_BYTES_MAX, Node, Stamp, parse, write_line},
    record::{Record, UnixMillis},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let Ok(read) = parse(line) else { return };
    let node = Node {
        hostname: "node".to_owned(),
        machine_id: "machine".to_owned(),
        boot_id: read.boot_id.clone(),
        tenant: None,
        version: "0".to_owned(),
    };
    let stamp = Stamp { node: &node, sequence: read.sequence, logged: UnixMillis(0) };
    let mut written = Vec::new();
    write_line(&mut written, &Record::Deny(Arc::new(read.event)), &stamp).expect("an event has a line");
    // One event is one line, whatever is in it.
    assert_eq!(written.iter().position(|&byte| byte == b'\n'), Some(written.len() - 1));
    assert!(written.len() <= LINE_BYTES_MAX + 1, "{} bytes", written.len());
    assert!(parse(&written).is_ok(), "{}", written.escape_ascii());
});
