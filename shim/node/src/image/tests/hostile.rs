//! Layers that no honest builder makes: refused, nothing touched, nothing left.

use std::slice::from_ref;

use tar::{EntryType, Header};

use super::build::*;
use crate::image::*;

/// Prepares an image of these layers; checks that a refusal leaves nothing.
fn outcome(layers: &[Layer], change: impl FnOnce(&mut StoreConfig)) -> Option<RefusalCode> {
    let place = Place::new();
    let request = place.layout("bad", &image(layers));
    let before = place.outside();
    let store = place.store_with(change);
    let outcome = store.prepare(&request, &Stop::new()).err();
    assert_eq!(place.outside(), before);
    let (scratch, kept) = place.leftovers();
    assert_eq!(scratch, Vec::<String>::new());
    if outcome.is_some() {
        assert_eq!(kept.len(), layers.len() - 1, "only the good layers below are kept");
        let missing = store.measured(&request.name, &request.digest).unwrap_err();
        assert_eq!(missing.code, RefusalCode::ImageMissing);
    }
    outcome.map(|refusal| refusal.code)
}

fn tar_outcome(tar: Tar) -> Option<RefusalCode> {
    outcome(&[Layer::plain(tar.end())], |_| {})
}

fn device(kind: EntryType, major: u32, minor: u32) -> Tar {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
    header.set_mode(0o666);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    Tar::default().with(header, b"node", b"", b"")
}

fn owned_by(uid: u64) -> Tar {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(uid);
    header.set_gid(0);
    header.set_mtime(0);
    Tar::default().with(header, b"f", b"", b"")
}

#[test]
fn entries_that_lead_out_of_the_layer_are_refused() {
    let sentinel = "../../../../../../sentinel/victim";
    for tar in [
        Tar::default().file("../escape", b"x"),
        Tar::default().dir("a").file("a/../../escape", b"x"),
        Tar::default().file("/../escape", b"x"),
        Tar::default().symlink("a", "../..").file("a/escape", b"x"),
        Tar::default().symlink("a", "/tmp").file("a/escape", b"x"),
        Tar::default().symlink("a", ".").file("a/inside", b"x"),
        Tar::default().dir("a").symlink("a", "/tmp").file("a/escape", b"x"),
        Tar::default().symlink("a", "/tmp").symlink("b", "a").dir("b/c"),
        Tar::default().link("l", sentinel),
        Tar::default().link("l", "/etc/passwd"),
        Tar::default().symlink("a", "/etc").link("l", "a/passwd"),
        Tar::default().dir("d").link("l", "d"),
        Tar::default().link("l", "l"),
        Tar::default().file("f", b"").link("f", "f"),
        Tar::default().file("f", b"").file("f/below", b""),
    ] {
        assert_eq!(tar_outcome(tar.clone()), Some(RefusalCode::ImageLayerHostile), "{tar:?}");
    }
}

#[test]
fn a_link_is_replaced_and_not_written_through() {
    let place = Place::new();
    let victim = place.dir.path().join("sentinel/victim");
    let tar = Tar::default()
        .symlink("f", victim.to_str().unwrap())
        .file("f", b"mine")
        .symlink("d", victim.parent().unwrap().to_str().unwrap())
        .dir("d")
        .file("d/victim", b"mine")
        .end();
    let before = place.outside().len();
    let measured = place
        .store()
        .prepare(&place.layout("x", &image(&[Layer::plain(tar)])), &Stop::new())
        .unwrap();
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    assert!(place.outside().len() > before, "the layout was added, nothing was removed");
    let tree = place.tree(&measured.layers[0]);
    assert_eq!(std::fs::read_to_string(tree.join("f")).unwrap(), "mine");
    assert_eq!(std::fs::read_to_string(tree.join("d/victim")).unwrap(), "mine");
}

#[test]
fn devices_forged_whiteouts_and_steering_attributes_are_refused() {
    for tar in [
        device(EntryType::Char, 0, 0),
        device(EntryType::Char, 1, 3),
        device(EntryType::Block, 8, 0),
        owned_by(1 << 31),
        owned_by((1 << 32) - 1),
        Tar::default().pax(&record(b"uid", b"4294967296")).file("f", b""),
        Tar::default().pax(&record(b"SCHILY.xattr.trusted.overlay.redirect", b"/etc")).dir("d"),
        Tar::default().pax(&record(b"SCHILY.xattr.user.overlay.opaque", b"y")).dir("d"),
        Tar::default().pax(&record(b"GNU.sparse.major", b"1")).file("f", b""),
        Tar::default().raw(EntryType::GNUSparse, b"f", b"", 0o644, b""),
        Tar::default().raw(EntryType::new(b'Z'), b"f", b"", 0o644, b""),
        Tar::default().raw(EntryType::Directory, b"d", b"", 0o755, b"data"),
        Tar::default().raw(EntryType::Regular, b"d/", b"", 0o755, b""),
        Tar::default().raw(EntryType::Symlink, b"", b"x", 0o777, b""),
        Tar::default().file(".wh.x", b"not empty"),
        Tar::default().dir(".wh.x"),
        Tar::default().file(".wh...", b""),
        Tar::default().file(".wh..wh..opq", b""),
        Tar::default().pax(&record(b"path", b"x\0y")).file("f", b""),
        Tar::default().pax(b"nonsense").file("f", b""),
        Tar::default().pax(&record(b"size", b"512")).file("f", b""),
        Tar::default().pax(&record(b"path", b"a")).pax(&record(b"path", b"b")).file("f", b""),
    ] {
        assert_eq!(tar_outcome(tar.clone()), Some(RefusalCode::ImageLayerHostile), "{tar:?}");
    }
    let behind_the_end = [Tar::default().file("a", b"").end(), vec![1; 512]].concat();
    assert_eq!(
        outcome(&[Layer::plain(behind_the_end)], |_| {}),
        Some(RefusalCode::ImageLayerHostile)
    );
}

