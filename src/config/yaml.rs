//! Text → a tree in which every value knows its place.
//!
//! Job: read YAML (and so JSON) from anyone. Invariants: no input makes it panic, recurse without bound or
//! take memory out of proportion: depth, values and what aliases copy are counted and refused beyond a bound.
//! The library's own loader keeps the last of two equal keys and copies aliases freely, so the tree is
//! built here from its events. Neighbours: `field` walks the tree.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::problem::{Place, Problem};

/// Bytes of a text.
pub const TEXT_BYTES_MAX: usize = 8 << 20;

/// Levels of nesting; the deepest key that exists is at 6.
const DEPTH_MAX: usize = 64;

/// What a tree may weigh: a value counts 1 and each 64 bytes of it 1 more; what an anchor keeps and an
/// alias copies counts again.
const WEIGHT_MAX: usize = 1_000_000;

/// A value and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A single value.
    Scalar {
        /// Its text, escapes resolved.
        text: String,
        /// How it was written.
        style: Style,
    },
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the text; a key may occur twice.
    Map(Vec<(Node, Node)>),
}

/// How a single value was written, which says what it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without quotes: a number, `true`, `null`, or else text.
    Plain,
    /// With quotes: text.
    Quoted,
    /// By a variable or a flag: whatever is expected there; a list is divided by commas.
    Given,
}

/// A mapping or list whose end has not been read.
struct Open {
    place: Place,
    anchor: usize,
    children: Vec<Node>,
    /// Levels of the deepest child.
    height: usize,
    is_map: bool,
}

/// Builds the tree from events.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    /// What each anchor stands for, and how many levels that has.
    anchors: BTreeMap<usize, (Node, usize)>,
    weight: usize,
    root: Option<Node>,
    documents: usize,
}

/// The text of a file; no more is read of it than a text may have.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read(file: &Path) -> Result<String, Problem> {
    let bytes = read_at_most(file, TEXT_BYTES_MAX + 1);
    let bytes = bytes.map_err(|error| Problem::general(format!("cannot be read: {error}"), None))?;
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(Problem::general(format!("the file has more than {TEXT_BYTES_MAX} bytes"), None));
    }
    text(&bytes).map(str::to_owned)
}

/// The first `bound` bytes of a file.
pub fn read_at_most(file: &Path, bound: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(bound as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a file or body, or why it is none.
///
/// # Errors
/// When the bytes are not UTF-8; the problem names the line.
pub fn text(bytes: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Problem {
            line,
            column: 0,
            ..Problem::general(
                format!("byte {} is not valid UTF-8", error.valid_up_to()),
                Some("save the file as UTF-8".into()),
            )
        }
    })
}

/// Reads one document; `None` when there is nothing but comments and space.
///
/// # Errors
/// The first place at which the text cannot be read; a reader cannot know what follows it.
pub fn parse(text: &str) -> Result<Option<Node>, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > TEXT_BYTES_MAX {
        return Err(Problem::general(
            format!("the text has {} bytes, more than {TEXT_BYTES_MAX}", text.len()),
            None,
        ));
    }
    refuse_nul(text)?;
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.event(event, span)?,
            Err(error) => {
                let place = Place { line: error.marker().line(), column: error.marker().col() + 1 };
                // The library reads ahead, and has a bound of its own on `[[[[…`.
                if error.info().contains("recursion limit") {
                    return Err(too_deep(place));
                }
                return Err(at(place, error.info().to_owned(), syntax_suggestion(text, place, error.info())));
            }
        }
    }
    Ok(builder.root)
}

/// The library takes a NUL for the end of the text and would silently leave out what follows.
fn refuse_nul(text: &str) -> Result<(), Problem> {
    let Some(index) = text.bytes().position(|b| b == 0) else { return Ok(()) };
    let before = &text[..index];
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    Err(at(Place { line, column }, "a NUL byte in the text".into(), Some("remove it".into())))
}

