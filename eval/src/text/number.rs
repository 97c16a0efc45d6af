//! The number that an answer ends in.

use std::sync::LazyLock;

use super::exact::ExactMatch;
use super::pattern::{Pattern, PatternMatch};
use super::{TextError, best};

/// How the number in an answer is found and compared with the reference's, which is a number or, as in GSM8K,
/// a solution that ends with `#### 18`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberMatch {
    /// lm-evaluation-harness' `strict-match` of GSM8K (`lm_eval/tasks/gsm8k/gsm8k.yaml`): what follows the
    /// answer's first `#### `, compared as text without commas, dollar signs and a period at its end. So `18`
    /// is not `18.0`.
    Strict,
    /// Its `flexible-extract`: the last thing that looks like a number, compared in the same way.
    Flexible,
    /// The number itself: after the answer's last `####` the first one, without such a mark the last one, by
    /// value, so that `$1,000.00` is `1000`. See [`Decimal::all`] for what is a number.
    Value,
}

impl NumberMatch {
    /// 1 if the answer's number is that of one of the references, else 0. By [`NumberMatch::Value`] a
    /// reference without a number is an error.
    pub fn score(self, answer: &str, references: &[impl AsRef<str>]) -> Result<f64, TextError> {
        if self == NumberMatch::Value {
            let answer = Decimal::of_answer(answer);
            return best(references, |index, reference| match Decimal::of_answer(reference) {
                Some(number) => Ok(f64::from(answer.as_ref() == Some(&number))),
                None => Err(TextError::NoNumber { index, reference: reference.into() }),
            });
        }
        let answer = gsm8k_normalized(self.extract(answer)?);
        best(references, |_, reference| Ok(f64::from(gsm8k_normalized(reference) == answer)))
    }

    /// The number as it is written in an answer, sign and currency included; `[invalid]` if there is none.
    pub fn extract(self, answer: &str) -> Result<&str, TextError> {
        static STRICT: LazyLock<PatternMatch> = LazyLock::new(|| filter(r"#### (-?[0-9.,]+)", 0));
        static FLEXIBLE: LazyLock<PatternMatch> =
            LazyLock::new(|| filter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1));
        match self {
            NumberMatch::Strict => STRICT.extract(answer),
            NumberMatch::Flexible => FLEXIBLE.extract(answer),
            NumberMatch::Value => Ok(Decimal::place_in(answer).map_or("[invalid]", |(text, _)| text)),
        }
    }
}

fn filter(pattern: &str, select: isize) -> PatternMatch {
    let pattern = Pattern::new(pattern).expect("a valid expression");
    PatternMatch { pattern, select, fallback: "[invalid]".into(), exact: ExactMatch::default() }
}

/// A text as that task compares it: its `regexes_to_ignore` `,`, `\$`, `(?s).*#### ` and `\.$` one after the
/// other, then lower case.
fn gsm8k_normalized(text: &str) -> String {
    let text = text.replace([',', '$'], "");
    let text = text.rsplit_once("#### ").map_or(text.as_str(), |(_, rest)| rest);
    // In Python, `$` also stands before a newline at the end.
    let text = match (text.strip_suffix('.'), text.strip_suffix(".\n")) {
        (Some(rest), _) => rest.to_string(),
        (_, Some(rest)) => format!("{rest}\n"),
        _ => text.to_string(),
    };
    text.to_lowercase()
}

/// A decimal number, exactly: two are equal if their values are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    /// Its digits without zeros at either end; none is zero.
    digits: String,
    /// The power of ten that the digits, read as a whole number, are multiplied by.
    exponent: i64,
}

