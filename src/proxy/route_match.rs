//! Which route a request takes: precedence, and its index.
//!
//! Precedence (CONTRACT.md): an exact host beats a wildcard (the longest first), which beats no host; then an
//! exact path, then the longest prefix, then regular expressions in order, then no path at all; then routes that
//! ask for a method, then more conditions on header fields, then more on the query; then the document's order.
//! A route whose method, fields or query do not fit gives way to the next one, of a less specific host too.
//! Invariant: the cost of a match depends on the length of what is matched, never on the number of routes: hosts
//! and each segment of a path are looked up by hash, a host's expressions are one automaton, and where one path
//! has many routes, their first conditions are looked up by hash as well. Keys are the operator's and the hashes
//! are seeded, so that no client can make them collide. Neighbours: `table` builds the index, `http` asks, `path`
//! gives paths their form.

use std::{borrow::Cow, cmp::Reverse, hash::BuildHasher};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use http::{HeaderMap, HeaderName, Method};
use regex_automata::{
    Anchored, Input, MatchKind, PatternSet,
    meta::{BuildError, Regex},
};

use super::query::{decoded, parameters, whole};
use crate::config::{
    document::{HostPattern, Match, PathPattern, Route, Wanted},
    path_regex,
};

/// Routes of one listener, ready to be asked.
#[derive(Debug, Default)]
pub(super) struct RouteIndex {
    exact_hosts: HashMap<Box<str>, PathIndex>,
    /// Keyed by what follows `*.`.
    wildcard_hosts: HashMap<Box<str>, PathIndex>,
    any_host: PathIndex,
}

/// What is matched of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Without its port.
    pub(super) host: &'a str,
    /// In its normal form.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
}

/// What a match found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The route's place in the document.
    Route(usize),
    /// Routes take the request in every respect but its method; these are theirs.
    OtherMethods(Vec<Method>),
    /// No route.
    Nothing,
}

/// A host's routes by path.
#[derive(Debug, Default)]
struct PathIndex {
    tree: Tree,
    /// None: no route has an expression.
    expressions: Option<Box<Expressions>>,
    /// Routes without a path.
    rest: Candidates,
}

/// Exact paths and prefixes, segment by segment. One table for all edges: a step is one lookup.
#[derive(Debug)]
struct Tree {
    edges: HashTable<Edge>,
    hasher: DefaultHashBuilder,
    /// The first is the root.
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Edge {
    from: usize,
    segment: Box<str>,
    to: usize,
}

#[derive(Debug, Default)]
struct Node {
    parent: usize,
    exact: Candidates,
    prefix: Candidates,
}

/// A host's regular expressions.
#[derive(Debug, Default)]
struct Expressions {
    /// In the order of the document, each once.
    texts: Vec<Box<str>>,
    places: HashMap<Box<str>, usize>,
    /// By expression.
    candidates: Vec<Candidates>,
    first: Option<Regex>,
    /// For when the first gives way; none where it cannot.
    every: Option<Regex>,
}

/// The routes of one host and path, the one that wins first.
#[derive(Debug, Default)]
struct Candidates {
    list: Vec<Candidate>,
    /// Only where there are many.
    by_condition: Option<Box<ByCondition>>,
}

#[derive(Debug)]
struct Candidate {
    route: usize,
    /// None: it takes every request.
    conditions: Option<Box<Conditions>>,
}

#[derive(Debug)]
struct Conditions {
    /// Empty: any.
    methods: Box<[Method]>,
    headers: Box<[(HeaderName, Wanted)]>,
    query: Box<[(Box<str>, Wanted)]>,
}

/// Candidates by one of their conditions.
#[derive(Debug, Default)]
struct ByCondition {
    table: HashTable<Condition>,
    hasher: DefaultHashBuilder,
    /// Places of those without a condition on fields or query.
    rest: Vec<usize>,
}

#[derive(Debug)]
struct Condition {
    kind: Kind,
    name: Box<str>,
    wanted: Wanted,
    /// In order.
    places: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Header,
    Query,
}

/// One search, and what was seen on the way.
struct Search<'a> {
    asked: &'a Asked<'a>,
    other_methods: Vec<Method>,
}

/// Candidates of one path that are tried one by one; more are looked up.
const TRIED_IN_TURN_MAX: usize = 8;
const ROOT: usize = 0;

// === impl RouteIndex ===

