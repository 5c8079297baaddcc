//! One connection to a node, for one call.
//!
//! Invariant: hyper's connection is driven beside the call and ends with it: no task is left behind.

use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::CONNECT_TIMEOUT;

/// An open connection.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// None: it has ended.
    driver: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

// === impl Connection ===

impl Connection {
    /// Connects to `node`, a `HOST:PORT`.
    pub(super) async fn open(node: &str, tls: Option<&TlsConnector>) -> Result<Self, String> {
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(node)).await {
            Ok(connected) => connected.map_err(|error| error.to_string())?,
            Err(_) => return Err("no connection in time".into()),
        };
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else { return Self::over(stream).await };
        let host = node.rsplit_once(':').map_or(node, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        match tokio::time::timeout(CONNECT_TIMEOUT, tls.connect(name, stream)).await {
            Ok(Ok(stream)) => Self::over(stream).await,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no TLS in time".into()),
        }
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, String> {
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| error.to_string())?;
        let driver = Box::pin(async move {
            // How it ended is told by what is awaited beside it.
            let _ = connection.await;
        });
        Ok(Self { sender, driver: Some(driver) })
    }

    /// Sends the request; returns with the answer's head.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let answer = self.sender.send_request(request);
        drive(&mut self.driver, answer).await.map_err(|error| error.to_string())
    }

    /// Does `work`, which waits for what comes over this connection.
    pub(super) async fn driven<T>(&mut self, work: impl Future<Output = T>) -> T {
        drive(&mut self.driver, work).await
    }
}

async fn drive<T>(
    driver: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        let Some(running) = driver else { return work.await };
        tokio::select! {
            done = work.as_mut() => return done,
            () = running.as_mut() => *driver = None,
        }
    }
}
