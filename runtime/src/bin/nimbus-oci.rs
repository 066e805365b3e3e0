//! `nimbus-oci`: the OCI command line for suites and benchmarks. See the library's `oci`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    nimbus_runtime::oci::main()
}
