//! Frames from any bytes end in a frame or an error, within the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    let Ok((mut ours, theirs)) = UnixStream::pair() else { return };
    if ours.write_all(data.get(..4096.min(data.len())).unwrap_or_default()).is_err() {
        return;
    }
    drop(ours);
    let mut reader = nimbus_api::frame::FrameReader::with_limit(1024);
    while let Ok(frame) = reader.read(&theirs) {
        assert!(frame.bytes.len() <= 1024 && frame.fds.is_empty());
    }
});
