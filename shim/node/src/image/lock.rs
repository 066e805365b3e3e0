//! One lock a digest, held by at most one thread; others wait, but not for ever.
//!
//! The table's own mutex is held for a lookup only, never over I/O.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use nimbus_api::{Digest, Refusal, RefusalCode};

use super::limits::Deadline;

#[derive(Debug, Default)]
pub(super) struct DigestLocks {
    held: Mutex<HashSet<Digest>>,
    freed: Condvar,
}

/// Frees its digest when dropped.
#[derive(Debug)]
pub(super) struct DigestGuard<'a> {
    locks: &'a DigestLocks,
    digest: Digest,
}

impl DigestLocks {
    pub(super) fn lock(
        &self,
        digest: Digest,
        deadline: &Deadline,
    ) -> Result<DigestGuard<'_>, Refusal> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut held, waited) = self
            .freed
            .wait_timeout_while(held, deadline.remaining(), |held| held.contains(&digest))
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(Refusal::with(
                RefusalCode::ImagePreparing,
                format!("{digest} is being prepared for somebody else"),
            ));
        }
        held.insert(digest);
        drop(held);
        Ok(DigestGuard { locks: self, digest })
    }
}

impl Drop for DigestGuard<'_> {
    fn drop(&mut self) {
        self.locks.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
        self.locks.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_digest_makes_others_wait_and_then_refuses_them() {
        let locks = DigestLocks::default();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let far = Deadline::after(60);
        let held = locks.lock(a, &far).unwrap();
        let refused = locks.lock(a, &Deadline::after(0)).unwrap_err();
        assert_eq!(refused.code, RefusalCode::ImagePreparing);
        drop(locks.lock(b, &far).unwrap());
        drop(held);
        drop(locks.lock(a, &far).unwrap());
    }
}
