//! Probes, `/metrics` and the index page.
//!
//! Invariants: liveness never depends on a quorum; ready means that this node can serve traffic, which it can
//! without a quorum too (P1), and `?verbose` says so. Neighbours: `publish` knows what runs.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use gogate_cluster::{BUCKETS, DurationTotals};
use http::{HeaderValue, StatusCode, header};
use prometheus::{
    Encoder, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    proto::{Bucket, Histogram, Metric, MetricFamily, MetricType},
};

use super::{
    Context,
    answer::{Answer, Query, json, text},
    error::ApiError,
    within,
};
use crate::{
    proxy::{Backend, Backends},
    telemetry::metrics,
};

/// How long the probe waits for a quorum before it says that there is none.
const QUORUM_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the proxy's workers may take to hand in their counts.
const GATHER_TIMEOUT: Duration = Duration::from_secs(5);

/// `GET /readyz`
pub(super) async fn ready(context: &Context, query: Option<&str>) -> Result<Answer, ApiError> {
    let query = Query::new(query, &["verbose"])?;
    let draining = context.proxy.is_draining() || context.drain.has_begun();
    let removed = context.cluster.is_removed();
    let (version, error) = (context.published.version(), context.published.error());
    let known = context.published.once() && (version > 0 || *context.caught_up.borrow());
    // Without a document there is nothing to serve and nothing wrong; with one that cannot run there is.
    let runs = version > 0 || error.is_empty();
    let ready = known && runs && !draining && !removed;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if !query.flag("verbose")? {
        return Ok(text(status, if ready { "ok\n" } else { "not ready\n" }));
    }
    let quorum = context.cluster.linearizable(QUORUM_TIMEOUT.min(query.timeout()?)).await;
    let mut said = String::new();
    let mut line = |good: bool, what: &str, detail: &str| {
        let mark = if good { '+' } else { '-' };
        let _ = writeln!(said, "[{mark}] {what}: {detail}");
    };
    line(!draining, "accepting", if draining { "draining" } else { "ok" });
    if removed {
        line(false, "member", "this node was removed from its cluster; it serves what it last knew: stop it");
    }
    line(known, "state", if known { "ok" } else { "this node has not heard from its cluster yet" });
    line(
        error.is_empty(),
        "config",
        &match (version, error.as_str()) {
            (0, "") => "there is no gateway document yet".to_owned(),
            (_, "") => format!("version {version} runs"),
            (0, error) => format!("nothing runs: {error}"),
            (_, error) => format!("version {version} runs, not {error}"),
        },
    );
    match quorum {
        Ok(()) => line(true, "quorum", "ok"),
        Err(error) => line(false, "quorum", &format!("{}; serving what this node last knew", error.reason)),
    }
    let _ = writeln!(said, "{}", if ready { "ready" } else { "not ready" });
    Ok(text(status, said))
}

/// `GET /metrics`
pub(super) async fn metrics(context: &Context) -> Result<Answer, ApiError> {
    // Without the proxy's own, the counters would seem to be gone: no scrape is better than half of one.
    let Some(mut families) = within(GATHER_TIMEOUT, context.proxy.gather()).await else {
        let seconds = GATHER_TIMEOUT.as_secs();
        return Err(ApiError::Unavailable(format!(
            "the proxy's workers did not tell their counts in {seconds} s"
        )));
    };
    match control(context) {
        Ok(own) => families.extend(own),
        Err(error) => {
            return Err(ApiError::Unavailable(format!("the metrics could not be gathered: {error}")));
        }
    }
    families.sort_by(|a, b| a.name().cmp(b.name()));
    let mut body = Vec::new();
    let encoder = TextEncoder::new();
    if let Err(error) = encoder.encode(&families, &mut body) {
        return Err(ApiError::Unavailable(format!("the metrics could not be written: {error}")));
    }
    let mut answer = text(StatusCode::OK, body);
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    Ok(answer)
}

