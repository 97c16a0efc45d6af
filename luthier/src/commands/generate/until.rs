//! A text that ends before a mark.

/// Lets a text through up to a mark, which comes in pieces like the text: what may be the mark's beginning is
/// held back until it is known not to be.
pub(super) struct Until<'a> {
    mark: Option<&'a str>,
    held: String,
    has_ended: bool,
}

impl<'a> Until<'a> {
    /// Without a mark, or with an empty one, everything goes through at once.
    pub(super) fn new(mark: Option<&'a str>) -> Self {
        Self { mark: mark.filter(|mark| !mark.is_empty()), held: String::new(), has_ended: false }
    }

    /// Whether the mark has come. What follows it is nobody's.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes the next piece and returns what can be said.
    pub(super) fn push(&mut self, piece: &str) -> String {
        let Some(mark) = self.mark else { return piece.to_owned() };
        if self.has_ended {
            return String::new();
        }
        self.held.push_str(piece);
        let sure = match self.held.find(mark) {
            Some(at) => {
                self.has_ended = true;
                self.held.truncate(at);
                at
            }
            None => {
                let starts = self.held.char_indices().map(|(start, _)| start);
                let first = starts.into_iter().find(|&start| mark.starts_with(&self.held[start..]));
                first.unwrap_or(self.held.len())
            }
        };
        self.held.drain(..sure).collect()
    }

    /// The rest, after a last piece.
    pub(super) fn finish(mut self, piece: &str) -> String {
        self.push(piece) + &self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said after each piece, then at the end.
    fn said(mark: Option<&str>, pieces: &[&str]) -> (Vec<String>, String, bool) {
        let mut until = Until::new(mark);
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
            let (said, rest, ended) = said(Some("<|im_end|>"), &pieces);
            assert_eq!((said.concat() + &rest, ended), ("Yes. <|im ".to_owned(), true), "{size}");
        }
    }

    #[test]
    fn only_what_may_be_the_mark_is_held_back() {
        let pieces = ["a<", "|", "b", "<<", "|e", "x<|"];
        let (said, rest, ended) = said(Some("<|end|>"), &pieces);
        assert_eq!(said, ["a", "", "<|b", "<", "", "<|ex"]);
        assert_eq!((rest.as_str(), ended), ("<|", false));
    }

    #[test]
    fn a_mark_that_overlaps_itself_is_found() {
        assert_eq!(
            said(Some("aab"), &["a", "a", "a", "b"]),
            (["", "", "a", ""].map(str::to_owned).to_vec(), String::new(), true)
        );
        assert_eq!(said(Some("é!"), &["é", "é", "!"]).0.concat(), "é");
    }

    #[test]
    fn without_a_mark_everything_goes_through() {
        for mark in [None, Some("")] {
            assert_eq!(
                said(mark, &["a", "", "b"]),
                (["a", "", "b"].map(str::to_owned).to_vec(), String::new(), false)
            );
        }
    }
}
