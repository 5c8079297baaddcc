//! As much of EDN (github.com/edn-format/edn) as logs of operations are written in.

use std::{
    fmt::{self, Display, Formatter},
    iter::Peekable,
    str::CharIndices,
};

/// No log has values within values within values.
const DEPTH_MAX: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edn {
    /// `nil`
    Nil,
    /// `"text"`
    Text(String),
    /// A number, a keyword with its colon, a symbol, a boolean: as it is written.
    Word(String),
    /// `[…]`, `(…)` or `#{…}`
    List(Vec<Edn>),
    /// `{…}`
    Map(Vec<(Edn, Edn)>),
}

/// Reads a text that is one value.
pub fn read(text: &str) -> Result<Edn, String> {
    let mut reader = Reader { text, letters: text.char_indices().peekable() };
    let value = reader.value(0)?;
    match reader.next_token() {
        None => Ok(value),
        Some((at, _)) => Err(format!("`{}` follows the value", &text[at..])),
    }
}

struct Reader<'a> {
    text: &'a str,
    letters: Peekable<CharIndices<'a>>,
}

// === impl Reader ===

impl Reader<'_> {
    /// The next letter that is not space; commas are space.
    fn next_token(&mut self) -> Option<(usize, char)> {
        while self.letters.next_if(|(_, letter)| letter.is_whitespace() || *letter == ',').is_some() {}
        self.letters.peek().copied()
    }

    fn value(&mut self, depth: usize) -> Result<Edn, String> {
        if depth > DEPTH_MAX {
            return Err("it is nested too deeply".to_owned());
        }
        let (start, first) = self.next_token().ok_or("a value is missing")?;
        match first {
            '"' => self.string(),
            '[' => self.list(']', depth),
            '(' => self.list(')', depth),
            '{' => self.map(depth),
            '#' if self.text[start..].starts_with("#{") => {
                self.letters.next();
                self.list('}', depth)
            }
            ']' | ')' | '}' => Err(format!("`{first}` closes nothing")),
            _ => Ok(self.word(start)),
        }
    }

    fn word(&mut self, start: usize) -> Edn {
        let ends = |letter: char| letter.is_whitespace() || ",\"[](){}".contains(letter);
        while self.letters.next_if(|(_, letter)| !ends(*letter)).is_some() {}
        let end = self.letters.peek().map_or(self.text.len(), |(at, _)| *at);
        match &self.text[start..end] {
            "nil" => Edn::Nil,
            word => Edn::Word(word.to_owned()),
        }
    }

    fn string(&mut self) -> Result<Edn, String> {
        self.letters.next();
        let mut string = String::new();
        loop {
            match self.letters.next() {
                None => return Err("a string is not closed".to_owned()),
                Some((_, '"')) => return Ok(Edn::Text(string)),
                Some((_, '\\')) => string.push(match self.letters.next() {
                    Some((_, letter @ ('"' | '\\'))) => letter,
                    Some((_, 'n')) => '\n',
                    Some((_, 't')) => '\t',
                    Some((_, 'r')) => '\r',
                    _ => return Err("a string has an unknown escape".to_owned()),
                }),
                Some((_, letter)) => string.push(letter),
            }
        }
    }

    fn list(&mut self, close: char, depth: usize) -> Result<Edn, String> {
        self.letters.next();
        let mut list = Vec::new();
        loop {
            match self.next_token() {
                None => return Err(format!("`{close}` is missing")),
                Some((_, letter)) if letter == close => {
                    self.letters.next();
                    return Ok(Edn::List(list));
                }
                Some(_) => list.push(self.value(depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Edn, String> {
        let Edn::List(list) = self.list('}', depth)? else { unreachable!("a list was asked for") };
        let mut list = list.into_iter();
        let mut map = Vec::new();
        while let Some(key) = list.next() {
            let value = list.next().ok_or_else(|| format!("`{key}` has no value"))?;
            map.push((key, value));
        }
        Ok(Edn::Map(map))
    }
}

// === impl Edn ===

/// For people: a text without its quotes.
impl Display for Edn {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Text(text) | Self::Word(text) => f.write_str(text),
            Self::List(list) => {
                let words: Vec<String> = list.iter().map(Self::to_string).collect();
                write!(f, "[{}]", words.join(" "))
            }
            Self::Map(map) => {
                let words: Vec<String> = map.iter().map(|(key, value)| format!("{key} {value}")).collect();
                write!(f, "{{{}}}", words.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Edn {
        Edn::Word(text.to_owned())
    }

    #[test]
    fn values_are_read() {
        assert_eq!(read(" nil ").unwrap(), Edn::Nil);
        assert_eq!(read("\t-3").unwrap(), word("-3"));
        assert_eq!(read(":timed-out").unwrap(), word(":timed-out"));
        assert_eq!(read("[0 nil]").unwrap(), Edn::List(vec![word("0"), Edn::Nil]));
        assert_eq!(read("#{1}").unwrap(), Edn::List(vec![word("1")]));
        assert_eq!(read(r#""x \"1\"\n ü""#).unwrap(), Edn::Text("x \"1\"\n ü".to_owned()));
        let map = read("{:a 1,:b {}}").unwrap();
        assert_eq!(map, Edn::Map(vec![(word(":a"), word("1")), (word(":b"), Edn::Map(vec![]))]));
        assert_eq!(map.to_string(), "{:a 1, :b {}}");
    }

    #[test]
    fn what_is_no_value_is_refused_in_words() {
        let nested = "[".repeat(1000);
        for text in ["", "]", "[1", "\"x", "\"\\q\"", "{:a}", "1 2", "{:a 1} x", &*nested] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
