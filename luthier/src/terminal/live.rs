//! A run that is watched: a view over the whole terminal, drawn on stderr by a thread of its own, so that keys
//! and a new size of the window are answered while a step takes its time.
//!
//! The terminal is given back, and what was noted left on it, however the program ends: [`leave`] is called where
//! the view ends and by a signal that ends the process at once, and [`restore`] by a panic, before it is told.

mod view;

use std::io::{self, IsTerminal, Write as _};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

pub(crate) use view::{Answered, View};

use crate::error::user;
use crate::signal;

/// Between two drawings, where no key is pressed.
const EVERY: Duration = Duration::from_millis(200);
/// How long a drawing is waited for before the terminal is given back.
const PATIENCE: u32 = 40;

/// Whether the terminal is taken over. Held while it is drawn on.
static TAKEN: Mutex<bool> = Mutex::new(false);
/// What is shown, until its notes are left on the terminal.
static SHOWN: Mutex<Option<Arc<Mutex<View>>>> = Mutex::new(None);

/// Gives the terminal back, if it was taken over.
pub(crate) fn restore() {
    // A thread that panics while it draws holds the lock itself.
    let mut taken = None;
    for _ in 0..PATIENCE {
        taken = TAKEN.try_lock().ok();
        if taken.is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    if taken.as_deref() == Some(&false) {
        return;
    }
    let mut stderr = io::stderr();
    let _ = execute!(stderr, LeaveAlternateScreen, Show);
    let _ = stderr.flush();
    let _ = disable_raw_mode();
    if let Some(mut taken) = taken {
        *taken = false;
    }
}

/// [`restore`], with the notes as lines on the terminal, as they would be without the view.
pub(crate) fn leave() {
    restore();
    if let Some(view) = lock(&SHOWN).take() {
        let notes = std::mem::take(&mut lock(&view).notes);
        notes.iter().for_each(|line| eprintln!("{line}"));
    }
}

fn take_over() -> io::Result<()> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            restore();
            told(panic);
        }));
    });
    enable_raw_mode()?;
    *lock(&TAKEN) = true;
    execute!(io::stderr(), EnterAlternateScreen)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses to watch a run where there is no terminal to draw on.
pub(crate) fn require_terminal() -> anyhow::Result<()> {
    match io::stderr().is_terminal() {
        true => Ok(()),
        false => Err(user(
            "--tui draws on stderr, which is no terminal here; leave it out, or do not redirect stderr",
        )),
    }
}

/// The view, for as long as this lives.
pub(crate) struct Live {
    view: Arc<Mutex<View>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// Takes the terminal over. `q` and Ctrl-C then ask the process to stop, as SIGINT does.
    pub(crate) fn begin(view: View) -> anyhow::Result<Self> {
        let (view, ended) = (Arc::new(Mutex::new(view)), Arc::new(AtomicBool::new(false)));
        let mut live = Live { view, ended, thread: None };
        take_over().context("cannot take over the terminal")?;
        *lock(&SHOWN) = Some(Arc::clone(&live.view));
        let mut terminal =
            Terminal::new(CrosstermBackend::new(io::stderr())).context("cannot draw on the terminal")?;
        let (view, ended) = (Arc::clone(&live.view), Arc::clone(&live.ended));
        live.thread = Some(thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                {
                    let taken = lock(&TAKEN);
                    if !*taken {
                        return;
                    }
                    // By a key here, or by a signal from outside.
                    lock(&view).stopping = signal::is_asked_to_stop();
                    let _ = terminal.draw(|frame| lock(&view).draw(frame));
                }
                answer_keys();
            }
        }));
        Ok(live)
    }

    /// Changes what is shown.
    pub(crate) fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut lock(&self.view));
    }
}

impl Drop for Live {
    /// Gives the terminal back.
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        leave();
    }
}

/// Waits for a key, or for the time of the next drawing.
fn answer_keys() {
    match event::poll(EVERY) {
        Ok(true) => {}
        Ok(false) => return,
        // A terminal that is gone has no keys.
        Err(_) => return thread::sleep(EVERY),
    }
    if let Ok(Event::Key(key)) = event::read()
        && asks_to_stop(key)
    {
        signal::ask_to_stop();
    }
}

fn asks_to_stop(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (key.code == KeyCode::Char('q') || (control && key.code == KeyCode::Char('c')))
}
