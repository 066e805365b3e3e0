//! Whatever a layer holds, nothing outside its own directory is touched.

use proptest::prelude::*;
use tar::EntryType;

use super::build::*;
use crate::image::*;

const PARTS: [&str; 9] = ["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq", "sentinel"];
const KINDS: [EntryType; 7] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::Fifo,
    EntryType::Char,
];

fn path() -> impl Strategy<Value = String> {
    let parts = proptest::collection::vec(0..PARTS.len(), 1..4);
    let absolute = any::<bool>();
    (parts, absolute).prop_map(|(parts, absolute)| {
        let parts: Vec<&str> = parts.into_iter().map(|at| PARTS[at]).collect();
        format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
    })
}

/// Mostly entries that are let in, so that sequences get far enough to matter.
fn entries() -> impl Strategy<Value = Vec<(usize, String, String)>> {
    let plain = "[abc](/[abc]){0,2}";
    let name = prop_oneof![8 => plain.prop_map(String::from), 1 => path()];
    let target = prop_oneof![
        plain.prop_map(String::from),
        path(),
        Just("OUTSIDE".to_owned()),
        Just("OUTSIDE/victim".to_owned()),
    ];
    let kind = prop_oneof![12 => 0..6usize, 1 => Just(6usize)];
    proptest::collection::vec((kind, name, target), 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_outside_a_layer_is_ever_touched(lower in entries(), upper in entries()) {
        let place = Place::new();
        let outside = place.dir.path().join("sentinel");
        let layer = |entries: &[(usize, String, String)]| {
            let tar = entries.iter().fold(Tar::default(), |tar, (kind, path, target)| {
                let target = target.replace("OUTSIDE", outside.to_str().unwrap());
                let kind = KINDS[*kind];
                let data: &[u8] = if kind.is_file() { b"overwritten" } else { b"" };
                tar.raw(kind, path.as_bytes(), target.as_bytes(), 0o777, data)
            });
            Layer::plain(tar.end())
        };
        let request = place.layout("x", &image(&[layer(&lower), layer(&upper)]));
        let before = place.outside();
        let store = place.store();
        let outcome = store.prepare(&request, &Stop::new());
        prop_assert_eq!(place.outside(), before);
        prop_assert_eq!(place.leftovers().0, Vec::<String>::new());
        match outcome {
            Ok(measured) => {
                prop_assert_eq!(store.measured(&request.name, &request.digest), Ok(measured));
            }
            Err(refusal) => {
                let expected = [RefusalCode::ImageLayerHostile, RefusalCode::ImageTooLarge];
                prop_assert!(expected.contains(&refusal.code), "{}", refusal);
            }
        }
    }
}

/// Entries of one layer as builders write them: whiteouts first (what they mean after other entries
/// is read in several ways, and so is a directory that is both gone and emptied), links to files
/// that are there, now and then something in the place of something else.
fn honest_entries() -> impl Strategy<Value = Vec<(usize, String, String)>> {
    let entry = prop_oneof![
        3 => "([abc]/){0,2}[abc]".prop_map(|name| (1, name)),
        8 => (0..6usize, "([abc]/){0,2}[xyz]"),
        1 => (0..6usize, "([abc]/){0,2}[abcxyz]"),
        2 => "([abc]/){0,2}\\.wh\\.[abcxyz]".prop_map(|name| (0, name)),
        1 => "[abc]/([abc]/)?\\.wh\\.\\.wh\\.\\.opq".prop_map(|name| (0, name)),
    ];
    let entry = (entry, any::<proptest::sample::Index>());
    let entries = proptest::collection::vec(entry, 1..10);
    entries.prop_map(|mut entries| {
        let gone: Vec<String> =
            entries.iter().map(|((_, name), _)| name.replace(".wh.", "")).collect();
        entries.retain(|((_, name), _)| {
            let emptied = name.strip_suffix("/.wh..wh..opq");
            emptied.is_none_or(|dir| !gone.iter().any(|gone| gone == dir))
        });
        entries.sort_by_key(|((_, name), _)| !name.contains(".wh."));
        let mut files: Vec<String> = Vec::new();
        let mut made = Vec::new();
        for ((mut kind, name), index) in entries {
            let mut target = "x".to_owned();
            if KINDS[kind] == EntryType::Link {
                match files.get(index.index(files.len().max(1))) {
                    Some(file) if *file != name => target.clone_from(file),
                    _ => kind = 0,
                }
            }
            if KINDS[kind].is_file() && !name.contains(".wh.") {
                files.push(name.clone());
            }
            made.push((kind, name, target));
        }
        made
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Of what is let in, the merged view is what umoci unpacks.
    #[test]
    fn the_merged_view_is_what_another_unpacker_makes(
        layers in proptest::collection::vec(honest_entries(), 2..4),
    ) {
        let place = Place::new();
        let layers: Vec<Layer> = layers
            .iter()
            .enumerate()
            .map(|(at, entries)| {
                let tar = entries.iter().enumerate().fold(
                    Tar::default(),
                    |tar, (n, (kind, path, target))| {
                        let kind = KINDS[*kind];
                        let text = format!("{at} {n}");
                        let whiteout = path.contains(".wh.");
                        let data = if kind.is_file() && !whiteout { text.as_bytes() } else { b"" };
                        let mode = if at % 2 == 0 { 0o750 } else { 0o711 };
                        tar.raw(kind, path.as_bytes(), target.as_bytes(), mode, data)
                    },
                );
                Layer::plain(tar.end())
            })
            .collect();
        let request = place.layout("x", &image(&layers));
        let store = place.store();
        if let Ok(measured) = store.prepare(&request, &Stop::new()) {
            let theirs = unpacked_by_umoci(&place, &request);
            prop_assert_eq!(merged(&store, &measured), theirs);
        }
    }
}
