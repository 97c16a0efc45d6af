//! Methods of Python's strings and lists, and filters of Jinja's, that the template engine lacks or has
//! otherwise.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::python;

/// Adds the filters and methods.
pub(super) fn install(env: &mut Environment<'static>) {
    env.set_unknown_method_callback(method);
    env.add_filter("wordcount", |text: &str| {
        text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
    });
    env.add_filter("center", |state: &State, text: &str, width: Option<usize>| {
        pad(state, text, width.unwrap_or(80), ' ', Side::Both)
    });
    env.add_filter("truncate", truncate);
    env.add_filter("striptags", minijinja_contrib::filters::striptags);
    // What is no number is the default, and no error.
    let or = |default: Option<Value>, kwargs: &Kwargs, zero: Value| {
        default.or_else(|| (!kwargs.has("default")).then_some(zero))
    };
    env.add_filter(
        "int",
        move |state: &State, value: &Value, default: Option<Value>, base: Option<u32>, kwargs: Kwargs| {
            minijinja::filters::int(state, value, or(default, &kwargs, Value::from(0)), base, kwargs)
        },
    );
    env.add_filter("float", move |state: &State, value: &Value, default: Option<Value>, kwargs: Kwargs| {
        minijinja::filters::float(state, value, or(default, &kwargs, Value::from(0.0)), kwargs)
    });
    env.add_filter("urlencode", urlencode);
    env.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

/// Python's methods that minijinja-contrib lacks or has without their later arguments, then those that it
/// has.
fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(state, text, method, args)?
    {
        return Ok(result);
    }
    if method == "index" && value.kind() == ValueKind::Seq {
        let (item,): (&Value,) = from_args(args)?;
        let at = value.try_iter()?.position(|other| other == *item);
        return at.map(Value::from).ok_or_else(|| invalid(format!("{item} is not in list")));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn string_method(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let place = |found: Option<usize>| found.map(|at| text[..at].chars().count());
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "rsplit" => {
            let (separator, count): (Option<&str>, Option<i64>) = from_args(args)?;
            let count = count.map_or(usize::MAX, |count| {
                usize::try_from(count).map_or(usize::MAX, |count| count.saturating_add(1))
            });
            let mut parts: Vec<&str> = match separator {
                Some("") => return Err(invalid("empty separator")),
                Some(separator) => text.rsplitn(count, separator).collect(),
                None => words_from_the_end(text, count),
            };
            parts.reverse();
            parts.into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let parts = match method {
                "partition" => text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b]),
                _ => text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]),
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let found = if method == "index" { text.find(what) } else { text.rfind(what) };
            Value::from(place(found).ok_or_else(|| invalid("substring not found"))?)
        }
        "find" | "rfind" | "count" if args.len() > 1 => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let length = text.chars().count() as i64;
            let at = |place: i64| if place < 0 { (place + length).max(0) } else { place.min(length) };
            let (start, end) = (at(start.unwrap_or(0)) as usize, at(end.unwrap_or(length)) as usize);
            let part: String = text.chars().take(end).skip(start).collect();
            match method {
                "count" => Value::from(part.matches(what).count()),
                _ => {
                    let found = if method == "find" { part.find(what) } else { part.rfind(what) };
                    Value::from(found.map_or(-1, |at| (start + part[..at].chars().count()) as i64))
                }
            }
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(text.find(|c| c != '+' && c != '-').map_or(0, |at| at.min(1)));
            let padded = pad(state, digits, width.saturating_sub(sign.len()), '0', Side::Left)?;
            Value::from(format!("{sign}{padded}"))
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let side = match method {
                "center" => Side::Both,
                "ljust" => Side::Right,
                _ => Side::Left,
            };
            Value::from(pad(state, text, width, fill.unwrap_or(' '), side)?)
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| {
                if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        }
        // A width or a precision asks for that many bytes: they are paid for before they are made.
        "format" => {
            state.consume_fuel(python::numbers_in(text) / 64)?;
            return Ok(None);
        }
        _ => return Ok(None),
    }))
}

/// At most `count` pieces between white space, from the end.
fn words_from_the_end(text: &str, count: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() && words.len() + 1 < count {
        let start = rest
            .rfind(char::is_whitespace)
            .map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
        words.push(&rest[start..]);
        rest = rest[..start].trim_end();
    }
    if !rest.is_empty() {
        words.push(rest);
    }
    words
}

#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
    Both,
}

/// A text of at least `width` characters. What is added is paid for before it is made.
fn pad(state: &State, text: &str, width: usize, fill: char, side: Side) -> Result<String, Error> {
    let missing = width.saturating_sub(text.chars().count());
    state.consume_fuel((missing / 64) as u64)?;
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        // As Python has it: the odd one stands left where the width is odd.
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let fill = |count: usize| std::iter::repeat_n(fill, count);
    Ok(fill(left).chain(text.chars()).chain(fill(missing - left)).collect())
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(text: &str, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let mut positional = args.iter();
    let mut argument = |name: &str| match positional.next() {
        Some(value) => Ok(Some(value.clone())),
        None => kwargs.get::<Option<Value>>(name),
    };
    let (length, kill, end, leeway) =
        (argument("length")?, argument("killwords")?, argument("end")?, argument("leeway")?);
    kwargs.assert_all_used()?;
    let number = |value: Option<Value>, default: usize| value.map_or(Ok(default), usize::try_from);
    let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
    let end = end.map_or("...".to_string(), |end| end.to_string());
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_string());
    }
    let room = length.checked_sub(end.chars().count());
    let room =
        room.ok_or_else(|| invalid(format!("truncate: {length} characters have no room for {end:?}")))?;
    let cut: String = text.chars().take(room).collect();
    let cut = if kill.is_some_and(|kill| kill.is_true()) {
        &cut
    } else {
        cut.rsplit_once(' ').map_or(&*cut, |(words, _)| words)
    };
    Ok(format!("{cut}{end}"))
}

/// A text with `/` kept and spaces as `%20`, or the pairs of a mapping or a list as a query with spaces as
/// `+`.
fn urlencode(value: &Value) -> Result<String, Error> {
    if value.as_str().is_some() || matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
        return Ok(quote(&python::text(value), "/", "%20"));
    }
    let pairs: Vec<(Value, Value)> = if value.kind() == ValueKind::Map {
        let pair = |key: Value| Ok::<_, Error>((key.clone(), value.get_item(&key)?));
        value.try_iter()?.map(pair).collect::<Result<_, _>>()?
    } else {
        let pair = |item: Value| Ok::<_, Error>((item.get_item_by_index(0)?, item.get_item_by_index(1)?));
        value.try_iter()?.map(pair).collect::<Result<_, _>>()?
    };
    let part = |value: &Value| quote(&python::text(value), "", "+");
    Ok(pairs
        .iter()
        .map(|(key, value)| format!("{}={}", part(key), part(value)))
        .collect::<Vec<_>>()
        .join("&"))
}

fn quote(text: &str, kept: &str, space: &str) -> String {
    let byte = |byte: u8| match byte {
        b' ' => space.to_string(),
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}
