//! A change to a part of a document: JSON Merge Patch (RFC 7396).
//!
//! Invariants: what the patch does not name keeps its value and its kind (a quoted `"1"` stays a text); the result is
//! JSON, which is YAML too, so comments and anchors are lost. Neighbours: the admin API merges, `check` judges the
//! result like any document.

use serde_json::{Map, Number, Value};

use super::{
    Problem,
    yaml::{self, Node, Style},
};

/// The text of the document `content` with `patch` merged into it.
///
/// # Errors
/// When `content` cannot be read; the problem names the line.
pub fn merge(content: &str, patch: &Value) -> Result<String, Problem> {
    let mut document = yaml::parse(content)?.map_or(Value::Null, |root| json(&root));
    merge_value(&mut document, patch);
    Ok(format!("{document:#}\n"))
}

/// The algorithm of RFC 7396, section 2.
fn merge_value(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge_value(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

fn json(node: &Node) -> Value {
    match &node.value {
        yaml::Value::Scalar { text, style: Style::Plain } => plain(text),
        yaml::Value::Scalar { text, style: Style::Quoted | Style::Given } => Value::String(text.clone()),
        yaml::Value::List(items) => Value::Array(items.iter().map(json).collect()),
        yaml::Value::Map(pairs) => {
            let pairs = pairs.iter().map(|(key, value)| match &key.value {
                yaml::Value::Scalar { text, .. } => (text.clone(), json(value)),
                // No document that was accepted has such a key.
                yaml::Value::List(_) | yaml::Value::Map(_) => (json(key).to_string(), json(value)),
            });
            Value::Object(pairs.collect())
        }
    }
}

/// What a value without quotes is in JSON: a number only if JSON writes it the same way.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => match serde_json::from_str::<Number>(text) {
            Ok(number) if number.to_string() == text => Value::Number(number),
            _ => Value::String(text.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(content: &str, patch: &Value) -> Value {
        serde_json::from_str(&merge(content, patch).unwrap()).unwrap()
    }

    #[test]
    fn the_examples_of_rfc_7396_hold() {
        for (target, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            assert_eq!(merged(&target.to_string(), &patch), result, "{target} with {patch}");
        }
    }

    #[test]
    fn what_is_not_named_keeps_its_kind() {
        let content = "a: \"1\"\nb: 1\nc: 5s\nd: 007\ne: true\nf: \"true\"\ng: [~, x]\n# gone\n";
        let kept = json!({"a":"1","b":1,"c":"5s","d":"007","e":true,"f":"true","g":[null,"x"]});
        assert_eq!(merged(content, &json!({})), kept);
    }

    #[test]
    fn a_text_that_cannot_be_read_is_a_problem_with_its_place() {
        assert_eq!(merge("a: [", &json!({})).unwrap_err().line, 2);
    }
}
