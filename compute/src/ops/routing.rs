//! Which experts a token goes to, and the rows of a batch sorted by expert (Shazeer et al., 2017,
//! arXiv:1701.06538; the choice is that of transformers' `Qwen3MoeTopKRouter` and `MixtralTopKRouter`).
//!
//! From `logits[T, E]`, with the `k` experts `e_1 .. e_k` of the largest probabilities, the lower number
//! first where two are equal:
//!
//! ```text
//! p[t]    = softmax(logits[t])
//! w[t, j] = p[t, e_j]              or  p[t, e_j] / Σ_i p[t, e_i]      (`normalized`)
//! ```
//!
//! and backwards, where the choice itself has no gradient, with `q[t, j] = dw[t, j]`, or `(dw[t, j] - Σ_i
//! dw[t, i] w[t, i]) / Σ_i p[t, e_i]`:
//!
//! ```text
//! dlogits[t, e] = p[t, e] * ([e = e_j] q[t, j] - Σ_i q[t, i] p[t, e_i])
//! ```
//!
//! How evenly tokens spread over experts is a loss (Fedus et al., 2021, arXiv:2101.03961, equation 4;
//! transformers' `load_balancing_loss_func`): over the `N` rows of all layers and tokens together,
//!
//! ```text
//! f[e] = number of tokens with e among their experts / N        P[e] = Σ_t p[t, e] / N
//! loss = E Σ_e f[e] P[e]
//! ```
//!
//! which is `k` if they spread evenly. `f` has no gradient, so that of every token's `p[e]` is `E f[e] / N`,
//! and on top of the above comes, with `dp` for it, `p[t, e] * (dp[e] - Σ_i dp[i] p[t, i])`.
//!
//! The `S = T * k` pairs of a token and one of its experts are sorted by expert, and within an expert by
//! token: a row for each. However tokens are spread over experts, there are `S` of them.
//!
//! ```text
//! gather:  y[s] = x[t(s)]           sum:  y[t] = Σ_j x[s(t, j)]      each is the other's backward pass
//! weigh:   y[s] = w[s] x[s]         dx[s] = w[s] dy[s]               dw[s] = dy[s] · x[s]
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

    /// The rows of an expert that are of these tokens.
    pub fn rows_of_tokens(&self, expert: usize, tokens: &Range<usize>) -> Range<usize> {
        let all = self.rows_of(expert);
        let before = |token: usize| {
            let pairs = &self.pair[all.clone()];
            all.start + pairs.partition_point(|&pair| (pair as usize) < token * self.per_token)
        };
        before(tokens.start)..before(tokens.end)
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

/// How tokens spread over experts: what [`load`] adds up over layers.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// `N`
    pub(crate) rows: u64,
    /// `N f`, `[E]`
    pub(crate) chosen: Vec<u64>,
    /// `N P`, `[E]`
    pub(crate) probability: Vec<f64>,
}

impl Load {
    /// Nothing yet, over so many experts.
    pub fn new(experts: usize) -> Self {
        Load { rows: 0, chosen: vec![0; experts], probability: vec![0.0; experts] }
    }

    /// Bytes of [`Load::new`].
    pub fn size_bytes(experts: usize) -> usize {
        16 * experts
    }

    /// Begins again.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.chosen.fill(0);
        self.probability.fill(0.0);
    }

    /// The loss; 0 without rows.
    pub fn loss(&self) -> f64 {
        let pairs = self.chosen.iter().zip(&self.probability);
        let sum: f64 = pairs.map(|(&chosen, p)| chosen as f64 * p).sum();
        self.chosen.len() as f64 * sum / (self.rows.max(1) as f64).powi(2)
    }

    /// `dp [E]`: the gradient of `scale` times the loss by the probabilities of any token.
    ///
    /// # Panics
    /// If the sizes do not agree.
    pub fn gradient(&self, scale: f64, dp: &mut [f32]) {
        assert_eq!(dp.len(), self.chosen.len(), "experts");
        let factor = scale * self.chosen.len() as f64 / (self.rows.max(1) as f64).powi(2);
        dp.iter_mut().zip(&self.chosen).for_each(|(dp, &chosen)| *dp = (factor * chosen as f64) as f32);
    }
}

/// Adds the tokens of `logits[T, E]`, by which their experts were chosen, to a load.
///
/// # Panics
/// If the sizes do not agree.
pub fn load(device: &Device, logits: MatrixRef<'_>, routing: &Routing, load: &mut Load) {
    assert_eq!((logits.cols(), load.chosen.len()), (routing.experts, routing.experts), "experts");
    assert_eq!(logits.rows() * routing.per_token, routing.rows(), "pairs of tokens and experts");
    let _watch = device.watch("load of experts", [logits.home()], || Work::bytes(logits.size_bytes()));
    load.rows += logits.rows() as u64;
    for (expert, chosen) in load.chosen.iter_mut().enumerate() {
        *chosen += routing.rows_of(expert).len() as u64;
    }
    match device {
        Device::Cpu(_) => cpu::routing::load(logits, &mut load.probability),
        Device::Null(_) => {}
    }
}

