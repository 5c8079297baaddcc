//! Connections between peers, with TLS or without.
//!
//! Job: [`accept`] takes them, [`Connector`] makes them. Invariants: where there is TLS nothing is spoken without it;
//! handshakes are bounded in number and time, and one that stalls keeps nobody else out. Neighbours: `server` and
//! `network` speak gRPC over them.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream, rustls::pki_types::CertificateDer};
use tonic::{
    codegen::{Service, http::Uri},
    transport::server::Connected,
};

use crate::tls::{PeerTls, certificate_is_for, host_name};

/// Handshakes under way.
const HANDSHAKES_MAX: usize = 512;

/// How long one may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long to wait when no connection can be accepted, most often for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Kinds of failed handshakes that are logged.
const KINDS_MAX: usize = 64;

/// A connection that a peer has made.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What is known of who made it.
#[derive(Clone, Default)]
pub(super) struct Shown {
    certificate: Option<Arc<CertificateDer<'static>>>,
    /// The address that it was found to be for.
    found: Arc<Mutex<Option<String>>>,
}

/// Takes connections for ever and hands them on once they are ready.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<Arc<PeerTls>>,
    ready: mpsc::Sender<Stream>,
) -> Infallible {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let told = Arc::new(Mutex::new(BTreeSet::new()));
    let mut handshakes = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection of a peer can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (ready, told) = (ready.clone(), told.clone());
        let config = tls.as_ref().map(|tls| tls.server());
        handshakes.spawn(async move {
            let _place = place;
            let stream = match config {
                None => Ok(Stream::Plain(stream)),
                Some(config) => {
                    let shaken = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
                    let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                    shaken.map(|stream| Stream::Tls(Box::new(stream.into())))
                }
            };
            match stream {
                Ok(stream) => {
                    // An error means that the server has ended.
                    let _ = ready.send(stream).await;
                }
                Err(error) => tell_once(&told, &format!("a peer at {} is not let in", peer.ip()), &error),
            }
        });
        while handshakes.try_join_next().is_some() {}
    }
}

/// Of one peer each kind of error is told once; some have the time in them.
fn tell_once(told: &Mutex<BTreeSet<String>>, what: &str, error: &io::Error) {
    let error = error.to_string();
    let kind = format!("{what}: {}", error.replace(|letter: char| letter.is_ascii_digit(), ""));
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    if told.len() < KINDS_MAX && told.insert(kind) {
        tracing::warn!("{what}: {error}");
    }
}

// === impl Shown ===

impl Shown {
    /// Whether the certificate is for the host of `address`, by which its owner says to be reached.
    pub(super) fn is_for(&self, address: &str) -> Result<(), String> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.as_deref() == Some(address) {
            return Ok(());
        }
        let certificate = self.certificate.as_ref().ok_or("there is no certificate")?;
        certificate_is_for(certificate, address)?;
        *found = Some(address.to_owned());
        Ok(())
    }
}

// === impl Stream ===

impl Connected for Stream {
    type ConnectInfo = Shown;

    fn connect_info(&self) -> Shown {
        let certificate = match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.peer_certificates().and_then(<[_]>::first),
        };
        let certificate = certificate.map(|certificate| Arc::new(certificate.clone().into_owned()));
        Shown { certificate, found: Arc::default() }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

/// Makes connections with TLS to one address.
#[derive(Clone)]
pub(super) struct Connector {
    address: String,
    tls: Arc<PeerTls>,
    /// What failed before. Weak, for whoever has it has the channels too that use this.
    told: Weak<Mutex<BTreeSet<String>>>,
}

// === impl Connector ===

impl Connector {
    pub(super) fn new(address: &str, tls: Arc<PeerTls>, told: &Arc<Mutex<BTreeSet<String>>>) -> Self {
        Self { address: address.to_owned(), tls, told: Arc::downgrade(told) }
    }

    async fn connect(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let Self { address, tls, told } = self;
        let stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        let name = host_name(&address).map_err(io::Error::other)?;
        match TlsConnector::from(tls.client()).connect(name, stream).await {
            Ok(stream) => Ok(TokioIo::new(stream.into())),
            Err(error) => {
                if let Some(told) = told.upgrade() {
                    tell_once(&told, &format!("the peer at {address} is not spoken to"), &error);
                }
                Err(error)
            }
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}
