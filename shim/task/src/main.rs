//! `containerd-shim-nimbus-v1`: see the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    nimbus_shim::run()
}
