//! Every metric's name, and how the data plane's figures become Prometheus families.
//!
//! Job: the only file that spells a metric's name ([`CONTRACT`](crate) fixes them); label sets are closed.
//! The data plane counts in plain integers per worker; [`Traffic`] is one worker's copy of them at a scrape,
//! added up over the workers and rendered here. Neighbours: `proxy::worker` fills it, `control::admin`
//! appends its own families and encodes all of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramProto, LabelPair, Metric, MetricFamily, MetricType,
};

/// The value of a label for all that is not in its closed set.
pub const OTHER: &str = "_OTHER";

/// Client connections accepted; by listener.
pub const CONNECTIONS_TOTAL: &str = "gogate_connections_total";
/// Client connections open; by listener.
pub const CONNECTIONS_ACTIVE: &str = "gogate_connections_active";
/// Requests answered; by route, service, method and code.
pub const REQUESTS_TOTAL: &str = "gogate_requests_total";
/// From a request's head to the end of its answer; by route and service.
pub const REQUEST_DURATION_SECONDS: &str = "gogate_request_duration_seconds";
/// Bytes of request bodies.
pub const REQUEST_BYTES_TOTAL: &str = "gogate_request_bytes_total";
/// Bytes of response bodies.
pub const RESPONSE_BYTES_TOTAL: &str = "gogate_response_bytes_total";
/// Bytes of TCP streams and of upgraded connections; by listener and direction (`in`: from clients, `out`: to them).
pub const STREAM_BYTES_TOTAL: &str = "gogate_stream_bytes_total";
/// Connections to endpoints; by service and state (`active`, `idle`).
pub const UPSTREAM_CONNECTIONS: &str = "gogate_upstream_connections";
/// Whether an endpoint is healthy; by service and endpoint.
pub const BACKEND_HEALTH: &str = "gogate_backend_health";
/// 0 closed, 1 half-open, 2 open; by service and endpoint.
pub const CIRCUIT_BREAKER_STATE: &str = "gogate_circuit_breaker_state";
/// Decisions about rate limits; by budget and decision.
pub const RATE_LIMIT_DECISIONS_TOTAL: &str = "gogate_rate_limit_decisions_total";
/// Requests sent again; by service and reason.
pub const RETRIES_TOTAL: &str = "gogate_retries_total";
/// Copies of requests to another service; by service and result (`sent`, or why not).
pub const MIRRORS_TOTAL: &str = "gogate_mirrors_total";
/// Requests refused or failed by the gateway; by reason.
pub const REJECTIONS_TOTAL: &str = "gogate_rejections_total";
/// Lines of the access log that were not written.
pub const ACCESS_LOG_DROPPED_TOTAL: &str = "gogate_access_log_dropped_total";
/// The gateway document's version; by state (`active`: it runs here; `current` in the cluster).
pub const CONFIG_VERSION: &str = "gogate_config_version";
/// Registered instances; by service.
pub const REGISTRY_INSTANCES: &str = "gogate_registry_instances";
/// Instances that expired.
pub const REGISTRY_EXPIRATIONS_TOTAL: &str = "gogate_registry_expirations_total";
/// Watchers at this node.
pub const WATCHERS: &str = "gogate_watchers";
/// Watchers that were cut because they were too slow.
pub const WATCHERS_CUT_TOTAL: &str = "gogate_watchers_cut_total";
/// What this node may spend of a budget, per second; by budget.
pub const BUDGET_LEASE_RATE: &str = "gogate_budget_lease_rate";
/// The Raft term.
pub const RAFT_TERM: &str = "gogate_raft_term";
/// 1 on the leader.
pub const RAFT_IS_LEADER: &str = "gogate_raft_is_leader";
/// The last applied log index.
pub const RAFT_APPLIED_INDEX: &str = "gogate_raft_applied_index";
/// From a proposal to its commit.
pub const RAFT_COMMIT_SECONDS: &str = "gogate_raft_commit_seconds";
/// One barrier of the log.
pub const RAFT_FSYNC_SECONDS: &str = "gogate_raft_fsync_seconds";
/// Log entries that a peer is behind; by peer.
pub const RAFT_PEER_LAG: &str = "gogate_raft_peer_lag";
/// Always 1; the label says which build runs.
pub const BUILD_INFO: &str = "gogate_build_info";

