//! gogate from outside: real listeners on port 0, a file per behaviour.

mod proxy_http;
mod proxy_lifecycle;
mod proxy_upstream;
mod upstream;
