//! What a route does with a request.

/// What a route does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Sends it to the service of this name.
    Service(String),
    /// Sends it to one of these, in turns by weight. Some weight is not 0.
    Split(Vec<Share>),
    /// Answers with another place.
    Redirect(Redirect),
    /// Answers always the same.
    Respond(Respond),
}

/// One service of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The service's name; each once.
    pub service: String,
    /// How often, beside the others' weights.
    pub weight: u32,
}

/// An answer with another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The place: begins with a scheme and a host, or with a path.
    pub to: Vec<Part>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A piece of a redirect's `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As written; ASCII without spaces.
    Text(String),
    /// `{scheme}`: how the client came, as far as it is known.
    Scheme,
    /// `{host}`: the host asked for, without its port.
    Host,
    /// `{path}`: the path asked for, in its normal form.
    Path,
    /// `{query}`: the query asked for, without `?`. Where it is empty a `?` or `&` before it goes too.
    Query,
    /// `{uri}`: path and query.
    Uri,
}

/// An answer that is always the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respond {
    /// 200 … 599.
    pub status: u16,
    /// Empty for 204, 205 and 304.
    pub body: String,
    /// Of the body.
    pub content_type: String,
    /// More fields, names in lower case.
    pub headers: Vec<(String, String)>,
}

/// A copy of some requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where the copies go.
    pub service: String,
    /// How many of 100 requests.
    pub percent: u32,
}

// === impl Part ===

impl Part {
    /// Placeholders, by what stands between the braces.
    pub const NAMES: [(&'static str, Part); 5] = [
        ("scheme", Part::Scheme),
        ("host", Part::Host),
        ("path", Part::Path),
        ("query", Part::Query),
        ("uri", Part::Uri),
    ];
}
