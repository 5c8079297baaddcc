//! `basic_auth`: a user name and a password (RFC 7617).
//!
//! Passwords are verified on threads of their own ([`Passwords`]), a bounded number for the node: a hash takes as
//! long as thousands of requests. Of those that wait, no client has so many that there is no place for another one.
//! What was right is remembered for a while ([`Verified`], each worker its own), so that a user's requests cost one
//! hash a minute. A user who is not known takes as long as one who is. Neighbours: `auth` calls, `worker` owns what is
//! remembered, `config::password` knows hashes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::{
    super::{
        client_address::subscriber,
        error::ProxyError,
        keeper::{Kept, Watched},
    },
    auth::{challenge, credential, strip},
};
use crate::config::{
    document::{self, Users},
    password::{self, PasswordHash},
};

/// How long a password that was right is not hashed again.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Passwords that a worker remembers.
const REMEMBERED_MAX: usize = 1024;
/// Verifications that wait for a thread, for each of them; more are refused.
const WAITING_MAX: usize = 16;
/// Longer ones are nobody's.
const PASSWORD_BYTES_MAX: usize = 1024;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Debug)]
pub(super) struct BasicAuth {
    policy: document::BasicAuth,
    users: Known,
    forwarded: [HeaderName; 1],
    challenge: HeaderValue,
}

type Hashes = BTreeMap<String, PasswordHash>;

#[derive(Debug)]
enum Known {
    Fixed(Hashes),
    File(Arc<Watched<Hashes>>),
}

/// The node's threads that verify passwords, started at the first one; they end when this is dropped.
#[derive(Debug, Default)]
pub(in super::super) struct Passwords(OnceLock<Option<Queue>>);

/// Verifications that wait for a thread.
#[derive(Debug)]
struct Queue {
    jobs: SyncSender<Job>,
    places: usize,
    waiting: Arc<Waiting>,
}

/// Whose they are, each once, in no order.
#[derive(Debug, Default)]
struct Waiting(Mutex<Vec<u128>>);

struct Job {
    client: u128,
    hash: PasswordHash,
    password: Vec<u8>,
    answer: oneshot::Sender<bool>,
}

/// What a worker remembers of passwords that were right: keyed hashes, worth nothing to anybody else.
#[derive(Debug)]
pub(in super::super) struct Verified {
    key: [u8; 32],
    until: RefCell<HashMap<[u8; 32], Instant>>,
}

// === impl BasicAuth ===

impl BasicAuth {
    pub(super) fn new(policy: &document::BasicAuth) -> Result<BasicAuth, String> {
        let users = match &policy.users {
            Users::Listed(users) => Known::Fixed(users.clone()),
            Users::File(path) => Known::File(Watched::open(path, password::htpasswd)?),
        };
        Ok(BasicAuth {
            users,
            forwarded: [policy.forward_user.clone()],
            challenge: challenge(&format!("Basic realm=\"{}\", charset=\"UTF-8\"", policy.realm)),
            policy: policy.clone(),
        })
    }

    /// What must be kept fresh for it.
    pub(super) fn kept(&self) -> Option<Arc<dyn Kept>> {
        match &self.users {
            Known::Fixed(_) => None,
            Known::File(file) => Some(Arc::clone(file) as _),
        }
    }

    pub(super) async fn check(
        &self,
        headers: &mut HeaderMap,
        client: IpAddr,
        passwords: &Passwords,
        verified: &Verified,
    ) -> Result<(), ProxyError> {
        const WRONG: &str = "the user or the password is wrong";
        strip(headers, &self.forwarded);
        let text = credential(headers, "basic").map_err(|reason| self.refuse(reason))?;
        let text = text.ok_or_else(|| self.refuse("a user name and a password are needed"))?;
        let (user, password) = read(text).ok_or_else(|| self.refuse("the credentials are malformed"))?;
        let known = match &self.users {
            Known::Fixed(users) => find(users, &user),
            Known::File(file) => find(&file.value(), &user),
        };
        let Some((hash, is_known)) = known else { return Err(self.refuse(WRONG)) };
        let key = verified.key(&user, &hash, &password);
        if !(is_known && verified.has(&key)) {
            let right = passwords.verify(client, hash, password)?.await.unwrap_or(false);
            if !(right && is_known) {
                return Err(self.refuse(WRONG));
            }
            verified.remember(key);
        }
        if !self.policy.forward_credential {
            headers.remove(header::AUTHORIZATION);
        }
        let user = HeaderValue::from_str(&user).map_err(|_| self.refuse(WRONG))?;
        headers.insert(self.policy.forward_user.clone(), user);
        Ok(())
    }