/// Upper bounds of the duration histograms, in seconds.
pub const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// [`DURATION_BUCKETS`] in microseconds, for counting without floats.
const DURATION_BUCKETS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// What the data plane counted, at one moment. Workers' copies are added up with [`Traffic::add`].
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// By listener.
    pub connections: BTreeMap<Arc<str>, Connections>,
    /// By route, service, method and status code.
    pub requests: BTreeMap<RequestLabels, u64>,
    /// By route and service.
    pub durations: BTreeMap<(Arc<str>, Arc<str>), Histogram>,
    /// Bytes of request bodies.
    pub request_bytes: u64,
    /// Bytes of response bodies.
    pub response_bytes: u64,
    /// By service: connections in use and idle ones.
    pub upstream_connections: BTreeMap<Arc<str>, UpstreamConnections>,
    /// By service and reason.
    pub retries: BTreeMap<(Arc<str>, &'static str), u64>,
    /// By budget and decision (`allowed`, `refused`).
    pub decisions: BTreeMap<(Arc<str>, &'static str), u64>,
    /// By service and result.
    pub mirrors: BTreeMap<(Arc<str>, &'static str), u64>,
    /// By reason.
    pub rejections: BTreeMap<&'static str, u64>,
    /// Lines of the access log that were not written; none where there is no access log. Of the process, not a
    /// worker's.
    pub access_log_dropped: Option<u64>,
}

/// The labels of [`REQUESTS_TOTAL`]. A request that matched no route has empty `route` and `service`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestLabels {
    /// The route's name.
    pub route: Arc<str>,
    /// The service's name.
    pub service: Arc<str>,
    /// A known method's name or `_OTHER`.
    pub method: &'static str,
    /// The status code.
    pub code: u16,
}

/// Client connections of one listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// Accepted so far.
    pub total: u64,
    /// Open now.
    pub active: u64,
    /// Bytes of streams, from clients.
    pub stream_bytes_in: u64,
    /// Bytes of streams, to clients.
    pub stream_bytes_out: u64,
}

/// Connections to one service's endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpstreamConnections {
    /// Carrying a request.
    pub active: u64,
    /// Waiting for one.
    pub idle: u64,
}

/// Durations counted into [`DURATION_BUCKETS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Per bucket, not cumulative; the last one is beyond every bound.
    buckets: [u64; DURATION_BUCKETS.len() + 1],
    sum_us: u64,
}

// === impl Traffic ===

impl Traffic {
    /// Adds another worker's figures.
    pub fn add(&mut self, other: &Traffic) {
        for (listener, more) in &other.connections {
            let sum = self.connections.entry(Arc::clone(listener)).or_default();
            sum.total += more.total;
            sum.active += more.active;
            sum.stream_bytes_in += more.stream_bytes_in;
            sum.stream_bytes_out += more.stream_bytes_out;
        }
        for (labels, more) in &other.requests {
            *self.requests.entry(labels.clone()).or_default() += more;
        }
        for (labels, more) in &other.durations {
            self.durations.entry(labels.clone()).or_default().add(more);
        }
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        for (service, more) in &other.upstream_connections {
            let sum = self.upstream_connections.entry(Arc::clone(service)).or_default();
            sum.active += more.active;
            sum.idle += more.idle;
        }
        for (labels, more) in &other.retries {
            *self.retries.entry(labels.clone()).or_default() += more;
        }
        for (labels, more) in &other.decisions {
            *self.decisions.entry(labels.clone()).or_default() += more;
        }
        for (labels, more) in &other.mirrors {
            *self.mirrors.entry(labels.clone()).or_default() += more;
        }
        for (reason, more) in &other.rejections {
            *self.rejections.entry(reason).or_default() += more;
        }
    }