impl RouteIndex {
    /// Indexes those of the document's routes that `serves` lets through.
    pub(super) fn new(
        routes: &[Route],
        serves: impl Fn(&Route) -> bool,
    ) -> Result<RouteIndex, Box<BuildError>> {
        let mut index = RouteIndex::default();
        for (place, route) in routes.iter().enumerate().filter(|(_, route)| serves(route)) {
            let paths = match &route.matches.host {
                HostPattern::Any => &mut index.any_host,
                HostPattern::Exact(host) => index.exact_hosts.entry_ref(host.as_str()).or_default(),
                HostPattern::Wildcard(suffix) => index.wildcard_hosts.entry_ref(suffix.as_str()).or_default(),
            };
            let candidates = match &route.matches.path {
                PathPattern::Any => &mut paths.rest,
                PathPattern::Exact(path) => paths.tree.exact(path),
                PathPattern::Prefix(prefix) => paths.tree.prefix(prefix),
                PathPattern::Regex(text) => paths.expressions.get_or_insert_default().of(text),
            };
            candidates.list.push(Candidate { route: place, conditions: Conditions::of(&route.matches) });
        }
        let hosts = index.exact_hosts.values_mut().chain(index.wildcard_hosts.values_mut());
        hosts.chain([&mut index.any_host]).try_for_each(PathIndex::finish)?;
        Ok(index)
    }

    /// The route for a request.
    pub(super) fn find(&self, asked: &Asked<'_>) -> Found {
        let host: Cow<'_, str> = if asked.host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            asked.host.to_ascii_lowercase().into()
        } else {
            asked.host.into()
        };
        let mut search = Search { asked, other_methods: Vec::new() };
        match self.find_by_host(&host, &mut search) {
            Some(route) => Found::Route(route),
            None if search.other_methods.is_empty() => Found::Nothing,
            None => {
                search.other_methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
                Found::OtherMethods(search.other_methods)
            }
        }
    }

    fn find_by_host(&self, host: &str, search: &mut Search<'_>) -> Option<usize> {
        if !self.exact_hosts.is_empty()
            && let Some(route) = self.exact_hosts.get(host).and_then(|paths| paths.find(search))
        {
            return Some(route);
        }
        if !self.wildcard_hosts.is_empty() {
            let mut rest = host;
            while let Some((_, suffix)) = rest.split_once('.') {
                rest = suffix;
                if let Some(route) = self.wildcard_hosts.get(rest).and_then(|paths| paths.find(search)) {
                    return Some(route);
                }
            }
        }
        self.any_host.find(search)
    }
}

// === impl PathIndex, Tree ===

impl PathIndex {
    fn finish(&mut self) -> Result<(), Box<BuildError>> {
        for node in &mut self.tree.nodes {
            node.exact.finish();
            node.prefix.finish();
        }
        self.rest.finish();
        self.expressions.as_deref_mut().map_or(Ok(()), Expressions::finish)
    }

    fn find(&self, search: &mut Search<'_>) -> Option<usize> {
        if let Some(route) = self.tree.find(search) {
            return Some(route);
        }
        if let Some(expressions) = &self.expressions
            && let Some(route) = expressions.find(search)
        {
            return Some(route);
        }
        search.choose(&self.rest)
    }
}

impl Default for Tree {
    fn default() -> Self {
        let hasher = DefaultHashBuilder::default();
        Self { edges: HashTable::new(), hasher, nodes: vec![Node::default()] }
    }
}

impl Tree {
    /// The candidates of one path. What follows its last slash is a segment, though it be empty.
    fn exact(&mut self, path: &str) -> &mut Candidates {
        let segments = path.strip_prefix('/').unwrap_or(path).split('/');
        let node = segments.fold(ROOT, |node, segment| self.grow(node, segment));
        &mut self.nodes[node].exact
    }

    /// The candidates of a prefix; a slash at its end says nothing, as in the Gateway API.
    fn prefix(&mut self, prefix: &str) -> &mut Candidates {
        let segments = prefix.split('/').filter(|segment| !segment.is_empty());
        let node = segments.fold(ROOT, |node, segment| self.grow(node, segment));
        &mut self.nodes[node].prefix
    }

    fn grow(&mut self, from: usize, segment: &str) -> usize {
        if let Some(to) = self.step(from, segment) {
            return to;
        }
        let to = self.nodes.len();
        self.nodes.push(Node { parent: from, ..Node::default() });
        let Self { edges, hasher, .. } = self;
        let edge = Edge { from, segment: segment.into(), to };
        let hash = |edge: &Edge| hasher.hash_one((edge.from, &*edge.segment));
        edges.insert_unique(hash(&edge), edge, hash);
        to
    }

    fn step(&self, from: usize, segment: &str) -> Option<usize> {
        let hash = self.hasher.hash_one((from, segment));
        let edge = self.edges.find(hash, |edge| edge.from == from && *edge.segment == *segment)?;
        Some(edge.to)
    }