#[test]
fn entries_that_need_what_lower_layers_hide_are_refused() {
    let lower = || Layer::plain(Tar::default().symlink("lib", "/etc").file("f", b"").end());
    for tar in [
        Tar::default().file("lib/x", b""),
        Tar::default().file("f/x", b""),
        Tar::default().file("lib/.wh.x", b""),
        Tar::default().link("g", "f"),
    ] {
        let layers = [lower(), Layer::plain(tar.clone().end())];
        assert_eq!(outcome(&layers, |_| {}), Some(RefusalCode::ImageLayerHostile), "{tar:?}");
    }
}

/// It says that something below the link or file is gone, which it is: nothing below them shows.
#[test]
fn a_whiteout_below_a_link_or_file_of_its_own_layer_means_nothing_and_touches_nothing() {
    let lower = || Layer::plain(Tar::default().dir("a").file("a/x", b"x").end());
    for own in [Tar::default().symlink("a", "/etc"), Tar::default().file("a", b"own")] {
        for name in ["a/.wh.x", "a/.wh..wh..opq"] {
            let before = Tar::default().file(name, b"");
            for tar in [own.clone().file(name, b""), Tar([before.0, own.0.clone()].concat())] {
                let place = Place::new();
                let layers = [lower(), Layer::plain(tar.clone().end())];
                let request = place.layout("x", &image(&layers));
                let store = place.store();
                let measured = store.prepare(&request, &Stop::new()).unwrap();
                let view = merged(&store, &measured);
                assert!(matches!(view.as_slice(), [one] if one.starts_with("a ")), "{view:?}");
            }
        }
    }
}

/// Short names in the tar that stand for long ones to remember.
#[test]
fn directories_that_are_only_implied_reach_the_limit_of_names_too() {
    let prefix = "p".repeat(200);
    let tar = (0..100).fold(Tar::default(), |tar, n| {
        tar.file(&format!("{prefix}/{n}/{}f", "a/".repeat(60)), b"")
    });
    let layer = Layer::plain(tar.end());
    let outcome_with = |bytes| outcome(from_ref(&layer), |c| c.limits.names_bytes = bytes);
    assert_eq!(outcome_with(4 << 20), None);
    // More than all that the tar spells out.
    assert_eq!(outcome_with(64 << 10), Some(RefusalCode::ImageTooLarge));
}

#[test]
fn broken_archives_are_refused() {
    let good = Tar::default().file("f", &[b'x'; 2000]).end();
    let mut bad_sum = good.clone();
    bad_sum[0] ^= 1;
    let mut torn = gzip(&good);
    torn.truncate(torn.len() / 2);
    let torn = Layer { blob: torn, ..Layer::gzip(&good) };
    for layer in [
        Layer::plain(bad_sum),
        Layer::plain(good[..1000].to_vec()),
        Layer::plain(good[..512 + 1999].to_vec()),
        Layer::plain(Tar::default().pax(&record(b"path", b"x")).end()),
        torn,
        Layer { blob: b"not gzip".to_vec(), ..Layer::gzip(&good) },
        Layer { blob: b"not zstd".to_vec(), ..Layer::zstd(&good) },
        Layer { blob: [gzip(&good), b"junk".to_vec()].concat(), ..Layer::gzip(&good) },
    ] {
        assert_eq!(outcome(&[layer], |_| {}), Some(RefusalCode::ImageMalformed));
    }
}

#[test]
fn a_last_block_that_is_not_filled_up_is_taken() {
    let tar = Tar::default().file("f", &[b'x'; 700]).end();
    assert_eq!(outcome(&[Layer::plain(tar[..512 + 700].to_vec())], |_| {}), None);
}

