//! The loops behind the calls: leasing, ending what has run out, keeping house.
//!
//! Leasing waits for a bell, not for a clock: a submission, a node that came or freed something, a
//! quota that rose, or the end of a retry's wait. What runs out by the clock is swept once a second.

use std::sync::Arc;
use std::time::Duration;

use nimbus_api::clock::BootNanos;
use nimbus_api::error::Chain;

use crate::app::{App, stopped};
use crate::limits::{GRACE_SECONDS, HOUSEKEEPING, RETURN_SECONDS, SKEW_SECONDS, SWEEP};
use crate::pki::ServerIdentity;
use crate::session::Command;
use crate::store::{LeaseTerms, StoreError};

/// Nanoseconds in a millisecond.
const NANOS_PER_MILLISECOND: u64 = 1_000_000;
/// A wall clock that gains more than this between two sweeps was set.
const STEP_MS: i64 = 1000;
/// Wait after the store failed.
const FAILED_WAIT_MS: i64 = 1000;

/// Leases jobs to nodes until the service stops.
pub(crate) async fn dispatch(app: Arc<App>) {
    let mut stop = app.stop.clone();
    let mut cursor = String::new();
    loop {
        let next_ms = match lease_all(&app, &mut cursor).await {
            Ok(next_ms) => next_ms,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot lease");
                Some(app.clock.unix_millis().saturating_add(FAILED_WAIT_MS))
            }
        };
        let wait = async {
            match next_ms {
                Some(next_ms) => {
                    let wait_ms = next_ms.saturating_sub(app.clock.unix_millis()).max(1);
                    let wait = Duration::from_millis(u64::try_from(wait_ms).unwrap_or(1));
                    tokio::time::sleep(wait).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = app.dispatch.notified() => {}
            () = wait => {}
            () = stopped(&mut stop) => return,
        }
    }
}

/// Leases all that can be leased; when to look again at the latest.
async fn lease_all(app: &App, cursor: &mut String) -> Result<Option<i64>, StoreError> {
    loop {
        let now_ms = app.clock.unix_millis();
        let (waiting, next_ms) = app.store.waiting(now_ms).await?;
        let offers = app.registry.offers(app.clock.boottime());
        if !waiting || offers.is_empty() {
            return Ok(next_ms);
        }
        let terms = LeaseTerms {
            ttl_seconds: app.terms.ttl_seconds,
            policy: app.leased_policy(),
            cursor: cursor.clone(),
            now_ms,
        };
        let batch = app.store.lease(offers, terms).await?;
        cursor.clone_from(&batch.cursor);
        for (node, claims) in batch.leased {
            app.watchers.ring(claims.job.as_str());
            app.registry.tell(&node, Command::Grant(Box::new(claims)));
        }
        if !batch.more {
            return Ok(batch.next_ms);
        }
    }
}

/// Ends leases that ran out without a word, until the service stops.
pub(crate) async fn sweep(app: Arc<App>) {
    let mut stop = app.stop.clone();
    let returned = app.clock.boottime().plus_seconds(RETURN_SECONDS.unsigned_abs());
    let mut steps = Steps::new(app.clock.boottime(), app.clock.unix_millis(), returned);
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = stopped(&mut stop) => return,
        }
        let (boottime, unix_ms) = (app.clock.boottime(), app.clock.unix_millis());
        if steps.see(boottime, unix_ms, app.terms.ttl_seconds) {
            tracing::warn!("the clock was set forward: no lease is ended for as long as one lasts");
        }
        if let Err(error) = sweep_once(&app, steps.not_before).await {
            tracing::error!(error = %Chain(&error), "cannot end leases that ran out");
        }
    }
}

/// Notices that the wall clock was set forward. Leases end by it here, but on the nodes by a clock that
/// nobody can set (rule 10): until the longest of them has ended there, none is taken for ended here,
/// or two attempts of a job would run at once.
#[derive(Debug)]
struct Steps {
    /// Wall clock minus boot clock, milliseconds.
    offset_ms: i64,
    not_before: BootNanos,
}

