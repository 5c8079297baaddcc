//! `policies`: what routes do with requests beside sending them on.
//!
//! Invariant: a policy with a problem is kept as far as it could be read, so that routes that name it are not
//! reported as well.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderName, HeaderValue, Method, header};

use super::{
    super::{
        address,
        document::{
            Budget, BudgetKey, Coding, Compress, Cors, HeaderEdit, Origin, Policy, PolicyKind,
            RequestIdPolicy, Service, TrustId,
        },
        field::{Field, Keys, Section, written},
        problem::shown,
    },
    TIMEOUT_MAX, accept, auth, items, networks, undeclared,
};

pub(super) const POLICY: Keys = Keys {
    known: &[
        "request_id",
        "ip_allow",
        "ip_deny",
        "cors",
        "max_in_flight",
        "rate_limit",
        "jwt",
        "api_key",
        "basic_auth",
        "forward_auth",
        "body_limit",
        "replace_path",
        "strip_prefix",
        "add_prefix",
        "request_headers",
        "response_headers",
        "compress",
    ],
    later: &[],
};
pub(super) const REQUEST_ID: Keys = Keys { known: &["header", "trust"], later: &[] };
pub(super) const CORS: Keys = Keys {
    known: &[
        "allowed_origins",
        "allowed_methods",
        "allowed_headers",
        "exposed_headers",
        "credentials",
        "max_age",
    ],
    later: &[],
};
pub(super) const RATE_LIMIT: Keys = Keys { known: &["budget"], later: &[] };
pub(super) const REPLACE_PATH: Keys = Keys { known: &["regex", "with"], later: &[] };
pub(super) const COMPRESS: Keys = Keys { known: &["codings", "min_bytes", "types"], later: &[] };
pub(super) const BUDGET: Keys =
    Keys { known: &["rate", "per", "burst", "key", "scope"], later: &["on_partition"] };
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

/// A budget is spent a million times a second at most: its interval is whole nanoseconds, rounded up.
const RATE_PER_SECOND_MAX: u128 = 1_000_000;
/// Ranges of what a day of requests and a bucket of them can be.
const RATE_MAX: u64 = 1_000_000_000;
const BURST_MAX: u64 = 1_000_000_000;
/// Nothing is compiled to more than this.
const REGEX_BYTES_MAX: usize = 256 << 10;

pub(super) fn policies(
    top: &Section<'_>,
    services: &BTreeMap<String, Service>,
    budgets: &BTreeMap<String, Budget>,
) -> BTreeMap<String, Policy> {
    let Some(field) = top.get("policies") else { return BTreeMap::new() };
    let named = field.named().unwrap_or_default();
    named.into_iter().map(|(name, field)| (name.to_owned(), policy(&field, services, budgets))).collect()
}

