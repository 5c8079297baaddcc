//! `gogate token`: make what `admin.tokens_file` lists. Talks to no node.

use std::{
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Subcommand;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    CliError, Format,
    output::{Table, print, show},
};
use crate::config::{
    check_name,
    tokens::{self, ServicePattern},
};

/// Tells people, and programs that look for lost secrets, what it is.
const PREFIX: &str = "ggt_";

#[derive(Subcommand)]
pub(super) enum Token {
    /// Make a token: it is printed once, the file gets its hash
    New {
        /// Who will have it: the audit log and the history of documents tell
        #[arg(long)]
        name: String,
        /// What it is good for; each role may do what those before it may
        #[arg(long, value_parser = ["read", "register", "write", "admin"])]
        role: String,
        /// With `register`: a service that it may register instances of, `web-*` for several, `*` for all
        #[arg(long = "service", value_name = "NAME")]
        services: Vec<String>,
        /// Add its entry to this tokens file, and print the token alone
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

// === impl Token ===

impl Token {
    pub(super) fn run(self, output: Format) -> Result<(), CliError> {
        let Self::New { name, role, services, file } = self;
        check_name(&name).map_err(|rule| CliError::Usage(format!("--name: {rule}")))?;
        if (role == "register") == services.is_empty() {
            let wrong =
                "--service goes with --role register, and that with at least one (--service '*': all)";
            return Err(CliError::Usage(wrong.into()));
        }
        if let Some(wrong) = services.iter().find(|text| ServicePattern::new(text).is_none()) {
            return Err(CliError::Usage(format!("--service {wrong}: a `*` may stand at the end only")));
        }
        let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
        let sha256: String = Sha256::digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut entry = format!("- {{ name: {name}, sha256: \"{sha256}\", role: {role}");
        if !services.is_empty() {
            entry.push_str(&format!(", services: {}", json!(services)));
        }
        entry.push_str(" }");
        if let Some(file) = file {
            add(&file, &entry)?;
            return print(&format!("{token}\n"));
        }
        if output != Format::Table {
            let mut fields = json!({ "name": name, "sha256": sha256, "role": role });
            if !services.is_empty() {
                fields["services"] = json!(services);
            }
            return show(output, &json!({ "token": token, "entry": fields }), || Table::new(&[]));
        }
        print(&format!(
            "{token}\n\nIt is not shown again: keep it for whoever calls (GOGATE_TOKEN).\nFor the file that `admin.tokens_file` names, below `tokens:`\n  {entry}\n"
        ))
    }
}

/// Adds an entry to a file, unless that would break it.
fn add(file: &Path, entry: &str) -> Result<(), CliError> {
    let failed = |problem: String| CliError::Failed(format!("{}: {problem}", file.display()));
    let mut text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => "tokens:\n".to_owned(),
        Err(error) => return Err(failed(error.to_string())),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("  {entry}\n"));
    if let Err(problems) = tokens::parse(&text) {
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        return Err(failed(format!(
            "nothing was written, for with the new entry it would not be valid: {first}"
        )));
    }
    // A node that reads it meanwhile sees the old one or the new one.
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&new, file));
    written.map_err(|error| failed(error.to_string()))
}