    fn refuse(&self, reason: &'static str) -> ProxyError {
        ProxyError::unauthorized(self.challenge.clone(), reason)
    }
}

/// User and password of the credentials.
fn read(text: &str) -> Option<(String, Vec<u8>)> {
    let mut bytes = BASE64.decode(text).ok()?;
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    let password = bytes.split_off(colon + 1);
    bytes.pop();
    let fits = password.len() <= PASSWORD_BYTES_MAX;
    String::from_utf8(bytes).ok().filter(|_| fits).map(|user| (user, password))
}

/// The hash to verify with, and whether it is the user's: any other takes as long for one who is not known. None
/// only if there are no users at all.
fn find(users: &Hashes, user: &str) -> Option<(PasswordHash, bool)> {
    let known = users.get(user);
    known.or_else(|| users.values().next()).map(|hash| (hash.clone(), known.is_some()))
}

// === impl Passwords ===

impl Passwords {
    /// Has a password verified; refused when too many wait, or too many of this client's.
    fn verify(
        &self,
        client: IpAddr,
        hash: PasswordHash,
        password: Vec<u8>,
    ) -> Result<oneshot::Receiver<bool>, ProxyError> {
        let queue = self.0.get_or_init(start).as_ref().ok_or(ProxyError::AuthOverload)?;
        let (answer, right) = oneshot::channel();
        queue.join(Job { client: subscriber(client), hash, password, answer })?;
        Ok(right)
    }
}

/// Half the cores, so that passwords cannot take all from the workers.
fn start() -> Option<Queue> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    let places = WAITING_MAX * threads;
    let (jobs, queue) = sync_channel(places);
    let queue = Arc::new(Mutex::new(queue));
    let waiting = Arc::new(Waiting::default());
    let mut started = 0;
    for number in 0..threads {
        let (queue, waiting) = (Arc::clone(&queue), Arc::clone(&waiting));
        let thread = std::thread::Builder::new().name(format!("passwords-{number}"));
        match thread.spawn(move || work(&queue, &waiting)) {
            Ok(_) => started += 1,
            Err(error) => tracing::error!(%error, "a thread for passwords cannot be started"),
        }
    }
    (started > 0).then_some(Queue { jobs, places, waiting })
}

fn work(queue: &Mutex<Receiver<Job>>, waiting: &Waiting) {
    loop {
        // The one who waits holds the lock: the others wait for it instead.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        waiting.remove(job.client);
        // Whoever asked may have gone.
        if !job.answer.is_closed() {
            let _ = job.answer.send(job.hash.verifies(&job.password));
        }
    }
}

// === impl Queue, Waiting ===

