//! `request_headers`, `response_headers`: fields that are set, added and removed.
//!
//! Neighbours: `config::check::policies` refuses names that frame or address the message.

use http::HeaderMap;

use crate::config::document::HeaderEdit;

/// Removes, then sets, then adds.
pub(super) fn edit(headers: &mut HeaderMap, edit: &HeaderEdit) {
    for name in &edit.remove {
        headers.remove(name);
    }
    for (name, value) in &edit.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &edit.add {
        headers.append(name.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn fields_are_removed_then_set_then_added() {
        let field = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let change = HeaderEdit {
            set: vec![field("x-set", "new"), field("x-gone", "back")],
            add: vec![field("x-set", "more")],
            remove: vec![HeaderName::from_static("x-gone")],
        };
        let mut headers: HeaderMap =
            [field("x-set", "old"), field("x-gone", "1"), field("x-kept", "1")].into_iter().collect();
        edit(&mut headers, &change);
        assert_eq!(headers.get_all("x-set").iter().collect::<Vec<_>>(), ["new", "more"]);
        assert_eq!(
            (&headers["x-gone"], &headers["x-kept"]),
            (&"back".parse().unwrap(), &"1".parse().unwrap())
        );
    }
}
