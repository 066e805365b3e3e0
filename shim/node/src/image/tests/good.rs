//! Good images, and what the store says about them afterwards.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tar::{EntryType, Header};

use super::build::*;
use crate::image::layers::chain_ids;
use crate::image::*;

/// The lowest layer has what the upper ones change.
fn bottom() -> Vec<u8> {
    Tar::default()
        .dir("./")
        .dir("bin")
        .file("bin/hello", b"v1")
        .raw(EntryType::Directory, b"tmp", b"", 0o1777, b"")
        .dir("gone")
        .file("gone/old", b"old")
        .dir("opaque")
        .file("opaque/old", b"old")
        .dir("remade")
        .file("remade/old", b"old")
        .file("removed", b"x")
        .raw(EntryType::Regular, b"su", b"", 0o4755, b"set")
        .symlink("lib", "usr/lib")
        .link("bin/hi", "bin/hello")
        .raw(EntryType::Fifo, b"pipe", b"", 0o600, b"")
        .end()
}

fn middle() -> Vec<u8> {
    let mut owned = Header::new_ustar();
    owned.set_entry_type(EntryType::Regular);
    owned.set_mode(0o640);
    owned.set_uid(1000);
    owned.set_gid(1001);
    owned.set_mtime(1_600_000_000);
    Tar::default()
        // Only implies tmp, which must stay 1777.
        .file("tmp/mine", b"m")
        .file(".wh.removed", b"")
        .file(".wh.never-there", b"")
        .file(".wh.gone", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        // A file, then a directory in its place: what was below must not come back.
        .file("remade", b"file")
        .dir("remade")
        .file("remade/new", b"new")
        .pax(&record(b"SCHILY.xattr.user.note", b"kept"))
        .with(owned, b"owned", b"", b"o")
        .end()
}

fn top() -> Vec<u8> {
    let long = format!("long/{}/{}", "n".repeat(200), "m".repeat(200));
    Tar::default().file("bin/hello", b"v2").file(&long, b"l").file("odd\nname", b"").end()
}

#[test]
fn three_layers_give_the_tree_that_their_builder_meant() {
    let place = Place::new();
    let layers = [Layer::gzip(&bottom()), Layer::zstd(&middle()), Layer::plain(top())];
    let request = place.layout("good", &image(&layers));
    let store = place.store();
    let measured = store.prepare(&request, &Stop::new()).unwrap();
    assert_eq!(measured.layers, layers.each_ref().map(|layer| layer.diff_id));
    assert_eq!((measured.digest, measured.manifest), (request.digest, request.digest));
    assert_eq!(measured.hostile_mount_point, None);
    let long = format!("long/{}", "n".repeat(200));
    let mut expected = vec![
        "bin 755 0:0 dir".to_owned(),
        "bin/hello 644 0:0 v2".to_owned(),
        "bin/hi 644 0:0 v1".to_owned(),
        "lib 777 0:0 -> usr/lib".to_owned(),
        "long 755 0:0 dir".to_owned(),
        format!("{long} 755 0:0 dir"),
        format!("{long}/{} 644 0:0 l", "m".repeat(200)),
        "odd\\nname 644 0:0 ".to_owned(),
        "opaque 755 0:0 dir".to_owned(),
        "opaque/new 644 0:0 new".to_owned(),
        "owned 640 1000:1001 o".to_owned(),
        "pipe 600 0:0 fifo".to_owned(),
        "remade 755 0:0 dir".to_owned(),
        "remade/new 644 0:0 new".to_owned(),
        "su 4755 0:0 set".to_owned(),
        "tmp 1777 0:0 dir".to_owned(),
        "tmp/mine 644 0:0 m".to_owned(),
    ];
    expected.sort();
    assert_eq!(merged(&store, &measured), expected);
    // Debian's umoci reads neither zstd nor Docker's media types.
    let plain = [bottom(), middle(), top()].map(Layer::plain);
    let plain = place.layout("plain", &image(&plain));
    assert_eq!(unpacked_by_umoci(&place, &plain), expected);
}

#[test]
fn attributes_and_times_are_those_of_the_tar() {
    let place = Place::new();
    let layers = [Layer::plain(bottom()), Layer::plain(middle())];
    let request = place.layout("good", &image(&layers));
    place.store().prepare(&request, &Stop::new()).unwrap();
    let chain = chain_ids(&layers.each_ref().map(|layer| layer.diff_id));
    let tree = place.tree(&chain[1]);
    assert_eq!(tree.join("owned").metadata().unwrap().mtime(), 1_600_000_000);
    assert_eq!(tree.join("remade").metadata().unwrap().mtime(), 1_700_000_000);
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(tree.join("owned"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"kept");
    let bottom = place.tree(&chain[0]);
    assert_eq!(bottom.metadata().unwrap().mtime(), 1_700_000_000);
    let hello = bottom.join("bin/hello").metadata().unwrap();
    assert_eq!(hello.ino(), bottom.join("bin/hi").metadata().unwrap().ino());
    assert_eq!(place.root().metadata().unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn whiteouts_are_made_only_where_there_is_something_to_hide() {
    let place = Place::new();
    let request = place.layout("good", &image(&[Layer::plain(middle())]));
    let measured = place.store().prepare(&request, &Stop::new()).unwrap();
    let devices: Vec<String> = listing(&place.tree(&measured.layers[0]))
        .into_iter()
        .filter(|line| line.contains("device"))
        .collect();
    assert!(devices.is_empty(), "{devices:?}");
}

/// Whatever the order: nothing is left of a directory for the sake of a whiteout inside it, and what
/// a layer brings itself stays.
#[test]
fn whiteouts_mean_the_same_wherever_they_stand_in_a_layer() {
    let lower = Tar::default()
        .dir("c")
        .dir("c/d")
        .file("c/d/old", b"o")
        .raw(EntryType::Directory, b"kept", b"", 0o700, b"")
        .file("kept/old", b"o")
        .symlink("link", "c")
        .file("file", b"o")
        .end();
    let upper: [(&str, &[u8]); 8] = [
        // Gone with the link, although something is to go behind it, and a directory in its place.
        ("link/.wh.x", b""),
        (".wh.link", b""),
        ("c/d/.wh..wh..opq", b""),
        ("c/d/.wh.old", b""),
        ("c/.wh..wh..opq", b""),
        (".wh.kept", b""),
        ("kept/new", b"n"),
        (".wh.file", b""),
    ];
    for turn in 0..upper.len() {
        let mut entries = upper;
        entries.rotate_left(turn);
        for back in [false, true] {
            if back {
                entries.reverse();
            }
            let place = Place::new();
            let upper =
                entries.iter().fold(Tar::default(), |tar, (path, data)| tar.file(path, data));
            let layers = [Layer::plain(lower.clone()), Layer::plain(upper.end())];
            let request = place.layout("x", &image(&layers));
            let store = place.store();
            let measured = store.prepare(&request, &Stop::new()).unwrap();
            let expected = ["c 755 0:0 dir", "kept 755 0:0 dir", "kept/new 644 0:0 n"];
            assert_eq!(merged(&store, &measured), expected, "{entries:?}");
            let devices = place.tree(&chain_ids(&measured.layers)[1]);
            let devices = listing(&devices).into_iter().filter(|line| line.contains("device"));
            assert_eq!(devices.count(), 2, "only those of the file and the link: {entries:?}");
        }
    }
}

#[test]
fn an_image_survives_a_restart_and_is_not_fetched_again() {
    let place = Place::new();
    let request = place.layout("good", &image(&[Layer::gzip(&bottom()), Layer::gzip(&top())]));
    let first = place.store().prepare(&request, &Stop::new()).unwrap();
    std::fs::remove_dir_all(place.dir.path().join("layouts/good")).unwrap();
    let store = place.store();
    assert_eq!(store.measured(&request.name, &request.digest), Ok(first.clone()));
    assert_eq!(store.prepare(&request, &Stop::new()), Ok(first.clone()));
    assert_eq!(store.open_layers(&first).unwrap().len(), 2);
    let config = store.config(&request.digest).unwrap();
    assert_eq!((config.entrypoint, config.user), (vec!["/bin/hello".to_owned()], "7:8".to_owned()));
}

#[test]
fn a_name_is_measured_only_after_it_was_asked_for() {
    let place = Place::new();
    let blobs = image(&[Layer::gzip(&bottom())]);
    let (a, mut b) = (place.layout("a", &blobs), place.layout("b", &blobs));
    let store = place.store();
    assert_eq!(store.measured(&a.name, &a.digest).unwrap_err().code, RefusalCode::ImageMissing);
    let as_a = store.prepare(&a, &Stop::new()).unwrap();
    assert_eq!(store.measured(&b.name, &b.digest).unwrap_err().code, RefusalCode::ImageMissing);
    // Only the manifest is needed again, the layers are here.
    let b_dir = place.dir.path().join("layouts/b/blobs/sha256");
    for digest in blobs.all.keys().filter(|digest| **digest != b.digest) {
        std::fs::remove_file(b_dir.join(digest.hex())).unwrap();
    }
    let as_b = store.prepare(&b, &Stop::new()).unwrap();
    assert_eq!((as_b.rootfs, &as_b.name), (as_a.rootfs, &b.name));
    assert!(store.measured(&a.name, &a.digest).is_ok());
    b.name = format!("oci:{}/layouts/none", place.dir.path().display());
    assert_eq!(store.prepare(&b, &Stop::new()).unwrap_err().code, RefusalCode::ImageFetchFailed);
}

#[test]
fn an_index_leads_to_the_manifest_of_the_platform() {
    let place = Place::new();
    let mut blobs = image(&[Layer::gzip(&bottom())]);
    let manifest = blobs.manifest;
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest,
        "size": blobs.all[&manifest].len(),
        "platform": {"os": "linux", "architecture": "amd64"},
    }]});
    let index = index.to_string().into_bytes();
    blobs.manifest = Digest::of(&index);
    blobs.all.insert(blobs.manifest, index);
    let mut request = place.layout("index", &blobs);
    let measured = place.store().prepare(&request, &Stop::new()).unwrap();
    assert_eq!((measured.digest, measured.manifest), (blobs.manifest, manifest));
    assert_eq!(place.store().measured(&request.name, &request.digest), Ok(measured));
    request.platform = "linux/arm64".to_owned();
    let refusal = place.store().prepare(&request, &Stop::new()).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ImagePlatform);
}