/// Chooses the experts of every token by `logits[T, E]` (`f32`).
///
/// # Panics
/// If the number of columns is not that of the experts.
pub fn choose(device: &Device, logits: MatrixRef<'_>, routing: &mut Routing) {
    assert_eq!(logits.cols(), routing.experts, "columns of a router's result and experts");
    let _watch = device.watch("choice of experts", [logits.home()], || Work::bytes(logits.size_bytes()));
    let pairs = logits.rows() * routing.per_token;
    routing.chosen.resize(pairs, 0);
    routing.weights.resize(pairs, 0.0);
    match device {
        Device::Cpu(cpu) => cpu::routing::choose(cpu, logits, routing),
        // As if tokens spread evenly.
        Device::Null(_) => {
            let experts = (0..routing.experts as u32).cycle();
            routing.chosen.iter_mut().zip(experts).for_each(|(chosen, expert)| *chosen = expert);
        }
    }
    routing.sort();
}

/// In place: `logits[T, E]`, by which the experts were chosen, become their gradients, from those of the
/// weights `dweights[T * k, 1]` and those of any token's probabilities `dp[1, E]`, if there are any.
///
/// # Panics
/// If the sizes do not agree.
pub fn choose_backward(
    device: &Device,
    logits: MatrixMut<'_>,
    dweights: MatrixRef<'_>,
    dp: Option<MatrixRef<'_>>,
    routing: &Routing,
) {
    let size = (1, routing.experts);
    assert!(dp.is_none_or(|dp| (dp.rows(), dp.cols()) == size), "gradients of probabilities: {dp:?}");
    let pairs = logits.rows() * routing.per_token;
    assert_eq!((routing.chosen.len(), dweights.rows()), (pairs, pairs), "pairs of tokens and experts");
    let _watch = device.watch(
        "choice of experts backward",
        [logits.home(), dweights.home()].into_iter().chain(dp.map(|dp| dp.home())),
        || Work::bytes(2 * logits.size_bytes()),
    );
    match device {
        Device::Cpu(cpu) => {
            let dp = dp.map_or(&[][..], |dp| dp.f32());
            cpu::routing::choose_backward(cpu, logits, dweights.f32(), dp, routing);
        }
        Device::Null(_) => {}
    }
}

/// `y[S, C]`: the rows of `x[T, C]` sorted by expert, each as often as it has experts.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn gather(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, routing: &Routing) {
    check_rows(y.as_ref(), x, routing);
    let _watch = device.watch("rows by expert", [y.home(), x.home()], || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::routing::gather(cpu, y, x, routing),
        Device::Null(_) => {}
    }
}

/// `y[T, C]`, or what is added to it: the sum of each token's rows in `x[S, C]`, in the order of its experts'
/// probabilities.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn sum(device: &Device, y: MatrixMut<'_>, accumulate: bool, x: MatrixRef<'_>, routing: &Routing) {
    check_rows(x, y.as_ref(), routing);
    let _watch = device
        .watch("sum over experts", [y.home(), x.home()], || Work::bytes(x.size_bytes() + y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::routing::sum(cpu, y, accumulate, x, routing),
        Device::Null(_) => {}
    }
}

/// `y[S, F] = w[s] x[s]`.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn weigh(device: &Device, y: MatrixMut<'_>, x: MatrixRef<'_>, routing: &Routing) {
    assert_eq!((y.rows(), y.cols()), (x.rows(), x.cols()), "shapes of weighted rows and their source");
    assert_eq!(x.rows(), routing.rows(), "rows by expert");
    let _watch = device.watch("weights of experts", [y.home(), x.home()], || Work::bytes(2 * y.size_bytes()));
    match device {
        Device::Cpu(cpu) => cpu::routing::weigh(cpu, y, x, routing),
        Device::Null(_) => {}
    }
}

/// In place: `dy[S, F]` becomes `dx`; `dweights[T * k, 1]` from `x[S, F]`.
///
/// # Panics
/// If the shapes or the element types do not agree.
pub fn weigh_backward(
    device: &Device,
    dy: MatrixMut<'_>,
    x: MatrixRef<'_>,
    dweights: MatrixMut<'_>,
    routing: &Routing,
) {
    assert_eq!((dy.rows(), dy.cols()), (x.rows(), x.cols()), "shapes of weighted rows and their source");
    assert_eq!((x.rows(), dweights.rows()), (routing.rows(), routing.rows()), "rows by expert");
    let _watch = device.watch("weights of experts backward", [dy.home(), x.home(), dweights.home()], || {
        Work::bytes(3 * x.size_bytes())
    });
    match device {
        Device::Cpu(cpu) => cpu::routing::weigh_backward(cpu, dy, x, dweights.f32(), routing),
        Device::Null(_) => {}
    }
}

fn check_rows(sorted: MatrixRef<'_>, tokens: MatrixRef<'_>, routing: &Routing) {
    assert_eq!(sorted.cols(), tokens.cols(), "widths of rows by expert and by token");
    assert_eq!(sorted.dtype(), tokens.dtype(), "element types of rows by expert and by token");
    let rows = (routing.rows(), routing.rows());
    assert_eq!((sorted.rows(), tokens.rows() * routing.per_token), rows, "rows by expert and by token");
}