    /// The figures as Prometheus families; families without a sample are left out.
    #[must_use]
    pub fn families(&self) -> Vec<MetricFamily> {
        let code = |labels: &RequestLabels| labels.code.to_string();
        let listeners = || self.connections.iter();
        let services = || self.upstream_connections.iter();
        let mut families = vec![
            counter(
                CONNECTIONS_TOTAL,
                "client connections accepted",
                listeners().map(|(name, count)| (vec![("listener", &**name)], count.total)),
            ),
            gauge(
                CONNECTIONS_ACTIVE,
                "client connections open",
                listeners().map(|(name, count)| (vec![("listener", &**name)], count.active as f64)),
            ),
            family(
                REQUESTS_TOTAL,
                "requests answered",
                MetricType::COUNTER,
                self.requests.iter().map(|(labels, count)| {
                    let pairs = [
                        ("route", &*labels.route),
                        ("service", &*labels.service),
                        ("method", labels.method),
                        ("code", &*code(labels)),
                    ];
                    counter_metric(&pairs, *count)
                }),
            ),
            family(
                REQUEST_DURATION_SECONDS,
                "from a request's head to the end of its answer",
                MetricType::HISTOGRAM,
                self.durations.iter().map(|((route, service), histogram)| {
                    let mut metric = Metric::from_label(labels(&[("route", route), ("service", service)]));
                    metric.set_histogram(histogram.proto());
                    metric
                }),
            ),
            counter(REQUEST_BYTES_TOTAL, "bytes of request bodies", [(vec![], self.request_bytes)]),
            counter(RESPONSE_BYTES_TOTAL, "bytes of response bodies", [(vec![], self.response_bytes)]),
            counter(
                STREAM_BYTES_TOTAL,
                "bytes of TCP streams and upgraded connections",
                // A listener without streams has none.
                listeners()
                    .flat_map(|(name, count)| {
                        [("in", count.stream_bytes_in), ("out", count.stream_bytes_out)].map(
                            |(direction, bytes)| {
                                (vec![("listener", &**name), ("direction", direction)], bytes)
                            },
                        )
                    })
                    .filter(|(_, bytes)| *bytes > 0),
            ),
            gauge(
                UPSTREAM_CONNECTIONS,
                "connections to endpoints",
                services().flat_map(|(service, count)| {
                    [("active", count.active), ("idle", count.idle)]
                        .map(|(state, count)| (vec![("service", &**service), ("state", state)], count as f64))
                }),
            ),
            counter(
                RETRIES_TOTAL,
                "requests sent again",
                self.retries.iter().map(|((service, reason), count)| {
                    (vec![("service", &**service), ("reason", *reason)], *count)
                }),
            ),
            counter(
                RATE_LIMIT_DECISIONS_TOTAL,
                "decisions about rate limits",
                self.decisions.iter().map(|((budget, decision), count)| {
                    (vec![("budget", &**budget), ("decision", *decision)], *count)
                }),
            ),
            counter(
                MIRRORS_TOTAL,
                "copies of requests to another service",
                self.mirrors.iter().map(|((service, result), count)| {
                    (vec![("service", &**service), ("result", *result)], *count)
                }),
            ),
            counter(
                REJECTIONS_TOTAL,
                "requests refused or failed by the gateway",
                self.rejections.iter().map(|(reason, count)| (vec![("reason", *reason)], *count)),
            ),
            counter(
                ACCESS_LOG_DROPPED_TOTAL,
                "lines of the access log that were not written",
                self.access_log_dropped.map(|count| (vec![], count)),
            ),
        ];
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

// === impl Histogram ===

impl Histogram {
    /// Counts one duration.
    pub fn observe(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BUCKETS_US.iter().position(|bound| us <= *bound);
        self.buckets[bucket.unwrap_or(DURATION_BUCKETS.len())] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    fn add(&mut self, other: &Histogram) {
        for (sum, more) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += more;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    fn proto(&self) -> HistogramProto {
        let mut cumulative = 0;
        let buckets = DURATION_BUCKETS.iter().zip(self.buckets).map(|(bound, count)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        let mut histogram = HistogramProto::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(self.count());
        histogram.set_sample_sum(self.sum_us as f64 / 1e6);
        histogram
    }
}

// === families ===

/// A family of counters: each sample's labels and its value.
pub fn counter<'a>(
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, u64)>,
) -> MetricFamily {
    let metrics = samples.into_iter().map(|(pairs, value)| counter_metric(&pairs, value));
    family(name, help, MetricType::COUNTER, metrics)
}

/// A family of gauges: each sample's labels and its value.
pub fn gauge<'a>(
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, f64)>,
) -> MetricFamily {
    let metrics = samples.into_iter().map(|(pairs, value)| {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = Metric::from_label(labels(&pairs));
        metric.set_gauge(gauge);
        metric
    });
    family(name, help, MetricType::GAUGE, metrics)
}

fn counter_metric(pairs: &[(&str, &str)], value: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    let mut metric = Metric::from_label(labels(pairs));
    metric.set_counter(counter);
    metric
}

fn family(
    name: &str,
    help: &str,
    kind: MetricType,
    metrics: impl IntoIterator<Item = Metric>,
) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics.into_iter().collect());
    family
}

fn labels(pairs: &[(&str, &str)]) -> Vec<LabelPair> {
    let label = |(name, value): &(&str, &str)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    };
    pairs.iter().map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_counts_below_it() {
        let mut histogram = Histogram::default();
        for us in [500, 501, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(us));
        }
        let proto = histogram.proto();
        let cumulative: Vec<u64> = proto.get_bucket().iter().map(Bucket::cumulative_count).collect();
        assert_eq!(cumulative, [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3]);
        assert_eq!(proto.get_sample_count(), 4);
    }

    #[test]
    fn workers_add_up_under_the_same_labels() {
        let mut one = Traffic::default();
        one.rejections.insert("no_route", 2);
        one.connections.insert("web".into(), Connections { total: 3, active: 1, ..Connections::default() });
        let mut sum = one.clone();
        sum.add(&one);
        let families = sum.families();
        let names: Vec<&str> = families.iter().map(MetricFamily::name).collect();
        assert!(names.contains(&REJECTIONS_TOTAL) && names.contains(&CONNECTIONS_ACTIVE), "{names:?}");
        let rejections = families.iter().find(|family| family.name() == REJECTIONS_TOTAL).unwrap();
        assert_eq!(rejections.get_metric()[0].get_counter().get_value(), 4.0);
        assert!(!names.contains(&REQUESTS_TOTAL), "a family without samples is left out");
    }
}
