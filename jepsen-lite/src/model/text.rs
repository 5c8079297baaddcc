//! Texts that cost 32 bytes, however long they are: two can be compared and put together, none can be read.
//!
//! Each is known by two polynomials of its bytes, modulo the prime 2^61 - 1, at two points. Two different
//! texts of n bytes are taken for one with a chance of (n / 2^61)^2: for a megabyte, one in 10^24.

/// The prime: a Mersenne one, by which division is a shift and an addition.
const PRIME: u64 = (1 << 61) - 1;

/// Where the two polynomials are taken: any two numbers below the prime that nobody has reason to guess.
const POINTS: [u64; 2] = [0x0c35_8a1f_97e2_b46d, 0x13f0_6d5b_284c_e917];

/// A text, as far as it can be told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Text([Polynomial; 2]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Polynomial {
    value: u64,
    /// The point to the power of the length: by so much a text moves up when this one is put behind it.
    power: u64,
}

// === impl Text ===

impl Text {
    /// The text without letters.
    pub const EMPTY: Self = Self([Polynomial { value: 0, power: 1 }; 2]);

    /// This text with `other` behind it.
    pub fn then(self, other: Self) -> Self {
        Self([self.0[0].then(other.0[0]), self.0[1].then(other.0[1])])
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(POINTS.map(|point| {
            bytes.iter().fold(Self::EMPTY.0[0], |polynomial, byte| {
                // One more than the byte: a text is not the same with a NUL before it.
                polynomial.then(Polynomial { value: u64::from(*byte) + 1, power: point })
            })
        }))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::from(text.as_bytes())
    }
}

// === impl Polynomial ===

impl Polynomial {
    fn then(self, other: Self) -> Self {
        let moved = multiply(self.value, other.power);
        Self { value: reduce(moved + other.value), power: multiply(self.power, other.power) }
    }
}

/// Of two numbers below the prime.
fn multiply(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    let low = u64::try_from(product & u128::from(PRIME)).expect("61 bits fit");
    let high = u64::try_from(product >> 61).expect("the product has 122 bits");
    reduce(low + high)
}

/// Of a number below twice the prime.
fn reduce(number: u64) -> u64 {
    if number >= PRIME { number - PRIME } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_the_same_however_it_was_put_together() {
        let whole = Text::from("abc");
        assert_eq!(Text::from("a").then(Text::from("bc")), whole);
        assert_eq!(Text::from("ab").then(Text::from("c")), whole);
        assert_eq!(Text::EMPTY.then(whole), whole);
        assert_eq!(whole.then(Text::EMPTY), whole);
        assert_eq!(Text::from(""), Text::EMPTY);
    }

    #[test]
    fn texts_are_told_apart() {
        let texts = ["", "\0", "\0\0", "a", "b", "ab", "ba", "abc", &"a".repeat(1000), &"a".repeat(1001)];
        for (index, text) in texts.iter().enumerate() {
            for other in &texts[index + 1..] {
                assert_ne!(Text::from(*text), Text::from(*other), "{text:?} {other:?}");
            }
        }
    }
}
