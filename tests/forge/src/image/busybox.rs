//! An image around the host's static busybox.

use std::fs;

use crate::ForgeError;
use crate::image::{Image, ImageBuilder, Layer};

/// Where Debian's busybox-static puts it.
pub const BUSYBOX_PATHS: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// Applets that get a symlink in `/bin`.
pub const BUSYBOX_APPLETS: [&str; 35] = [
    "sh", "echo", "cat", "ls", "sleep", "true", "false", "id", "env", "head", "tail", "wc", "grep",
    "date", "dd", "mkdir", "mknod", "mount", "touch", "rm", "kill", "ps", "seq", "test", "uname",
    "hostname", "stat", "chmod", "chown", "ln", "find", "yes", "printf", "readlink", "sync",
];

/// The layer of [`busybox_image`], to put others on top.
pub fn busybox_layer() -> Result<Layer, ForgeError> {
    let program = BUSYBOX_PATHS.iter().find_map(|path| fs::read(path).ok()).ok_or_else(|| {
        ForgeError::Unfit("no /bin/busybox here: install Debian's busybox-static".to_owned())
    })?;
    let mut layer = Layer::new();
    for dir in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "var"] {
        layer = layer.dir(dir, 0o755);
    }
    layer = layer
        .dir("tmp", 0o1777)
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )
        .file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n")
        .file("bin/busybox", 0o755, program);
    for applet in BUSYBOX_APPLETS {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer)
}

/// Busybox with its links and the usual empty directories; `args` is the command of the image.
/// Other arguments give another digest.
pub fn busybox_image(args: &[&str]) -> Result<Image, ForgeError> {
    ImageBuilder::new().layer(busybox_layer()?).cmd(args).build()
}
