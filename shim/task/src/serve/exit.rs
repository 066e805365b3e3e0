//! How something ended, for however many wait for it. It is told once; what never ran is told as unknown,
//! so that nobody waits for ever.

use nimbus_api::clock::SystemClock;
use tokio::sync::watch;

use crate::process::STATUS_UNKNOWN;
use crate::state::Exit;

/// An end that may have been told.
#[derive(Debug, Default)]
pub(super) struct Ended(watch::Sender<Option<Exit>>);

impl Ended {
    /// Tells it.
    pub(super) fn tell(&self, exit: Exit) {
        self.0.send_replace(Some(exit));
    }

    /// Tells that it never ran, unless an end was told.
    pub(super) fn tell_unknown(&self) {
        self.0.send_if_modified(|exit| {
            let fresh = exit.is_none();
            exit.get_or_insert(Exit { status: STATUS_UNKNOWN, at: SystemClock.unix_nanos() });
            fresh
        });
    }

    /// Whether it was told.
    pub(super) fn is_told(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until it is told.
    pub(super) async fn wait(&self) -> Option<Exit> {
        let mut exit = self.0.subscribe();
        let ended = exit.wait_for(Option::is_some).await.ok()?;
        *ended
    }
}
