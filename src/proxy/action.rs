//! A route as requests use it: what it does with them, compiled.
//!
//! Job: [`CompiledRoute`] and how it is made of the document's route. Invariant: what counts requests of the node,
//! such as a split's turns, goes on from the table before where the document did not change it. Neighbours: `table`
//! compiles all routes, `http` does what they say.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    fixed::FixedAnswer,
    policy::{Compiler, RoutePolicies},
    split::Turns,
};
use crate::config::document::{self, Retries, Route};

/// A route as requests use it.
#[derive(Debug)]
pub(super) struct CompiledRoute {
    pub(super) name: Arc<str>,
    pub(super) action: Action,
    pub(super) mirror: Option<Mirror>,
    /// The place in [`super::table::Routing::counted`] of requests whose service is not chosen yet.
    pub(super) counted: usize,
    pub(super) allow_encoded_slash: bool,
    pub(super) timeout: Option<Duration>,
    pub(super) retries: Option<Retries>,
    /// None costs a request nothing.
    pub(super) policies: Option<Arc<RoutePolicies>>,
}

/// What a route does with a request.
#[derive(Debug)]
pub(super) enum Action {
    Send(Branch),
    Split(Split),
    Answer(FixedAnswer),
}

/// A way to a service.
#[derive(Debug)]
pub(super) struct Branch {
    /// Its place in the table's upstreams.
    pub(super) upstream: usize,
    /// Its place in [`super::table::Routing::counted`].
    pub(super) counted: usize,
}

/// Several ways, in turns.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) turns: Arc<Turns>,
    /// By the turns' shares.
    pub(super) branches: Box<[Branch]>,
}

/// Copies of some requests.
#[derive(Debug)]
pub(super) struct Mirror {
    /// Share 0 is copied.
    pub(super) turns: Arc<Turns>,
    pub(super) upstream: usize,
}

/// The turns of a route in the table before.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PreviousTurns<'a> {
    pub(super) split: Option<&'a Arc<Turns>>,
    pub(super) mirror: Option<&'a Arc<Turns>>,
}

/// Compiles routes one after the other.
pub(super) struct RouteCompiler<'a> {
    pub(super) services: &'a HashMap<Arc<str>, usize>,
    /// By route.
    pub(super) previous: HashMap<&'a str, PreviousTurns<'a>>,
    pub(super) counted: Vec<(Arc<str>, Arc<str>)>,
    pub(super) policies: Compiler<'a>,
}

// === impl RouteCompiler ===

impl<'a> RouteCompiler<'a> {
    pub(super) fn compile(&mut self, route: &'a Route) -> CompiledRoute {
        let name: Arc<str> = route.name.as_str().into();
        let previous = self.previous.get(&*name).copied().unwrap_or_default();
        let counted = self.counted.len();
        let action = match &route.action {
            document::Action::Service(service) => Action::Send(self.branch(&name, service)),
            document::Action::Split(shares) => {
                self.count(&name, "".into());
                let weights =
                    shares.iter().map(|share| (self.service(&share.service).0, share.weight)).collect();
                let branches = shares.iter().map(|share| self.branch(&name, &share.service)).collect();
                Action::Split(Split { turns: Turns::new(weights, previous.split), branches })
            }
            document::Action::Redirect(redirect) => {
                self.count(&name, "".into());
                Action::Answer(FixedAnswer::redirect(redirect))
            }
            document::Action::Respond(respond) => {
                self.count(&name, "".into());
                Action::Answer(FixedAnswer::respond(respond))
            }
        };
        let mirror = route.mirror.as_ref().filter(|mirror| mirror.percent > 0).map(|mirror| {
            let (service, upstream) = self.service(&mirror.service);
            let shares = vec![(service, mirror.percent), ("".into(), 100_u32.saturating_sub(mirror.percent))];
            Mirror { turns: Turns::new(shares, previous.mirror), upstream }
        });
        CompiledRoute {
            name,
            action,
            mirror,
            counted,
            allow_encoded_slash: route.allow_encoded_slash,
            timeout: route.timeout,
            retries: route.retries.clone(),
            policies: self.policies.compile(route),
        }
    }

    fn branch(&mut self, route: &Arc<str>, service: &str) -> Branch {
        let (service, upstream) = self.service(service);
        Branch { upstream, counted: self.count(route, service) }
    }

    fn count(&mut self, route: &Arc<str>, service: Arc<str>) -> usize {
        self.counted.push((Arc::clone(route), service));
        self.counted.len() - 1
    }

    fn service(&self, name: &str) -> (Arc<str>, usize) {
        let known = self.services.get_key_value(name);
        let (name, upstream) = known.expect("compile gave every routed service an upstream");
        (Arc::clone(name), *upstream)
    }
}
