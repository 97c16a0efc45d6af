//! What chat templates expect of Python: values and how they are written, `json.dumps`, `strftime`.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde_json::{Map, Value as Json};

use super::conversation::THOUGHTS;
use super::generation::is_mark;
use crate::json::big_integer;

/// Adds the functions, filters and methods that transformers' environment has and minijinja's has not.
pub(super) fn install(env: &mut Environment<'static>) {
    env.add_function("raise_exception", |message: String| -> Result<(), Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: &str| strftime(format, now()));
    env.add_filter("tojson", tojson);
    env.add_filter("string", text);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::String | ValueKind::Undefined => minijinja::escape_formatter(out, state, value),
        _ => out.write_str(&text(value)).map_err(Error::from),
    });
    // In Jinja whatever has a length and can be indexed is a sequence: strings and mappings, too.
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    // In Jinja none cannot be iterated over; templates ask that of `tools`.
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
}

/// `str(value)`.
pub(super) fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number if !value.is_integer() => {
            float_repr(f64::try_from(value.clone()).unwrap_or(f64::NAN))
        }
        ValueKind::Seq | ValueKind::Map => {
            let mut out = String::new();
            repr(&mut out, value, 0);
            out
        }
        _ => value.to_string(),
    }
}

/// Appends `repr(value)`, or `...` for what lies deeper, or behind more, than any template may print.
fn repr(out: &mut String, value: &Value, depth: usize) {
    const LONGEST: usize = 16 << 20;
    let tuple = value.downcast_object_ref::<Tuple>();
    let (open, close) = match (value.kind(), tuple) {
        (ValueKind::String, _) => return quoted(out, value.as_str().unwrap_or_default()),
        (ValueKind::Seq, Some(tuple)) => ("(", if tuple.len() == 1 { ",)" } else { ")" }),
        (ValueKind::Seq, None) => ("[", "]"),
        (ValueKind::Map, _) => ("{", "}"),
        _ => return out.push_str(&text(value)),
    };
    let items = value.try_iter().into_iter().flatten();
    if depth > 64 || out.len() > LONGEST {
        return out.push_str("...");
    }
    out.push_str(open);
    for (i, item) in items.enumerate() {
        if out.len() > LONGEST {
            break;
        }
        out.push_str(if i > 0 { ", " } else { "" });
        repr(out, &item, depth + 1);
        if value.kind() == ValueKind::Map {
            out.push_str(": ");
            repr(out, &value.get_item(&item).unwrap_or_default(), depth + 1);
        }
    }
    out.push_str(close);
}

/// Appends `repr` of a text: in single quotes, or in double ones if that saves an escape.
fn quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A JSON value as the template sees it, without characters that mark generation blocks.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(bool) => Value::from(*bool),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::from(int),
            (None, Some(int)) => Value::from(int),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => match big_integer(text) {
            Some(digits) => integer(digits),
            None if text.contains(is_mark) => Value::from(text.replace(is_mark, "")),
            None => Value::from(text.as_str()),
        },
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(object) => {
            Value::from_pairs(object.iter().map(|(key, item)| (key.replace(is_mark, ""), value(item))))
        }
    }
}

/// An integer beyond 64 bits: up to 128 bits a number as any other, beyond that one that can only be written.
fn integer(digits: &str) -> Value {
    match digits.parse::<i128>() {
        Ok(int) => Value::from(int),
        Err(_) => Value::from_object(BigInteger(digits.into())),
    }
}

/// The digits of an integer beyond 128 bits.
#[derive(Debug)]
struct BigInteger(String);

