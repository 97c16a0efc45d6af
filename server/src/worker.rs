//! The thread that owns the engine, and how requests come to it and their events back.
//!
//! The engine is never waited for: commands go into a queue that it looks at between two steps, events into a
//! queue for each request. That queue has an end, so that a client which reads slowly costs no memory and no
//! other's time: it loses its request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use infer::{Ask, Engine, Event, InferError, Load, RequestId};
use tokio::sync::{mpsc as events, watch};

/// Events that a request which streams may have waiting for its client. Each is a token, but for the first and
/// the last.
const WAITING_EVENTS: usize = 1024;

/// What the thread drives: an engine, or in tests something that behaves like one.
pub trait Worker: Send {
    /// Takes up a request.
    ///
    /// # Errors
    /// If the request cannot be computed.
    fn submit(&mut self, ask: Ask) -> Result<RequestId, InferError>;
    /// Forgets a request.
    fn cancel(&mut self, id: RequestId);
    /// Gives an owner of requests so many turns beside one with 1, above 0.
    fn set_weight(&mut self, owner: u64, weight: f64);
    /// Computes one step, and says what came of it.
    fn step(&mut self) -> Vec<(RequestId, Event)>;
    /// Whether there is nothing to do.
    fn is_idle(&self) -> bool;
    /// What it is busy with.
    fn load(&self) -> Load;
}

impl Worker for Engine {
    fn submit(&mut self, ask: Ask) -> Result<RequestId, InferError> {
        Engine::submit(self, ask)
    }

    fn cancel(&mut self, id: RequestId) {
        Engine::cancel(self, id);
    }

    fn set_weight(&mut self, owner: u64, weight: f64) {
        Engine::set_weight(self, owner, weight);
    }

    fn step(&mut self) -> Vec<(RequestId, Event)> {
        Engine::step(self)
    }

    fn is_idle(&self) -> bool {
        Engine::is_idle(self)
    }

    fn load(&self) -> Load {
        Engine::load(self)
    }
}

enum Command {
    Submit(u64, Box<Ask>, events::Sender<Event>),
    Cancel(u64),
    Weight(u64, f64),
    Stop,
}

/// The way to the thread.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    load: Arc<Mutex<Load>>,
    next: Arc<AtomicU64>,
    ended: watch::Receiver<()>,
}

impl Handle {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub(crate) fn start(worker: Box<dyn Worker>) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (commands, queue) = mpsc::channel();
        let load = Arc::new(Mutex::new(worker.load()));
        // Dropped with the thread, also where it panics.
        let (alive, ended) = watch::channel(());
        let shown = Arc::clone(&load);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            let _alive = alive;
            Desk { worker, queue, shown, places: HashMap::new(), numbers: HashMap::new() }.work();
        })?;
        Ok((Handle { commands, load, next: Arc::default(), ended }, thread))
    }

    /// Brings a request to the engine. Its events, also that it was refused, come to the ticket; when the
    /// ticket is dropped, the request is cancelled. Of one that `streams` not all events may wait.
    pub(crate) fn submit(&self, ask: Ask, streams: bool) -> Ticket {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Of an answer that is told at once all is kept anyway, and nothing but the end makes it wait.
        let all = ask.max_tokens.saturating_add(3);
        let (sender, events) = events::channel(if streams { all.min(WAITING_EVENTS) } else { all });
        // Where the thread has ended, the sender is dropped with the command, which the ticket sees.
        let _ = self.commands.send(Command::Submit(number, Box::new(ask), sender));
        Ticket { number, events, commands: self.commands.clone() }
    }

    /// Gives an owner of requests so many turns beside one with 1.
    pub(crate) fn set_weight(&self, owner: u64, weight: f64) {
        let _ = self.commands.send(Command::Weight(owner, weight));
    }

    /// What the engine was busy with after its last step.
    pub(crate) fn load(&self) -> Load {
        *self.load.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether the thread still runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.ended.has_changed().is_ok()
    }

    /// Returns when the thread has ended.
    pub(crate) async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    /// Has the thread end after its step.
    pub(crate) fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }
}

/// A request that runs.
pub(crate) struct Ticket {
    number: u64,
    events: events::Receiver<Event>,
    commands: mpsc::Sender<Command>,
}

impl Ticket {
    /// The next event. None after the last one, or if the engine let go of the request, since nobody took its
    /// events or it stopped.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Cancel(self.number));
    }
}

/// What the thread has before it: requests by the engine's ids, and ids by tickets' numbers.
struct Desk {
    worker: Box<dyn Worker>,
    queue: mpsc::Receiver<Command>,
    shown: Arc<Mutex<Load>>,
    places: HashMap<RequestId, (u64, events::Sender<Event>)>,
    numbers: HashMap<u64, RequestId>,
}

impl Desk {
    fn work(mut self) {
        loop {
            // An engine with nothing to do waits for a command; a busy one only looks whether there are any.
            let mut command = match self.worker.is_idle() {
                true => match self.queue.recv() {
                    Ok(command) => Some(command),
                    Err(_) => return,
                },
                false => None,
            };
            loop {
                match command.take().map_or_else(|| self.queue.try_recv(), Ok) {
                    Ok(Command::Submit(number, ask, events)) => self.submit(number, *ask, events),
                    Ok(Command::Cancel(number)) => self.cancel(number),
                    Ok(Command::Weight(owner, weight)) => self.worker.set_weight(owner, weight),
                    Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return,
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.show();
            if !self.worker.is_idle() {
                for (id, event) in self.worker.step() {
                    self.deliver(id, event);
                }
                self.show();
            }
        }
    }

    fn submit(&mut self, number: u64, ask: Ask, events: events::Sender<Event>) {
        match self.worker.submit(ask) {
            Ok(id) => {
                self.places.insert(id, (number, events));
                self.numbers.insert(number, id);
            }
            Err(error) => {
                let _ = events.try_send(Event::Failed(error));
            }
        }
    }

    fn cancel(&mut self, number: u64) {
        if let Some(id) = self.numbers.remove(&number) {
            self.places.remove(&id);
            self.worker.cancel(id);
        }
    }

    /// Gives an event to whose it is. A request whose queue is full, or that nobody waits for, is cancelled.
    fn deliver(&mut self, id: RequestId, event: Event) {
        let Some((number, events)) = self.places.get(&id) else { return };
        let is_last = matches!(event, Event::End(_) | Event::Failed(_));
        let is_taken = events.try_send(event).is_ok();
        if is_last || !is_taken {
            self.numbers.remove(number);
            self.places.remove(&id);
            if !is_last {
                self.worker.cancel(id);
            }
        }
    }

    fn show(&self) {
        *self.shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = self.worker.load();
    }
}