#[test]
fn one_layer_twice_in_an_image_can_be_mounted() {
    let place = Place::new();
    let layers = [
        Layer::plain(bottom()),
        Layer::plain(Tar::default().end()),
        Layer::plain(top()),
        Layer::plain(Tar::default().end()),
    ];
    let request = place.layout("twice", &image(&layers));
    let store = place.store();
    let measured = store.prepare(&request, &Stop::new()).unwrap();
    assert!(merged(&store, &measured).contains(&"bin/hello 644 0:0 v2".to_owned()));
}

#[test]
fn links_and_files_at_mount_points_are_reported() {
    for (tar, expected) in [
        (Tar::default().symlink("dev", "/host"), Some("/dev is a symbolic link to /host")),
        (Tar::default().dir("dev").file("proc", b""), Some("/proc is no directory")),
        (Tar::default().symlink("sys", "sys2\u{1b}[0m"), Some("sys2\\x1b[0m")),
        (Tar::default().dir("dev").dir("proc").dir("sys"), None),
    ] {
        let place = Place::new();
        // A layer on top that does not mention it changes nothing.
        let layers = [Layer::plain(tar.end()), Layer::plain(top())];
        let measured =
            place.store().prepare(&place.layout("x", &image(&layers)), &Stop::new()).unwrap();
        let found = measured.hostile_mount_point;
        assert!(
            match expected {
                Some(text) => found.as_ref().is_some_and(|found| found.contains(text)),
                None => found.is_none(),
            },
            "{found:?}"
        );
    }
    let place = Place::new();
    let layers = [
        Layer::plain(Tar::default().symlink("dev", "/host").end()),
        Layer::plain(Tar::default().dir("dev").end()),
    ];
    let measured =
        place.store().prepare(&place.layout("x", &image(&layers)), &Stop::new()).unwrap();
    assert_eq!(measured.hostile_mount_point, None, "the upper layer has made it a directory");
}

