//! `gogate check FILE`: every problem of a node file, gateway document or tokens file, or one line that says what it is.
//!
//! Neighbours: `config::check` and `config::node_file` find the problems.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use crate::config::{self, Kind, Problem, document::Document};

/// Checks the file and prints to `output`; the exit code is 0 when it is valid and 1 when not.
///
/// # Errors
/// When `output` cannot be written.
pub fn run(file: &Path, output: &mut impl Write) -> io::Result<ExitCode> {
    let name = file.display();
    match check(file) {
        Ok(what) => {
            writeln!(output, "{name}: {what}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            for problem in &problems {
                writeln!(output, "{}", problem.in_file(&name.to_string()))?;
            }
            writeln!(output, "{name}: {}", counted(problems.len(), "problem"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn check(file: &Path) -> Result<String, Vec<Problem>> {
    let text = &config::read(file).map_err(|problem| vec![problem])?;
    match config::kind(text) {
        Kind::Document => config::check::document(text).map(|document| summary(&document)),
        Kind::NodeFile => config::node_file::check(text).map(|()| "a valid node file".to_owned()),
        Kind::Tokens => config::tokens::parse(text)
            .map(|tokens| format!("a valid tokens file: {}", counted(tokens.len(), "token"))),
    }
}

fn summary(document: &Document) -> String {
    format!(
        "a valid gateway document: {}, {}, {}",
        counted(document.listeners.len(), "listener"),
        counted(document.services.len(), "service"),
        counted(document.routes.len(), "route")
    )
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check::EXAMPLE;

    /// What is printed for a file of this content, and whether it is valid.
    fn check(content: &[u8], expected: &str, valid: bool) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f.yaml");
        std::fs::write(&file, content).unwrap();
        let mut output = Vec::new();
        let code = run(&file, &mut output).unwrap();
        let output = String::from_utf8(output).unwrap();
        assert_eq!(output.replace(&file.display().to_string(), "f.yaml"), expected);
        assert_eq!(code == ExitCode::SUCCESS, valid);
    }

    #[test]
    fn a_valid_document_is_summed_up() {
        let expected = "f.yaml: a valid gateway document: 1 listener, 1 service, 1 route\n";
        check(EXAMPLE.as_bytes(), expected, true);
    }

    #[test]
    fn a_node_file_is_told_by_its_keys() {
        check(b"node: { name: n1 }\n", "f.yaml: a valid node file\n", true);
        check(
            b"node: { nam: n1 }\nlog: { format: xml }\n",
            "f.yaml:1: node.nam: unknown key `nam` (did you mean `name`?)\n\
             f.yaml:2: log.format: expected `text` or `json`, found `xml`\n\
             f.yaml: 2 problems\n",
            false,
        );
    }

    #[test]
    fn every_problem_is_listed_by_line_and_counted() {
        check(
            b"services:\n  api: { endpoints: [{ address: x }] }\nroutes:\n  - name: r\n    service: apj\n",
            "f.yaml:2: services.api.endpoints[0].address: `x` has no port (add a port: \"x:8080\")\n\
             f.yaml:5: routes[0].service: there is no service `apj` (did you mean `api`?)\n\
             f.yaml: 2 problems\n",
            false,
        );
    }

    #[test]
    fn a_file_that_is_not_utf_8_is_refused_with_its_line() {
        let expected = "f.yaml:2: byte 15 is not valid UTF-8 (save the file as UTF-8)\nf.yaml: 1 problem\n";
        check(b"services: {} #\n\xff\n", expected, false);
    }
}