    /// The exact path first, then the longest prefix. Goes no deeper than the longest path written.
    fn find(&self, search: &mut Search<'_>) -> Option<usize> {
        let mut node = ROOT;
        if !self.edges.is_empty()
            && let Some(mut rest) = search.asked.path.strip_prefix('/')
        {
            loop {
                let (segment, after) = match rest.split_once('/') {
                    Some((segment, after)) => (segment, Some(after)),
                    None => (rest, None),
                };
                let Some(next) = self.step(node, segment) else { break };
                node = next;
                let Some(after) = after else {
                    if let Some(route) = search.choose(&self.nodes[node].exact) {
                        return Some(route);
                    }
                    break;
                };
                rest = after;
            }
        }
        loop {
            if let Some(route) = search.choose(&self.nodes[node].prefix) {
                return Some(route);
            }
            if node == ROOT {
                return None;
            }
            node = self.nodes[node].parent;
        }
    }
}

// === impl Expressions ===

impl Expressions {
    /// The candidates of an expression. One that several routes share stands where it is first written.
    fn of(&mut self, text: &str) -> &mut Candidates {
        let Self { texts, places, candidates, .. } = self;
        let place = *places.entry_ref(text).or_insert_with(|| {
            texts.push(text.into());
            candidates.push(Candidates::default());
            texts.len() - 1
        });
        &mut candidates[place]
    }

    fn finish(&mut self) -> Result<(), Box<BuildError>> {
        self.candidates.iter_mut().for_each(Candidates::finish);
        let together = |kind| path_regex::together(self.texts.iter().map(|text| &**text), kind).map(Some);
        self.first = together(MatchKind::LeftmostFirst)?;
        if self.texts.len() > 1 && self.candidates.iter().any(Candidates::may_give_way) {
            self.every = together(MatchKind::All)?;
        }
        Ok(())
    }

    fn find(&self, search: &mut Search<'_>) -> Option<usize> {
        let input = Input::new(search.asked.path).anchored(Anchored::Yes);
        let first = self.first.as_ref()?.search_half(&input)?.pattern();
        if let Some(route) = search.choose(&self.candidates[first.as_usize()]) {
            return Some(route);
        }
        let every = self.every.as_ref()?;
        let mut found = PatternSet::new(every.pattern_len());
        every.which_overlapping_matches(&input, &mut found);
        let after_first = found.iter().filter(|pattern| *pattern > first);
        after_first.into_iter().find_map(|pattern| search.choose(&self.candidates[pattern.as_usize()]))
    }
}

// === impl Candidates, Conditions, ByCondition ===

impl Candidates {
    fn finish(&mut self) {
        // Stable: the document's order stays the last rule.
        self.list.sort_by_key(|candidate| Reverse(candidate.rank()));
        if self.list.len() > TRIED_IN_TURN_MAX {
            self.by_condition = Some(Box::new(ByCondition::of(&self.list)));
        }
    }

    fn may_give_way(&self) -> bool {
        self.list.iter().all(|candidate| candidate.conditions.is_some())
    }
}

impl Candidate {
    /// How much is asked for: more comes first.
    fn rank(&self) -> (bool, usize, usize) {
        self.conditions.as_ref().map_or((false, 0, 0), |conditions| {
            (!conditions.methods.is_empty(), conditions.headers.len(), conditions.query.len())
        })
    }
}

impl Conditions {
    /// A method or a field's name that is none was refused when the document was checked.
    fn of(matches: &Match) -> Option<Box<Conditions>> {
        if matches.methods.is_empty() && matches.headers.is_empty() && matches.query.is_empty() {
            return None;
        }
        let methods = matches.methods.iter();
        let headers = matches.headers.iter();
        let query = matches.query.iter();
        Some(Box::new(Conditions {
            methods: methods.filter_map(|name| Method::from_bytes(name.as_bytes()).ok()).collect(),
            headers: headers
                .filter_map(|(name, wanted)| {
                    Some((HeaderName::from_bytes(name.as_bytes()).ok()?, wanted.clone()))
                })
                .collect(),
            query: query.map(|(name, wanted)| (name.as_str().into(), wanted.clone())).collect(),
        }))
    }

    /// The condition that tells this route from most others: one for a value, if there is one.
    fn distinctive(&self) -> Option<(Kind, &str, &Wanted)> {
        let headers = self.headers.iter().map(|(name, wanted)| (Kind::Header, name.as_str(), wanted));
        let query = self.query.iter().map(|(name, wanted)| (Kind::Query, &**name, wanted));
        headers.chain(query).min_by_key(|(_, _, wanted)| **wanted == Wanted::Present)
    }
}