#[test]
fn a_layer_that_was_replaced_or_changed_is_refused() {
    let change: [fn(&Path); 5] = [
        |layer| std::fs::write(layer.join("fs/extra"), "evil").unwrap(),
        |layer| {
            std::fs::rename(layer.join("fs"), layer.join("old")).unwrap();
            std::fs::create_dir(layer.join("fs")).unwrap();
        },
        |layer| {
            std::fs::rename(layer.join("fs"), layer.join("old")).unwrap();
            std::os::unix::fs::symlink("old", layer.join("fs")).unwrap();
        },
        |layer| {
            std::fs::set_permissions(layer, std::fs::Permissions::from_mode(0o755)).unwrap();
        },
        |layer| std::fs::remove_dir_all(layer).unwrap(),
    ];
    for (at, change) in change.iter().enumerate() {
        let place = Place::new();
        let request = place.layout("good", &image(&[Layer::gzip(&bottom())]));
        let store = place.store();
        let measured = store.prepare(&request, &Stop::new()).unwrap();
        change(&place.root().join("layers").join(UNPACKER_VERSION).join(measured.layers[0].hex()));
        let code = RefusalCode::ImageRootfsMismatch;
        assert_eq!(store.open_layers(&measured).unwrap_err().code, code, "change {at}");
        assert_eq!(store.measured(&request.name, &request.digest).unwrap_err().code, code);
        assert_eq!(store.prepare(&request, &Stop::new()).unwrap_err().code, code, "change {at}");
        drop(store);
        let fresh = place.store().measured(&request.name, &request.digest);
        assert_eq!(fresh.unwrap_err().code, code, "change {at}, after a restart");
    }
}

