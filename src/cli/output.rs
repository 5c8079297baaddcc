//! How answers are shown: a table for a person, JSON or YAML for a program.

use std::io::{IsTerminal, Write};

use serde_json::Value;

use super::{CliError, Format};

/// Shows `value` as a program wants it, or the `table` that a person wants.
pub(super) fn show(format: Format, value: &Value, table: impl FnOnce() -> Table) -> Result<(), CliError> {
    let text = match format {
        Format::Json => format!("{value:#}\n"),
        Format::Yaml => yaml(value),
        Format::Table => table().text(std::io::stdout().is_terminal()),
    };
    print(&text)
}

/// Writes to stdout. A reader that has gone away, as `head` does, is no error.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    tell(text).map(drop)
}

/// Writes to stdout, one of many times; false: the reader has gone away.
pub(super) fn tell(text: &str) -> Result<bool, CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::Failed(format!("the answer cannot be written: {error}"))),
    }
}

/// Rows under a head.
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

// === impl Table ===

impl Table {
    /// A table with these columns.
    pub(super) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: for each column what `fields` has under its name, in the columns' order.
    pub(super) fn row(&mut self, fields: impl IntoIterator<Item = String>) {
        self.rows.push(fields.into_iter().collect());
    }

    fn text(&self, colour: bool) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(self.head[column].len())
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (cell, width) in cells.zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            line.trim_end().to_owned()
        };
        let head = line(&mut self.head.iter().copied());
        let mut text = if colour { format!("\x1b[1m{head}\x1b[0m\n") } else { format!("{head}\n") };
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
            text.push('\n');
        }
        text
    }
}

/// A field of an answer as a cell.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// JSON as block YAML; texts are quoted as JSON quotes them, which YAML reads alike.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_yaml(&mut text, value, 0, false);
    text
}

fn write_yaml(text: &mut String, value: &Value, depth: usize, after_dash: bool) {
    let indent = |text: &mut String, first: bool| {
        if !(first && after_dash) {
            text.push_str(&"  ".repeat(depth));
        }
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            for (place, item) in items.iter().enumerate() {
                indent(text, place == 0);
                text.push_str("- ");
                write_yaml(text, item, depth + 1, true);
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (place, (key, field)) in fields.iter().enumerate() {
                indent(text, place == 0);
                text.push_str(&Value::from(key.as_str()).to_string());
                let nested = match field {
                    Value::Array(items) => !items.is_empty(),
                    Value::Object(fields) => !fields.is_empty(),
                    _ => false,
                };
                text.push_str(if nested { ":\n" } else { ": " });
                write_yaml(text, field, depth + 1, !nested);
            }
        }
        plain => {
            text.push_str(&plain.to_string());
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_nests_lists_and_mappings() {
        let value = serde_json::json!({"a": [{"b": 1, "c": []}, "x: y"], "d": {"e": null}});
        let expected = "\"a\":\n  - \"b\": 1\n    \"c\": []\n  - \"x: y\"\n\"d\":\n  \"e\": null\n";
        assert_eq!(yaml(&value), expected);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "NAME"]);
        table.row(["long-id".into(), "a".into()]);
        assert_eq!(table.text(false), "ID       NAME\nlong-id  a\n");
    }
}
