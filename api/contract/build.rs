//! Compiles `proto/` with protox, so that no `protoc` is needed, and writes the descriptor set that
//! the compatibility test compares.

use std::error::Error;
use std::path::PathBuf;

const PROTOS: [&str; 3] =
    ["nimbus/control/v1/control.proto", "nimbus/node/v1/node.proto", "nimbus/admit/v1/admit.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .out_dir(&out)
        .compile_fds(descriptors)?;
    Ok(())
}
