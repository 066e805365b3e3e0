//! Any bytes as a layer end in an image or a refusal; nothing is touched outside the store.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nimbus_fuzz::image;

fuzz_target!(|data: &[u8]| {
    let config = image::config(data);
    image::prepare(image::manifest(&config, data), &[config, data.to_vec()]);
});
