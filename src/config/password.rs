//! Password hashes, as operators write them: bcrypt or argon2, in the document or in an htpasswd file.
//!
//! Job: text → [`PasswordHash`], bounded in what it costs to verify. Invariants: a hash that cannot be verified, or
//! that would take a node seconds or gigabytes, is refused here; hashes are in no message and no `Debug` output.
//! Neighbours: `check` judges the document, `proxy::policy::basic_auth` reads files and verifies.

use std::{collections::BTreeMap, fmt, str::FromStr};

use argon2::{
    Argon2, Params,
    password_hash::{PasswordVerifier, phc},
};

use super::{address::Refusal, problem::shown};

/// bcrypt's cost counts in powers of two: 12 takes about a quarter of a second.
const BCRYPT_COST_MAX: u32 = 15;
/// Memory for one verification, in KiB.
const ARGON2_MEMORY_MAX: u32 = 256 << 10;
/// Memory times passes, in KiB.
const ARGON2_WORK_MAX: u64 = 1 << 20;
const ARGON2_LANES_MAX: u32 = 16;

/// What to do with a hash that is not one of these.
const HOW_TO_HASH: &str = "htpasswd -nB NAME makes a bcrypt hash, argon2 SALT -id -e an argon2id one";

/// A password's hash.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

// === impl PasswordHash ===

