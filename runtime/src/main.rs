//! `nimbus-runtime`: one verb on one container, asked for over descriptor 3. See the library.
#![forbid(unsafe_code)]

fn main() -> nimbus_runtime::Exit {
    nimbus_runtime::serve()
}
