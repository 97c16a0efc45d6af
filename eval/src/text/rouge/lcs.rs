//! Longest common subsequences, 64 cells of the table at a time.
//!
//! With t\[i\]\[j\] the length for the first i tokens of the reference and the first j of the candidate, a
//! column of the table is kept as bits: bit i is 0 where t\[i+1\]\[j\] = t\[i\]\[j\] + 1, 1 where they are
//! equal. With M the bits of the reference's tokens that equal the candidate's next one, the next column is
//! V' = (V + (V & M)) | (V & !M) (Hyyrö, "Bit-Parallel LCS-length Computation Revisited", 2004). So n m / 64
//! steps, and n + m memory for the length.

/// Where each token stands in a reference.
#[derive(Debug)]
pub(super) struct Positions {
    /// How many words hold a bit for each token of the reference.
    words: usize,
    /// Which of the reference's tokens a token of the vocabulary is, or `NONE`.
    slots: Vec<u32>,
    /// The tokens of the reference, each once.
    tokens: Vec<u32>,
    /// For each of those where it stands.
    places: Vec<Places>,
}

const NONE: u32 = u32::MAX;

#[derive(Debug)]
enum Places {
    /// Positions in ascending order.
    Few(Vec<u32>),
    /// A bit for each position. At most 64 tokens stand so often that this is chosen, so all such bits take
    /// no more than eight bytes for each token of the reference.
    Many(Vec<u64>),
}

impl Positions {
    pub(super) fn new(vocabulary: usize) -> Self {
        Positions { words: 0, slots: vec![NONE; vocabulary], tokens: Vec::new(), places: Vec::new() }
    }

    /// Takes up another reference.
    pub(super) fn of(&mut self, reference: &[u32]) {
        self.tokens.drain(..).for_each(|token| self.slots[token as usize] = NONE);
        self.places.clear();
        self.words = reference.len().div_ceil(64);
        let mut places: Vec<Vec<u32>> = Vec::new();
        for (position, &token) in reference.iter().enumerate() {
            let slot = &mut self.slots[token as usize];
            if *slot == NONE {
                *slot = places.len() as u32;
                self.tokens.push(token);
                places.push(Vec::new());
            }
            places[*slot as usize].push(position as u32);
        }
        let words = self.words;
        self.places.extend(places.into_iter().map(|few| {
            if few.len() <= words {
                return Places::Few(few);
            }
            let mut many = vec![0; words];
            few.iter().for_each(|&at| set(&mut many, at));
            Places::Many(many)
        }));
    }

    fn places(&self, token: u32) -> Option<&Places> {
        self.places.get(self.slots[token as usize] as usize)
    }

    /// The next column after `column`. `scratch` is zero before and after.
    fn step(&self, column: &mut [u64], token: u32, scratch: &mut [u64]) {
        match self.places(token) {
            None => {}
            Some(Places::Many(many)) => advance(column, many),
            Some(Places::Few(few)) => {
                few.iter().for_each(|&at| set(scratch, at));
                advance(column, scratch);
                few.iter().for_each(|&at| scratch[at as usize / 64] = 0);
            }
        }
    }
}

fn set(bits: &mut [u64], at: u32) {
    bits[at as usize / 64] |= 1 << (at % 64);
}

fn advance(column: &mut [u64], matches: &[u64]) {
    let mut carry = false;
    for (v, &m) in column.iter_mut().zip(matches) {
        let (sum, over) = v.overflowing_add(*v & m);
        let (sum, over_again) = sum.overflowing_add(u64::from(carry));
        carry = over || over_again;
        *v = sum | (*v & !m);
    }
}

/// The length of the longest common subsequence of two texts with tokens below `vocabulary`.
pub(super) fn length(reference: &[u32], candidate: &[u32], vocabulary: usize) -> usize {
    let mut positions = Positions::new(vocabulary);
    positions.of(reference);
    let mut column = vec![u64::MAX; positions.words];
    let mut scratch = vec![0; positions.words];
    candidate.iter().for_each(|&token| positions.step(&mut column, token, &mut scratch));
    column.iter().map(|word| word.count_zeros() as usize).sum()
}

/// The tokens of a reference sentence that stand in its longest common subsequence with any candidate
/// sentence. Memory is kept from one sentence to the next.
#[derive(Debug)]
pub(super) struct Union {
    /// How many words of columns are kept at once. A longer table is kept as the columns before each of √n
    /// blocks, and one block, which is computed again when the way back comes to it.
    kept: usize,
    /// The columns of a block of candidate tokens.
    columns: Vec<u64>,
    /// The column before each block.
    starts: Vec<u64>,
    column: Vec<u64>,
    scratch: Vec<u64>,
    found: Vec<bool>,
}

/// 8 MB of columns.
const KEPT: usize = 1 << 20;

impl Default for Union {
    fn default() -> Self {
        Union {
            kept: KEPT,
            columns: Vec::new(),
            starts: Vec::new(),
            column: Vec::new(),
            scratch: Vec::new(),
            found: Vec::new(),
        }
    }
}