impl ByCondition {
    fn of(candidates: &[Candidate]) -> Self {
        let mut index = Self::default();
        for (place, candidate) in candidates.iter().enumerate() {
            let conditions = candidate.conditions.as_deref();
            match conditions.and_then(Conditions::distinctive) {
                Some((kind, name, wanted)) => index.add(kind, name, wanted, place),
                None => index.rest.push(place),
            }
        }
        index
    }

    fn add(&mut self, kind: Kind, name: &str, wanted: &Wanted, place: usize) {
        let Self { table, hasher, .. } = self;
        let hash = |kind: Kind, name: &str, wanted: &Wanted| {
            hasher.hash_one((kind, name.as_bytes(), bytes_of(wanted)))
        };
        let entry = table.entry(
            hash(kind, name, wanted),
            |known| known.kind == kind && *known.name == *name && known.wanted == *wanted,
            |known| hash(known.kind, &known.name, &known.wanted),
        );
        let new = || Condition { kind, name: name.into(), wanted: wanted.clone(), places: Vec::new() };
        entry.or_insert_with(new).get_mut().places.push(place);
    }

    /// The candidates that this field or parameter may satisfy: by its value, then by its presence.
    fn places<'a>(&'a self, kind: Kind, name: &[u8], value: &[u8]) -> impl Iterator<Item = &'a [usize]> {
        [Some(value), None].into_iter().filter_map(move |value| {
            let same = |known: &Condition| {
                known.kind == kind && known.name.as_bytes() == name && bytes_of(&known.wanted) == value
            };
            let found = self.table.find(self.hasher.hash_one((kind, name, value)), same)?;
            Some(&*found.places)
        })
    }
}

fn bytes_of(wanted: &Wanted) -> Option<&[u8]> {
    match wanted {
        Wanted::Present => None,
        Wanted::Value(value) => Some(value.as_bytes()),
    }
}

// === impl Search ===

impl Search<'_> {
    fn choose(&mut self, candidates: &Candidates) -> Option<usize> {
        if let Some(by_condition) = &candidates.by_condition {
            return self.look_up(&candidates.list, by_condition);
        }
        candidates.list.iter().find(|candidate| self.takes(candidate)).map(|candidate| candidate.route)
    }

    /// The first candidate that takes the request, asking only those that a field or parameter points at.
    fn look_up(&mut self, list: &[Candidate], index: &ByCondition) -> Option<usize> {
        let asked = self.asked;
        let mut best = list.len();
        let mut ask = |places: &[usize]| {
            let better = places.iter().copied().take_while(|place| *place < best);
            if let Some(place) = { better }.find(|place| self.takes(&list[*place])) {
                best = place;
            }
        };
        if !index.table.is_empty() {
            for (name, value) in asked.headers {
                let name = name.as_str().as_bytes();
                index.places(Kind::Header, name, value.as_bytes()).for_each(&mut ask);
            }
            for (name, value) in parameters(asked.query.unwrap_or_default()) {
                let (name, value) = (whole(name), whole(value));
                index.places(Kind::Query, &name, &value).for_each(&mut ask);
            }
        }
        ask(&index.rest);
        list.get(best).map(|candidate| candidate.route)
    }

    fn takes(&mut self, candidate: &Candidate) -> bool {
        let Some(conditions) = &candidate.conditions else { return true };
        let asked = self.asked;
        if !conditions.headers.iter().all(|(name, wanted)| has_field(asked.headers, name, wanted))
            || !conditions.query.iter().all(|(name, wanted)| has_parameter(asked.query, name, wanted))
        {
            return false;
        }
        if conditions.methods.is_empty() || conditions.methods.contains(asked.method) {
            return true;
        }
        for method in &conditions.methods {
            if !self.other_methods.contains(method) {
                self.other_methods.push(method.clone());
            }
        }
        false
    }
}

/// Whether one of the fields of this name is as wanted.
fn has_field(headers: &HeaderMap, name: &HeaderName, wanted: &Wanted) -> bool {
    match wanted {
        Wanted::Present => headers.contains_key(name),
        Wanted::Value(value) => headers.get_all(name).iter().any(|field| field == value),
    }
}

/// Whether one of the parameters of this name is as wanted.
fn has_parameter(query: Option<&str>, name: &str, wanted: &Wanted) -> bool {
    parameters(query.unwrap_or_default()).any(|(known, value)| {
        decoded(known).eq(name.bytes())
            && match wanted {
                Wanted::Present => true,
                Wanted::Value(wanted) => decoded(value).eq(wanted.bytes()),
            }
    })
}

#[cfg(test)]
#[path = "tests/route_match.rs"]
mod tests;
