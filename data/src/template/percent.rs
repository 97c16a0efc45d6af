//! Python's `%`, which formats a text as well as it divides numbers; the template engine only divides.
//!
//! Before compiling, `a % b` is rewritten into `a|__percent(b)`: a filter binds as tightly as `%` does,
//! unless a product stands before it. There `%` can only divide, and is left as it is.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::Tuple;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::python;

const FILTER: &str = "|__percent(";

/// Adds the filter behind the operator.
pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter("__percent", percent);
}

fn percent(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let tuple = right.downcast_object_ref::<Tuple>().is_some();
        let arguments: Vec<Value> = if tuple { right.try_iter()?.collect() } else { vec![right.clone()] };
        state.consume_fuel(python::numbers_in(text) / 64)?;
        return Ok(Value::from(format(FormatStyle::Printf, text, &arguments)?));
    }
    let impossible = || Error::new(ErrorKind::InvalidOperation, format!("cannot calculate {left} % {right}"));
    if left.is_integer() && right.is_integer() {
        let (a, b) = (i128::try_from(left.clone())?, i128::try_from(right.clone())?);
        let remainder = a.checked_rem(b).ok_or_else(impossible)?;
        return Ok(Value::from(if remainder != 0 && (remainder < 0) != (b < 0) {
            remainder + b
        } else {
            remainder
        }));
    }
    let (a, b) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    let remainder = a % b;
    if b == 0.0 {
        return Err(impossible());
    }
    Ok(Value::from(if remainder != 0.0 && (remainder < 0.0) != (b < 0.0) {
        remainder + b
    } else {
        remainder
    }))
}

/// What has been read of an expression, between one pair of brackets.
#[derive(Default)]
struct Level {
    /// Whether the last token ends an operand.
    operand: bool,
    /// Whether a product stands before the operand.
    product: bool,
    /// Whether a filter's argument is open.
    open: bool,
}

/// A tag or an expression, with its delimiters, in which `%` is the filter.
pub(super) fn rewrite(tag: &str) -> String {
    let inner = 2..tag.len().saturating_sub(2).max(2);
    if !tag[inner.clone()].contains('%') {
        return tag.to_string();
    }
    let mut out = tag[..2].to_string();
    let mut levels = vec![Level::default()];
    let (mut rest, mut spaces) = (&tag[inner.clone()], "");
    while !rest.is_empty() {
        let token = &rest[..token(rest)];
        rest = &rest[token.len()..];
        let (before, level) =
            (std::mem::take(&mut spaces), levels.last_mut().expect("the outermost is never closed"));
        let first = token.chars().next().expect("tokens are not empty");
        let continues = level.operand && matches!(first, '.' | '|' | '(' | '[');
        let follows = out.ends_with(['.', '|']) && is_word(first);
        let literals = level.operand && is_quote(first) && out.ends_with(is_quote);
        let is_end = rest.is_empty() && matches!(first, '-' | '+');
        let mut written = token;
        match first {
            _ if first.is_whitespace() => {
                spaces = token;
                continue;
            }
            '%' if level.operand && !level.product => {
                close(level, &mut out);
                *level = Level { open: true, ..Level::default() };
                written = FILTER;
            }
            _ if continues || follows || literals => level.operand = first != '.' && first != '|',
            '*' if token == "**" => *level = Level { operand: false, product: !level.open, open: level.open },
            '%' | '*' | '/' => {
                close(level, &mut out);
                *level = Level { product: true, ..Level::default() };
            }
            '-' | '+' if !level.operand && !is_end => {}
            ')' | ']' | '}' => {
                close(level, &mut out);
                if levels.len() > 1 {
                    levels.pop();
                }
                levels.last_mut().expect("checked").operand = true;
            }
            _ => {
                let starts = is_word(first) || is_quote(first) || matches!(first, '(' | '[' | '{');
                if level.operand || !starts {
                    close(level, &mut out);
                    *level = Level::default();
                }
                level.operand = starts && !is_operator(token);
            }
        }
        if matches!(first, '(' | '[' | '{') {
            levels.push(Level::default());
        }
        out.push_str(before);
        out.push_str(written);
    }
    levels.iter_mut().rev().for_each(|level| close(level, &mut out));
    out + spaces + &tag[inner.end..]
}

fn close(level: &mut Level, out: &mut String) {
    if std::mem::take(&mut level.open) {
        out.push(')');
    }
}

/// The length of the token that begins a text: white space, a word or number, a text in quotes, `**`, or one
/// character.
fn token(text: &str) -> usize {
    let first = text.chars().next().expect("there is text");
    let run = |is: fn(char) -> bool| text.find(|c| !is(c)).unwrap_or(text.len());
    match first {
        _ if first.is_whitespace() => run(char::is_whitespace),
        _ if first.is_ascii_digit() => run(|c| is_word(c) || c == '.'),
        _ if is_word(first) => run(is_word),
        _ if is_quote(first) => {
            let mut escaped = false;
            let end = text.char_indices().skip(1).find(|&(_, c)| {
                let ends = c == first && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(text.len(), |(at, c)| at + c.len_utf8())
        }
        _ if text.starts_with("**") => 2,
        _ => first.len_utf8(),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_quote(c: char) -> bool {
    c == '"' || c == '\''
}

fn is_operator(word: &str) -> bool {
    matches!(word, "and" | "or" | "not" | "in" | "is" | "if" | "else" | "elif" | "set" | "for")
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn the_operator_becomes_a_filter_of_its_left_side() {
        for (source, expected) in [
            ("{{ 'a %s' % b }}", "{{ 'a %s' |__percent( b) }}"),
            ("{%- if loop.index0 % 2 == 0 -%}", "{%- if loop.index0 |__percent( 2) == 0 -%}"),
            (
                "{{ 'a' ~ '%d' % m.x[0].f(1 % 2) | trim }}",
                "{{ 'a' ~ '%d' |__percent( m.x[0].f(1 |__percent( 2)) | trim) }}",
            ),
            ("{{ a % b % c + d }}", "{{ a |__percent( b) |__percent( c) + d }}"),
            ("{{ a * b % c }}", "{{ a * b % c }}"),
            ("{{ a % b * c }}", "{{ a |__percent( b) * c }}"),
            ("{{ a % -b ** 2 }}", "{{ a |__percent( -b ** 2) }}"),
            ("{{ ('%s' '%s') % ('x', y) }}", "{{ ('%s' '%s') |__percent( ('x', y)) }}"),
            ("{% set x = a % b if c else d %}", "{% set x = a |__percent( b) if c else d %}"),
            ("{{- '%' -}}", "{{- '%' -}}"),
            ("{{ '100%' + a }}", "{{ '100%' + a }}"),
            ("{{ {'a': b % c}['a'] % 'é' }}", "{{ {'a': b |__percent( c)}['a'] |__percent( 'é') }}"),
        ] {
            assert_eq!(rewrite(source), expected);
        }
    }

    #[test]
    fn no_text_makes_a_panic() {
        for source in ["{%%}", "{{%}}", "{{ % ) ] % }}", "{{ 'a }}", "{% %", "{{ a % }}", "{{-%-}}"] {
            rewrite(source);
        }
    }
}