impl Union {
    /// The tokens in the union, in the order of the reference, which `positions` must be of.
    pub(super) fn of(
        &mut self,
        positions: &Positions,
        reference: &[u32],
        candidates: &[Vec<u32>],
    ) -> Vec<u32> {
        self.found.clear();
        self.found.resize(reference.len(), false);
        self.scratch.clear();
        self.scratch.resize(positions.words, 0);
        let mut missing = reference.len();
        for candidate in candidates {
            if missing == 0 {
                break;
            }
            if candidate.iter().any(|&token| positions.places(token).is_some()) {
                missing -= self.mark(positions, reference, candidate);
            }
        }
        let found = reference.iter().zip(&self.found).filter(|(_, found)| **found);
        found.map(|(token, _)| *token).collect()
    }

    /// Marks one longest common subsequence, and returns how many tokens were not marked before. Which of
    /// several it is decides the union; it is the one that rouge-score's `_backtrack_norec` reads out of its
    /// table: from the end, past a token of the candidate if t\[i\]\[j-1\] > t\[i-1\]\[j\], else past one of
    /// the reference. Where the tokens differ, that is whether t\[i\]\[j\] > t\[i-1\]\[j\], a bit of column
    /// j.
    fn mark(&mut self, positions: &Positions, reference: &[u32], candidate: &[u32]) -> usize {
        let Union { kept: most, columns, starts, column, scratch, found } = self;
        let (n, words) = (candidate.len(), positions.words);
        let block = if n.saturating_mul(words) <= *most { n } else { n.isqrt() }.max(1);
        column.clear();
        column.resize(words, u64::MAX);
        starts.clear();
        let last_start = n.saturating_sub(1) / block * block;
        for (j, &token) in candidate[..last_start].iter().enumerate() {
            if j % block == 0 {
                starts.extend_from_slice(column);
            }
            positions.step(column, token, scratch);
        }
        starts.extend_from_slice(column);
        let (mut i, mut j, mut new) = (reference.len(), n, 0);
        let mut kept = usize::MAX;
        while i > 0 && j > 0 {
            let this = (j - 1) / block;
            if this != kept {
                kept = this;
                column.copy_from_slice(&starts[this * words..][..words]);
                columns.clear();
                for &token in &candidate[this * block..j] {
                    positions.step(column, token, scratch);
                    columns.extend_from_slice(column);
                }
            }
            let bits = columns[(j - 1) % block * words + (i - 1) / 64];
            let is_longer = bits >> ((i - 1) % 64) & 1 == 0;
            if reference[i - 1] == candidate[j - 1] {
                new += usize::from(!std::mem::replace(&mut found[i - 1], true));
                i -= 1;
                j -= 1;
            } else if is_longer {
                j -= 1;
            } else {
                i -= 1;
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// rouge-score's `_lcs_table` and `_backtrack_norec`.
    fn by_table(reference: &[u32], candidate: &[u32]) -> Vec<usize> {
        let mut t = vec![vec![0; candidate.len() + 1]; reference.len() + 1];
        for i in 1..=reference.len() {
            for j in 1..=candidate.len() {
                t[i][j] = match reference[i - 1] == candidate[j - 1] {
                    true => t[i - 1][j - 1] + 1,
                    false => t[i - 1][j].max(t[i][j - 1]),
                };
            }
        }
        let (mut i, mut j, mut found) = (reference.len(), candidate.len(), Vec::new());
        while i > 0 && j > 0 {
            if reference[i - 1] == candidate[j - 1] {
                found.push(i - 1);
                i -= 1;
                j -= 1;
            } else if t[i][j - 1] > t[i - 1][j] {
                j -= 1;
            } else {
                i -= 1;
            }
        }
        found.reverse();
        found
    }

    #[test]
    fn columns_of_bits_give_the_subsequence_of_the_table_in_blocks_too() {
        let mut state = 7u64;
        let mut text = |len: usize, tokens: u64| -> Vec<u32> {
            let next = |_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((state >> 33) % tokens) as u32
            };
            (0..len).map(next).collect()
        };
        for (m, n, tokens) in [
            (1, 1, 1),
            (3, 5, 2),
            (63, 64, 3),
            (64, 63, 3),
            (65, 130, 2),
            (128, 50, 9),
            (200, 301, 150),
            (0, 4, 2),
        ] {
            let (reference, candidate) = (text(m, tokens), text(n, tokens));
            let expected = by_table(&reference, &candidate);
            let mut positions = Positions::new(tokens as usize);
            positions.of(&[0]);
            positions.of(&reference);
            for kept in [0, KEPT] {
                let mut union = Union { kept, ..Union::default() };
                union.of(&positions, &reference, std::slice::from_ref(&candidate));
                let found: Vec<usize> = (0..m).filter(|&i| union.found[i]).collect();
                assert_eq!(found, expected, "{m} {n} {tokens}, {kept} words kept");
            }
            assert_eq!(length(&reference, &candidate, tokens as usize), expected.len());
        }
    }
}
