//! Turns a panic inside sled into an error: a damaged file trips its assertions.
//!
//! Invariant: only this thread's panics inside `quietly` are kept off standard error; every other one is
//! reported as before.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::Once,
};

use super::StorageError;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns; `Damaged` if it panics. Whoever gets that must not use the store any further.
pub(super) fn quietly<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                report(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result.unwrap_or_else(|panic| {
        let problem = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("it cannot be read");
        let problem = problem.lines().next().unwrap_or_default().to_owned();
        Err(StorageError::Damaged { path: path.to_owned(), problem })
    })
}
