//! `routes[].retries`: when a request is sent again.

use super::{
    super::{
        document::{Retries, RetryOn},
        field::{Field, Keys, Section},
        problem::shown,
    },
    TIMEOUT_MAX, count, items, scalar,
};

pub(super) const RETRIES: Keys = Keys { known: &["attempts", "on", "backoff", "budget_percent"], later: &[] };

/// Each could be another endpoint's load.
const ATTEMPTS_MAX: u64 = 10;

pub(super) fn retries(section: &Section<'_>) -> Retries {
    let default = Retries::default();
    let backoff =
        section.get("backoff").and_then(|field| field.duration(std::time::Duration::ZERO, TIMEOUT_MAX));
    Retries {
        attempts: count(section, "attempts", 1, ATTEMPTS_MAX, default.attempts),
        on: section.get("on").map_or(default.on, on),
        backoff: backoff.unwrap_or(default.backoff),
        budget_percent: count(section, "budget_percent", 0, 100, default.budget_percent),
    }
}

fn on(field: &Field<'_>) -> RetryOn {
    const WORDS: [&str; 6] = ["connect", "reset", "timeout", "502", "503", "504"];
    let mut on = RetryOn::default();
    let empty = ("the list is empty, so nothing would be sent again", "remove `retries`");
    for item in items(field, "failures", empty) {
        let word = scalar(&item).unwrap_or_default();
        let kind = match word {
            "connect" => &mut on.connect,
            "reset" => &mut on.reset,
            "timeout" => &mut on.timeout,
            "502" => &mut on.bad_gateway,
            "503" => &mut on.service_unavailable,
            "504" => &mut on.gateway_timeout,
            _ => {
                let suggestion =
                    item.report.nearest(word, WORDS).map(|near| format!("did you mean `{near}`?"));
                let expected = "expected `connect`, `reset`, `timeout`, `502`, `503` or `504`";
                item.problem(format!("{expected}, found `{}`", shown(word)), suggestion);
                continue;
            }
        };
        if std::mem::replace(kind, true) {
            item.problem(format!("`{word}` is in the list already"), Some("remove it".into()));
        }
    }
    on
}