impl PasswordHash {
    /// Reads a hash.
    ///
    /// # Errors
    /// What is wrong, without the hash.
    pub fn new(text: &str) -> Result<Self, Refusal> {
        let how = || Some(HOW_TO_HASH.to_owned());
        let prefix = |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix));
        if prefix(&["$2a$", "$2b$", "$2y$"]) {
            let parts = bcrypt::HashParts::from_str(text);
            let cost = parts.map_err(|_| ("this bcrypt hash is not whole".to_owned(), how()))?.get_cost();
            return if (4..=BCRYPT_COST_MAX).contains(&cost) {
                Ok(Self(text.to_owned()))
            } else {
                Err((format!("the bcrypt cost {cost} is not from 4 to {BCRYPT_COST_MAX}"), None))
            };
        }
        if prefix(&["$argon2id$", "$argon2i$", "$argon2d$"]) {
            return Self::argon2(text);
        }
        let problem = if prefix(&["$apr1$", "$1$", "{SHA}", "$5$", "$6$", "$2x$"]) {
            "this kind of hash is too weak or not supported; bcrypt and argon2 are"
        } else {
            "this is not a hash: passwords are never written down"
        };
        Err((problem.to_owned(), how()))
    }

    fn argon2(text: &str) -> Result<Self, Refusal> {
        let broken = || ("this argon2 hash is not whole".to_owned(), Some(HOW_TO_HASH.to_owned()));
        let hash = phc::PasswordHash::new(text).map_err(|_| broken())?;
        if hash.salt.is_none() || hash.hash.is_none() || !matches!(hash.version, None | Some(0x10 | 0x13)) {
            return Err(broken());
        }
        let params = Params::try_from(&hash).map_err(|_| broken())?;
        let work = u64::from(params.m_cost()) * u64::from(params.t_cost());
        if params.m_cost() > ARGON2_MEMORY_MAX || work > ARGON2_WORK_MAX || params.p_cost() > ARGON2_LANES_MAX
        {
            return Err((
                format!(
                    "this argon2 hash costs too much to verify: m={}, t={}, p={}",
                    params.m_cost(),
                    params.t_cost(),
                    params.p_cost()
                ),
                Some(format!(
                    "m is at most {ARGON2_MEMORY_MAX}, m times t at most {ARGON2_WORK_MAX}, p at most {ARGON2_LANES_MAX}"
                )),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether it is the hash of this password. It takes as long as its cost says: not for a worker's thread.
    #[must_use]
    pub fn verifies(&self, password: &[u8]) -> bool {
        if self.0.starts_with("$2") {
            bcrypt::verify(password, &self.0).unwrap_or(false)
        } else {
            Argon2::default().verify_password(password, self.0.as_str()).is_ok()
        }
    }

    /// As it was written, for a key of a cache.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

/// Whether `name` can name a user: printable ASCII without a colon, so that it can be sent as a header field.
#[must_use]
pub fn is_user(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

/// The users of an htpasswd file: `name:hash` a line; empty lines and those that begin with `#` are skipped.
///
/// # Errors
/// What is wrong and on which line.
pub fn htpasswd(text: &str) -> Result<BTreeMap<String, PasswordHash>, Refusal> {
    let mut users = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let on_line = |(problem, suggestion): Refusal| (format!("line {}: {problem}", index + 1), suggestion);
        let Some((name, hash)) = line.split_once(':') else {
            // Not repeated: it may be a password.
            return Err(on_line(("there is no `:`".into(), Some("a line is NAME:HASH".into()))));
        };
        if !is_user(name) {
            return Err(on_line((format!("`{}` cannot be a user", shown(name)), None)));
        }
        let hash = PasswordHash::new(hash).map_err(on_line)?;
        if users.insert(name.to_owned(), hash).is_some() {
            return Err(on_line((format!("`{name}` is a user already"), Some("keep one of them".into()))));
        }
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `secret`, made with other implementations: libxcrypt and OpenSSL's.
    const BCRYPT: &str = "$2b$05$xSDFDm4f40x70jJMg/StdO6u92XmuCB5.MBF3lSI0tlsTWkTKF/qO";
    const ARGON2: &str =
        "$argon2id$v=19$m=1024,t=2,p=1$c2FsdHNhbHRzYWx0$RGrC2kghhmdFPTu+VWYImMCAKqufCVt9PjEVxccoErs";

    #[test]
    fn hashes_of_other_tools_verify() {
        for text in [BCRYPT, ARGON2] {
            let hash = PasswordHash::new(text).unwrap();
            assert!(hash.verifies(b"secret"), "{text}");
            assert!(!hash.verifies(b"Secret") && !hash.verifies(b""), "{text}");
            assert_eq!(format!("{hash:?}"), "PasswordHash(…)");
        }
    }

    #[test]
    fn what_is_no_hash_or_costs_too_much_is_refused_without_being_repeated() {
        for (text, expected) in [
            ("hunter2", "this is not a hash: passwords are never written down"),
            ("$apr1$abc$def", "this kind of hash is too weak or not supported; bcrypt and argon2 are"),
            (
                "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
                "this kind of hash is too weak or not supported; bcrypt and argon2 are",
            ),
            ("$2b$12$short", "this bcrypt hash is not whole"),
            (
                "$2b$31$xSDFDm4f40x70jJMg/StdO6u92XmuCB5.MBF3lSI0tlsTWkTKF/qO",
                "the bcrypt cost 31 is not from 4 to 15",
            ),
            ("$argon2id$v=19$m=65536,t=3,p=4$c2FsdA", "this argon2 hash is not whole"),
            (
                "$argon2id$v=19$m=4194304,t=1,p=4$c29tZXNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI",
                "this argon2 hash costs too much to verify: m=4194304, t=1, p=4",
            ),
        ] {
            let (problem, _) = PasswordHash::new(text).unwrap_err();
            assert_eq!(problem, expected, "{text}");
        }
    }

    #[test]
    fn an_htpasswd_file_is_read_line_by_line() {
        let users = htpasswd(&format!("# people\n\nada:{BCRYPT}\n grace:{ARGON2} \n")).unwrap();
        assert_eq!(users.keys().collect::<Vec<_>>(), ["ada", "grace"]);
        for (text, expected) in [
            ("ada", "line 1: there is no `:`"),
            ("\nada:plain", "line 2: this is not a hash: passwords are never written down"),
            (&format!("a\u{7}:{BCRYPT}"), "line 1: `a\\u{7}` cannot be a user"),
            (&format!("ada:{BCRYPT}\nada:{BCRYPT}"), "line 2: `ada` is a user already"),
        ] {
            assert_eq!(htpasswd(text).unwrap_err().0, expected);
        }
    }
}
