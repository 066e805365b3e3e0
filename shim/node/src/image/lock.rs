//! One lock a key, held by at most one thread; others wait, but not for ever.
//!
//! The table's own mutex is held for a lookup only, never over I/O. Who waits looks now and then
//! whether it is still wanted.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nimbus_api::{Refusal, RefusalCode};

use super::limits::Deadline;

/// Between two looks whether a wait was called off.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Locks<K> {
    held: Mutex<HashSet<K>>,
    freed: Condvar,
}

/// Frees its key when dropped.
#[derive(Debug)]
pub(super) struct Guard<'a, K: Eq + Hash> {
    locks: &'a Locks<K>,
    key: K,
}

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Self { held: Mutex::default(), freed: Condvar::new() }
    }
}

impl<K: Clone + Eq + Hash> Locks<K> {
    /// `what` is told to those who wait too long.
    pub(super) fn lock(
        &self,
        key: K,
        what: impl Display,
        deadline: &mut Deadline,
    ) -> Result<Guard<'_, K>, Refusal> {
        let begun = Instant::now();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.contains(&key) {
            let left = deadline.waiting_left().saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(Refusal::with(
                    RefusalCode::ImagePreparing,
                    format!("{what} is being prepared for somebody else"),
                ));
            }
            deadline.check_wanted()?;
            let pause = left.min(LOOK);
            let woken = self.freed.wait_timeout(held, pause);
            (held, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
        held.insert(key.clone());
        drop(held);
        deadline.waited(begun.elapsed());
        Ok(Guard { locks: self, key })
    }
}

impl<K: Eq + Hash> Drop for Guard<'_, K> {
    fn drop(&mut self) {
        self.locks.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.locks.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Stop;

    #[test]
    fn a_held_key_makes_others_wait_and_then_refuses_them() {
        let locks = Locks::default();
        let mut far = Deadline::after(60);
        let held = locks.lock("a", "a", &mut far).unwrap();
        let refused = locks.lock("a", "a", &mut Deadline::after(0)).unwrap_err();
        assert_eq!(refused.code, RefusalCode::ImagePreparing);
        drop(locks.lock("b", "b", &mut far).unwrap());
        drop(held);
        drop(locks.lock("a", "a", &mut far).unwrap());
    }

    #[test]
    fn a_wait_that_was_called_off_ends() {
        let locks = Locks::default();
        let _held = locks.lock("a", "a", &mut Deadline::after(60)).unwrap();
        let stop = Stop::new();
        let mut deadline = Deadline::unless(stop.clone(), 60);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| locks.lock("a", "a", &mut deadline).map(drop));
            // It waits by now, and has looked more than once.
            std::thread::sleep(LOOK * 3);
            assert!(!waiting.is_finished());
            stop.cancel();
            assert_eq!(waiting.join().unwrap().unwrap_err().code, RefusalCode::ImageFetchFailed);
        });
    }

    #[test]
    fn waiting_for_somebody_else_is_counted_as_that() {
        let locks = Locks::default();
        let held = locks.lock("a", "a", &mut Deadline::after(60)).unwrap();
        let mut deadline = Deadline::after(60);
        let wait = LOOK * 5;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| locks.lock("a", "a", &mut deadline).map(drop));
            std::thread::sleep(wait);
            drop(held);
            waiting.join().unwrap().unwrap();
        });
        assert!(deadline.waiting_left() < Duration::from_mins(1));
    }
}
