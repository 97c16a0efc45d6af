//! What a person types: edited and remembered on a terminal, line by line from a pipe. A line that ends in
//! `\` goes on.

use std::cell::RefCell;
use std::fs::DirBuilder;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Editor, Helper};

use crate::error::user;

/// Lines that are kept for the next time.
const KEPT: usize = 1000;
/// Terminals that cannot move the cursor.
const SIMPLE_TERMINALS: [&str; 3] = ["dumb", "cons25", "emacs"];

/// Where what is said comes from.
pub(super) enum Lines {
    Edited(Box<Edited>),
    /// As they are; with a prompt where a person sees it.
    Plain {
        prompt: bool,
    },
}

pub(super) struct Edited {
    editor: Editor<Continuation, FileHistory>,
    /// The file that what is typed is kept in.
    history: Option<PathBuf>,
    /// Whether Ctrl-C was the last that was typed.
    interrupted: bool,
}

impl Lines {
    /// Reads stdin, with line editing if it is a terminal that can. `keep`: what is typed is kept in a file
    /// for the next time.
    pub(super) fn open(keep: bool) -> anyhow::Result<Self> {
        let is_terminal = io::stdin().is_terminal();
        let is_simple = std::env::var("TERM").is_ok_and(|term| SIMPLE_TERMINALS.contains(&term.as_str()));
        if !is_terminal || is_simple {
            return Ok(Lines::Plain { prompt: is_terminal });
        }
        // The prompt goes to the terminal itself: stdout is for answers.
        let config = Config::builder()
            .behavior(Behavior::PreferTerm)
            .max_history_size(KEPT)
            .map(|config| config.history_ignore_space(true).build())
            .context("cannot read from the terminal")?;
        let mut editor = Editor::with_config(config).context("cannot read from the terminal")?;
        editor.set_helper(Some(Continuation::default()));
        let history = history_file().filter(|_| keep).filter(|path| match prepare(path) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("note: what is typed is not kept: cannot write {}: {error}", path.display());
                false
            }
        });
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(error) = editor.load_history(path)
        {
            eprintln!("note: {} cannot be read: {error}", path.display());
        }
        Ok(Lines::Edited(Box::new(Edited { editor, history, interrupted: false })))
    }

    /// Whether a person sees what is said.
    pub(super) fn is_interactive(&self) -> bool {
        !matches!(self, Lines::Plain { prompt: false })
    }

    /// What is said next, which may have several lines; none at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Lines::Edited(edited) => edited.next(),
            Lines::Plain { prompt } => plain(*prompt),
        }
    }
}

impl Edited {
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        eprintln!();
        loop {
            self.editor.helper().expect("set when opened").clear();
            match self.editor.readline("> ") {
                Ok(typed) => {
                    self.interrupted = false;
                    let said = self.editor.helper().expect("set when opened").joined(&typed);
                    self.remember(&said);
                    return Ok(Some(said));
                }
                Err(ReadlineError::Interrupted) if !self.interrupted => {
                    self.interrupted = true;
                    eprintln!("(Ctrl-C again, or Ctrl-D, leaves)");
                }
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(error).context("cannot read from the terminal"),
            }
        }
    }

    /// Appends at once, so that a process that is killed has kept what was typed.
    fn remember(&mut self, said: &str) {
        let added = !said.trim().is_empty() && self.editor.add_history_entry(said).unwrap_or(false);
        if let Some(path) = self.history.as_ref().filter(|_| added)
            && let Err(error) = self.editor.append_history(path)
        {
            eprintln!("note: what is typed is not kept: cannot write {}: {error}", path.display());
            self.history = None;
        }
    }
}

/// A line that ends in `\` is not the last. Where it was typed so is noted: a text that is pasted may have
/// such lines of its own.
#[derive(Default)]
struct Continuation {
    /// What had been typed each time that there was more to come, its `\` with it.
    unfinished: RefCell<Vec<String>>,
}

impl Continuation {
    fn clear(&self) {
        self.unfinished.borrow_mut().clear();
    }

    /// What was typed, without each `\` that only said that there is more.
    fn joined(&self, typed: &str) -> String {
        let mut said = typed.to_owned();
        // From the last to the first: those before stay where they are.
        for unfinished in self.unfinished.borrow().iter().rev() {
            let goes_on = said.strip_prefix(unfinished.as_str()).is_some_and(|rest| rest.starts_with('\n'));
            if goes_on {
                said.remove(unfinished.len() - 1);
            }
        }
        said
    }
}

impl Validator for Continuation {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let input = context.input();
        if !input.ends_with('\\') {
            return Ok(ValidationResult::Valid(None));
        }
        self.unfinished.borrow_mut().push(input.to_owned());
        Ok(ValidationResult::Incomplete)
    }
}

impl Completer for Continuation {
    type Candidate = String;
}

impl Hinter for Continuation {
    type Hint = String;
}

impl Highlighter for Continuation {}

impl Helper for Continuation {}

fn plain(prompt: bool) -> anyhow::Result<Option<String>> {
    let mut said: Option<String> = None;
    loop {
        if prompt {
            eprint!("{}", if said.is_none() { "\n> " } else { "  " });
        }
        let mut line = String::new();
        match io::stdin().read_line(&mut line) {
            Ok(0) => return Ok(said),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(user("stdin: this line is not UTF-8 text"));
            }
            Err(e) => return Err(e).context("cannot read stdin"),
        }
        let line = line.trim_end_matches(['\n', '\r']);
        let (text, goes_on) = line.strip_suffix('\\').map_or((line, false), |text| (text, true));
        let said = said.get_or_insert_default();
        said.push_str(text);
        match goes_on {
            true => said.push('\n'),
            false => return Ok(Some(std::mem::take(said))),
        }
    }
}

/// The file for what is typed: state, by the rules of XDG, and not a cache.
fn history_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME")
        .or_else(|| folder("LOCALAPPDATA"))
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("luthier").join("history"))
}

/// Makes the file's folder, its owner's alone.
fn prepare(path: &Path) -> io::Result<()> {
    let folder = path.parent().expect("a file in a folder");
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_backslash_that_was_typed_to_go_on_is_taken_away() {
        let typed = Continuation::default();
        typed.unfinished.borrow_mut().extend(["one\\".to_owned(), "one\\\ncp a \\\n b\\".to_owned()]);
        assert_eq!(typed.joined("one\\\ncp a \\\n b\\\nend"), "one\ncp a \\\n b\nend");
        assert_eq!(typed.joined("other\\\nend"), "other\\\nend", "it was changed after it had been typed");
        assert_eq!(typed.joined("one\\"), "one\\");
        typed.clear();
        assert_eq!(typed.joined("one\\\nend"), "one\\\nend");
    }
}