/// The control plane's own families, made at the scrape from what is known then.
fn control(context: &Context) -> Result<Vec<MetricFamily>, prometheus::Error> {
    let registry = Registry::new();
    let gauge = |name: &str, help: &str, value: u64| -> Result<(), prometheus::Error> {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(Box::new(gauge))
    };
    let gauges = |name: &str, help: &str, label: &str| -> Result<IntGaugeVec, prometheus::Error> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
        registry.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    };
    let set = |gauges: &IntGaugeVec, label: &str, value: u64| {
        gauges.with_label_values(&[label]).set(i64::try_from(value).unwrap_or(i64::MAX));
    };

    let status = context.cluster.status();
    gauge(metrics::RAFT_TERM, "The Raft term that this node is in.", status.term)?;
    let leads = status.leader == Some(status.node);
    gauge(metrics::RAFT_IS_LEADER, "1 if this node leads.", u64::from(leads))?;
    gauge(metrics::RAFT_APPLIED_INDEX, "The log index that this node's state has reached.", status.applied)?;
    let lags =
        gauges(metrics::RAFT_PEER_LAG, "Entries that a peer's log is behind; known on the leader.", "peer")?;
    for member in status.members.iter().filter(|member| member.id != status.node) {
        if let Some(lag) = member.lag {
            set(&lags, &member.name, lag);
        }
    }

    let declared = context.published.services();
    let (current, instances_of) = context.cluster.read(|state| {
        let mut counts: BTreeMap<&str, usize> = declared.iter().map(|name| (name.as_str(), 0)).collect();
        for (name, count) in state.registry().services() {
            // Names come from whoever registers: those that no document knows count together.
            let known = declared.get(&**name).map_or(metrics::OTHER, String::as_str);
            *counts.entry(known).or_default() += count;
        }
        (state.documents().current_version(), counts)
    });
    let versions = gauges(
        metrics::CONFIG_VERSION,
        "Versions of the gateway document: running here, and current in the cluster.",
        "state",
    )?;
    set(&versions, "active", context.published.version());
    set(&versions, "current", current);
    let instances = gauges(metrics::REGISTRY_INSTANCES, "Registered instances.", "service")?;
    for (service, count) in instances_of {
        set(&instances, service, u64::try_from(count).unwrap_or(u64::MAX));
    }
    let expirations = IntCounter::new(
        metrics::REGISTRY_EXPIRATIONS_TOTAL,
        "Instances that expired since this node started.",
    )?;
    expirations.inc_by(context.published.expirations());
    registry.register(Box::new(expirations))?;
    let watchers = u64::try_from(context.watches.watchers()).unwrap_or(u64::MAX);
    gauge(metrics::WATCHERS, "Watchers at this node, waiting calls among them.", watchers)?;
    let cut =
        IntCounter::new(metrics::WATCHERS_CUT_TOTAL, "Watchers that were cut because they were too slow.")?;
    cut.inc_by(context.watches.cut());
    registry.register(Box::new(cut))?;
    let figures = context.cluster.figures();
    set(&gauges(metrics::BUILD_INFO, "1; the build is the label.", "version")?, context.build, 1);
    let mut families = registry.gather();
    families.push(histogram(
        metrics::RAFT_COMMIT_SECONDS,
        "From a batch's proposal to its commit; on the leader.",
        &figures.commit,
    ));
    families.push(histogram(
        metrics::RAFT_FSYNC_SECONDS,
        "The barriers that made the log durable.",
        &figures.fsync,
    ));
    Ok(families)
}

/// Totals as a Prometheus histogram, whose buckets count what is below them too.
fn histogram(name: &str, help: &str, totals: &DurationTotals) -> MetricFamily {
    let mut histogram = Histogram::default();
    let mut below = 0;
    let mut buckets = Vec::new();
    for (count, bound) in totals.buckets.iter().zip(BUCKETS) {
        below += count;
        if bound.is_finite() {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(below);
            buckets.push(bucket);
        }
    }
    histogram.set_bucket(buckets);
    histogram.set_sample_count(below);
    histogram.set_sample_sum(totals.sum_seconds);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(MetricType::HISTOGRAM);
    family.mut_metric().push(metric);
    family
}

/// `GET /backends`
pub(super) fn backends(context: &Context) -> Answer {
    let endpoint = |backend: &Backend| {
        serde_json::json!({
            "address": &*backend.address,
            "weight": backend.weight,
            "available": backend.available,
            "health": backend.health,
            "ejected_for_ms": backend.ejected_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            "circuit_breaker": backend.breaker,
        })
    };
    let service = |service: &Backends| {
        serde_json::json!({
            "name": &*service.service,
            "endpoints": service.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    };
    let services: Vec<_> = context.proxy.backends().iter().map(service).collect();
    json(StatusCode::OK, &serde_json::json!({ "node": context.node, "services": services }))
}

/// `GET /`
pub(super) fn index(context: &Context) -> String {
    format!(
        "gogate {} node {}\n\n\
         GET  /v1/cluster                    who is in the cluster, who leads\n\
         GET  /v1/services?name=&tag=&stale  the registered instances\n\
         GET  /v1/services?index=N&wait=30s  the same, once something newer than N happened\n\
         GET  /v1/watch?name=&since=N        changes as server-sent events\n\
         POST /v1/services                   register {{name, address, id?, ttl?, weight?, metadata?, tags?}}\n\
         GET, DELETE /v1/services/ID         one instance\n\
         PUT  /v1/services/ID/heartbeat      it is alive\n\
         GET, PUT, PATCH /v1/config          the gateway document (If-Match, ?dry_run)\n\
         GET  /v1/config/versions            its history\n\
         GET  /v1/config/diff                what a version changed (?from=&to=)\n\
         GET  /v1/config/status?wait=N       what each node runs\n\
         POST /v1/config/rollback            {{version}}\n\
         POST /v1/cluster/members            let a waiting node in {{address, role?}}\n\
         POST /v1/cluster/members/ID/promote have a learner vote\n\
         DELETE /v1/cluster/members/ID       take a node out for good\n\
         POST /v1/cluster/transfer-leader    {{to?}}\n\
         GET  /v1/cluster/backup?stale       all instances and documents as one file\n\
         POST /v1/cluster/restore?force      and back, into an empty cluster\n\
         POST /v1/cluster/snapshot           every node writes its state to its disk\n\
         POST /v1/node/drain                 this node is to stop: 202 until it is drained\n\
         GET  /livez /readyz?verbose /backends /metrics\n",
        context.build, context.node
    )
}
