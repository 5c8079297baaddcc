//! gogate from outside: real listeners on port 0, a file per behaviour.

#![allow(clippy::unwrap_used, missing_docs)]

mod proxy_http;
mod proxy_lifecycle;
mod proxy_upstream;
mod upstream;