impl Steps {
    fn new(boottime: BootNanos, unix_ms: i64, not_before: BootNanos) -> Self {
        Self { offset_ms: Self::offset_ms(boottime, unix_ms), not_before }
    }

    fn offset_ms(boottime: BootNanos, unix_ms: i64) -> i64 {
        let since_boot_ms = i64::try_from(boottime.0 / NANOS_PER_MILLISECOND).unwrap_or(i64::MAX);
        unix_ms.saturating_sub(since_boot_ms)
    }

    /// Whether the clock was set forward since the last look; then ending leases waits.
    fn see(&mut self, boottime: BootNanos, unix_ms: i64, ttl_seconds: u32) -> bool {
        let offset_ms = Self::offset_ms(boottime, unix_ms);
        let stepped = offset_ms.saturating_sub(self.offset_ms) > STEP_MS;
        self.offset_ms = offset_ms;
        if stepped {
            let wait = u64::from(ttl_seconds).saturating_add(GRACE_SECONDS.unsigned_abs());
            self.not_before = self.not_before.max(boottime.plus_seconds(wait));
        }
        stepped
    }
}

async fn sweep_once(app: &App, not_before: BootNanos) -> Result<(), StoreError> {
    if app.clock.boottime() < not_before {
        return Ok(());
    }
    let now_ms = app.clock.unix_millis();
    let before_ms = now_ms.saturating_sub((GRACE_SECONDS + SKEW_SECONDS) * 1000);
    if !app.store.any_due(before_ms).await? {
        return Ok(());
    }
    for job in app.store.expire_due(before_ms, now_ms).await? {
        tracing::warn!(job, "the lease ran out without a word from its node");
        app.changed(&job);
    }
    Ok(())
}

/// Rotates keys, renews the server's certificate, forgets old request ids, until the service stops.
pub(crate) async fn keep_house(app: Arc<App>, identity: Arc<ServerIdentity>) {
    let mut stop = app.stop.clone();
    loop {
        tokio::select! {
            () = tokio::time::sleep(HOUSEKEEPING) => {}
            () = stopped(&mut stop) => return,
        }
        if let Err(error) = rotate(&app).await {
            tracing::error!(error, "cannot rotate the hot key");
        }
        match identity.renew(&app.ca, app.clock.unix()) {
            Ok(true) => tracing::info!("renewed the server's certificate"),
            Ok(false) => {}
            Err(error) => tracing::error!(error = %Chain(&error), "cannot renew the certificate"),
        }
        if let Err(error) = app.store.forget_requests(app.clock.unix_millis()).await {
            tracing::error!(error = %Chain(&error), "cannot forget old request ids");
        }
    }
}

async fn rotate(app: &App) -> Result<(), String> {
    let store = |error: StoreError| Chain(&error).to_string();
    let (generation, _serial) = app.store.key_state().await.map_err(store)?;
    let prepared = app.keys.prepare(generation, app.clock.unix());
    let Some(rotation) = prepared.map_err(|error| Chain(&error).to_string())? else {
        return Ok(());
    };
    // Told before it signs: commands keep their order, so no node sees a lease before its key.
    app.registry.tell_all(&Command::KeySet(app.keys.envelope()));
    app.keys.activate(rotation);
    tracing::info!(serial = app.keys.serial(), "rotated the hot key");
    app.store.note_key_set(app.keys.serial(), app.clock.unix_millis()).await.map_err(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: u32 = 900;

    fn at(seconds: u64) -> BootNanos {
        BootNanos(0).plus_seconds(seconds)
    }

    #[test]
    fn a_clock_set_forward_ends_no_lease_that_a_node_still_runs() {
        let mut steps = Steps::new(at(100), 1_000_000, at(130));
        assert!(!steps.see(at(101), 1_001_000, TTL), "a second is a second");
        assert_eq!(steps.not_before, at(130));
        assert!(steps.see(at(102), 4_602_000, TTL), "an hour is not");
        assert_eq!(steps.not_before, at(102 + 900).plus_seconds(GRACE_SECONDS.unsigned_abs()));
        let before = steps.not_before;
        assert!(!steps.see(at(103), 1_003_000, TTL), "set back, leases end late, which is safe");
        assert_eq!(steps.not_before, before);
    }
}
