//! Files and directories that kubelet gives a pod.

use std::fs;

use nimbus_tests::cri::pod::Volume;
use nimbus_tests::cri::{Handler, Node, Seen, wish};
use nimbus_tests::{Failure, Lab, ensure};

use crate::{Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![
        containers_share_an_empty_directory,
        a_secret_is_read_only,
        a_configuration_is_seen_and_its_change_too,
        a_volume_may_be_below_another,
        a_volume_is_where_the_image_has_nothing,
    ]
}

fn containers_share_an_empty_directory(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("shared-dir")?;
    let dir = pod.volume(Volume::Empty, "scratch", &[])?;
    let mut writer = pod.wish("writer", "echo hello > /scratch/note; exec sleep 600")?;
    writer.mounts.push(wish::mount(&dir, "/scratch", false));
    let writer = pod.start(&writer)?;
    let mut reader = pod.wish("reader", "exec sleep 600")?;
    reader.mounts.push(wish::mount(&dir, "/data/of/writer", true));
    let reader = pod.start(&reader)?;
    writer.exec("until [ -f /scratch/note ]; do sleep 0.1; done")?;
    let read = reader.exec("cat /data/of/writer/note")?;
    ensure!(read.out == "hello\n", "found {read:?}");
    seen.note("read", read);
    seen.note("read-only for the other", reader.exec("touch /data/of/writer/x")?);
    let on_the_node = fs::read_to_string(dir.join("note"))?;
    ensure!(on_the_node == "hello\n", "on the node: {on_the_node:?}");
    // It outlives a container.
    writer.stop(0)?;
    let mut next = pod.wish("writer", "cat /scratch/note")?;
    next.mounts.push(wish::mount(&dir, "/scratch", false));
    if let Some(metadata) = &mut next.metadata {
        metadata.attempt = 1;
    }
    "writer/1.log".clone_into(&mut next.log_path);
    let next = pod.start(&next)?;
    next.ended()?;
    seen.note("after a restart", next.stdout()?);
    pod.end()?;
    Ok(seen)
}

fn a_secret_is_read_only(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("secret")?;
    let dir = pod.volume(Volume::Secret, "token", &[("token", "s3cret"), ("ca.crt", "PEM")])?;
    let mut config = pod.wish("main", "exec sleep 600")?;
    let at = "/var/run/secrets/kubernetes.io/serviceaccount";
    config.mounts.push(wish::mount(&dir, at, true));
    let container = pod.start(&config)?;
    let read = container.exec(&format!("cat {at}/token; ls {at}"))?;
    ensure!(read.out.starts_with("s3cret"), "found {read:?}");
    seen.note("read", read);
    for script in
        ["echo x > {at}/token", "touch {at}/x", "rm {at}/token", "mount -o remount,rw {at}"]
    {
        let script = script.replace("{at}", at);
        let tried = container.exec(&script)?;
        ensure!(tried.code != 0, "{script}: {tried:?}");
        seen.note(&script, tried.code);
    }
    pod.end()?;
    Ok(seen)
}

fn a_configuration_is_seen_and_its_change_too(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("configured")?;
    let dir = pod.volume(Volume::ConfigMap, "settings", &[("color", "red")])?;
    let mut config = pod.wish("main", "exec sleep 600")?;
    config.mounts.push(wish::mount(&dir, "/etc/settings", true));
    let container = pod.start(&config)?;
    seen.note("before", container.exec("cat /etc/settings/color")?);
    // kubelet makes a new directory and exchanges the link.
    let next = "..2026_11_24_00_00_00.000000002";
    fs::create_dir(dir.join(next))?;
    fs::write(dir.join(next).join("color"), "blue")?;
    std::os::unix::fs::symlink(next, dir.join("..data_tmp"))?;
    fs::rename(dir.join("..data_tmp"), dir.join("..data"))?;
    let after = container.exec("cat /etc/settings/color")?;
    ensure!(after.out == "blue", "found {after:?}");
    seen.note("after", after);
    pod.end()?;
    Ok(seen)
}

fn a_volume_may_be_below_another(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("nested")?;
    let outer = pod.volume(Volume::Empty, "outer", &[])?;
    let inner = pod.volume(Volume::ConfigMap, "inner", &[("file", "inside")])?;
    let mut config = pod.wish("main", "exec sleep 600")?;
    // In the order in which a person may write them; what is above comes first all the same.
    config.mounts.push(wish::mount(&inner, "/outer/inner", true));
    config.mounts.push(wish::mount(&outer, "/outer", false));
    let container = pod.start(&config)?;
    let read = container.exec("cat /outer/inner/file && echo x > /outer/y && ls /outer")?;
    ensure!(read.code == 0, "found {read:?}");
    seen.note("read", read);
    pod.end()?;
    Ok(seen)
}

fn a_volume_is_where_the_image_has_nothing(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("new-place")?;
    let dir = pod.volume(Volume::ConfigMap, "settings", &[("color", "red")])?;
    let mut config = pod.wish("main", "exec sleep 600")?;
    config.mounts.push(wish::mount(&dir, "/a/b/c", true));
    let container = pod.start(&config)?;
    let read = container.exec("cat /a/b/c/color; stat -c %F /a/b")?;
    ensure!(read.out.starts_with("red"), "found {read:?}");
    seen.note("read", read);
    pod.end()?;
    Ok(seen)
}
