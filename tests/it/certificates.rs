//! TLS and certificates, at the admin API and between nodes: who is known by them, and who is not let in.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use crate::{
    harness::{TestCluster, eventually, get, gogate, run},
    security::new_token,
};

const WITHIN: Duration = Duration::from_secs(15);

/// Files of certificates, made for a test.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    folder: PathBuf,
    file: PathBuf,
}

// === impl Authority ===

impl Authority {
    fn new(folder: &std::path::Path, name: &str) -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let file = folder.join(format!("{name}.pem"));
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: rcgen::Issuer::new(params, key), folder: folder.to_owned(), file }
    }

    /// Writes `NAME.pem` and `NAME.key` for `host`; both at once, for whoever watches them.
    fn issue(&self, name: &str, host: &str, is_expired: bool) -> (String, String) {
        let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        if is_expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert_file, key_file) =
            (self.folder.join(format!("{name}.pem")), self.folder.join(format!("{name}.key")));
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        std::fs::write(&cert_file, certificate.pem()).unwrap();
        (cert_file.display().to_string(), key_file.display().to_string())
    }

    fn file(&self) -> String {
        self.file.display().to_string()
    }
}

/// Adds keys to a section of a node file.
fn add_keys(cluster: &TestCluster, node: usize, section: &str, keys: &str) {
    let content = std::fs::read_to_string(cluster.file(node)).unwrap();
    let start = content.find(&format!("{section}: ")).unwrap();
    let end = start + content[start..].find(" }\n").unwrap();
    std::fs::write(cluster.file(node), format!("{}, {keys}{}", &content[..end], &content[end..])).unwrap();
}

fn log_of(cluster: &TestCluster, node: usize) -> String {
    std::fs::read_to_string(cluster.dir.path().join(format!("n{}.log", node + 1))).unwrap()
}

#[test]
fn the_admin_api_speaks_tls_alone_and_knows_callers_by_certificate() {
    let mut cluster = TestCluster::prepare(1);
    let folder = cluster.dir.path().to_owned();
    let authority = Authority::new(&folder, "ca");
    let other = Authority::new(&folder, "other-ca");
    let (cert, key) = authority.issue("server", "127.0.0.1", false);
    let tls = format!("tls: {{ cert: \"{cert}\", key: \"{key}\", client_ca: \"{}\" }}", authority.file());
    let tokens = folder.join("tokens.yaml");
    let token = new_token(&tokens.display().to_string(), &["--name", "me", "--role", "admin"]);
    let entries = std::fs::read_to_string(&tokens).unwrap();
    std::fs::write(
        &tokens,
        format!("{entries}  - {{ name: scraper, certificate: scraper.test, role: read }}\n"),
    )
    .unwrap();
    add_keys(&cluster, 0, "admin", &format!("tokens_file: \"{}\", {tls}", tokens.display()));
    cluster.start_node(0);

    let admin = format!("https://{}", cluster.admin(0));
    let at = |ca: &str, more: &[&str], command: &[&str]| {
        run(gogate().args(["--admin", &admin, "--ca", ca]).args(more).args(command))
    };
    let ca = authority.file();
    eventually(WITHIN, "it is ready", || match at(&ca, &["--token", &token], &["config", "log"]) {
        (Some(0), ..) => Ok(()),
        (_, _, said) => Err(said),
    });
    // By certificate: what its entry allows, and no more.
    let (cert, key) = authority.issue("scraper", "scraper.test", false);
    let shown = ["--cert", cert.as_str(), "--key", key.as_str()];
    assert_eq!(at(&ca, &shown, &["service", "list"]).0, Some(0));
    let (code, _, said) = at(&ca, &shown, &["service", "deregister", "x"]);
    assert!(code == Some(1) && said.contains("`scraper` has the role read"), "{said}");
    // A certificate that no entry names, one of another CA, and one that has expired.
    let refused = |(cert, key): (String, String), says: &str| {
        let (code, _, said) = at(&ca, &["--cert", &cert, "--key", &key], &["service", "list"]);
        assert!(code == Some(1) && said.contains(says), "{said}");
    };
    refused(authority.issue("stranger", "stranger.test", false), "no entry of the tokens file");
    refused(other.issue("forged", "scraper.test", false), "no gogate answers");
    refused(authority.issue("old", "scraper.test", true), "no gogate answers");
    // Whom this client does not believe, and nothing without TLS.
    let (code, _, said) = at(&other.file(), &["--token", &token], &["service", "list"]);
    assert!(code == Some(1) && said.contains("UnknownIssuer"), "{said}");
    let (code, _, said) = run(gogate().args(["--admin", &admin, "service", "list"]));
    assert!(code == Some(2) && said.contains("--ca FILE"), "{said}");
    assert!(get(cluster.admin(0), "/livez").is_err(), "nothing is answered without TLS");

    // Another certificate, for another name: connections from now on see it.
    authority.issue("server", "elsewhere.test", false);
    eventually(WITHIN, "the new certificate is shown", || {
        let (_, _, said) = at(&ca, &["--token", &token], &["service", "list"]);
        if said.contains("not valid for name") { Ok(()) } else { Err(said) }
    });
    std::fs::write(folder.join("server.pem"), "nothing\n").unwrap();
    eventually(WITHIN, "a broken file is told", || {
        let log = log_of(&cluster, 0);
        if log.contains("admin.tls") && log.contains("has no certificate in PEM") { Ok(()) } else { Err(log) }
    });
}

