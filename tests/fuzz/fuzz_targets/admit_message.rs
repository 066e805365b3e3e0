//! Any bytes are an Admit message or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    use nimbus_api::proto::admit::v1::{AgentMessage, ShimMessage};
    use prost::Message as _;
    let _shim = ShimMessage::decode(data);
    let _agent = AgentMessage::decode(data);
});
