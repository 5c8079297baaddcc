//! Operations from the logs of other programs: Jepsen's text logs, and EDN, one map a line.
//!
//! Job: put calls and returns together and hand each key's operations to a model. Invariants: a call without
//! a return, or with `:info`, is unknown for ever; one that failed has not happened; a line that should speak
//! of an operation and cannot be read is an error that names it. Neighbours: `edn` reads values, `model`
//! says what an operation is, `check` judges.

mod edn;

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead},
};

use self::edn::Edn;
use crate::{
    linearizability::Interval,
    model::{Model, Register, RegisterOperation, Text, Texts, TextsOperation},
};

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `INFO  jepsen.util - PROCESS :invoke|:ok|:fail|:info  :FUNCTION VALUE`; other lines are passed over
    Jepsen,
    /// `{:process 0, :type :invoke, :f :append, :key "3", :value "x"}`
    Edn,
}

/// A model whose operations can be read from a log.
pub trait Logged: Model + Default {
    /// What a client did. `returned` is the value with which it ended, none if that is unknown. An operation
    /// that nobody can have noticed is none; a wrong one is an error in words.
    fn operation(
        &mut self,
        function: &str,
        called: &Edn,
        returned: Option<&Edn>,
    ) -> Result<Option<Self::Operation>, String>;
}

/// The operations on one key, and each in words.
pub struct KeyLog<M: Model> {
    /// The key, as in the log; none if the log knows no keys.
    pub key: Option<String>,
    /// What they are held against.
    pub model: M,
    /// The operations.
    pub history: Vec<Interval<M::Operation>>,
    /// Each as the log has it.
    pub words: Vec<String>,
}

/// Why a log cannot be judged.
#[derive(Debug)]
pub enum LogError {
    /// It cannot be read.
    Io(io::Error),
    /// A line is not as it should be.
    Line {
        /// Counted from 1.
        number: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// It speaks of no operation.
    Empty,
}

/// What one line says.
struct Line {
    process: String,
    kind: Kind,
    function: String,
    key: Option<String>,
    value: Edn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Invoke,
    Ok,
    Fail,
    Info,
}

/// A call that has not returned so far.
struct Open {
    line: Line,
    number: u64,
}

/// Puts a log together, line by line.
struct Reader<M: Logged> {
    open: HashMap<String, Open>,
    keys: BTreeMap<Option<String>, KeyLog<M>>,
    seen: bool,
}

/// So many letters of a value are shown.
const VALUE_SHOWN: usize = 60;

/// Reads a log, each key's operations apart.
pub fn read<M: Logged>(format: Format, log: impl BufRead) -> Result<Vec<KeyLog<M>>, LogError> {
    let mut reader = Reader::<M> { open: HashMap::new(), keys: BTreeMap::new(), seen: false };
    for (number, text) in (1..).zip(log.lines()) {
        let text = text.map_err(LogError::Io)?;
        let line = match format {
            Format::Jepsen => jepsen_line(&text),
            Format::Edn => edn_line(&text),
        };
        line.and_then(|line| line.map_or(Ok(()), |line| reader.take(number, line)))
            .map_err(|problem| LogError::Line { number, problem })?;
    }
    reader.finish()
}

// === Lines ===

/// What stands before an operation in a line of Jepsen's; of the rest of such logs nothing is known.
const JEPSEN_MARK: &str = "jepsen.util - ";

/// Jepsen's process that does the harm. It asks nothing.
const NEMESIS: &str = ":nemesis";

fn jepsen_line(text: &str) -> Result<Option<Line>, String> {
    let Some((_, text)) = text.split_once(JEPSEN_MARK) else { return Ok(None) };
    let (process, rest) = word(text);
    if process == NEMESIS {
        return Ok(None);
    }
    if process.is_empty() || !process.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("`{process}` is not the number of a process"));
    }
    let (kind, rest) = word(rest);
    let (function, rest) = word(rest);
    let function =
        function.strip_prefix(':').ok_or_else(|| format!("`{function}` is not a function like :read"))?;
    let value = edn::read(rest).map_err(|problem| format!("its value: {problem}"))?;
    let (process, function) = (process.to_owned(), function.to_owned());
    Ok(Some(Line { process, kind: Kind::named(kind)?, function, key: None, value }))
}

/// The first word of a text, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()))
}

fn edn_line(text: &str) -> Result<Option<Line>, String> {
    let text = text.trim();
    if text.is_empty() || text.starts_with(';') {
        return Ok(None);
    }
    let mut map = match edn::read(text)? {
        Edn::Map(pairs) => pairs,
        _ => return Err("it is not a map like {:process 0, :type :invoke, :f :get, …}".to_owned()),
    };
    let mut field = |name: &str| {
        let index = map.iter().position(|(key, _)| matches!(key, Edn::Word(word) if word == name))?;
        Some(map.swap_remove(index).1)
    };
    let process = field(":process").ok_or("it has no :process")?.to_string();
    if process == NEMESIS {
        return Ok(None);
    }
    let kind = field(":type").ok_or("it has no :type")?.to_string();
    let function = field(":f").ok_or("it has no :f")?.to_string();
    let function = function
        .strip_prefix(':')
        .ok_or_else(|| format!("`{function}` is not a function like :get"))?
        .to_owned();
    let key = field(":key").filter(|key| *key != Edn::Nil).map(|key| key.to_string());
    let value = field(":value").unwrap_or(Edn::Nil);
    Ok(Some(Line { process, kind: Kind::named(&kind)?, function, key, value }))
}