#[test]
fn with_a_client_ca_alone_every_certificate_of_it_is_an_admin() {
    let mut cluster = TestCluster::prepare(1);
    let authority = Authority::new(cluster.dir.path(), "ca");
    let (cert, key) = authority.issue("server", "127.0.0.1", false);
    let ca = authority.file();
    let tls = format!("tls: {{ cert: \"{cert}\", key: \"{key}\", client_ca: \"{ca}\" }}");
    add_keys(&cluster, 0, "admin", &tls);
    cluster.start_node(0);
    let admin = format!("https://{}", cluster.admin(0));
    let (cert, key) = authority.issue("me", "me.test", false);
    let command = |more: &[&str]| run(gogate().args(["--admin", &admin, "--ca", &ca]).args(more));
    eventually(WITHIN, "it is ready", || match command(&["ready"]) {
        (Some(0), ..) => Ok(()),
        (_, _, said) => Err(said),
    });
    let register = ["service", "register", "--name", "api", "--address", "h:1"];
    let (code, _, said) = command(&register);
    assert!(code == Some(1) && said.contains("needs a client certificate"), "{said}");
    let (code, _, said) = command(&[&["--cert", &cert, "--key", &key][..], &register].concat());
    assert_eq!(code, Some(0), "{said}");
    let log = log_of(&cluster, 0);
    assert!(log.lines().any(|line| line.contains("by=\"me.test\"") && line.contains("outcome=201")), "{log}");
}

/// Gives a node a certificate for peers.
fn give_peer_tls(cluster: &TestCluster, node: usize, (cert, key): &(String, String), ca: &str) {
    add_keys(cluster, node, "peer", &format!("tls: {{ cert: \"{cert}\", key: \"{key}\", ca: \"{ca}\" }}"));
}

