//! How a failure reads, and which exit code it gets.
//!
//! By the rule of this workspace, errors that are *returned* are about the user's input (libraries have typed
//! ones), and our own mistakes are assertions, which panic. So an error that reaches `main` counts as the
//! user's, exit code 2, unless its chain holds a [`Fault`] or an error of the machine (a full disk), exit
//! code 1, as after a panic.

use std::fmt::{self, Display, Write as _};
use std::io;
use std::process::ExitCode;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use anyhow::Error;

use crate::terminal::{self, StdoutClosed};

/// Exit code of a fault of this program.
const FAULT: u8 = 1;
/// Exit code of input that the user must change.
const USER: u8 = 2;
/// Exit code of a run that was asked to stop and has saved all that `--resume` needs (sysexits' EX_TEMPFAIL).
pub(crate) const STOPPED: u8 = 75;

/// Something the user can put right, with the place in a file that it is about.
#[derive(Debug)]
pub(crate) struct UserError {
    message: String,
    excerpt: Option<Box<Excerpt>>,
}

/// Something that went wrong here through nobody's input; exit code 1.
#[derive(Debug)]
pub(crate) struct Fault(String);

/// A place in a text file that a message points at.
#[derive(Debug)]
pub(crate) struct Excerpt {
    /// The file as the user named it.
    pub(crate) path: String,
    /// The whole text of the file.
    pub(crate) text: String,
    /// The bytes of `text` that the message is about.
    pub(crate) span: std::ops::Range<usize>,
    /// What to do about it, if there is more to say than the message does.
    pub(crate) help: Option<String>,
}

/// An error and what to do about it, which only the caller knows.
#[derive(Debug)]
pub(crate) struct Advised {
    error: Error,
    advice: String,
}

impl Advised {
    /// The error, followed by the advice.
    pub(crate) fn new(error: impl Into<Error>, advice: impl Into<String>) -> Self {
        Self { error: error.into(), advice: advice.into() }
    }
}

impl Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", chain(&self.error), self.advice)
    }
}

impl std::error::Error for Advised {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.error.as_ref())
    }
}

impl Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for UserError {}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// An error that the user can put right.
pub(crate) fn user(message: impl Into<String>) -> Error {
    UserError { message: message.into(), excerpt: None }.into()
}

/// An error that the user can put right, shown with the lines of the file that it is about.
pub(crate) fn user_at(message: impl Into<String>, excerpt: Excerpt) -> Error {
    UserError { message: message.into(), excerpt: Some(Box::new(excerpt)) }.into()
}

/// An error that is nobody's input's fault.
pub(crate) fn fault(message: impl Into<String>) -> Error {
    Fault(message.into()).into()
}

/// Prints the error to stderr and gives the exit code. Says nothing if whoever read stdout has gone away.
pub(crate) fn report(error: &Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<StdoutClosed>()) {
        return ExitCode::SUCCESS;
    }
    eprintln!("{}", render(error, terminal::stderr_colour()));
    ExitCode::from(exit_code(error))
}

/// Follows a panic's own message.
pub(crate) fn report_panic() -> ExitCode {
    eprintln!("This is a fault of luthier, not of your input: please report it with the message above.");
    ExitCode::from(FAULT)
}

fn exit_code(error: &Error) -> u8 {
    let fault = error.chain().any(|cause| {
        cause.is::<Fault>() || cause.downcast_ref::<io::Error>().is_some_and(|e| is_machines(e.kind()))
    });
    if fault { FAULT } else { USER }
}

/// Whether an input/output error is about the state of the machine rather than about what the user named.
fn is_machines(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::*;
    matches!(kind, StorageFull | QuotaExceeded | OutOfMemory | WriteZero | Interrupted | ResourceBusy)
}

/// The whole chain in one line, outermost first; a cause that the line before already quotes is not repeated.
fn chain(error: &Error) -> String {
    let mut line = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line.push_str(&text);
        } else if !last.contains(&text) {
            write!(line, ": {text}").expect("writing to a string");
        }
        last = text;
    }
    line
}

fn render(error: &Error, colour: bool) -> String {
    let title = chain(error);
    let excerpt = error.chain().find_map(|cause| cause.downcast_ref::<UserError>()?.excerpt.as_deref());
    let mut group = Group::with_title(Level::ERROR.primary_title(&title));
    if let Some(excerpt) = excerpt {
        let mark = AnnotationKind::Primary.span(excerpt.span.clone());
        group = group.element(Snippet::source(&excerpt.text).path(&excerpt.path).annotation(mark));
        if let Some(help) = &excerpt.help {
            group = group.element(Level::HELP.message(help));
        }
    }
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    renderer.render(&[group])
}
