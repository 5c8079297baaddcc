//! `gogate sample`: a small HTTP service that registers itself, for `gogate dev`, the containers and tests.
//!
//! It answers every request with its own name and what reached it. Invariants: it registers under one id for
//! all of its life, tries until a node takes it, and deregisters when it is told to stop.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{
    CliError,
    client::{Client, Instance, Registration},
    serve::die_with,
};

/// The request's headers that an answer repeats.
const SHOWN: [&str; 9] = [
    "host",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
];

/// Between two tries while no node takes the registration.
const RETRY: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(super) struct Sample {
    /// The service's name
    #[arg(long)]
    name: String,
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the gateways reach it; where it listens, unless given
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// How long it is believed to live after a heartbeat
    #[arg(long, default_value = "10s")]
    ttl: String,
    /// End with the process of this id, which started this one
    #[arg(long, hide = true, value_name = "PID")]
    die_with: Option<i32>,
}

/// What every answer tells.
struct Service {
    name: String,
    id: String,
    address: String,
}

#[derive(Serialize)]
struct Echo<'a> {
    service: &'a str,
    instance: &'a str,
    address: &'a str,
    method: &'a str,
    path: &'a str,
    body_bytes: usize,
    headers: BTreeMap<&'static str, &'a str>,
}

// === impl Sample ===

impl Sample {
    pub(super) async fn run(self, client: Client) -> Result<(), CliError> {
        if let Some(parent) = self.die_with {
            die_with(parent)?;
        }
        let failed = |error: std::io::Error| CliError::Failed(format!("--listen {}: {error}", self.listen));
        let listener = TcpListener::bind(self.listen).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let address = match self.advertise {
            Some(address) => address,
            None if local.ip().is_unspecified() => {
                return Err(CliError::Usage(format!(
                    "--listen {local} is no address to reach: say --advertise HOST:PORT"
                )));
            }
            None => local.to_string(),
        };
        let ttl = crate::config::parse_duration(&self.ttl);
        let ttl = ttl.map_err(|_| CliError::Usage(format!("--ttl {} is no duration: use 10s", self.ttl)))?;
        let service = Arc::new(Service { id: format!("{}-{address}", self.name), name: self.name, address });
        eprintln!("gogate sample: {} listens on {local} and is reached at {}", service.name, service.address);

        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut registration = None;
        let registering = async {
            registration = Some(service.register(&client, ttl).await);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = service.serve(listener) => {}
            () = registering => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if let Some(registration) = registration {
            // Without it the instance's life ends by itself.
            let _ = registration.close().await;
        }
        Ok(())
    }
}

// === impl Service ===

impl Service {
    /// Accepts for ever; each connection is served beside the others.
    async fn serve(self: &Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let own = self.clone();
            let service = service_fn(move |request| {
                let own = own.clone();
                async move { Ok::<_, Infallible>(own.answer(request).await) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        if head.uri.path() == "/healthz" {
            return Response::new(Full::new(Bytes::from_static(b"ok\n")));
        }
        let Ok(body) = body.collect().await else {
            let mut broken = Response::new(Full::new(Bytes::new()));
            *broken.status_mut() = StatusCode::BAD_REQUEST;
            return broken;
        };
        let shown = SHOWN.iter().filter_map(|name| Some((*name, head.headers.get(*name)?.to_str().ok()?)));
        let echo = Echo {
            service: &self.name,
            instance: &self.id,
            address: &self.address,
            method: head.method.as_str(),
            path: head.uri.path_and_query().map_or("/", |path| path.as_str()),
            body_bytes: body.to_bytes().len(),
            headers: shown.collect(),
        };
        let mut bytes = serde_json::to_vec(&echo).expect("texts and numbers are always JSON");
        bytes.push(b'\n');
        let mut answer = Response::new(Full::new(bytes.into()));
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    }

    /// Registers: tries until a node takes it.
    async fn register(&self, client: &Client, ttl: Duration) -> Registration {
        let Self { name, id, address } = self;
        let instance = Instance { id: id.clone(), ttl, ..Instance::new(name, address) };
        let mut told = false;
        loop {
            match client.register(instance.clone()).await {
                Ok(registration) => {
                    eprintln!("gogate sample: {name} is registered as {id}");
                    return registration;
                }
                // By its id registering may be repeated: an unknown outcome is tried again, too.
                Err(error) if !told => eprintln!("gogate sample: {name} is not registered yet: {error}"),
                Err(_) => {}
            }
            told = true;
            tokio::time::sleep(RETRY).await;
        }
    }
}
