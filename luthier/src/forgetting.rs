//! The text that tells, where a person gives no other, how much of what a model knew an adapter forgets.
//!
//! Ten passages in the public domain: Jane Austen, "Pride and Prejudice" (1813); Herman Melville, "Moby-Dick"
//! (1851); Abraham Lincoln, the Gettysburg Address (1863); Charles Darwin, "On the Origin of Species" (1859);
//! Arthur Conan Doyle, "A Scandal in Bohemia" (1891); the Declaration of Independence (1776); William Shakespeare,
//! sonnet 18 (1609); Adam Smith, "The Wealth of Nations" (1776); Jules Verne, "Vingt mille lieues sous les mers"
//! (1870); the brothers Grimm, "Der Froschkönig" (1857). Prose, speech, argument, verse, and two languages beside
//! English: a model that is trained on one kind of text changes in others.

use std::path::Path;
use std::sync::Arc;

use data::{Example, Source, Tokenizer};

/// The passages, an empty line between two of them.
const TEXT: &str = include_str!("forgetting/text.txt");
/// The name it has where files of examples have theirs.
const NAME: &str = "the text of ten passages that comes with luthier";
/// Tokens of a piece, at most: each is passed with the adapter and without it at once.
const WINDOW: usize = 256;

/// Tokens of the longest piece for a model with this context.
pub(crate) fn longest(context: usize) -> usize {
    WINDOW.min(context)
}

/// The text as examples whose every token carries loss: passages, in pieces that no model is too small for, each
/// with what the tokenizer puts before a text.
///
/// # Errors
/// If the tokenizer cannot read it.
pub(crate) fn texts(tokenizer: &Tokenizer, context: usize) -> anyhow::Result<Vec<Example>> {
    let file = Arc::new(Path::new(NAME).to_owned());
    let mut examples = Vec::new();
    let mut line = 1;
    for passage in TEXT.split("\n\n") {
        let encoded = tokenizer.encode(passage.trim_end(), true)?;
        let (begin, text) = encoded.ids.split_at(encoded.added_front);
        let text = &text[..text.len() - encoded.added_back];
        for piece in text.chunks(longest(context).saturating_sub(begin.len()).max(1)) {
            let input_ids = [begin, piece].concat();
            let labels = input_ids.iter().map(|&id| id as i32).collect();
            examples.push(Example { input_ids, labels, source: Source { file: file.clone(), line } });
        }
        line += passage.lines().count() + 1;
    }
    // A piece of one token has nothing to be predicted from.
    examples.retain(|example| example.trained_tokens() > 0);
    Ok(examples)
}
