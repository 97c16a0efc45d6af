//! A text that ends before a mark: a stop string, or a template's end of turn that is no token.

/// Lets a text through up to the first of some marks, which come in pieces like the text: what may be a mark's
/// beginning is held back until it is known not to be. How the text is cut into pieces makes no difference.
#[derive(Clone, Debug)]
pub struct Until {
    marks: Vec<String>,
    held: String,
    has_ended: bool,
}

impl Until {
    /// Without marks everything goes through at once; empty ones count for nothing.
    pub fn new(marks: impl IntoIterator<Item = String>) -> Self {
        let marks = marks.into_iter().filter(|mark| !mark.is_empty()).collect();
        Self { marks, held: String::new(), has_ended: false }
    }

    /// Whether a mark has come. What follows it is nobody's.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes the next piece and returns what can be said.
    pub fn push(&mut self, piece: &str) -> String {
        if self.has_ended {
            return String::new();
        }
        self.held.push_str(piece);
        let sure = match self.first_mark() {
            Some(at) => {
                self.has_ended = true;
                self.held.truncate(at);
                at
            }
            None => self.may_begin().unwrap_or(self.held.len()),
        };
        self.held.drain(..sure).collect()
    }

    /// The rest, after a last piece.
    pub fn finish(mut self, piece: &str) -> String {
        self.push(piece) + &self.held
    }

    /// Where the mark begins that is complete first; of several that end at one place, the longest.
    fn first_mark(&self) -> Option<usize> {
        let found = self.marks.iter().filter_map(|mark| Some((self.held.find(mark.as_str())?, mark.len())));
        found.min_by_key(|(at, length)| (at + length, *at)).map(|(at, _)| at)
    }

    /// The first place from which on all that is held may be the beginning of a mark.
    fn may_begin(&self) -> Option<usize> {
        let mut starts = self.held.char_indices().map(|(start, _)| start);
        starts.find(|&start| self.marks.iter().any(|mark| mark.starts_with(&self.held[start..])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said after each piece, then at the end.
    fn said(marks: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let mut until = Until::new(marks.iter().map(|mark| (*mark).to_owned()));
        let said = pieces.iter().map(|piece| until.push(piece)).collect();
        let ended = until.has_ended();
        (said, until.finish(""), ended)
    }

    #[test]
    fn a_mark_ends_the_text_however_it_is_cut() {
        let text = "Yes. <|im <|im_end|>never";
        for size in 1..text.len() {
            let pieces: Vec<&str> =
                text.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
            let (said, rest, ended) = said(&["<|im_end|>"], &pieces);
            assert_eq!((said.concat() + &rest, ended), ("Yes. <|im ".to_owned(), true), "{size}");
        }
    }

    #[test]
    fn of_several_marks_the_one_that_is_complete_first_ends_the_text_however_it_is_cut() {
        let text = "one, two three";
        for size in 1..=text.len() {
            let pieces: Vec<&str> =
                text.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
            for (marks, expected) in [
                (&["three", "two"][..], "one, "),
                (&["ne, two thr", "two"], "one, "),
                (&["two", ", two"], "one"),
                (&["four", "threes"], text),
            ] {
                let (said, rest, ended) = said(marks, &pieces);
                assert_eq!(
                    (said.concat() + &rest, ended),
                    (expected.to_owned(), expected != text),
                    "{marks:?}"
                );
            }
        }
    }

    #[test]
    fn only_what_may_be_the_mark_is_held_back() {
        let pieces = ["a<", "|", "b", "<<", "|e", "x<|"];
        let (said, rest, ended) = said(&["<|end|>"], &pieces);
        assert_eq!(said, ["a", "", "<|b", "<", "", "<|ex"]);
        assert_eq!((rest.as_str(), ended), ("<|", false));
    }

    #[test]
    fn a_mark_that_overlaps_itself_is_found() {
        assert_eq!(
            said(&["aab"], &["a", "a", "a", "b"]),
            (["", "", "a", ""].map(str::to_owned).to_vec(), String::new(), true)
        );
        assert_eq!(said(&["é!"], &["é", "é", "!"]).0.concat(), "é");
    }

    #[test]
    fn without_a_mark_everything_goes_through() {
        for marks in [&[][..], &[""]] {
            assert_eq!(
                said(marks, &["a", "", "b"]),
                (["a", "", "b"].map(str::to_owned).to_vec(), String::new(), false)
            );
        }
    }
}
