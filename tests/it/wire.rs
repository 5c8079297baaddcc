//! What holds on the wire beside single messages: trailers, names with underscores, and answers that do not end
//! where they should.

use std::{io::Read, sync::atomic::Ordering};

use gogate::config::document::Document;

use crate::upstream::{Gateway, PATIENCE, Upstream, yaml};

/// Everything goes to `upstream`; `more` is the rest of the document.
fn document(upstream: &Upstream, more: &str) -> Document {
    yaml(&format!(
        "listeners: {{ web: {{ address: '127.0.0.1:0' }} }}\n\
         services: {{ service: {{ endpoints: [{{ address: '{}' }}] }} }}\n\
         routes: [{{ name: all, match: {{ path_prefix: / }}, service: service }}]\n{more}",
        upstream.address
    ))
}

#[test]
fn a_name_with_underscores_does_not_stand_for_one_with_hyphens() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&document(&upstream, ""));
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 10.0.0.1\r\nHOST_: b\r\napi_key: 7\r\n\r\n");
    let seen = client.answer().text();
    assert!(!seen.contains("10.0.0.1") && seen.contains("api_key: 7\n"), "{seen}");
}

#[test]
fn trailers_say_nothing_that_belongs_into_a_head() {
    let upstream = Upstream::start(|mut peer| {
        while let Some(request) = peer.request() {
            let trailer = request.fields.iter().filter(|(name, _)| name == "x-forwarded-for").count();
            assert_eq!((trailer, request.field("x-sum")), (1, Some("7")), "{request:?}");
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: via, x-total\r\n\r\n");
            peer.send("0\r\nvia: evil\r\nx-total: 9\r\n\r\n");
        }
    });
    let gateway = Gateway::start(&document(&upstream, ""));
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum, x-forwarded-for\r\n");
    client.send("Transfer-Encoding: chunked\r\n\r\n0\r\nx-sum: 7\r\nx-forwarded-for: 10.0.0.1\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.field("x-total")), (200, Some("9")), "{answer:?}");
    assert_eq!(answer.field("via"), Some("1.1 gogate"), "{answer:?}");
    assert_eq!(answer.fields.iter().filter(|(name, _)| name == "via").count(), 1, "{answer:?}");
}

#[test]
fn bytes_after_an_answer_end_its_connection() {
    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
    const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    // At once, and when the connection is idle.
    for at_once in [true, false] {
        let (said, both) = std::sync::mpsc::channel();
        let upstream = Upstream::start(move |mut peer| {
            while peer.request().is_some() {
                if at_once {
                    peer.send(&[GOOD, EVIL].concat());
                } else {
                    peer.send(GOOD);
                    peer.send(EVIL);
                }
                said.send(()).unwrap();
            }
        });
        let gateway = Gateway::start_with(1, std::time::Duration::ZERO, &document(&upstream, ""));
        for number in 1..=3 {
            let answer = gateway.client().get("/");
            assert_eq!((answer.status(), answer.text().as_str()), (200, "good"), "{at_once} {answer:?}");
            both.recv_timeout(PATIENCE).unwrap();
            assert_eq!(upstream.connections.load(Ordering::SeqCst), number);
        }
    }
}

#[test]
fn an_answer_that_goes_wrong_after_its_head_is_cut_off() {
    let (read, is_read) = std::sync::mpsc::channel();
    let is_read = std::sync::Mutex::new(is_read);
    let upstream = Upstream::start(move |mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        is_read.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        peer.send("zz\r\nmore\r\n0\r\n\r\n");
        assert!(peer.is_closed());
    });
    let gateway = Gateway::start(&document(&upstream, ""));
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head();
    read.send(()).unwrap();
    let mut rest = String::new();
    client.0.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "4\r\nhalf\r\n", "there is no last chunk");
}
