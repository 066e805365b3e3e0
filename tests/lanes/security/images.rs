//! Images that attack the node that unpacks and mounts them. All of them are attested: even a signer
//! whom the policy believes must not be able to harm the host.

use std::fs;
use std::path::Path;

use nimbus_api::RefusalCode;
use nimbus_forge::Image;
use nimbus_forge::image::{Device, ImageBuilder, Layer, busybox_layer};
use nimbus_tests::images::on_busybox;
use nimbus_tests::lab::Submission;
use nimbus_tests::lane::Case;
use nimbus_tests::{Lab, Outcome, cases, ensure};

pub(crate) fn cases() -> Vec<Case> {
    cases![
        shared[
            a_symlinked_dev_proc_or_sys_is_refused_and_the_host_untouched,
            hostile_layers_touch_nothing_outside,
            a_whiteout_behind_a_link_removes_nothing,
            a_device_node_in_a_layer_is_refused,
            an_absolute_path_stays_inside,
            a_layer_cut_short_is_refused,
            layers_that_are_not_those_of_the_configuration_are_refused,
            an_image_for_another_platform_is_refused,
        ]
    ]
}

fn attested(lab: &mut Lab, name: &str, image: &Image) -> Result<Submission, nimbus_tests::Failure> {
    let image = lab.publish(&format!("apps/{name}"), image)?;
    let bundle = image.attested(lab.keys())?;
    let mut submission = Submission::of(&image, vec![bundle], &["/bin/true"]);
    submission.max_attempts = Some(1);
    Ok(submission)
}

fn refused(lab: &mut Lab, name: &str, image: &Image, code: RefusalCode) -> Outcome {
    let submission = attested(lab, name, image)?;
    lab.outcome(&submission)?.expect_refused(code).map_err(|failure| failure.during(name))
}

/// A directory of the host with a file in it, and whether it is as it was.
struct Victim<'a>(&'a Path);

impl Victim<'_> {
    fn make(&self) -> Outcome {
        fs::create_dir_all(self.0)?;
        fs::write(self.0.join("ptmx"), "untouched")?;
        Ok(())
    }

    fn check(&self) -> Outcome {
        let names: Vec<_> = fs::read_dir(self.0)?
            .filter_map(Result::ok)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        ensure!(names == ["ptmx"], "the host's directory holds {names:?}");
        ensure!(fs::read_to_string(self.0.join("ptmx"))? == "untouched", "the file was changed");
        Ok(())
    }
}

fn a_symlinked_dev_proc_or_sys_is_refused_and_the_host_untouched(lab: &mut Lab) -> Outcome {
    let path = lab.path("files/victim-dev");
    let victim = Victim(&path);
    victim.make()?;
    for name in ["dev", "proc", "sys"] {
        for target in [path.display().to_string(), format!("../../../../../..{}", path.display())] {
            let image = on_busybox(Layer::new().whiteout(name))?
                .layer(Layer::new().symlink(name, &target))
                .build()?;
            refused(lab, &format!("linked-{name}"), &image, RefusalCode::RootfsHostile)?;
            victim.check()?;
        }
    }
    Ok(())
}

fn hostile_layers_touch_nothing_outside(lab: &mut Lab) -> Outcome {
    let path = lab.path("files/victim-layers");
    let victim = Victim(&path);
    victim.make()?;
    let outside = path.display().to_string();
    let climb = format!("../../../../../../../../../..{outside}/escaped");
    let layers = [
        ("climb", Layer::new().file(&climb, 0o644, "x")),
        ("through-link", Layer::new().symlink("a", &outside).file("a/escaped", 0o644, "x")),
        ("through-two", Layer::new().symlink("a", &outside).symlink("b", "a").dir("b/c", 0o755)),
        ("hardlink", Layer::new().hardlink("l", &format!("{outside}/ptmx"))),
        ("link-link", Layer::new().symlink("a", &outside).hardlink("l", "a/ptmx")),
    ];
    for (name, layer) in layers {
        let image = on_busybox(layer)?.build()?;
        refused(lab, &format!("hostile-{name}"), &image, RefusalCode::ImageLayerHostile)?;
        victim.check()?;
    }
    Ok(())
}

/// There is nothing below a link for a whiteout to remove; what matters is that it is not followed.
fn a_whiteout_behind_a_link_removes_nothing(lab: &mut Lab) -> Outcome {
    let path = lab.path("files/victim-whiteout");
    let victim = Victim(&path);
    victim.make()?;
    let outside = path.display().to_string();
    let image = on_busybox(Layer::new().symlink("a", &outside).whiteout("a/ptmx"))?.build()?;
    let submission = attested(lab, "whiteout", &image)?;
    let ended = lab.outcome(&submission)?;
    victim.check()?;
    ensure!(matches!(ended.state.as_str(), "DONE" | "DEAD"), "found {}", ended.job);
    let above = on_busybox(Layer::new().symlink("a", &outside))?
        .layer(Layer::new().whiteout("a/ptmx"))
        .build()?;
    refused(lab, "whiteout-above", &above, RefusalCode::ImageLayerHostile)?;
    victim.check()
}

fn a_device_node_in_a_layer_is_refused(lab: &mut Lab) -> Outcome {
    let image = on_busybox(Layer::new().device("disk", Device::Block, 8, 0))?.build()?;
    refused(lab, "device", &image, RefusalCode::ImageLayerHostile)
}

fn an_absolute_path_stays_inside(lab: &mut Lab) -> Outcome {
    let path = lab.path("files/victim-absolute");
    let victim = Victim(&path);
    victim.make()?;
    let image =
        on_busybox(Layer::new().file(&format!("{}/ptmx", path.display()), 0o644, "x"))?.build()?;
    let submission = attested(lab, "absolute", &image)?;
    lab.outcome(&submission)?.expect_exit(0)?;
    victim.check()
}

fn a_layer_cut_short_is_refused(lab: &mut Lab) -> Outcome {
    let layer = Layer::new().file("etc/long", 0o644, vec![b'x'; 5000]).truncated();
    let image = on_busybox(layer)?.build()?;
    refused(lab, "short", &image, RefusalCode::ImageMalformed)
}

fn layers_that_are_not_those_of_the_configuration_are_refused(lab: &mut Lab) -> Outcome {
    let image = ImageBuilder::new().layer(busybox_layer()?).with_wrong_diff_ids().build()?;
    refused(lab, "wrong-diff-ids", &image, RefusalCode::ImageDigestMismatch)
}

fn an_image_for_another_platform_is_refused(lab: &mut Lab) -> Outcome {
    let image = ImageBuilder::new().layer(busybox_layer()?).architecture("s390x").build()?;
    refused(lab, "platform", &image, RefusalCode::ImagePlatform)
}