impl Decimal {
    /// The numbers of a text, from left to right, each with where it stands.
    ///
    /// A number is digits 0 to 9 with commas before groups of three if any, perhaps a point and more digits,
    /// perhaps an exponent (`1e-5`). A currency symbol may stand before it, and a minus sign (`-` or `−`)
    /// before either unless that follows a letter, a digit or a closing parenthesis: `3-4` is 3 and 4. So
    /// `1/2` is 1 and 2, `50%` is 50, and of `1,2` the numbers are 1 and 2.
    pub fn all(text: &str) -> impl Iterator<Item = (&str, Decimal)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let (start, end, number) = next_number(text, from)?;
            from = end;
            Some((&text[start..end], number))
        })
    }

    /// After the last `####` the first number, without such a mark the last one.
    pub fn of_answer(text: &str) -> Option<Decimal> {
        Self::place_in(text).map(|(_, number)| number)
    }

    fn place_in(text: &str) -> Option<(&str, Decimal)> {
        match text.rsplit_once("####") {
            Some((_, after)) => Self::all(after).next(),
            None => Self::all(text).last(),
        }
    }

    fn new(negative: bool, whole: &str, fraction: &str, exponent: i64) -> Self {
        let digits: String = whole.chars().filter(char::is_ascii_digit).chain(fraction.chars()).collect();
        let significant = digits.trim_end_matches('0');
        let zeros = (digits.len() - significant.len()) as i64;
        let digits = significant.trim_start_matches('0').to_string();
        if digits.is_empty() {
            return Decimal { negative: false, digits, exponent: 0 };
        }
        let exponent = exponent.saturating_sub(fraction.len() as i64).saturating_add(zeros);
        Decimal { negative, digits, exponent }
    }
}

/// The next number at or after a byte: where it begins and ends, its sign and currency included.
fn next_number(text: &str, from: usize) -> Option<(usize, usize, Decimal)> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let digits_from = |at: usize| at + bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let first = from + bytes[from..].iter().position(u8::is_ascii_digit)?;
    // A number may begin with its point, unless that ends something else.
    let before_point = first.checked_sub(1).filter(|&at| at >= from && bytes[at] == b'.');
    let begin = before_point
        .filter(|&at| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.'))
        .unwrap_or(first);

    let mut end = begin;
    if bytes[begin] != b'.' {
        let leading = digits_from(begin);
        end = leading;
        if leading - begin <= 3 {
            while bytes.get(end) == Some(&b',') && digits_from(end + 1) == end + 4 {
                end += 4;
            }
        }
    }
    let whole = &text[begin..end];
    let mut fraction = "";
    if bytes.get(end) == Some(&b'.') && digit(end + 1) {
        let after = digits_from(end + 1);
        fraction = &text[end + 1..after];
        end = after;
    }
    let mut exponent = 0;
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let signed = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let after = digits_from((end + 1 + signed).min(bytes.len()));
        // Further than an i64 there is no other number to tell it from.
        if digit(end + 1 + signed) {
            exponent = text[end + 1..after].parse().unwrap_or(if bytes[end + 1] == b'-' {
                i64::MIN
            } else {
                i64::MAX
            });
            end = after;
        }
    }
    let (start, negative) = sign(text, from, begin);
    Some((start, end, Decimal::new(negative, whole, fraction, exponent)))
}

/// Where a number with its sign and currency begins, and whether it is negative: `-5`, `$5`, `-$5` and `$-5`.
fn sign(text: &str, from: usize, digits: usize) -> (usize, bool) {
    let take = |end: usize, is: fn(char) -> bool| {
        text[from..end].chars().next_back().filter(|&c| is(c)).map(|c| end - c.len_utf8())
    };
    let minus = |end: usize| {
        let start = take(end, |c| c == '-' || c == '−')?;
        let joins = |c: char| c.is_alphanumeric() || c == ')' || c == '-';
        (!text[..start].ends_with(joins)).then_some(start)
    };
    let currency = |c: char| matches!(c, '$' | '€' | '£' | '¥' | '₹' | '₩' | '₽' | '₺' | '¢');
    if let Some(start) = minus(digits) {
        return (take(start, currency).unwrap_or(start), true);
    }
    match take(digits, currency) {
        Some(start) => minus(start).map_or((start, false), |start| (start, true)),
        None => (digits, false),
    }
}
