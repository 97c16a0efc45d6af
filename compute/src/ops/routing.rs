//! Which experts a token goes to, and the rows of a batch sorted by expert (Shazeer et al., 2017, arXiv:1701.06538; the choice is that
//! of transformers' `Qwen3MoeTopKRouter` and `MixtralTopKRouter`).
//!
//! From `logits[T, E]`, with the `k` experts `e_1 .. e_k` of the largest probabilities, the lower number first where two are equal:
//!
//! ```text
//! p[t]    = softmax(logits[t])
//! w[t, j] = p[t, e_j]              or  p[t, e_j] / Σ_i p[t, e_i]      (`normalized`)
//! ```
//!
//! and backwards, where the choice itself has no gradient, with `q[t, j] = dw[t, j]`, or `(dw[t, j] - Σ_i dw[t, i] w[t, i]) / Σ_i p[t, e_i]`:
//!
//! ```text
//! dlogits[t, e] = p[t, e] * ([e = e_j] q[t, j] - Σ_i q[t, i] p[t, e_i])
//! ```
//!
//! The `S = T * k` pairs of a token and one of its experts are sorted by expert, and within an expert by token: a row for each. However
//! tokens are spread over experts, there are `S` of them.
//!
//! ```text
//! gather:  y[s] = x[t(s)]                  sum:  y[t] = Σ_j x[s(t, j)]                each is the other's backward
//! weigh:   y[s] = w[s] x[s]                dx[s] = w[s] dy[s]       dw[s] = dy[s] · x[s]
//! ```

use std::ops::Range;

use crate::profile::Work;
use crate::{Device, MatrixMut, MatrixRef, cpu};

/// The experts of the tokens of a batch.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// `E`
    pub(crate) experts: usize,
    /// `k`
    pub(crate) per_token: usize,
    pub(crate) normalized: bool,
    /// Expert and weight of each pair, `[T * k]`.
    pub(crate) chosen: Vec<u32>,
    pub(crate) weights: Vec<f32>,
    /// The sorted row of each pair, and the pair of each sorted row.
    pub(crate) row: Vec<u32>,
    pub(crate) pair: Vec<u32>,
    /// The first row of each expert, and behind the last one the number of rows.
    starts: Vec<usize>,
}

impl Routing {
    /// Room for the choices of `tokens` tokens among `experts`, `per_token` for each.
    ///
    /// # Panics
    /// If a token is to go to more experts than there are.
    pub fn new(experts: usize, per_token: usize, normalized: bool, tokens: usize) -> Self {
        assert!(per_token <= experts, "{per_token} of {experts} experts");
        let pairs = tokens * per_token;
        Routing {
            experts,
            per_token,
            normalized,
            chosen: Vec::with_capacity(pairs),
            weights: Vec::with_capacity(pairs),
            row: Vec::with_capacity(pairs),
            pair: Vec::with_capacity(pairs),
            starts: Vec::with_capacity(experts + 1),
        }
    }

    /// Bytes of [`Routing::new`].
    pub fn size_bytes(experts: usize, per_token: usize, tokens: usize) -> usize {
        4 * 4 * tokens * per_token + size_of::<usize>() * (experts + 1)
    }

    /// Rows in all, `S`.
    pub fn rows(&self) -> usize {
        self.pair.len()
    }

    /// The rows of an expert.
    pub fn rows_of(&self, expert: usize) -> Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }

    /// Weights of the pairs `[T * k]`, a token's together.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Experts of the pairs `[T * k]`, a token's together.
    pub fn chosen(&self) -> &[u32] {
        &self.chosen
    }

    /// The token of a row.
    #[inline(always)]
    pub(crate) fn token(&self, row: usize) -> usize {
        self.pair[row] as usize / self.per_token
    }

    /// Sorts the pairs by expert.
    fn sort(&mut self) {
        self.starts.clear();
        self.starts.resize(self.experts + 1, 0);
        for &expert in &self.chosen {
            self.starts[expert as usize + 1] += 1;
        }
        for expert in 0..self.experts {
            self.starts[expert + 1] += self.starts[expert];
        }
        self.pair.clear();
        self.pair.resize(self.chosen.len(), 0);
        self.row.clear();
        let mut next = self.starts.clone();
        for (pair, &expert) in self.chosen.iter().enumerate() {
            let row = next[expert as usize];
            next[expert as usize] += 1;
            self.row.push(row as u32);
            self.pair[row] = pair as u32;
        }
    }
}

