//! Tells that the kernel killed for want of memory, when it does; at the init's exit it is looked at once
//! more, so that nothing is missed or told twice.

use std::sync::Arc;
use std::time::Duration;

use super::Context;
use super::container::Container;

/// The kernel wakes us when memory has run out, in version 1 before it has killed anybody: between looks
/// for that.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
const LOOKS_MAX: u32 = 50;

/// Watches until the init has ended. Armed before Create is answered.
pub(super) fn watch(context: Context, container: Arc<Container>) {
    let Ok(made) = container.made() else { return };
    let mut watch = match made.cgroup.oom_watch() {
        Ok(watch) => watch,
        Err(error) => {
            // It is told late then, at the exit.
            context.log.warn(format_args!("cannot watch for a want of memory: {error}"));
            return;
        }
    };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                woken = watch.woken() => if woken.is_err() { return },
                _exit = container.wait() => return,
            }
            for _look in 0..LOOKS_MAX {
                let told = container.tell_ooms(&context.events);
                // After telling too: many at once are one.
                tokio::time::sleep(LOOK_PAUSE).await;
                if told {
                    break;
                }
            }
        }
    });
}
