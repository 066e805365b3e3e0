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

/// How a path ends that says that its directory is opaque.
const OPAQUE: &str = "/.wh..wh..opq";

fn is_whiteout(path: &str) -> bool {
    path.contains(".wh.")
}

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
    proptest::collection::vec(entry, 1..10).prop_map(|mut entries| {
        let gone: Vec<String> = entries
            .iter()
            .filter(|((_, name), _)| is_whiteout(name) && !name.ends_with(OPAQUE))
            .map(|((_, name), _)| name.replace(".wh.", ""))
            .collect();
        entries.retain(|((_, name), _)| {
            let emptied = name.strip_suffix(OPAQUE);
            emptied.is_none_or(|dir| !gone.iter().any(|gone| gone == dir))
        });
        entries.sort_by_key(|((_, name), _)| !is_whiteout(name));
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
            if KINDS[kind].is_file() && !is_whiteout(&name) {
                files.push(name.clone());
            }
            made.push((kind, name, target));
        }
        made
    })
}

/// A layer of these entries; each file says which layer and entry it is of.
fn honest_layer(at: usize, entries: &[(usize, (usize, String, String))]) -> Layer {
    let tar = entries.iter().fold(Tar::default(), |tar, (n, (kind, path, target))| {
        let kind = KINDS[*kind];
        let text = format!("{at} {n}");
        let data = if kind.is_file() && !is_whiteout(path) { text.as_bytes() } else { b"" };
        let mode = if at.is_multiple_of(2) { 0o750 } else { 0o711 };
        tar.raw(kind, path.as_bytes(), target.as_bytes(), mode, data)
    });
    Layer::plain(tar.end())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Of what is let in, the merged view is what umoci unpacks, and the same wherever in their layers
    /// the whiteouts stand.
    #[test]
    fn the_merged_view_is_what_another_unpacker_makes(
        layers in proptest::collection::vec((honest_entries(), any::<u64>()), 2..4),
    ) {
        let place = Place::new();
        let store = place.store();
        let numbered: Vec<(Vec<_>, u64)> = layers
            .into_iter()
            .map(|(entries, order)| (entries.into_iter().enumerate().collect(), order))
            .collect();
        let honest: Vec<Layer> = numbered
            .iter()
            .enumerate()
            .map(|(at, (entries, _))| honest_layer(at, entries))
            .collect();
        let shuffled: Vec<Layer> = numbered
            .into_iter()
            .enumerate()
            .map(|(at, (entries, order))| honest_layer(at, &scattered(entries, order)))
            .collect();
        let request = place.layout("x", &image(&honest));
        let again = place.layout("y", &image(&shuffled));
        let (outcome, other) =
            (store.prepare(&request, &Stop::new()), store.prepare(&again, &Stop::new()));
        if let Ok(measured) = outcome {
            let view = merged(&store, &measured);
            prop_assert_eq!(&view, &unpacked_by_umoci(&place, &request));
            let other = other.map_err(|refusal| TestCaseError::fail(refusal.to_string()))?;
            prop_assert_eq!(view, merged(&store, &other), "whiteouts elsewhere");
        } else {
            prop_assert!(other.is_err());
        }
    }
}

/// The same entries in the same order, but whiteouts anywhere between them.
fn scattered<T>(
    entries: Vec<(T, (usize, String, String))>,
    order: u64,
) -> Vec<(T, (usize, String, String))> {
    let (mut whiteouts, others): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|(_, (_, path, _))| is_whiteout(path));
    let mut scattered = Vec::new();
    for (at, other) in others.into_iter().enumerate() {
        scattered.push(other);
        if order >> (at % 64) & 1 == 1 {
            scattered.extend(whiteouts.pop());
        }
    }
    scattered.extend(whiteouts);
    scattered
}