#[test]
fn a_wrong_diff_id_throws_everything_away() {
    let tar = Tar::default().file("f", b"evil").end();
    let layer = Layer { diff_id: Digest::of(b"what was attested"), ..Layer::gzip(&tar) };
    assert_eq!(outcome(&[layer], |_| {}), Some(RefusalCode::ImageDigestMismatch));
    // A second gzip member is part of the stream, not something that can be hidden behind it.
    let two = Layer { blob: [gzip(&tar), gzip(b"\0more")].concat(), ..Layer::gzip(&tar) };
    assert_ne!(outcome(&[two], |_| {}), None);
}

#[test]
fn bombs_reach_a_limit() {
    const MIB: usize = 1 << 20;
    let zeros = Tar::default().file("zeros", &vec![0; 8 * MIB]).end();
    let large = Some(RefusalCode::ImageTooLarge);
    for layer in [Layer::gzip(&zeros), Layer::zstd(&zeros)] {
        assert!(layer.blob.len() < MIB / 4);
        assert_eq!(outcome(from_ref(&layer), |c| c.limits.layer_bytes = 1 << 20), large);
        assert_eq!(outcome(from_ref(&layer), |c| c.limits.image_bytes = 1 << 20), large);
        assert_eq!(outcome(&[layer], |c| c.limits.file_bytes = 1 << 20), large);
    }
    // Padding behind the end counts as well.
    let padded = [Tar::default().end(), vec![0; 8 * MIB]].concat();
    assert_eq!(outcome(&[Layer::gzip(&padded)], |c| c.limits.layer_bytes = 1 << 20), large);
    let long_header = Tar::default().pax(&record(b"comment", &vec![b'x'; MIB])).file("f", b"");
    assert_eq!(tar_outcome(long_header), large);
}

#[test]
fn too_many_entries_names_levels_links_and_attributes_are_refused() {
    let large = Some(RefusalCode::ImageTooLarge);
    let many = (0..200).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), b"")).end();
    let many = Layer::plain(many);
    assert_eq!(outcome(from_ref(&many), |c| c.limits.entries = 100), large);
    assert_eq!(outcome(from_ref(&many), |c| c.limits.names_bytes = 300), large);
    assert_eq!(outcome(&[many], |_| {}), None);
    // Implied directories are entries, too.
    let implied = Layer::plain(Tar::default().file(&"d/".repeat(100), b"").end());
    assert!(outcome(&[implied], |c| c.limits.entries = 50).is_some());
    let implied = Layer::plain(Tar::default().file(&format!("{}f", "d/".repeat(100)), b"").end());
    assert_eq!(outcome(&[implied], |c| c.limits.entries = 50), large);
    assert_eq!(tar_outcome(Tar::default().dir(&"d/".repeat(129))), large);
    assert_eq!(tar_outcome(Tar::default().file(&"n".repeat(256), b"")), large);
    assert_eq!(tar_outcome(Tar::default().file(&"long/".repeat(1000), b"")), large);
    let links =
        (0..20).fold(Tar::default().file("f", b""), |tar, n| tar.link(&format!("l{n}"), "f"));
    assert_eq!(outcome(&[Layer::plain(links.end())], |c| c.limits.hard_links = 10), large);
    let attributes: Vec<u8> =
        (0..40).flat_map(|n| record(format!("SCHILY.xattr.user.a{n}").as_bytes(), b"v")).collect();
    assert_eq!(tar_outcome(Tar::default().pax(&attributes).file("f", b"")), large);
    let value = record(b"SCHILY.xattr.user.large", &vec![b'v'; 60 << 10]);
    assert_eq!(tar_outcome(Tar::default().pax(&value).file("f", b"")), large);
}

#[test]
fn layouts_are_read_below_their_roots_only() {
    let place = Place::new();
    let blobs = image(&[Layer::plain(Tar::default().end())]);
    let good = place.layout("good", &blobs);
    let elsewhere = place.dir.path().join("elsewhere");
    std::fs::rename(place.dir.path().join("layouts/good"), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, place.dir.path().join("layouts/good")).unwrap();
    let store = place.store();
    for name in [good.name, format!("oci:{}", elsewhere.display()), "oci:/etc".to_owned()] {
        let refusal = store.prepare(&request(&name, good.digest), &Stop::new()).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::ImageFetchFailed, "{name}");
    }
    // A link or a fifo instead of a blob is neither followed nor waited for.
    let linked = place.layout("linked", &blobs);
    let blob = place.dir.path().join("layouts/linked/blobs/sha256").join(linked.digest.hex());
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink(elsewhere.join("blobs/sha256").join(linked.digest.hex()), &blob)
        .unwrap();
    assert_eq!(
        store.prepare(&linked, &Stop::new()).unwrap_err().code,
        RefusalCode::ImageFetchFailed
    );
    std::fs::remove_file(&blob).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &blob,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(
        store.prepare(&linked, &Stop::new()).unwrap_err().code,
        RefusalCode::ImageFetchFailed
    );
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, "{}").unwrap();
    assert_eq!(
        store.prepare(&linked, &Stop::new()).unwrap_err().code,
        RefusalCode::ImageDigestMismatch
    );
}