#[test]
fn a_changed_document_in_the_store_is_refused() {
    let place = Place::new();
    let request = place.layout("good", &image(&[Layer::gzip(&bottom())]));
    place.store().prepare(&request, &Stop::new()).unwrap();
    let kept = place.root().join("documents").join(request.digest.hex());
    std::fs::write(&kept, "{}").unwrap();
    let refusal = place.store().measured(&request.name, &request.digest).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ImageRootfsMismatch);
}

#[test]
fn a_store_has_one_owner_and_starts_clean() {
    let place = Place::new();
    let store = place.store();
    let second = ImageStore::open(place.config()).unwrap_err();
    assert!(matches!(second, StoreOpenError::Locked { .. }), "{second}");
    drop(store);
    let half = place.root().join("tmp/t0/fs/deep");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(place.root().join("tmp/t1"), "half").unwrap();
    drop(place.store());
    assert_eq!(place.leftovers().0, Vec::<String>::new());
}

#[test]
fn an_image_is_prepared_from_a_directory_of_blobs_under_the_name_that_it_is_claimed_by() {
    let place = Place::new();
    let store = place.store();
    let made = place.layout("a", &image(&[Layer::gzip(&bottom())]));
    let content = PathBuf::from(made.name.strip_prefix("oci:").unwrap());
    std::fs::remove_file(content.join("oci-layout")).unwrap();
    let claimed = ImageRequest {
        content: Some(content.clone()),
        ..request("registry.example/a", made.digest)
    };
    let measured = store.prepare(&claimed, &Stop::new()).unwrap();
    assert_eq!(measured.name, "registry.example/a");
    assert_eq!(store.measured(&claimed.name, &claimed.digest).unwrap(), measured);
    assert!(store.measured(&made.name, &made.digest).is_err(), "only under that name");
    // Every byte is hashed on its way, whoever owns the directory.
    let other = place.layout("b", &image(&[Layer::gzip(&middle())]));
    let blobs = content.join("blobs/sha256");
    let bytes = std::fs::read(blobs.join(made.digest.hex())).unwrap();
    std::fs::write(blobs.join(other.digest.hex()), bytes).unwrap();
    let forged = ImageRequest { digest: other.digest, ..claimed };
    let refused = store.prepare(&forged, &Stop::new()).unwrap_err();
    assert_eq!(refused.code, RefusalCode::ImageDigestMismatch);
}
