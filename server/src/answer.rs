//! One answer while it is being made: the engine's tokens become text, up to a stop.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use data::{TextStream, Until};
use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use infer::{Ask, Event, Finish, Logprobs};

use crate::adapters::Generation;
use crate::error::ApiError;
use crate::metrics::Meter;
use crate::places::Slot;
use crate::tenants::Tenant;
use crate::words::Words;
use crate::worker::{Handle, Ticket};

/// A token of an answer.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) token: u32,
    pub(crate) logprobs: Option<Logprobs>,
    /// Characters of the answer's text before it.
    pub(crate) offset: usize,
    /// Bytes of the answer's text with it.
    end: usize,
}

/// What can be told of an answer at once.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    /// Text, whole characters that no stop string begins with.
    pub(crate) text: String,
    /// The tokens that it ends.
    pub(crate) said: Vec<Said>,
    /// Tokens that were generated.
    pub(crate) tokens: usize,
    /// `finish_reason`, with the last piece.
    pub(crate) end: Option<&'static str>,
}

/// Who asks, of what, and what counts it.
pub(crate) struct Asker {
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) meter: Meter,
    /// The adapter, which is in use as long as this is there.
    pub(crate) _adapter: Option<Arc<Generation>>,
    /// The place that it takes up among all requests.
    pub(crate) _slot: Slot,
}

/// An answer. When it is dropped, the engine forgets the request.
pub(crate) struct Answer {
    ticket: Ticket,
    words: Arc<Words>,
    asker: Asker,
    stream: TextStream,
    until: Until,
    /// Special tokens that are told like text.
    marks: Vec<u32>,
    /// What the error of a prompt that cannot be is about.
    param: &'static str,
    /// Tokens whose text is not yet said.
    held: VecDeque<Said>,
    /// Bytes and characters of the text so far, with what is held back.
    length: usize,
    characters: usize,
    /// Bytes of it that were said.
    told: usize,
    has_begun: bool,
    has_ended: bool,
    /// Whether the engine has nothing more for it.
    is_closed: bool,
    /// What came before the prompts of all answers were computed; no more than the tokens that were asked for.
    early: VecDeque<Event>,
    pub(crate) prompt_tokens: usize,
    /// Tokens of the prompt that were not computed again.
    pub(crate) cached: usize,
    /// Of all tokens of the prompt but the first, if asked for.
    pub(crate) prompt_logprobs: Vec<Logprobs>,
}

impl Answer {
    /// Brings the request to the engine.
    pub(crate) fn ask(
        engine: &Handle,
        words: &Arc<Words>,
        ask: Ask,
        stops: Vec<String>,
        param: &'static str,
        streams: bool,
        asker: Asker,
    ) -> Self {
        let (stream, until) = (words.stream_after(&ask.prompt), Until::new(stops));
        let prompt_tokens = ask.prompt.len();
        Answer {
            ticket: engine.submit(ask, streams),
            words: Arc::clone(words),
            asker,
            stream,
            until,
            marks: Vec::new(),
            param,
            held: VecDeque::new(),
            length: 0,
            characters: 0,
            told: 0,
            has_begun: false,
            has_ended: false,
            is_closed: false,
            early: VecDeque::new(),
            prompt_tokens,
            cached: 0,
            prompt_logprobs: Vec::new(),
        }
    }

    /// Has some special tokens told like text.
    pub(crate) fn telling(self, marks: Vec<u32>) -> Self {
        Answer { marks, ..self }
    }

    /// The text that became whole with a token.
    fn read(&mut self, token: u32) -> String {
        let tokenizer = self.words.tokenizer();
        if !self.marks.contains(&token) {
            return self.stream.push(tokenizer, token);
        }
        let stream = std::mem::replace(&mut self.stream, tokenizer.stream(true));
        stream.finish(tokenizer) + &tokenizer.id_to_token(token).unwrap_or_default()
    }

