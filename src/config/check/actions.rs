//! `service`, `split`, `redirect`, `respond`, `mirror`: what a route does with a request.

use std::collections::BTreeMap;

use super::{
    super::{
        address::Refusal,
        document::{Action, Mirror, Part, Redirect, Respond, Service, Share},
        field::{Field, Keys, Section},
        problem::shown,
    },
    accept,
    routes::is_token,
    service_name,
};

pub(super) const SHARE: Keys = Keys { known: &["service", "weight"], later: &[] };
pub(super) const REDIRECT: Keys = Keys { known: &["to", "status"], later: &[] };
pub(super) const RESPOND: Keys = Keys { known: &["status", "body", "content_type", "headers"], later: &[] };
pub(super) const MIRROR: Keys = Keys { known: &["service", "percent"], later: &[] };

const ACTIONS: [&str; 4] = ["service", "split", "redirect", "respond"];
/// Services of one split.
const SHARES_MAX: usize = 64;
const WEIGHT_MAX: u64 = 1_000_000;
/// Turns after which a split begins again: its weights' sum, divided by what divides all of them.
const TURNS_MAX: u64 = 10_000;
/// Bytes of a fixed answer's body. It is part of the document, which every node has in memory.
const BODY_BYTES_MAX: usize = 64 << 10;
const TO_BYTES_MAX: usize = 4 << 10;
const FIELDS_MAX: usize = 32;

/// The one action of a route.
pub(super) fn action(section: &Section<'_>, declared: &BTreeMap<String, Service>) -> Option<Action> {
    let written: Vec<&str> = ACTIONS.into_iter().filter(|key| section.get(key).is_some()).collect();
    if let [first, second, ..] = written[..] {
        let suggestion = Some("keep one of them".into());
        section.field.problem(format!("`{first}` and `{second}` cannot both be set"), suggestion);
    }
    if let Some(field) = section.get("split") {
        return split(field, declared).map(Action::Split);
    }
    if let Some(section) = section.section("redirect", REDIRECT) {
        return redirect(&section).map(Action::Redirect);
    }
    if let Some(section) = section.section("respond", RESPOND) {
        return respond(&section).map(Action::Respond);
    }
    if written.is_empty() {
        section.field.problem("`service` is missing", Some(add_service(declared)));
        return None;
    }
    service_name(section.get("service")?, declared).map(Action::Service)
}

fn add_service(declared: &BTreeMap<String, Service>) -> String {
    match declared.keys().next() {
        Some(name) if declared.len() == 1 => format!("add service: {name}"),
        _ => "add service: with the name of one under `services`".into(),
    }
}

fn needed_service(section: &Section<'_>, declared: &BTreeMap<String, Service>) -> Option<String> {
    match section.get("service") {
        Some(field) => service_name(field, declared),
        None => {
            section.field.problem("`service` is missing", Some(add_service(declared)));
            None
        }
    }
}

// === split, mirror ===

fn split(field: &Field<'_>, declared: &BTreeMap<String, Service>) -> Option<Vec<Share>> {
    let items = field.list("services with weights")?;
    let before = field.report.len();
    if items.is_empty() {
        let suggestion = "write [{ service: NAME, weight: 95 }, { service: OTHER, weight: 5 }]";
        field.problem("the list is empty", Some(suggestion.into()));
    }
    if items.len() > SHARES_MAX {
        field.problem(format!("{} services are more than {SHARES_MAX}", items.len()), None);
        return None;
    }
    let mut shares: Vec<Share> = Vec::with_capacity(items.len());
    for item in items {
        let Some(section) = item.section(SHARE) else { continue };
        let weight = match section.get("weight") {
            Some(field) => field.integer(0, WEIGHT_MAX),
            None => {
                let suggestion = "add weight: with a whole number, the same for equal shares";
                item.problem("`weight` is missing", Some(suggestion.into()));
                None
            }
        };
        let Some((service, weight)) = needed_service(&section, declared).zip(weight) else { continue };
        if shares.iter().any(|share| share.service == service) {
            let problem = format!("`{service}` is in the list already");
            item.problem(problem, Some("keep one of them, with the sum of the weights".into()));
            continue;
        }
        shares.push(Share { service, weight: u32::try_from(weight).unwrap_or_default() });
    }
    if field.report.len() == before {
        turns(field, &shares);
    }
    (field.report.len() == before).then_some(shares)
}

