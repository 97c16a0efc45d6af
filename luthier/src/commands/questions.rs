//! Prompts out of examples: what a model is asked to show what it has learnt.

use data::{Example, IGNORE};

/// Tokens of a plain text that are its prompt.
const BEGINNING: usize = 48;

/// A prompt of an example, and what the example goes on with.
pub(super) struct Question {
    pub(super) source: String,
    pub(super) prompt: Vec<u32>,
    pub(super) expected: Vec<u32>,
}

/// Prompts of the first examples, each once.
pub(super) fn questions(examples: &[Example], count: usize) -> Vec<Question> {
    let mut questions: Vec<Question> = Vec::new();
    for new in examples.iter().filter_map(question) {
        if questions.len() >= count {
            break;
        }
        if questions.iter().all(|old| old.prompt != new.prompt) {
            questions.push(new);
        }
    }
    questions
}

/// An example's tokens up to those that carry loss, and these. Of a plain text, all of which carries loss,
/// its beginning and the rest.
fn question(example: &Example) -> Option<Question> {
    let (ids, labels) = (&example.input_ids, &example.labels);
    let is_trained = |at: &usize| labels[*at] != IGNORE;
    let first = (1..ids.len()).find(is_trained)?;
    let (first, end) = match first {
        1 => ((ids.len() / 2).min(BEGINNING), ids.len()),
        first => (first, (first..ids.len()).find(|at| !is_trained(at)).unwrap_or(ids.len())),
    };
    let (source, prompt) = (example.source.to_string(), ids[..first].to_vec());
    (first > 0).then(|| Question { source, prompt, expected: ids[first..end].to_vec() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use data::Source;

    use super::*;

    fn example(trained: &[usize]) -> Example {
        let input_ids: Vec<u32> = (0..10).collect();
        let label = |id: &u32| if trained.contains(&(*id as usize)) { *id as i32 } else { IGNORE };
        let labels = input_ids.iter().map(label).collect();
        let source = Source { file: Arc::new("d.jsonl".into()), line: 1 };
        Example { input_ids, labels, source }
    }

    fn asked(trained: &[usize]) -> Option<(Vec<u32>, Vec<u32>)> {
        question(&example(trained)).map(|question| (question.prompt, question.expected))
    }

    #[test]
    fn a_prompt_ends_where_the_first_answer_begins() {
        assert_eq!(asked(&[4, 5, 8]), Some(((0..4).collect(), vec![4, 5])));
        assert_eq!(asked(&[7, 8, 9]), Some(((0..7).collect(), vec![7, 8, 9])));
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(asked(&all), Some(((0..5).collect(), (5..10).collect())));
        assert_eq!(asked(&[]), None);
    }

    #[test]
    fn the_same_prompt_is_asked_once_and_no_more_than_wanted() {
        let examples = [&[4][..], &[4, 5], &[], &[6], &[8]].map(example);
        let asked = |count| questions(&examples, count).iter().map(|q| q.prompt.len()).collect::<Vec<_>>();
        assert_eq!((asked(0), asked(2), asked(9)), (vec![], vec![4, 6], vec![4, 6, 8]));
    }
}