fn syntax_suggestion(text: &str, place: Place, info: &str) -> Option<String> {
    let line = text.lines().nth(place.line.saturating_sub(1))?;
    let indent_has_tab = line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    (indent_has_tab || info.contains("tab")).then(|| "indent with spaces, not tabs".into())
}

fn at(place: Place, problem: String, suggestion: Option<String>) -> Problem {
    Problem { line: place.line, column: place.column, ..Problem::general(problem, suggestion) }
}

// === impl Builder ===

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let place = Place { line: span.start.line(), column: span.start.col() + 1 };
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(at(
                        place,
                        "a second document begins here".into(),
                        Some("keep one document in a file: remove the `---`".into()),
                    ));
                }
                Ok(())
            }
            Event::Alias(anchor) => {
                let Some((node, height)) = self.anchors.get(&anchor) else {
                    return Err(at(place, "an alias inside the value that it stands for".into(), None));
                };
                let (weight, height) = (weight(node), *height);
                self.weigh(weight, place)?;
                refuse_depth(self.open.len() + height, place)?;
                let node = self.anchors[&anchor].0.clone();
                self.close(node, height, 0)
            }
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(tag.is_some(), place)?;
                self.weigh(1 + text.len() / 64, place)?;
                let style = if style == ScalarStyle::Plain { Style::Plain } else { Style::Quoted };
                let value = Value::Scalar { text: text.into_owned(), style };
                self.close(Node { place, value }, 0, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(tag.is_some(), place)?;
                self.begin(place, anchor, false)
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(tag.is_some(), place)?;
                self.begin(place, anchor, true)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
        }
    }

    fn begin(&mut self, place: Place, anchor: usize, is_map: bool) -> Result<(), Problem> {
        refuse_depth(self.open.len() + 1, place)?;
        self.weigh(1, place)?;
        self.open.push(Open { place, anchor, children: Vec::new(), height: 0, is_map });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Problem> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = if open.is_map {
            let mut pairs = Vec::with_capacity(open.children.len() / 2);
            let mut children = open.children.into_iter();
            while let (Some(key), Some(value)) = (children.next(), children.next()) {
                pairs.push((key, value));
            }
            Value::Map(pairs)
        } else {
            Value::List(open.children)
        };
        self.close(Node { place: open.place, value }, open.height + 1, open.anchor)
    }

    /// Puts a whole value of `height` levels where it belongs.
    fn close(&mut self, node: Node, height: usize, anchor: usize) -> Result<(), Problem> {
        if anchor != 0 {
            self.weigh(weight(&node), node.place)?;
            self.anchors.insert(anchor, (node.clone(), height));
        }
        match self.open.last_mut() {
            Some(open) => {
                open.height = open.height.max(height);
                open.children.push(node);
            }
            None => self.root = Some(node),
        }
        Ok(())
    }

    fn weigh(&mut self, weight: usize, place: Place) -> Result<(), Problem> {
        self.weight = self.weight.saturating_add(weight);
        if self.weight > WEIGHT_MAX {
            return Err(at(
                place,
                format!("more than {WEIGHT_MAX} values, counting those that aliases repeat"),
                None,
            ));
        }
        Ok(())
    }
}

fn refuse_tag(tagged: bool, place: Place) -> Result<(), Problem> {
    if tagged {
        return Err(at(place, "tags are not supported".into(), Some("remove the `!…`".into())));
    }
    Ok(())
}

fn refuse_depth(levels: usize, place: Place) -> Result<(), Problem> {
    if levels > DEPTH_MAX {
        return Err(too_deep(place));
    }
    Ok(())
}

fn too_deep(place: Place) -> Problem {
    at(place, format!("nested more than {DEPTH_MAX} levels deep"), None)
}

/// The recursion is bounded: no tree has more than [`DEPTH_MAX`] levels, aliases included.
fn weight(node: &Node) -> usize {
    match &node.value {
        Value::Scalar { text, .. } => 1 + text.len() / 64,
        Value::List(items) => 1 + items.iter().map(weight).sum::<usize>(),
        Value::Map(pairs) => 1 + pairs.iter().map(|(k, v)| weight(k) + weight(v)).sum::<usize>(),
    }
}
