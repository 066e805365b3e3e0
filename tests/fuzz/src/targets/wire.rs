//! What our own programs send each other.

/// What the strict parser accepts, serde_json reads the same.
pub fn strict_json(data: &[u8]) {
    let limits = nimbus_api::strict_json::Limits::bytes(64 << 10);
    if let Ok(value) = nimbus_api::strict_json::value(data, limits) {
        assert_eq!(serde_json::from_slice::<serde_json::Value>(data).expect("accepted"), value);
    }
}

/// A plan that is read is written back the same.
pub fn plan(data: &[u8]) {
    if let Ok(plan) = nimbus_api::plan::Plan::parse(data) {
        assert_eq!(nimbus_api::plan::Plan::parse(&plan.to_json()).expect("our own JSON"), plan);
    }
}

/// Frames from any bytes end in a frame or an error, within the limit.
pub fn frame(data: &[u8]) {
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
}

/// Any bytes are an Admit message or an error.
pub fn admit_message(data: &[u8]) {
    use nimbus_api::proto::admit::v1::{AgentMessage, ShimMessage};
    use prost::Message as _;
    let _shim = ShimMessage::decode(data);
    let _agent = AgentMessage::decode(data);
}
