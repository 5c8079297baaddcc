//! A stream of server-sent events: `GET /v1/watch`, read one event after another.
//!
//! Invariant: an event is told whole or not at all: one that was cut off is another's to tell, after a resumption.

use std::{net::SocketAddr, time::Instant};

use super::http::{Connection, HttpError};

/// An event.
#[derive(Debug, Default)]
pub struct ServerEvent {
    /// Its id, if it has one.
    pub id: Option<u64>,
    /// Its name.
    pub name: String,
    /// Its data, a line.
    pub data: String,
}

/// A stream that goes on.
pub struct Events {
    connection: Connection,
    deadline: Instant,
    /// Received and not yet told.
    body: Vec<u8>,
}

impl Events {
    /// Asks for the stream at `path`; everything on it has to come before the deadline. An answer that is no
    /// stream is an error.
    pub fn open(address: SocketAddr, path: &str, deadline: Instant) -> Result<Self, HttpError> {
        let mut connection = Connection::open(address, deadline)?;
        let status = connection.ask_for_stream(path, deadline)?;
        if status != 200 {
            return Err(HttpError::NotSent(format!("no stream: {status}")));
        }
        Ok(Self { connection, deadline, body: Vec::new() })
    }

    /// The next event; none: the stream is over, or the time is.
    pub fn next(&mut self) -> Option<ServerEvent> {
        let mut event = ServerEvent::default();
        loop {
            let line = self.line()?;
            match line.split_once(": ") {
                Some(("id", id)) => event.id = id.parse().ok(),
                Some(("event", name)) => name.clone_into(&mut event.name),
                Some(("data", data)) => event.data.push_str(data),
                // A comment ends with an empty line, too.
                None if line.is_empty() && !event.name.is_empty() => return Some(event),
                _ => {}
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.body.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&self.body[..end]).into_owned();
                self.body.drain(..=end);
                return Some(line);
            }
            self.body.extend(self.connection.chunk(self.deadline).ok().filter(|chunk| !chunk.is_empty())?);
        }
    }
}
