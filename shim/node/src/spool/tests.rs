//! What the module above promises.

use super::*;
use nimbus_api::proto::node::v1::Finished;
use proptest::prelude::*;

fn event(lease: &str) -> Event {
    Event {
        lease_id: lease.to_owned(),
        job: "j".to_owned(),
        attempt: 1,
        kind: Some(Kind::Finished(Finished::default())),
        ..Event::default()
    }
}

fn sequence(spool: &Spool) -> Vec<u64> {
    let mut at = 0;
    std::iter::from_fn(|| {
        let next = spool.after(at)?;
        at = next.seq;
        Some(at)
    })
    .collect()
}

fn three(dir: &Path) -> PathBuf {
    let spool = Spool::open(dir).unwrap();
    for lease in ["l1", "l2", "l3"] {
        spool.append(event(lease)).unwrap();
    }
    segment_path(dir, 1)
}

#[test]
fn events_survive_a_restart_and_numbers_have_no_gaps() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path());
    let spool = Spool::open(dir.path()).unwrap();
    assert_eq!(sequence(&spool), [1, 2, 3]);
    spool.acknowledge(2).unwrap();
    assert_eq!(spool.append(event("l4")).unwrap(), 4);
    assert_eq!(sequence(&Spool::open(dir.path()).unwrap()), [3, 4]);
    spool.acknowledge(99).unwrap();
    assert_eq!(spool.waiting(), 0);
    assert_eq!(Spool::open(dir.path()).unwrap().append(event("l5")).unwrap(), 5);
}

#[test]
fn a_tail_torn_at_any_byte_loses_only_the_torn_event() {
    let dir = tempfile::tempdir().unwrap();
    let path = three(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let record = whole.len() / 3;
    assert_eq!(record * 3, whole.len(), "the test wants records of one length");
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let kept = u64::try_from(cut / record).unwrap();
        assert_eq!(sequence(&spool), (1..=kept).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!(spool.append(event("l9")).unwrap(), kept + 1);
        std::fs::remove_file(dir.path().join("acked")).ok();
    }
}

#[test]
fn a_tail_of_zeros_is_torn_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = three(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(&[0; 300]);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(sequence(&Spool::open(dir.path()).unwrap()), [1, 2, 3]);
}

proptest! {
    #[test]
    fn damage_is_never_read_as_an_event(at: prop::sample::Index, bit in 0_u8..8) {
        let dir = tempfile::tempdir().unwrap();
        let path = three(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        let index = at.index(bytes.len());
        let record = bytes.len() / 3;
        bytes[index] ^= 1 << bit;
        std::fs::write(&path, &bytes).unwrap();
        // Either it is an error, or what is read is the undamaged beginning.
        if let Ok(spool) = Spool::open(dir.path()) {
            let whole = u64::try_from(index / record).unwrap();
            prop_assert_eq!(sequence(&spool), (1..=whole).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_bytes_panic_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _unused = read_records(&bytes, 1);
    }
}

#[test]
fn damage_in_the_middle_stops_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let path = three(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEADER_BYTES + 2] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(Spool::open(dir.path()), Err(SpoolError::Damaged { .. })));
}

#[test]
fn acknowledged_segments_are_removed_and_the_last_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path()).unwrap();
    let mut long = event("l");
    long.job = "x".repeat(300_000);
    for _ in 0..9 {
        spool.append(long.clone()).unwrap();
    }
    assert!(list(dir.path()).unwrap().len() >= 3);
    spool.acknowledge(9).unwrap();
    assert_eq!(list(dir.path()).unwrap().len(), 1);
    drop(spool);
    let again = Spool::open(dir.path()).unwrap();
    assert_eq!(again.append(event("l")).unwrap(), 10);
}

#[test]
fn what_waits_is_known_by_lease() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path());
    let spool = Spool::open(dir.path()).unwrap();
    assert!(spool.holds("l2", true) && !spool.holds("l2", false) && !spool.holds("l9", true));
}

#[test]
fn a_failed_write_is_cut_off_and_the_next_one_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = three(dir.path());
    let spool = Spool::open(dir.path()).unwrap();
    // A descriptor that cannot be written to, after half a record has come through.
    let good = std::mem::replace(&mut spool.lock().open.file, File::open(&path).unwrap());
    assert!(spool.append(event("l4")).is_err());
    assert!(spool.is_full(), "new work would not be reported");
    spool.lock().open.file = good;
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"half").unwrap();
    assert_eq!(spool.append(event("l4")).unwrap(), 4);
    assert!(!spool.is_full());
    assert_eq!(sequence(&Spool::open(dir.path()).unwrap()), [1, 2, 3, 4]);
}
