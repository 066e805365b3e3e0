//! `nimbus-oci`: the OCI command line for suites and benchmarks. See the library's `oci`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    if !nimbus_runtime::is_sealed() {
        return std::process::ExitCode::FAILURE;
    }
    nimbus_runtime::oci::main()
}
