//! `policies`: what routes do with requests beside sending them on.
//!
//! Invariant: a policy with a problem is kept as far as it could be read, so that routes that name it are not
//! reported as well.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, header};

use super::{
    super::{
        address,
        document::{HeaderEdit, IpNetwork, Policy, PolicyKind, Service},
        field::{Field, Keys, Section},
        problem::shown,
        yaml,
    },
    accept, auth,
};

pub(super) const POLICY: Keys = Keys {
    known: &[
        "ip_allow",
        "ip_deny",
        "jwt",
        "api_key",
        "basic_auth",
        "forward_auth",
        "request_headers",
        "response_headers",
    ],
    later: &[
        "rate_limit",
        "cors",
        "strip_prefix",
        "add_prefix",
        "replace_path",
        "body_limit",
        "compress",
        "request_id",
        "max_in_flight",
    ],
};
pub(super) const HEADER_EDIT: Keys = Keys { known: &["set", "add", "remove"], later: &[] };

/// Fields that frame a message, address it or concern one hop only: the gateway's alone.
const NOT_TO_BE_EDITED: [HeaderName; 12] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

pub(super) fn policies(top: &Section<'_>, services: &BTreeMap<String, Service>) -> BTreeMap<String, Policy> {
    let Some(field) = top.get("policies") else { return BTreeMap::new() };
    let named = field.named().unwrap_or_default();
    named.into_iter().map(|(name, field)| (name.to_owned(), policy(&field, services))).collect()
}

fn policy(field: &Field<'_>, services: &BTreeMap<String, Service>) -> Policy {
    let before = field.report.len();
    let mut kinds = Vec::new();
    if let Some(section) = field.section(POLICY) {
        let networks = |key| section.get(key).map(networks);
        kinds.extend(networks("ip_allow").map(PolicyKind::IpAllow));
        kinds.extend(networks("ip_deny").map(PolicyKind::IpDeny));
        let kind = |key, keys| section.section(key, keys);
        kinds.extend(kind("jwt", auth::JWT).and_then(|section| auth::jwt(&section)).map(PolicyKind::Jwt));
        kinds.extend(
            kind("api_key", auth::API_KEY)
                .and_then(|section| auth::api_key(&section))
                .map(PolicyKind::ApiKey),
        );
        kinds.extend(
            kind("basic_auth", auth::BASIC_AUTH)
                .and_then(|section| auth::basic_auth(&section))
                .map(PolicyKind::BasicAuth),
        );
        kinds.extend(
            kind("forward_auth", auth::FORWARD_AUTH)
                .and_then(|section| auth::forward_auth(&section, services))
                .map(PolicyKind::ForwardAuth),
        );
        let edit = |key, may_set| Some(header_edit(&section.section(key, HEADER_EDIT)?, may_set));
        kinds.extend(edit("request_headers", &[header::HOST]).map(PolicyKind::RequestHeaders));
        kinds.extend(edit("response_headers", &[]).map(PolicyKind::ResponseHeaders));
    }
    if kinds.is_empty() && field.report.len() == before {
        field.problem("the policy does nothing", Some("give it a kind, or remove it".into()));
    }
    Policy { kinds }
}

/// The policies that a route names; each must be there, and kinds that cannot add up occur once.
pub(super) fn route_policies(field: &Field<'_>, declared: &BTreeMap<String, Policy>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for item in field.list("names of policies").unwrap_or_default() {
        let Some(name) = item.text_as("the name of a policy") else { continue };
        let Some((name, policy)) = declared.get_key_value(name) else {
            let suggestion = match item.report.nearest(name, declared.keys().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "declare it under `policies`".into(),
            };
            item.problem(format!("there is no policy `{}`", shown(name)), Some(suggestion));
            continue;
        };
        if names.contains(name) {
            item.problem(format!("`{name}` is in the list already"), Some("remove it".into()));
            continue;
        }
        for kind in policy.kinds.iter().filter(|kind| !kind.adds_up()) {
            if let Some(other) = seen.insert(kind.name(), name) {
                item.problem(
                    format!("`{name}` has `{}`, which the route has of `{other}` already", kind.name()),
                    Some("a route has it once: keep one of them".into()),
                );
            }
        }
        names.push(name.clone());
    }
    names
}

// === ip_allow, ip_deny ===

fn networks(field: &Field<'_>) -> Vec<IpNetwork> {
    let items = field.list("addresses and ranges").unwrap_or_default();
    if items.is_empty() && matches!(field.node.value, yaml::Value::List(_)) {
        field.problem("the list is empty", Some("name an address or a range such as 10.0.0.0/8".into()));
    }
    let mut networks = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = item.text_as("an IP address or a range such as 10.0.0.0/8") else { continue };
        networks.extend(accept(&item, address::network(text)));
    }
    networks
}

// === request_headers, response_headers ===

/// `may_set` may be set although they are the gateway's: there is one of them afterwards as well.
fn header_edit(section: &Section<'_>, may_set: &[HeaderName]) -> HeaderEdit {
    let before = section.field.report.len();
    let fields = |key, may| section.get(key).map(|field| header_fields(field, may)).unwrap_or_default();
    let (set, add) = (fields("set", may_set), fields("add", &[]));
    let mut remove = Vec::new();
    if let Some(field) = section.get("remove") {
        for item in field.list("names of header fields").unwrap_or_default() {
            let Some(text) = item.text_as("the name of a header field") else { continue };
            remove.extend(editable(&item, text, &[]));
        }
    }
    let nothing = set.is_empty() && add.is_empty() && remove.is_empty();
    if nothing && section.field.report.len() == before {
        section.field.problem("it changes nothing", Some("add set, add or remove".into()));
    }
    HeaderEdit { set, add, remove }
}

/// A mapping from names of header fields to their values.
fn header_fields(field: &Field<'_>, may: &[HeaderName]) -> Vec<(HeaderName, HeaderValue)> {
    let mut fields = Vec::new();
    for (name, field) in field.texts("a mapping from header fields to values").unwrap_or_default() {
        let Some(text) = field.text_as("the value of a header field") else { continue };
        let Some(name) = editable(&field, name, may) else { continue };
        match HeaderValue::from_str(text) {
            Ok(value) => fields.push((name, value)),
            Err(_) => field.problem(
                format!("`{}` cannot be the value of a header field", shown(text)),
                Some("use visible ASCII characters, spaces and tabs".into()),
            ),
        }
    }
    fields
}

/// A field's name that policies may touch.
pub(super) fn editable(field: &Field<'_>, text: &str, may: &[HeaderName]) -> Option<HeaderName> {
    let name = header_name(field, text)?;
    if NOT_TO_BE_EDITED.contains(&name) && !may.contains(&name) {
        field.problem(
            format!("`{name}` frames or addresses the message and is the gateway's alone"),
            Some("remove it".into()),
        );
        return None;
    }
    Some(name)
}

/// The name of a header field.
pub(super) fn header_name(field: &Field<'_>, text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes());
    if name.is_err() {
        field.problem(format!("`{}` cannot be the name of a header field", shown(text)), None);
    }
    name.ok()
}

#[cfg(test)]
#[path = "../tests/check_policies.rs"]
mod tests;