fn turns(field: &Field<'_>, shares: &[Share]) {
    let divisor = shares.iter().fold(0, |divisor, share| common_divisor(divisor, share.weight));
    let sum: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
    if divisor == 0 {
        let problem = "every weight is 0, so no request could be sent";
        field.problem(problem, Some("give one of them a weight".into()));
    } else if sum / u64::from(divisor) > TURNS_MAX {
        field.problem(
            format!(
                "these weights repeat only after {} requests, more than {TURNS_MAX}",
                sum / u64::from(divisor)
            ),
            Some("use weights with smaller numbers, such as percents".into()),
        );
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

pub(super) fn mirror(
    route: &Section<'_>,
    action: Option<&Action>,
    declared: &BTreeMap<String, Service>,
) -> Option<Mirror> {
    let field = route.get("mirror")?;
    if let Some(Action::Redirect(_) | Action::Respond(_)) = action {
        let problem = "the route sends nothing to a service, so there is nothing to mirror";
        field.problem(problem, Some("remove `mirror`".into()));
    }
    let section = field.section(MIRROR)?;
    let percent = match section.get("percent") {
        Some(field) => field.integer(0, 100)?,
        None => 100,
    };
    let service = needed_service(&section, declared)?;
    Some(Mirror { service, percent: u32::try_from(percent).unwrap_or_default() })
}

// === redirect ===

fn redirect(section: &Section<'_>) -> Option<Redirect> {
    let status = match section.get("status") {
        Some(field) => {
            let status = field.integer(300, 399)?;
            if ![301, 302, 303, 307, 308].contains(&status) {
                let suggestion = "301, 302, 303, 307 and 308 are; 308 and 307 keep the method".to_owned();
                field.problem(format!("{status} is not a redirect to another place"), Some(suggestion));
                return None;
            }
            u16::try_from(status).ok()?
        }
        None => 308,
    };
    let Some(field) = section.get("to") else {
        section.field.problem("`to` is missing", Some("add to: \"https://{host}{uri}\"".into()));
        return None;
    };
    let text = field.text_as("a place such as https://{host}{uri} or /new{path}")?;
    Some(Redirect { to: accept(field, place(text))?, status })
}

/// A place, taken apart. What a client chose must never become another host.
fn place(text: &str) -> Result<Vec<Part>, Refusal> {
    if text.len() > TO_BYTES_MAX {
        return Err((format!("more than {TO_BYTES_MAX} bytes"), None));
    }
    if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic() || "\"<>\\^`|".contains(*c)) {
        let suggestion = "percent-encode it".to_owned();
        return Err((format!("`{}` cannot be in a URL", shown(&c.to_string())), Some(suggestion)));
    }
    let parts = parts(text)?;
    let start = match &parts[..] {
        [Part::Scheme, Part::Text(text), ..] if text.starts_with("://") => Some((0, &text[3..])),
        [Part::Text(text), ..] => {
            text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).map(|rest| (0, rest))
        }
        _ => None,
    };
    let skipped = usize::from(parts.first() == Some(&Part::Scheme));
    match start {
        Some((_, rest)) => has_host(rest, &parts[skipped + 1..])?,
        None => is_local(&parts)?,
    }
    Ok(parts)
}