#[test]
fn peers_know_each_other_by_certificate_and_take_new_ones_without_a_restart() {
    let mut cluster = TestCluster::prepare(3);
    let authority = Authority::new(cluster.dir.path(), "ca");
    for node in 0..3 {
        let files = authority.issue(&format!("peer-{node}"), "127.0.0.1", false);
        give_peer_tls(&cluster, node, &files, &authority.file());
        cluster.start_node(node);
    }
    cluster.wait_until_ready();
    cluster.register(0, "a", "api", "127.0.0.1:9".parse().unwrap());
    // What speaks no TLS, or has no certificate, gets nothing.
    let content = std::fs::read_to_string(cluster.file(0)).unwrap();
    let peer: SocketAddr =
        content.split("peer:    { listen: \"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    let mut plain = TcpStream::connect(peer).unwrap();
    plain.set_read_timeout(Some(WITHIN)).unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(answer.first().is_none_or(|first| *first == 0x15), "a TLS alert at most: {answer:?}");

    // New certificates, and meanwhile nothing is lost: neither connections nor the leader.
    let before = cluster.status(0).unwrap()["term"].clone();
    for node in 0..3 {
        authority.issue(&format!("peer-{node}"), "127.0.0.1", false);
    }
    for node in 0..3 {
        eventually(WITHIN, "the new certificate is read", || {
            let log = log_of(&cluster, node);
            let read = log.lines().any(|line| line.contains("files read again") && line.contains("peer.tls"));
            if read { Ok(()) } else { Err(log) }
        });
    }
    cluster.register(1, "b", "api", "127.0.0.1:9".parse().unwrap());
    assert_eq!(cluster.status(0).unwrap()["term"], before);
    // A node that comes back is let in by the new ones.
    cluster.kill(2);
    cluster.start_node(2);
    cluster.wait_until_ready();
    assert_eq!(cluster.instances(2).unwrap().len(), 2);
}

#[test]
fn a_peer_with_the_wrong_certificate_or_none_is_not_let_in() {
    for wrong in ["another CA", "expired", "no TLS", "a secret beside"] {
        let mut cluster = TestCluster::prepare(2);
        let folder = cluster.dir.path().to_owned();
        let (authority, other) = (Authority::new(&folder, "ca"), Authority::new(&folder, "other-ca"));
        let good = authority.issue("good", "127.0.0.1", false);
        give_peer_tls(&cluster, 0, &good, &authority.file());
        let (secret, another) = (folder.join("secret"), folder.join("another"));
        std::fs::write(&secret, "the-secret\n").unwrap();
        std::fs::write(&another, "another-one\n").unwrap();
        match wrong {
            "another CA" => {
                let forged = other.issue("forged", "127.0.0.1", false);
                give_peer_tls(&cluster, 1, &forged, &authority.file());
            }
            "expired" => {
                let old = authority.issue("old", "127.0.0.1", true);
                give_peer_tls(&cluster, 1, &old, &authority.file());
            }
            "no TLS" => {}
            _ => {
                give_peer_tls(&cluster, 1, &good, &authority.file());
                add_keys(&cluster, 0, "peer", &format!("secret_file: \"{}\"", secret.display()));
                add_keys(&cluster, 1, "peer", &format!("secret_file: \"{}\"", another.display()));
            }
        }
        cluster.start_node(0);
        cluster.start_node(1);
        let says: &[&str] = match wrong {
            "another CA" => &["UnknownIssuer", "BadSignature"],
            "expired" => &["certificate expired"],
            "no TLS" => &["InvalidContentType"],
            _ => &["another secret"],
        };
        eventually(WITHIN, wrong, || {
            let mut log = log_of(&cluster, 0);
            if wrong == "a secret beside" {
                // Whoever asks first is told and ends, so that the other is never asked.
                log.push_str(&log_of(&cluster, 1));
            }
            let told =
                log.lines().any(|line| line.contains("WARN") && says.iter().any(|text| line.contains(text)));
            if told { Ok(()) } else { Err(format!("{log}\n--- n2\n{}", log_of(&cluster, 1))) }
        });
        // With another secret it does not even wait: it says so and ends.
        let ready = get(cluster.admin(0), "/readyz");
        assert!(ready.is_ok_and(|ready| ready.status == 503) || wrong == "a secret beside", "{wrong}");
    }
}

#[test]
fn a_certificate_for_another_host_is_refused_at_the_start_and_by_peers() {
    let mut cluster = TestCluster::prepare(2);
    let authority = Authority::new(cluster.dir.path(), "ca");
    let good = authority.issue("good", "127.0.0.1", false);
    let elsewhere = authority.issue("elsewhere", "n2.test", false);
    give_peer_tls(&cluster, 0, &good, &authority.file());
    give_peer_tls(&cluster, 1, &elsewhere, &authority.file());
    let (code, _, said) = run(gogate().args(["serve", "--config"]).arg(cluster.file(1)));
    assert_eq!(code, Some(1));
    assert!(said.contains("peer.tls") && said.contains("not for `127.0.0.1`"), "{said}");
    // It says to be reached where its certificate is for, and the others reach it elsewhere.
    add_keys(&cluster, 1, "peer", "advertise: \"n2.test:7170\"");
    cluster.start_node(0);
    cluster.start_node(1);
    eventually(WITHIN, "its name is looked at", || {
        let log = log_of(&cluster, 0);
        if log.contains("not valid for name") { Ok(()) } else { Err(log) }
    });
    assert_eq!(get(cluster.admin(0), "/readyz").unwrap().status, 503);
}
