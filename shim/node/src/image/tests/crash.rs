//! Killed at any moment, the store opens again, clean, and finishes what was begun.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::build::*;
use crate::image::*;

const PLACE: &str = "NIMBUS_TEST_IMAGE_PLACE";
const KILLS: u64 = 12;

fn many_files() -> Vec<Layer> {
    (0..3)
        .map(|layer| {
            let tar = (0..400).fold(Tar::default(), |tar, n| {
                tar.file(&format!("d{layer}/f{n}"), format!("{n}").as_bytes())
            });
            Layer::gzip(&tar.end())
        })
        .collect()
}

#[test]
#[ignore = "the child of the test below; alone it has nothing to prepare"]
fn child_that_is_killed() {
    let place = PathBuf::from(std::env::var_os(PLACE).unwrap());
    let config = StoreConfig {
        root: place.join("store"),
        insecure_registries: Vec::new(),
        layout_roots: vec![place.join("layouts")],
        platform: "linux/amd64".to_owned(),
        limits: ImageLimits::default(),
    };
    let digest = std::fs::read_to_string(place.join("digest")).unwrap().parse().unwrap();
    let name = format!("oci:{}", place.join("layouts/x").display());
    ImageStore::open(config).unwrap().prepare(&request(&name, digest), &Stop::new()).unwrap();
}

#[test]
fn a_kill_leaves_nothing_that_a_restart_does_not_remove_or_finish() {
    let place = Place::new();
    let request = place.layout("x", &image(&many_files()));
    std::fs::write(place.dir.path().join("digest"), request.digest.to_string()).unwrap();
    let before = place.outside();
    let mut interrupted = 0;
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "image::tests::crash::child_that_is_killed"])
            .env(PLACE, place.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(5 + kill * 7));
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        interrupted += u64::from(!finished);
        let store = place.store();
        assert_eq!(place.leftovers().0, Vec::<String>::new());
        for chain_id in place.leftovers().1 {
            let chain_id = format!("sha256:{chain_id}").parse().unwrap();
            assert!(store.unpacked.find(&chain_id).unwrap().is_some());
        }
        match store.measured(&request.name, &request.digest) {
            Ok(measured) => assert_eq!(store.open_layers(&measured).unwrap().len(), 3),
            Err(refusal) => assert_eq!(refusal.code, RefusalCode::ImageMissing),
        }
    }
    assert!(interrupted > 0, "no child was killed before it was done");
    let measured = place.store().prepare(&request, &Stop::new()).unwrap();
    assert_eq!(place.store().measured(&request.name, &request.digest), Ok(measured));
    assert_eq!(place.outside(), before);
}