fn parts(text: &str) -> Result<Vec<Part>, Refusal> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find(['{', '}']) {
        let close = rest[open..].find('}').map(|close| open + close);
        let (Some(close), true) = (close, rest[open..].starts_with('{')) else {
            return Err(("a brace stands alone".into(), Some("percent-encode it: %7B, %7D".into())));
        };
        let name = &rest[open + 1..close];
        let Some((_, part)) = Part::NAMES.into_iter().find(|(known, _)| *known == name) else {
            let suggestion = "there are {scheme}, {host}, {path}, {query} and {uri}".to_owned();
            return Err((format!("there is no placeholder `{{{}}}`", shown(name)), Some(suggestion)));
        };
        if open > 0 {
            parts.push(Part::Text(rest[..open].to_owned()));
        }
        parts.push(part);
        rest = &rest[close + 1..];
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

/// After the scheme: a host, in which a client has no say but by `{host}`, to the first slash or path.
fn has_host(first: &str, after: &[Part]) -> Result<(), Refusal> {
    let ends = |text: &str| text.find(['/', '?', '#']);
    let mut length = ends(first).unwrap_or(first.len());
    let mut ended = ends(first).is_some();
    for part in after {
        if ended {
            break;
        }
        match part {
            Part::Text(text) => {
                length += ends(text).unwrap_or(text.len());
                ended = ends(text).is_some();
            }
            Part::Host => length += 1,
            Part::Path | Part::Uri if length > 0 => ended = true,
            Part::Path | Part::Uri => break,
            Part::Query | Part::Scheme => {
                let problem = "a client could choose the host, for its own words follow it at once";
                return Err((problem.into(), Some("put a `/` after the host".into())));
            }
        }
    }
    if length == 0 {
        return Err(("the host is missing".into(), Some("write https://{host}{uri}".into())));
    }
    Ok(())
}

fn is_local(parts: &[Part]) -> Result<(), Refusal> {
    match parts {
        [Part::Path | Part::Uri, ..] => Ok(()),
        [Part::Text(text), Part::Path | Part::Uri, ..] if text == "/" => {
            let suggestion = "write {path}: it begins with `/`".to_owned();
            Err(("`//` at the beginning would name another host".into(), Some(suggestion)))
        }
        [Part::Text(text), ..] if text.starts_with("//") => {
            let suggestion = "write https:// before it, or one `/`".to_owned();
            Err(("`//` at the beginning would name another host".into(), Some(suggestion)))
        }
        [Part::Text(text), ..] if text.starts_with('/') => Ok(()),
        _ => {
            let problem = "expected http://, https://, {scheme}:// or a path that begins with `/`";
            Err((problem.into(), Some("write https://{host}{uri} or /new{path}".into())))
        }
    }
}

/// Whether a redirect sends a client to where it is. `exact`: the route's path, where it has just one.
pub(super) fn leads_back(redirect: &Redirect, exact: Option<&str>) -> bool {
    use Part::{Host, Path, Query, Scheme, Text, Uri};
    let local = match &redirect.to[..] {
        [Scheme, Text(text), Host, rest @ ..] if text == "://" => rest,
        all => all,
    };
    match local {
        [Uri] | [Path] => true,
        [Path, Text(text), Query] => text == "?",
        [Text(text)] => exact == Some(text.as_str()),
        [Text(text), Query] => text.strip_suffix('?').is_some_and(|path| exact == Some(path)),
        _ => false,
    }
}

// === respond ===

fn respond(section: &Section<'_>) -> Option<Respond> {
    let before = section.field.report.len();
    let status = match section.get("status") {
        Some(field) => field.integer(200, 599)?,
        None => 200,
    };
    let body = section.get("body").and_then(|field| field.any_text("text")).unwrap_or_default();
    if body.len() > BODY_BYTES_MAX
        && let Some(field) = section.get("body")
    {
        field.problem(format!("{} bytes are more than {BODY_BYTES_MAX}", body.len()), None);
    }
    if matches!(status, 204 | 205 | 304)
        && !body.is_empty()
        && let Some(field) = section.get("body")
    {
        field.problem(format!("an answer with status {status} has no body"), Some("remove `body`".into()));
    }
    let content_type = section.get("content_type").and_then(|field| {
        let text = field.text_as("a media type such as application/json")?;
        accept(field, field_value(text)).map(|()| text)
    });
    let headers = section.get("headers").map(fields).unwrap_or_default();
    (section.field.report.len() == before).then(|| Respond {
        status: u16::try_from(status).unwrap_or(200),
        body: body.to_owned(),
        content_type: content_type.unwrap_or("text/plain; charset=utf-8").to_owned(),
        headers,
    })
}

fn fields(field: &Field<'_>) -> Vec<(String, String)> {
    // What frames a message or concerns one connection is the gateway's.
    const OWN: [&str; 9] = [
        "connection",
        "content-length",
        "content-type",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let mut fields: Vec<(String, String)> = Vec::new();
    let pairs = field.texts("a mapping from names to values").unwrap_or_default();
    if pairs.len() > FIELDS_MAX {
        field.problem(format!("{} fields are more than {FIELDS_MAX}", pairs.len()), None);
        return fields;
    }
    for (name, field) in pairs {
        let lower = name.to_ascii_lowercase();
        let Some(value) = field.text_as("a value") else { continue };
        if !is_token(name) {
            field.problem(format!("`{}` is not the name of a header field", shown(name)), None);
        } else if OWN.contains(&lower.as_str()) {
            let suggestion = match lower.as_str() {
                "content-type" => "use `content_type`",
                _ => "remove it",
            };
            field.problem(format!("the gateway sets `{lower}` itself"), Some(suggestion.into()));
        } else if fields.iter().any(|(known, _)| *known == lower) {
            field.problem(format!("`{lower}` is here twice"), Some("keep one of them".into()));
        } else if accept(&field, field_value(value)).is_some() {
            fields.push((lower, value.to_owned()));
        }
    }
    fields
}

fn field_value(value: &str) -> Result<(), Refusal> {
    if value.len() <= TO_BYTES_MAX && value.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return Ok(());
    }
    Err((format!("a field's value here is at most {TO_BYTES_MAX} ASCII characters"), None))
}
