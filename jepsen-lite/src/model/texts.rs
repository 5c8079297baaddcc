//! A text under each key, which is read, replaced and added to. It is empty at first.
//!
//! In which order five clients added something tells only who reads it. A text that is not the beginning of
//! any that was ever read will not be read however it goes on: all of those are one state, and the orders that
//! lead to them are not told apart.

use std::collections::HashSet;

use super::{Model, Text};

/// The model of one key.
#[derive(Debug, Default)]
pub struct Texts {
    /// All that a text may be that somebody reads later, or reads the continuation of.
    beginnings: HashSet<Text>,
    /// What was read last, and all its beginnings: the next is mostly the same, and some more.
    last: (String, Vec<Text>),
}

/// What was done to a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextsOperation {
    /// It was read.
    Get(Text),
    /// It was replaced.
    Put(Text),
    /// This was added to its end.
    Append(Text),
}

/// A text; none: one that nobody reads.
type State = Option<Text>;

impl Texts {
    /// Somebody reads this in the history.
    pub fn read(&mut self, text: &str) -> TextsOperation {
        let (last, beginnings) = &mut self.last;
        let common = last.bytes().zip(text.bytes()).take_while(|(one, other)| one == other).count();
        beginnings.truncate(common);
        let mut whole = beginnings.last().copied().unwrap_or(Text::EMPTY);
        for byte in &text.as_bytes()[common..] {
            whole = whole.then(Text::from(&[*byte][..]));
            beginnings.push(whole);
            self.beginnings.insert(whole);
        }
        text.clone_into(last);
        TextsOperation::Get(whole)
    }

    fn if_read(&self, text: Text) -> State {
        (text == Text::EMPTY || self.beginnings.contains(&text)).then_some(text)
    }
}

impl Model for Texts {
    type Operation = TextsOperation;
    type State = State;

    fn initial(&self) -> State {
        Some(Text::EMPTY)
    }

    fn step(&self, state: &State, operation: &TextsOperation) -> Option<State> {
        match operation {
            TextsOperation::Get(seen) => (*state == Some(*seen)).then_some(*state),
            TextsOperation::Put(text) => Some(self.if_read(*text)),
            TextsOperation::Append(text) => Some(state.and_then(|state| self.if_read(state.then(*text)))),
        }
    }

    fn is_read(operation: &TextsOperation) -> bool {
        matches!(operation, TextsOperation::Get(_))
    }

    /// After a text that nobody reads comes nothing but writes, and those can follow any text.
    fn outdoes(_state: &State, other: &State) -> bool {
        other.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_nobody_reads_on_is_like_any_other() {
        let mut texts = Texts::default();
        let get = texts.read("abc");
        assert_eq!(get, TextsOperation::Get(Text::from("abc")));
        assert_eq!(texts.read("abx"), TextsOperation::Get(Text::from("abx")));
        let after = |appends: &[&str]| {
            appends.iter().try_fold(texts.initial(), |state, append| {
                texts.step(&state, &TextsOperation::Append(Text::from(*append)))
            })
        };
        assert_eq!(after(&["a", "bc"]), Some(Some(Text::from("abc"))));
        assert_eq!(after(&["ab", "x"]), Some(Some(Text::from("abx"))));
        assert_eq!(after(&["b", "a"]), Some(None));
        assert_eq!(after(&["abc", "d"]), after(&["d"]));
        assert!(Texts::outdoes(&after(&["a"]).expect("it is possible"), &None));
        assert_eq!(texts.step(&None, &get), None);
        assert_eq!(texts.step(&None, &TextsOperation::Put(Text::from("a"))), Some(Some(Text::from("a"))));
    }
}