impl Kind {
    fn named(name: &str) -> Result<Self, String> {
        match name {
            ":invoke" => Ok(Self::Invoke),
            ":ok" => Ok(Self::Ok),
            ":fail" => Ok(Self::Fail),
            ":info" => Ok(Self::Info),
            _ => Err(format!("`{name}` is none of :invoke, :ok, :fail, :info")),
        }
    }
}

// === impl Reader ===

impl<M: Logged> Reader<M> {
    fn take(&mut self, number: u64, line: Line) -> Result<(), String> {
        self.seen = true;
        if line.kind == Kind::Invoke {
            // A function or value that the model does not know is told where it stands.
            M::default().operation(&line.function, &line.value, None)?;
            let process = line.process.clone();
            // A process that calls again has given up on what it called before.
            return match self.open.insert(process, Open { line, number }) {
                Some(before) => self.end(&before, None),
                None => Ok(()),
            };
        }
        let Some(open) = self.open.remove(&line.process) else {
            return Err(format!("process {} returns, and has called nothing", line.process));
        };
        if open.line.function != line.function || (line.key.is_some() && open.line.key != line.key) {
            return Err(format!(
                "process {} called :{} in line {}, and this is the return of something else",
                line.process, open.line.function, open.number
            ));
        }
        match line.kind {
            Kind::Ok => self.end(&open, Some((number, &line.value))),
            Kind::Info => self.end(&open, None),
            Kind::Fail | Kind::Invoke => Ok(()),
        }
    }

    /// The operation is known as well as it ever will be.
    fn end(&mut self, open: &Open, returned: Option<(u64, &Edn)>) -> Result<(), String> {
        let Open { line: Line { process, function, key, value, .. }, number } = open;
        let of_key = self.keys.entry(key.clone()).or_insert_with(|| KeyLog {
            key: key.clone(),
            model: M::default(),
            history: Vec::new(),
            words: Vec::new(),
        });
        let returns = returned.map(|(_, value)| value);
        let Some(operation) = of_key.model.operation(function, value, returns)? else { return Ok(()) };
        let shown = shortened(&returned.map_or(value, |(_, value)| value).to_string());
        of_key.words.push(match returned {
            Some((end, _)) => format!("lines {number}-{end}: process {process} :{function} {shown}"),
            None => format!("line {number}: process {process} :{function} {shown}, outcome unknown"),
        });
        let returned = returned.map(|(number, _)| number);
        of_key.history.push(Interval { operation, called: *number, returned });
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<KeyLog<M>>, LogError> {
        if !self.seen {
            return Err(LogError::Empty);
        }
        let open = std::mem::take(&mut self.open);
        for open in open.into_values() {
            self.end(&open, None).map_err(|problem| LogError::Line { number: open.number, problem })?;
        }
        Ok(self.keys.into_values().collect())
    }
}

/// The end of a long value tells more than its beginning: what was added last stands there.
fn shortened(value: &str) -> String {
    match value.char_indices().rev().nth(VALUE_SHOWN) {
        Some((cut, _)) => format!("…{}", &value[cut..]),
        None => value.to_owned(),
    }
}

impl std::fmt::Display for LogError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, " {error}"),
            Self::Line { number, problem } => write!(f, "{number}: {problem}"),
            Self::Empty => write!(f, " no line of it speaks of an operation"),
        }
    }
}

// === Models ===

impl Logged for Register {
    fn operation(
        &mut self,
        function: &str,
        called: &Edn,
        returned: Option<&Edn>,
    ) -> Result<Option<RegisterOperation>, String> {
        let value = |value| Ok::<_, String>(scalar(value)?.map(Text::from));
        match function {
            "read" => returned.map(|seen| Ok(RegisterOperation::Read(value(seen)?))).transpose(),
            "write" => Ok(Some(RegisterOperation::Write(value(called)?))),
            "cas" => match called {
                Edn::List(pair) if pair.len() == 2 => {
                    Ok(Some(RegisterOperation::CompareAndSet(value(&pair[0])?, value(&pair[1])?)))
                }
                _ => Err(format!("`{called}` is not a pair to compare and set, like [0 3]")),
            },
            _ => Err(format!("a register knows :read, :write and :cas, not :{function}")),
        }
    }
}

impl Logged for Texts {
    fn operation(
        &mut self,
        function: &str,
        called: &Edn,
        returned: Option<&Edn>,
    ) -> Result<Option<TextsOperation>, String> {
        let put = || Ok::<_, String>(Text::from(scalar(called)?.unwrap_or_default()));
        match function {
            "get" => returned.map(|seen| Ok(self.read(scalar(seen)?.unwrap_or_default()))).transpose(),
            "put" => Ok(Some(TextsOperation::Put(put()?))),
            "append" => Ok(Some(TextsOperation::Append(put()?))),
            _ => Err(format!("texts know :get, :put and :append, not :{function}")),
        }
    }
}

/// A single value; nil is none.
fn scalar(value: &Edn) -> Result<Option<&str>, String> {
    match value {
        Edn::Nil => Ok(None),
        Edn::Text(text) | Edn::Word(text) => Ok(Some(text)),
        Edn::List(_) | Edn::Map(_) => Err(format!("`{value}` is not a single value")),
    }
}

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
