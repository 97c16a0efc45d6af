//! Grammars over a tokenizer's vocabulary: which of its tokens may come next, by llguidance.

use std::sync::Arc;

use data::Tokenizer;
use infer::{Allowed, Constraint, Reason};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory, panic_utils};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

/// What a grammar may cost. Counts, not times: an answer does not depend on how fast the machine is.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    // About 20 ms.
    initial_lexer_fuel: 1_000_000,
    // About 14 ms for a token; a usual one takes 50 us.
    step_lexer_fuel: 200_000,
    // About 3 ms for a token.
    step_max_items: 50_000,
    // One or two KB each.
    max_lexer_states: 20_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};
/// Bytes of the longest token that a grammar knows.
const LONGEST_TOKEN: usize = 200;
/// Characters of what is said of a grammar that cannot be used.
const LONGEST_REASON: usize = 300;

/// A vocabulary as grammars see it: bytes for every token.
pub(crate) struct Vocabulary {
    factory: ParserFactory,
    /// Stands for the end of an answer, behind all tokens.
    end: u32,
}

impl Vocabulary {
    /// Of a tokenizer. It takes its time for a large one.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let special = |id: usize| tokenizer.is_special(id as u32);
        let mut tokens = tokenizer.token_bytes();
        for (id, token) in tokens.iter_mut().enumerate() {
            if token.len() > LONGEST_TOKEN {
                token.clear();
            } else if special(id) {
                // No text has this byte, so only a grammar that names the token allows it.
                token.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
        }
        let end = tokens.len() as u32;
        tokens.push([&[TokTrie::SPECIAL_TOKEN_MARKER], &b"<end of the answer>"[..]].concat());
        let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &tokens);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| error.to_string())?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(Vocabulary { factory, end })
    }

    /// A constraint that keeps an answer to a grammar, at its beginning. It takes its time.
    ///
    /// # Errors
    /// If the grammar is none, or takes more than [`LIMITS`].
    pub(crate) fn constraint(&self, grammar: TopLevelGrammar) -> Result<Box<dyn Constraint>, String> {
        let made = panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut matcher = Matcher::new(self.factory.create_parser(grammar));
            // What explodes does so at the first token at the latest.
            matcher.compute_mask()?;
            Ok(matcher)
        }));
        let matcher = made.map_err(|error| short(&error.to_string()))?;
        Ok(Box::new(Guided { matcher, end: self.end }))
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary({})", self.end)
    }
}

/// What went wrong, in a line.
fn short(message: &str) -> String {
    if message.starts_with("panic") {
        return "it is more than can be compiled".into();
    }
    if message.starts_with("NoExtension") {
        return "nothing fits it".into();
    }
    let lines =
        message.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("<non-verbose"));
    let line = lines.take(3).collect::<Vec<_>>().join("; ");
    line.chars().take(LONGEST_REASON).collect()
}

/// A grammar as far as an answer has come in it.
struct Guided {
    matcher: Matcher,
    end: u32,
}

impl Constraint for Guided {
    fn allowed(&mut self) -> Result<Allowed, Reason> {
        let mut mask = self.matcher.compute_mask().map_err(|error| short(&error.to_string()))?;
        let may_end = mask.is_allowed(self.end);
        // A model may have more tokens than the tokenizer, and this may be one of them.
        mask.disallow_token(self.end);
        Ok(Allowed { tokens: mask.as_slice().to_vec(), may_end })
    }

    fn accept(&mut self, token: u32) -> Result<(), Reason> {
        self.matcher.consume_token(token).map_err(|error| short(&error.to_string()))?;
        // What is too much stops it, too.
        let stopped = self.matcher.stop_reason();
        if stopped.is_ok() { Ok(()) } else { Err(format!("it takes too much work ({stopped})")) }
    }

    fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }

    fn copy(&self) -> Box<dyn Constraint> {
        // What one answer has found out of the grammar is no other's: its limits are its own.
        Box::new(Guided { matcher: self.matcher.deep_clone(), end: self.end })
    }
}

impl std::fmt::Debug for Guided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guided")
    }
}
