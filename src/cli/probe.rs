//! `gogate ready`: the health check of a container, by the binary itself.

use super::{
    CliError,
    client::{Call, Client},
};

/// Fails unless the node says that it can serve traffic.
pub(super) async fn ready(client: &Client) -> Result<(), CliError> {
    let reply = client.send(&Call::get("/readyz")).await?;
    if reply.status.is_success() {
        return Ok(());
    }
    Err(CliError::Failed(format!("not ready: {}", String::from_utf8_lossy(&reply.body).trim())))
}
