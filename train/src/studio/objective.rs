//! What a request trains for: a token's loss as a function of its log-probability, with the derivative.
//!
//! All but the first are objectives of policies, over tokens that were sampled: with `r` the probability of a
//! token now over that when it was sampled, and `A` its advantage,
//!
//! | | loss | derivative by the log-probability `p` |
//! |---|---|---|
//! | cross entropy | `-p` | `-1` |
//! | importance sampling | `-r A` | `-r A` |
//! | PPO (Schulman et al. 2017) | `-min(r A, clip(r) A)` | `-r A`, 0 where the clipped one is smaller |
//! | CISPO (MiniMax 2025, arXiv:2506.13585) | `-clip(r) p A`, `clip(r)` held fixed | `-clip(r) A` |
//! | DRO (Richemond et al. 2024, arXiv:2405.19107) | `-(p A - beta/2 (p - q)^2)` | `-(A - beta (p - q))` |
//!
//! A request's loss is the sum over its tokens, each times its weight.

/// What is minimized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// The negative log-probability.
    CrossEntropy,
    /// REINFORCE with the ratio of probabilities as a correction.
    ImportanceSampling,
    /// The smaller one of two products with the advantage: of the ratio, and of the clipped ratio.
    Ppo {
        /// What the ratio is clipped to.
        clip: [f64; 2],
    },
    /// The log-probability, weighted by the clipped ratio and the advantage.
    Cispo {
        /// What the ratio is clipped to.
        clip: [f64; 2],
    },
    /// The log-probability times the advantage, with a penalty for leaving what was sampled.
    Dro {
        /// How much that counts.
        beta: f64,
    },
}

impl Objective {
    /// A token's loss and its derivative by the log-probability `p`, where `q` is what that was when the
    /// token was sampled, and `advantage` how much better than expected its sequence was.
    pub fn of_token(self, p: f64, q: f64, advantage: f64) -> (f64, f64) {
        let ratio = (p - q).exp();
        match self {
            Objective::CrossEntropy => (-p, -1.0),
            Objective::ImportanceSampling => (-ratio * advantage, -ratio * advantage),
            Objective::Ppo { clip: [low, high] } => {
                let (free, clipped) = (ratio * advantage, ratio.clamp(low, high) * advantage);
                if free <= clipped { (-free, -free) } else { (-clipped, 0.0) }
            }
            Objective::Cispo { clip: [low, high] } => {
                let factor = ratio.clamp(low, high) * advantage;
                (-factor * p, -factor)
            }
            Objective::Dro { beta } => {
                let away = p - q;
                (-(p * advantage - 0.5 * beta * away * away), -(advantage - beta * away))
            }
        }
    }

    /// Whether it asks how likely tokens were when they were sampled.
    pub fn is_of_policy(self) -> bool {
        self != Objective::CrossEntropy
    }
}
