//! Recovery: a panic while one request is served is that request's failure, and nothing else's.
//!
//! Always on, around everything: it is no kind that a document names. A poll that panicked is not repeated: what
//! it held is dropped (its endpoint's connection with it), the client gets 500 and the connection is closed after
//! it, and the panic is counted under the reason `panic`. The message and place are in the log, by the process's
//! panic hook.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does the work; none if it panicked.
///
/// What a panic leaves behind belongs to the request, which ends here, or is made of cells that are never left
/// half changed across a call that could panic: so nobody sees a broken state.
pub(in super::super) fn catch<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    #[test]
    fn a_panic_ends_what_it_was_in_and_nothing_else() {
        let divide = |divisor: &mut i32| std::hint::black_box(2) / *divisor;
        assert_eq!([1, 0, 2].map(|mut divisor| catch(|| divide(&mut divisor))), [Some(2), None, Some(1)]);
    }

    #[test]
    fn what_an_exchange_held_is_dropped_when_it_panics() {
        let held = std::rc::Rc::new(());
        let holder = std::rc::Rc::clone(&held);
        let mut exchange = pin!(async move {
            let _held = holder;
            let mut polls = 0;
            poll_fn(|_| {
                polls += 1;
                assert!(polls < 2, "the second poll panics");
                Poll::<()>::Pending
            })
            .await;
        });
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(catch(|| exchange.as_mut().poll(&mut cx)), Some(Poll::Pending));
        assert_eq!(std::rc::Rc::strong_count(&held), 2);
        assert_eq!(catch(|| exchange.as_mut().poll(&mut cx)), None);
        assert_eq!(std::rc::Rc::strong_count(&held), 1);
    }
}
