//! The loops behind the calls: leasing, ending what has run out, keeping house.
//!
//! Leasing waits for a bell, not for a clock: a submission, a node that came or freed something, a
//! quota that rose, or the end of a retry's wait. What runs out by the clock is swept once a second.

use std::sync::Arc;
use std::time::Duration;

use nimbus_api::RefusalCode;
use nimbus_api::error::Chain;

use crate::app::{App, stopped};
use crate::limits::{GRACE_SECONDS, HOUSEKEEPING, RETURN_SECONDS, SKEW_SECONDS, SWEEP};
use crate::pki::ServerIdentity;
use crate::session::Command;
use crate::steps::{Now, Steps};
use crate::store::{ClockRecord, LeaseTerms, Lost, StoreError};

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
pub(crate) async fn sweep(app: Arc<App>, boot_id: String) {
    let mut stop = app.stop.clone();
    let Some(mut steps) = begin(&app, boot_id, &mut stop).await else { return };
    loop {
        if let Some(record) = steps.unrecorded() {
            match app.store.note_clock(record.clone(), app.clock.unix_millis()).await {
                Ok(()) => steps.note(record),
                Err(error) => tracing::error!(error = %Chain(&error), "cannot record the clock"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = stopped(&mut stop) => return,
        }
        let now = now(&app);
        if steps.see(now) {
            tracing::warn!("the clock was set forward: no lease is ended for as long as one lasts");
        }
        if !steps.may_end(now.boottime) {
            continue;
        }
        if let Err(error) = sweep_once(&app, now.unix_ms).await {
            tracing::error!(error = %Chain(&error), "cannot end leases that ran out");
        }
    }
}

fn now(app: &App) -> Now {
    Now { boottime: app.clock.boottime(), unix_ms: app.clock.unix_millis() }
}

/// Compares the clocks with what was recorded of them; none when the service stops before it can.
async fn begin(
    app: &App,
    boot_id: String,
    stop: &mut tokio::sync::watch::Receiver<bool>,
) -> Option<Steps> {
    let returned = app.clock.boottime().plus_seconds(RETURN_SECONDS.unsigned_abs());
    loop {
        match recorded(app).await {
            Ok((record, longest)) => {
                // Leases may have been made by a configuration that let them live longer.
                let life = longest.unwrap_or(0).max(u64::from(app.terms.ttl_seconds));
                let wait = life.saturating_add(GRACE_SECONDS.unsigned_abs());
                let waits = (returned, wait, longest.is_some());
                return Some(Steps::begin(record, boot_id, now(app), waits));
            }
            Err(error) => tracing::error!(error = %Chain(&error), "cannot read the clock's record"),
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = stopped(stop) => return None,
        }
    }
}

async fn recorded(app: &App) -> Result<(Option<ClockRecord>, Option<u64>), StoreError> {
    Ok((app.store.clock().await?, app.store.longest_life_seconds().await?))
}

async fn sweep_once(app: &App, now_ms: i64) -> Result<(), StoreError> {
    let before_ms = now_ms.saturating_sub((GRACE_SECONDS + SKEW_SECONDS) * 1000);
    if !app.store.any_due(before_ms).await? {
        return Ok(());
    }
    for Lost { lease_id, job, node } in app.store.expire_due(before_ms, now_ms).await? {
        tracing::warn!(job, node, "the lease ran out without a word from its node");
        // Should it be here all the same, it is not to go on with what may be given to another.
        app.registry.tell(&node, Command::Revoke { lease_id, code: RefusalCode::LeaseStale });
        app.changed(&job);
    }
    Ok(())
}

/// Rotates keys, renews the server's certificate, forgets old request ids and tickets, until the service stops.
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
        if let Err(error) = app.store.forget_tickets(app.clock.unix_millis()).await {
            tracing::error!(error = %Chain(&error), "cannot forget old tickets");
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
