//! Any bytes as an image's manifest end in an image or a refusal; nothing is touched outside the store.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nimbus_fuzz::image;

fuzz_target!(|data: &[u8]| {
    image::prepare(data.to_vec(), &[image::config(&image::layer()), image::layer()]);
});
