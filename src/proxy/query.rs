//! The parameters of a query, as those who read forms take them apart.
//!
//! Job: one reading for routing and for keys, so that no spelling of a name is a parameter to one and not to the
//! other. A target is never written anew from what is decoded here. Neighbours: `route_match`, `policy::api_key`.

use std::borrow::Cow;

/// Names and values as they were sent.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Decoded once, as forms are encoded: `+` is a space, and a `%` without two digits stands for itself.
pub(super) fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let text = text.as_bytes();
    let digit = |place: usize| text.get(place).and_then(|byte| char::from(*byte).to_digit(16));
    let mut place = 0;
    std::iter::from_fn(move || {
        let byte = *text.get(place)?;
        place += 1;
        Some(match byte {
            b'+' => b' ',
            b'%' => match (digit(place), digit(place + 1)) {
                (Some(high), Some(low)) => {
                    place += 2;
                    u8::try_from(high * 16 + low).unwrap_or(byte)
                }
                _ => byte,
            },
            byte => byte,
        })
    })
}

/// The same in one piece.
pub(super) fn whole(text: &str) -> Cow<'_, [u8]> {
    if text.bytes().any(|byte| matches!(byte, b'+' | b'%')) {
        decoded(text).collect::<Vec<u8>>().into()
    } else {
        text.as_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_once_and_what_is_broken_is_left() {
        for (text, expected) in
            [("a", "a"), ("%41%2b+b", "A+ b"), ("%2541", "%41"), ("%4", "%4"), ("%zz%41", "%zzA"), ("%", "%")]
        {
            assert!(decoded(text).eq(expected.bytes()), "{text}");
            assert_eq!(&*whole(text), expected.as_bytes());
        }
    }
}
