//! The targets, as functions of any bytes: libFuzzer calls them, and so does an ordinary test with
//! the seeds and with what becomes of them by chance.

mod authority;
mod container;
mod images;
mod kernel;
mod wire;

pub use authority::{bundle, envelope, join_token, key_set, lease_claims, lease_token, policy};
pub use container::{exec_spec, options, spec};
pub use images::{image_layer, image_manifest};
pub use kernel::{cgroup, procfs};
pub use wire::{admit_message, frame, plan, strict_json};

/// What a target does with its input; it panics when a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("admit_message", admit_message),
    ("bundle", bundle),
    ("cgroup", cgroup),
    ("envelope", envelope),
    ("exec_spec", exec_spec),
    ("frame", frame),
    ("image_layer", image_layer),
    ("image_manifest", image_manifest),
    ("join_token", join_token),
    ("key_set", key_set),
    ("lease_claims", lease_claims),
    ("lease_token", lease_token),
    ("options", options),
    ("plan", plan),
    ("policy", policy),
    ("procfs", procfs),
    ("spec", spec),
    ("strict_json", strict_json),
];