fn policy(
    field: &Field<'_>,
    services: &BTreeMap<String, Service>,
    budgets: &BTreeMap<String, Budget>,
) -> Policy {
    let before = field.report.len();
    let mut kinds = Vec::new();
    if let Some(section) = field.section(POLICY) {
        let request_id = section.section("request_id", REQUEST_ID);
        kinds.extend(request_id.map(|section| PolicyKind::RequestId(request_id_policy(&section))));
        let cors = section.section("cors", CORS).and_then(|section| cors(&section));
        kinds.extend(cors.map(PolicyKind::Cors));
        let max = section.get("max_in_flight").and_then(|field| field.integer(1, 10_000_000));
        kinds.extend(max.and_then(|max| usize::try_from(max).ok()).map(PolicyKind::MaxInFlight));
        let budget = section.section("rate_limit", RATE_LIMIT);
        kinds.extend(budget.and_then(|section| budget_name(&section, budgets)).map(PolicyKind::RateLimit));
        let bytes = section.get("body_limit").and_then(|field| field.size(1, 1 << 50));
        kinds.extend(bytes.map(PolicyKind::BodyLimit));
        let replace = section.section("replace_path", REPLACE_PATH);
        kinds.extend(replace.and_then(|section| replace_path(&section)));
        let prefix = |key| section.get(key).and_then(prefix);
        kinds.extend(prefix("strip_prefix").map(PolicyKind::StripPrefix));
        kinds.extend(prefix("add_prefix").map(PolicyKind::AddPrefix));
        let compress = section.section("compress", COMPRESS);
        kinds.extend(compress.map(|section| PolicyKind::Compress(compression(&section))));
        let listed = |key| {
            let empty = ("the list is empty", "name an address or a range such as 10.0.0.0/8");
            Some(networks(&items(section.get(key)?, "addresses and ranges", empty)))
        };
        kinds.extend(listed("ip_allow").map(PolicyKind::IpAllow));
        kinds.extend(listed("ip_deny").map(PolicyKind::IpDeny));
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
            undeclared(&item, "policy", name, declared, "declare it under `policies`");
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

// === request_id ===

fn request_id_policy(section: &Section<'_>) -> RequestIdPolicy {
    let header = section
        .get("header")
        .and_then(|field| editable(field, field.text_as("the name of a header field")?, &[]));
    let trust = section.get("trust").and_then(|field| field.choice(&["anyone", "proxies", "nobody"]));
    RequestIdPolicy {
        header: header.unwrap_or(HeaderName::from_static("x-request-id")),
        trust: match trust {
            Some("proxies") => TrustId::Proxies,
            Some("nobody") => TrustId::Nobody,
            _ => TrustId::Anyone,
        },
    }
}

// === cors ===

fn cors(section: &Section<'_>) -> Option<Cors> {
    let Some(field) = section.get("allowed_origins") else {
        let suggestion = "add allowed_origins: [\"https://app.example.com\"]";
        section.field.problem("`allowed_origins` is missing", Some(suggestion.into()));
        return None;
    };
    let (any_origin, allowed_origins) = origins(field);
    let credentials = section.get("credentials").and_then(Field::boolean).unwrap_or(false);
    if credentials && any_origin {
        section.field.problem(
            "`credentials: true` with the origin `*` would let every site act as whoever visits it",
            Some("name the origins, or leave `credentials` out".into()),
        );
    }
    let names = |key| section.get(key).map(header_names).unwrap_or_default();
    Some(Cors {
        any_origin,
        allowed_origins,
        allowed_methods: section.get("allowed_methods").map(methods).unwrap_or_default(),
        allowed_headers: names("allowed_headers"),
        exposed_headers: names("exposed_headers"),
        credentials,
        max_age: section.get("max_age").and_then(|field| field.duration(Duration::ZERO, TIMEOUT_MAX)),
    })
}

/// Whether all are allowed, and those that are.
fn origins(field: &Field<'_>) -> (bool, Vec<Origin>) {
    let empty = ("the list is empty", "name an origin such as https://app.example.com, or \"*\" for all");
    let items = items(field, "origins", empty);
    let mut origins = Vec::with_capacity(items.len());
    let mut any = false;
    for item in items {
        let Some(text) = item.text_as("an origin such as https://app.example.com") else { continue };
        if text == "*" {
            any = true;
        } else {
            origins.extend(accept(&item, address::origin(text)));
        }
    }
    if any && !origins.is_empty() {
        field.problem("`*` allows the other origins as well", Some("keep `*` or name the origins".into()));
    }
    (any, origins)
}

fn methods(field: &Field<'_>) -> Vec<Method> {
    let mut methods = Vec::new();
    for item in field.list("methods").unwrap_or_default() {
        let Some(text) = item.text_as("a method such as GET") else { continue };
        match Method::from_bytes(text.as_bytes()) {
            Ok(method) => methods.push(method),
            Err(_) => item.problem(format!("`{}` is not a method", shown(text)), None),
        }
    }
    methods
}

fn header_names(field: &Field<'_>) -> Vec<HeaderName> {
    let mut names = Vec::new();
    for item in field.list("names of header fields").unwrap_or_default() {
        let Some(text) = item.text_as("the name of a header field") else { continue };
        names.extend(header_name(&item, text));
    }
    names
}

// === rate_limit, budgets ===

fn budget_name(section: &Section<'_>, declared: &BTreeMap<String, Budget>) -> Option<String> {
    let Some(field) = section.get("budget") else {
        let suggestion = "add budget: with the name of one under `budgets`";
        section.field.problem("`budget` is missing", Some(suggestion.into()));
        return None;
    };
    let name = field.name()?;
    if !declared.contains_key(name) {
        undeclared(field, "budget", name, declared, "declare it under `budgets`");
    }
    Some(name.to_owned())
}

/// A budget with a problem is kept with some values, so that policies that name it are not reported as well.
pub(super) fn budgets(top: &Section<'_>) -> BTreeMap<String, Budget> {
    let Some(field) = top.get("budgets") else { return BTreeMap::new() };
    let named = field.named().unwrap_or_default();
    named.into_iter().map(|(name, field)| (name.to_owned(), budget(&field))).collect()
}

fn budget(field: &Field<'_>) -> Budget {
    let mut budget = Budget { rate: 1, per: Duration::from_secs(1), burst: 1, key: BudgetKey::Global };
    let Some(section) = field.section(BUDGET) else { return budget };
    match section.get("rate") {
        Some(field) => budget.rate = field.integer(1, RATE_MAX).unwrap_or(budget.rate),
        None => field.problem("`rate` is missing", Some("add rate: 100".into())),
    }
    let per = section.get("per").and_then(|field| field.duration(Duration::from_millis(1), TIMEOUT_MAX));
    budget.per = per.unwrap_or(budget.per);
    if u128::from(budget.rate) * 1_000_000_000 > RATE_PER_SECOND_MAX * budget.per.as_nanos() {
        section.field.problem(
            format!("{} in {} is more than a million a second", budget.rate, written(budget.per)),
            Some("so many need no limit: leave it out".into()),
        );
    }
    let burst = section.get("burst").and_then(|field| field.integer(1, BURST_MAX));
    budget.burst = burst.unwrap_or(budget.rate);
    if let Some(key) = section.get("key").and_then(budget_key) {
        budget.key = key;
    }
    let node = match section.get("scope") {
        Some(field) => field.choice(&["cluster", "node"]).map(|scope| (field, scope == "node")),
        None => Some((&section.field, false)),
    };
    if let Some((field, false)) = node {
        field.problem(
            "`scope: cluster`, which is the default, is not supported by this build yet",
            Some("write scope: node, so that each node counts for itself".into()),
        );
    }
    budget
}

fn budget_key(field: &Field<'_>) -> Option<BudgetKey> {
    let text = field.text_as("global, client_ip, header:NAME, claim:NAME or route")?;
    match text.split_once(':') {
        None if text == "global" => return Some(BudgetKey::Global),
        None if text == "client_ip" => return Some(BudgetKey::ClientAddress),
        None if text == "route" => return Some(BudgetKey::Route),
        Some(("header", name)) => return header_name(field, name).map(BudgetKey::Header),
        Some(("claim", name)) if !name.is_empty() => return Some(BudgetKey::Claim(name.to_owned())),
        _ => {}
    }
    let suggestion =
        match field.report.nearest(text, ["global", "client_ip", "route", "header:NAME", "claim:NAME"]) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write global, client_ip, header:NAME, claim:NAME or route".into(),
        };
    field.problem(format!("`{}` is not a key of a budget", shown(text)), Some(suggestion));
    None
}

// === replace_path, strip_prefix, add_prefix ===

/// A path that others are put below or taken from.
fn prefix(field: &Field<'_>) -> Option<String> {
    let text = field.text_as("a path such as /v1")?;
    accept(field, address::path(text, false))?;
    if let Some(prefix) = text.strip_suffix('/') {
        let suggestion = match prefix {
            "" => "leave it out".to_owned(),
            prefix => format!("write \"{}\"", shown(prefix)),
        };
        field.problem(format!("the prefix `{}` ends with `/`", shown(text)), Some(suggestion));
        return None;
    }
    Some(text.to_owned())
}

fn replace_path(section: &Section<'_>) -> Option<PolicyKind> {
    for key in ["regex", "with"] {
        if section.get(key).is_none() {
            let suggestion = "write { regex: \"^/old/(.*)$\", with: \"/new/$1\" }";
            section.field.problem(format!("`{key}` is missing"), Some(suggestion.into()));
        }
    }
    let (regex, with) = (section.get("regex")?, section.get("with")?);
    let text = regex.text_as("a regular expression")?;
    let built = regex::RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
    if let Err(error) = built {
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
        regex.problem(format!("`{}` is not a regular expression: {reason}", shown(text)), None);
        return None;
    }
    let new = with.text_as("a path such as /new/$1")?;
    // Groups hold what a path holds; nothing else may come in.
    if let Some(c) = new.chars().find(|c| !c.is_ascii_graphic() || "?#\"<>\\^`|".contains(*c)) {
        let c = shown(&c.to_string());
        with.problem(format!("`{}` has the character `{c}`, which no path has", shown(new)), None);
        return None;
    }
    Some(PolicyKind::ReplacePath { regex: text.to_owned(), with: new.to_owned() })
}

// === compress ===

fn compression(section: &Section<'_>) -> Compress {
    let default = Compress::default();
    let codings = section.get("codings").map(codings).filter(|codings| !codings.is_empty());
    let types = section.get("types").map(media_types).filter(|types| !types.is_empty());
    let min_bytes = section.get("min_bytes").and_then(|field| field.size(0, 1 << 30));
    Compress {
        codings: codings.unwrap_or(default.codings),
        min_bytes: min_bytes.unwrap_or(default.min_bytes),
        types: types.unwrap_or(default.types),
    }
}

fn codings(field: &Field<'_>) -> Vec<Coding> {
    let mut codings = Vec::new();
    for item in field.list("codings").unwrap_or_default() {
        let coding = match item.choice(&["zstd", "br", "gzip"]) {
            Some("zstd") => Coding::Zstd,
            Some("br") => Coding::Brotli,
            Some(_) => Coding::Gzip,
            None => continue,
        };
        if codings.contains(&coding) {
            item.problem(format!("`{}` is in the list already", coding.name()), Some("remove it".into()));
        } else {
            codings.push(coding);
        }
    }
    codings
}

fn media_types(field: &Field<'_>) -> Vec<String> {
    let mut types = Vec::new();
    for item in field.list("media types").unwrap_or_default() {
        let Some(text) = item.text_as("a media type such as text/html or text/*") else { continue };
        let stars = text.matches('*').count();
        let is_type = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/+-._*".contains(&b));
        if !is_type || stars > 1 || (stars == 1 && !text.starts_with('*') && !text.ends_with('*')) {
            let suggestion = "write one such as text/html, text/* or *+json";
            item.problem(format!("`{}` is not a media type", shown(text)), Some(suggestion.into()));
        } else {
            types.push(text.to_ascii_lowercase());
        }
    }
    types
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