impl Object for BigInteger {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A message as the template sees it: keys without a value are left out (but for `content`, of which
/// templates ask whether it is none), and reasoning is found under each of its usual names, as in
/// transformers (`_alias_reasoning_fields`).
pub(super) fn message(message: &Map<String, Json>) -> Value {
    let set = |key: &str| message.get(key).filter(|value| !value.is_null());
    let reasoning = THOUGHTS.into_iter().find_map(set);
    let mut object: Map<String, Json> = Map::new();
    object.extend(reasoning.map(|reasoning| ("thinking".to_string(), reasoning.clone())));
    let is_set = |(key, value): &(&String, &Json)| !value.is_null() || *key == "content";
    object.extend(message.iter().filter(is_set).map(|(key, value)| (key.clone(), value.clone())));
    object.extend(reasoning.map(|reasoning| ("reasoning_content".to_string(), reasoning.clone())));
    value(&Json::Object(object))
}

/// The sum of all numbers in a text.
pub(super) fn numbers_in(text: &str) -> u64 {
    let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    digits.fold(0, |sum: u64, run| sum.saturating_add(run.parse().unwrap_or(u64::MAX)))
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair")),
    };
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    if indent.is_some_and(|indent| indent > 16) {
        return Err(Error::new(ErrorKind::InvalidOperation, "an indent of more than 16"));
    }
    let mut dumps = Dumps { out: String::new(), indent, item, key, ensure_ascii, sort_keys };
    dumps.value(value, 0)?;
    state.consume_fuel((dumps.out.len() / 64) as u64)?;
    Ok(Value::from_safe_string(dumps.out))
}

/// `json.dumps(value, ensure_ascii=False)`.
pub(super) fn json(object: &Json) -> String {
    let (item, key) = (", ".to_string(), ": ".to_string());
    let mut dumps =
        Dumps { out: String::new(), indent: None, item, key, ensure_ascii: false, sort_keys: false };
    match dumps.value(&value(object), 0) {
        Ok(()) => dumps.out,
        // Deeper than any template may print.
        Err(_) => object.to_string(),
    }
}

/// Python's JSON encoder.
struct Dumps {
    out: String,
    indent: Option<usize>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Dumps {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 64 {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container('[', ']', items.len(), depth, |this, i| this.value(&items[i], depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.container('{', '}', keys.len(), depth, |this, i| {
                    this.string(&keys[i].to_string());
                    this.out.push_str(&this.key.clone());
                    this.value(&value.get_item(&keys[i])?, depth + 1)
                })?;
            }
            _ if let Some(BigInteger(digits)) = value.downcast_object_ref() => self.out.push_str(digits),
            kind => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("{kind} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn container(
        &mut self,
        open: char,
        close: char,
        len: usize,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for i in 0..len {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.new_line(depth + 1);
            item(self, i)?;
        }
        if len > 0 {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
        } else {
            self.out.push_str(&float_repr(f64::try_from(value.clone()).unwrap_or(f64::NAN)));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Python's `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let magnitude = x.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').expect("formatted with an exponent");
        let exponent: i32 = exponent.parse().expect("formatted by us");
        return format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    if x.fract() == 0.0 { format!("{x:.1}") } else { format!("{x}") }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64)
}

/// `datetime.strftime` in English, of a time in seconds since 1970, as UTC.
pub(super) fn strftime(format: &str, unix_seconds: i64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, seconds) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[days.rem_euclid(7) as usize]);
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let two = |n: i64| if unpadded { n.to_string() } else { format!("{n:02}") };
        let piece = match directive {
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('m') => two(month),
            Some('Y') => year.to_string(),
            Some('y') => two(year.rem_euclid(100)),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".into(),
            other => {
                let message = format!(
                    "strftime_now: %{} is not supported",
                    other.map(String::from).unwrap_or_default()
                );
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        out.push_str(&piece);
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01
/// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (0.5, "0.5"),
            (1e-7, "1e-07"),
            (1e16, "1e+16"),
            (123456789.25, "123456789.25"),
            (1.5e300, "1.5e+300"),
            (0.0, "0.0"),
            (1e15, "1000000000000000.0"),
        ];
        for (x, text) in cases {
            assert_eq!(float_repr(x), text);
        }
    }

    #[test]
    fn dates_are_written_as_python_writes_them() {
        // 2024-02-29 13:05:09 UTC, a Thursday.
        let time = 1_709_211_909;
        assert_eq!(
            strftime("%d %b %Y|%A %-d %B|%F %T|%I:%M %p|%y%%", time).unwrap(),
            "29 Feb 2024|Thursday 29 February|2024-02-29 13:05:09|01:05 PM|24%"
        );
        assert_eq!(strftime("%Y-%m-%d %a", 0).unwrap(), "1970-01-01 Thu");
        assert!(strftime("%Q", 0).is_err());
    }
}