impl Queue {
    /// A client may have as many places as it leaves free: half of them if it is alone, a third if there are two. So
    /// whoever comes next finds one, as long as the flood is not from more addresses than there are places.
    fn join(&self, job: Job) -> Result<(), ProxyError> {
        let mut waiting = self.waiting.lock();
        let free = self.places - waiting.len();
        let own = waiting.iter().filter(|client| **client == job.client).count();
        if own >= free {
            return Err(ProxyError::AuthOverload);
        }
        waiting.push(job.client);
        // There is room: none is in the queue that is not counted.
        self.jobs.try_send(job).map_err(|_| ProxyError::AuthOverload)
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Vec<u128>> {
        // Every change is one step, so a panic elsewhere cannot have left half of one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, client: u128) {
        let mut waiting = self.lock();
        if let Some(place) = waiting.iter().position(|known| *known == client) {
            waiting.swap_remove(place);
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job(…)")
    }
}

// === impl Verified ===

impl Verified {
    pub(in super::super) fn new() -> Verified {
        Verified { key: rand::random(), until: RefCell::default() }
    }

    /// Of everything that must be the same: another hash for the user is another key.
    fn key(&self, user: &str, hash: &PasswordHash, password: &[u8]) -> [u8; 32] {
        let mut digest = Sha256::new_with_prefix(self.key);
        for part in [user.as_bytes(), hash.as_bytes(), password] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    fn has(&self, key: &[u8; 32]) -> bool {
        self.until.borrow().get(key).is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, key: [u8; 32]) {
        let mut until = self.until.borrow_mut();
        let now = Instant::now();
        if until.len() >= REMEMBERED_MAX {
            until.retain(|_, until| now < *until);
        }
        if until.len() >= REMEMBERED_MAX {
            // So many at once are no people; whoever is forgotten pays a hash.
            until.clear();
        }
        until.insert(key, now + REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2b$05$xSDFDm4f40x70jJMg/StdO6u92XmuCB5.MBF3lSI0tlsTWkTKF/qO";

    #[test]
    fn credentials_are_read_up_to_the_first_colon() {
        let read = |text: &str| read(&BASE64.encode(text));
        assert_eq!(read("ada:a:b"), Some(("ada".into(), b"a:b".to_vec())));
        assert_eq!(read("ada:"), Some(("ada".into(), Vec::new())));
        assert_eq!(read("ada"), None);
        assert_eq!(super::read("YWRhOng"), Some(("ada".into(), b"x".to_vec())));
        assert_eq!(super::read("YWRhOng=="), None);
        assert_eq!(super::read("***"), None);
    }

    #[test]
    fn a_user_who_is_not_known_is_verified_against_another_hash() {
        let hash = PasswordHash::new(HASH).unwrap();
        let users = Hashes::from([("ada".to_owned(), hash.clone())]);
        assert_eq!(find(&users, "ada"), Some((hash.clone(), true)));
        assert_eq!(find(&users, "eve"), Some((hash, false)));
        assert_eq!(find(&Hashes::new(), "ada"), None);
    }

    #[test]
    fn a_password_is_remembered_for_its_user_and_hash_alone() {
        let verified = Verified::new();
        let hash = PasswordHash::new(HASH).unwrap();
        let other =
            PasswordHash::new("$2b$05$xSDFDm4f40x70jJMg/StdO7u92XmuCB5.MBF3lSI0tlsTWkTKF/qO").unwrap();
        let key = verified.key("ada", &hash, b"secret");
        verified.remember(key);
        assert!(verified.has(&key));
        for (user, hash, password) in
            [("ad", &hash, &b"secret"[..]), ("ada", &other, b"secret"), ("ada", &hash, b"secreT")]
        {
            assert!(!verified.has(&verified.key(user, hash, password)));
        }
        assert!(
            !verified.has(&Verified::new().key("ada", &hash, b"secret")),
            "each worker has a key of its own"
        );
        for number in 0..2 * REMEMBERED_MAX {
            verified.remember(verified.key("eve", &hash, &number.to_le_bytes()));
        }
        assert!(verified.until.borrow().len() <= REMEMBERED_MAX);
    }

    #[tokio::test]
    async fn too_many_verifications_at_once_are_refused_and_one_client_does_not_have_all_places() {
        let passwords = Passwords::default();
        let hash = PasswordHash::new(HASH).unwrap();
        let verify = |client: &str, password: &[u8]| {
            passwords.verify(client.parse().unwrap(), hash.clone(), password.to_vec())
        };
        assert!(verify("192.0.2.1", b"secret").unwrap().await.unwrap());
        assert!(!verify("192.0.2.1", b"wrong").unwrap().await.unwrap());
        let flood = |client: &&str| (0..10_000).map(|_| verify(client, b"x")).collect();
        let floods: Vec<Vec<_>> = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].iter().map(flood).collect();
        for flood in &floods {
            assert!(flood.iter().any(|one| matches!(one, Err(ProxyError::AuthOverload))));
        }
        assert!(verify("2001:db8:0:1::1", b"secret").unwrap().await.unwrap());
    }
}