/// Chooses the experts of every token by `logits[T, E]` (`f32`).
///
/// # Panics
/// If the number of columns is not that of the experts.
pub fn choose(device: &Device, logits: MatrixRef<'_>, routing: &mut Routing) {
    assert_eq!(logits.cols(), routing.experts, "columns of a router's result and experts");
    let _watch = device.watch("choice of experts", || Work::bytes(logits.size_bytes()));
    let pairs = logits.rows() * routing.per_token;
    routing.chosen.resize(pairs, 0);
    routing.weights.resize(pairs, 0.0);
    match device {
        Device::Cpu(cpu) => cpu::routing::choose(cpu, logits, routing),
    }
    routing.sort();
}

/// In place: `logits[T, E]`, by which the experts were chosen, become their gradients, from those of the weights `dweights[T * k]`.
///
/// # Panics
/// If the sizes do not agree.
pub fn choose_backward(device: &Device, logits: MatrixMut<'_>, dweights: &[f32], routing: &Routing) {
    let pairs = logits.rows() * routing.per_token;
    assert_eq!((routing.chosen.len(), dweights.len()), (pairs, pairs), "pairs of tokens and experts");
    let _watch = device.watch("choice of experts backward", || Work::bytes(2 * logits.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::routing::choose_backward(cpu, logits, dweights, routing),
    }
}

/// `y[S, C]`: the rows of `x[T, C]` sorted by expert, each as often as it has experts.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn gather(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, routing: &Routing) {
    check_rows(y.as_ref(), x, routing);
    let _watch = device.watch("rows by expert", || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::routing::gather(cpu, y, x, routing),
    }
}

/// `y[T, C]`, or what is added to it: the sum of each token's rows in `x[S, C]`, in the order of its experts' probabilities.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn sum(device: &Device, y: MatrixMut<'_>, accumulate: bool, x: MatrixRef<'_>, routing: &Routing) {
    check_rows(x, y.as_ref(), routing);
    let _watch = device.watch("sum over experts", || Work::bytes(x.size_bytes() + y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::routing::sum(cpu, y, accumulate, x, routing),
    }
}

/// `y[S, F] = w[s] x[s]`.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn weigh(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, routing: &Routing) {
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of weighted rows and their source");
    assert_eq!(x.rows(), routing.rows(), "rows by expert");
    let _watch = device.watch("weights of experts", || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::routing::weigh(cpu, y, x, routing),
    }
}

/// In place: `dy[S, F]` becomes `dx`; `dweights[T * k]` from `x[S, F]`.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn weigh_backward(
    device: &Device,
    dy: MatrixMut<'_>,
    x: MatrixRef<'_>,
    dweights: &mut [f32],
    routing: &Routing,
) {
    assert_eq!((dy.rows(), dy.cols()), (x.rows(), x.cols()), "shapes of weighted rows and their source");
    assert_eq!((x.rows(), dweights.len()), (routing.rows(), routing.rows()), "rows by expert");
    let _watch = device.watch("weights of experts backward", || Work::bytes(3 * x.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::routing::weigh_backward(cpu, dy, x, dweights, routing),
    }
}

fn check_rows(sorted: MatrixRef<'_>, tokens: MatrixRef<'_>, routing: &Routing) {
    assert_eq!(sorted.cols(), tokens.cols(), "widths of rows by expert and by token");
    assert_eq!(sorted.dtype(), tokens.dtype(), "element types of rows by expert and by token");
    let rows = (routing.rows(), routing.rows());
    assert_eq!((sorted.rows(), tokens.rows() * routing.per_token), rows, "rows by expert and by token");
}
