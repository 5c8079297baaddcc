//! A reader of server-sent events that hides nothing, one chunk after the other.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

/// How long the next bytes may take: there is a sign of life every 15 s.
const TIMEOUT: Duration = Duration::from_secs(40);

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: Option<u64>,
    pub name: String,
    pub data: Value,
}

/// An open stream.
pub struct Events {
    reader: BufReader<TcpStream>,
    /// What came of the next event.
    text: String,
    /// Comments, as they came.
    pub comments: Vec<String>,
}

// === impl Events ===

impl Events {
    /// Watches at `path`; panics unless it is answered with a stream.
    #[track_caller]
    pub fn open(address: SocketAddr, path: &str) -> Self {
        Self::open_after(address, path, None)
    }

    /// The same, coming back after the event `last`.
    #[track_caller]
    pub fn open_after(address: SocketAddr, path: &str, last: Option<u64>) -> Self {
        let last = last.map_or_else(String::new, |id| format!("last-event-id: {id}\r\n"));
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{last}\r\n").as_bytes()).unwrap();
        let mut events = Self { reader: BufReader::new(stream), text: String::new(), comments: Vec::new() };
        let head = events.head();
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        events
    }

    fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.reader.read_line(&mut head).unwrap() > 0, "the connection ended: {head}");
        }
        head
    }

    /// The next event; none: the stream has ended in order.
    pub fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(event) = self.event(&block) {
                    return Ok(Some(event));
                }
                continue;
            }
            let mut size = String::new();
            if self.reader.read_line(&mut size)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let size = usize::from_str_radix(size.trim_end(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            self.reader.read_exact(&mut chunk)?;
            if size == 0 {
                assert_eq!(self.text, "", "the stream ended within an event");
                return Ok(None);
            }
            self.text.push_str(std::str::from_utf8(&chunk[..size]).map_err(io::Error::other)?);
        }
    }

    /// The next event, which has to come.
    #[track_caller]
    pub fn expect(&mut self) -> Event {
        self.next().unwrap().expect("the stream goes on")
    }

    /// The next `count` events, by name and id of the instance.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<(String, String)> {
        let named = |event: Event| (event.name, event.data["id"].as_str().unwrap_or_default().to_owned());
        (0..count).map(|_| named(self.expect())).collect()
    }

    fn event(&mut self, block: &str) -> Option<Event> {
        let (mut id, mut name, mut data) = (None, String::new(), String::new());
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("id", value)) => id = Some(value.parse().unwrap()),
                Some(("event", value)) => name = value.to_owned(),
                Some(("data", value)) => data.push_str(value),
                Some(("", value)) => self.comments.push(value.to_owned()),
                _ => panic!("not an event: {block}"),
            }
        }
        let data = (!data.is_empty()).then(|| serde_json::from_str(&data).unwrap())?;
        Some(Event { id, name, data })
    }
}