    /// Takes what comes before the prompts of all answers are computed; that of this one's own counts once it is.
    fn hear_early(&mut self, event: Event) -> Result<(), ApiError> {
        match event {
            Event::Prompt { cached, logprobs } => {
                (self.has_begun, self.cached, self.prompt_logprobs) = (true, cached, logprobs);
                self.asker.tenant.charge(self.prompt_tokens);
                self.asker.meter.prompt(self.prompt_tokens);
                Ok(())
            }
            Event::Failed(error) if !self.has_begun => {
                self.asker.meter.end("error");
                Err(ApiError::engine(&error, self.param))
            }
            event => {
                self.early.push_back(event);
                Ok(())
            }
        }
    }

    /// The next piece, which may be empty; none after the last.
    async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        if self.has_ended {
            return None;
        }
        let event = match self.early.pop_front() {
            Some(event) => Some(event),
            None => poll_fn(|context| self.ticket.poll(context)).await,
        };
        let piece = match event {
            Some(Event::Token { token, logprobs }) => Ok(self.hear(token, logprobs)),
            Some(Event::End(Finish::Stop)) => Ok(self.finish("stop")),
            Some(Event::End(Finish::Length)) => Ok(self.finish("length")),
            Some(Event::Failed(error)) => Err(ApiError::engine(&error, self.param)),
            Some(Event::Prompt { .. } | Event::End(Finish::Cancelled)) | None => Err(ApiError::lost()),
        };
        match &piece {
            Ok(piece) => {
                if let Some(reason) = piece.end {
                    self.has_ended = true;
                    self.asker.meter.end(reason);
                }
            }
            Err(_) => {
                self.has_ended = true;
                self.asker.meter.end("error");
            }
        }
        Some(piece)
    }

    fn hear(&mut self, token: u32, logprobs: Option<Logprobs>) -> Piece {
        self.asker.meter.token();
        self.asker.tenant.charge(1);
        let text = self.read(token);
        let offset = self.characters;
        self.length += text.len();
        self.characters += text.chars().count();
        self.held.push_back(Said { token, logprobs, offset, end: self.length });
        let text = self.until.push(&text);
        self.told += text.len();
        let mut said = Vec::new();
        while self.held.front().is_some_and(|first| first.end <= self.told) {
            said.extend(self.held.pop_front());
        }
        Piece { text, said, tokens: 1, end: self.until.has_ended().then_some("stop") }
    }

    fn finish(&mut self, reason: &'static str) -> Piece {
        let stream = std::mem::replace(&mut self.stream, self.words.tokenizer().stream(true));
        let until = std::mem::replace(&mut self.until, Until::new([]));
        let text = until.finish(&stream.finish(self.words.tokenizer()));
        Piece { text, said: self.held.drain(..).collect(), tokens: 0, end: Some(reason) }
    }
}

/// Waits until the prompts of all answers are computed. Those that begin earlier keep what comes meanwhile.
pub(crate) async fn begin(answers: &mut [Answer]) -> Result<(), ApiError> {
    poll_fn(|context| {
        let mut all = true;
        for answer in answers.iter_mut() {
            // One that is closed has nothing more to say, and to ask it costs its share of a task's turn.
            while !answer.is_closed {
                match answer.ticket.poll(context) {
                    Poll::Ready(Some(event)) => answer.hear_early(event)?,
                    Poll::Ready(None) if !answer.has_begun => return Poll::Ready(Err(ApiError::lost())),
                    Poll::Ready(None) => answer.is_closed = true,
                    Poll::Pending => break,
                }
            }
            all &= answer.has_begun;
        }
        if all { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// The pieces of several answers as they come, each with the number of its answer.
pub(crate) fn together(
    answers: Vec<Answer>,
) -> SelectAll<impl Stream<Item = (usize, Result<Piece, ApiError>)>> {
    let pieces = |(number, answer): (usize, Answer)| {
        let next = move |mut answer: Answer| async move {
            let piece = answer.next().await?;
            Some(((number, piece), answer))
        };
        stream::unfold(answer, next).boxed()
    };
    stream::select_all(answers.into_iter().enumerate().map(pieces))
}
