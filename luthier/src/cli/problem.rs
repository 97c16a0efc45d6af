//! What is said of a command line that is not understood: clap's findings in the words of this program.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Parser};

use super::Cli;
use crate::error;

/// Understands a command line, or says what is wrong with it and gives the exit code. Help and version are no
/// mistakes.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    Cli::try_parse_from(&arguments).map_err(|problem| match problem.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = problem.print(); // whoever read it has gone away
            ExitCode::from(problem.exit_code() as u8)
        }
        _ => error::report(&error::user(words(&problem, &command(&arguments)))),
    })
}

/// The command that was meant, such as `luthier eval perplexity`.
fn command(arguments: &[OsString]) -> String {
    let root = Cli::command();
    let (mut command, mut name): (&Command, _) = (&root, root.get_name().to_owned());
    for argument in &arguments[1..] {
        if let Some(next) = argument.to_str().and_then(|argument| command.find_subcommand(argument)) {
            name.push(' ');
            name.push_str(next.get_name());
            command = next;
        }
    }
    name
}

fn words(problem: &clap::Error, command: &str) -> String {
    let texts = |kind| match problem.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    let text = |kind| texts(kind).into_iter().next().filter(|text| !text.is_empty());
    let argument = text(ContextKind::InvalidArg).unwrap_or_default();
    // A positional argument stands in brackets, a flag with its value has them further on.
    let argument = argument.strip_prefix('<').and_then(|name| name.strip_suffix('>')).unwrap_or(&argument);
    let meant = |near: Option<String>| near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    let what = match problem.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let near = meant(text(ContextKind::SuggestedArg));
            format!("`{command}` has no flag `{argument}`{near}")
        }
        ErrorKind::UnknownArgument => format!("`{command}` does not expect `{argument}`"),
        ErrorKind::InvalidSubcommand => {
            let given = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("`{command}` has no command `{given}`{}", meant(text(ContextKind::SuggestedSubcommand)))
        }
        ErrorKind::MissingSubcommand => format!("`{command}` needs a command"),
        ErrorKind::MissingRequiredArgument => {
            format!("`{command}` needs {}", list(&texts(ContextKind::InvalidArg), "and"))
        }
        ErrorKind::ArgumentConflict => {
            let others = list(&texts(ContextKind::PriorArg), "and");
            if others.is_empty() || texts(ContextKind::PriorArg) == texts(ContextKind::InvalidArg) {
                format!("`{argument}` may be given once only")
            } else {
                format!("`{argument}` and {others} exclude each other")
            }
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let Some(value) = text(ContextKind::InvalidValue) else {
                return hint(format!("`{argument}` needs a value"), command);
            };
            let possible = texts(ContextKind::ValidValue);
            let why = match (possible.as_slice(), std::error::Error::source(problem)) {
                ([], Some(cause)) => format!(": {cause}"),
                ([], None) => String::new(),
                _ => format!(": expected {}", list(&possible, "or")),
            };
            format!("`{argument}` cannot be `{value}`{why}{}", meant(text(ContextKind::SuggestedValue)))
        }
        ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => format!("`{argument}` needs more values"),
        ErrorKind::TooManyValues => {
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            format!("`{argument}` does not take `{value}` as well")
        }
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8 text".to_owned(),
        _ => {
            let all = problem.to_string();
            all.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    };
    hint(what, command)
}

fn hint(what: String, command: &str) -> String {
    let end = if what.ends_with('?') { " " } else { "; " };
    format!("{what}{end}see `{command} --help`")
}

/// Words in backticks, with one before the last. Of arguments that stand for each other, `<--a|--b>`, one is
/// meant.
fn list(words: &[String], and: &str) -> String {
    let one_of =
        |word: &String| word.strip_prefix('<')?.strip_suffix('>').map(|group| group.replace('|', "` or `"));
    let quoted: Vec<String> =
        words.iter().map(|word| format!("`{}`", one_of(word).unwrap_or_else(|| word.clone()))).collect();
    match quoted.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} {and} {last}", most.join(", ")),
    }
}
