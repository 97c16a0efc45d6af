//! What several adapters ask of buffers that they pass through together.

use super::parameters::{Dora, Layout, Lora, Role, Trained};

impl Layout {
    /// A layout by which [`Activations`](crate::Activations) have room for all of these adapters in one pass:
    /// on each module the largest that any of them trains there. It names no tensors that could have values.
    ///
    /// # Panics
    /// If they are not all trained for the same quantized type, or all for none.
    pub fn joint<'a>(layouts: impl IntoIterator<Item = &'a Layout>) -> Layout {
        let mut layouts = layouts.into_iter();
        let mut joint = layouts.next().cloned().unwrap_or_default();
        for other in layouts {
            assert_eq!(joint.quantization_aware, other.quantization_aware, "one type of rounded weights");
            joint.widen(other);
        }
        joint
    }

    /// Makes room for the modules of another layout.
    fn widen(&mut self, other: &Layout) {
        for (module, theirs) in other.modules() {
            let ours = self.get(module);
            let lora = match (ours.and_then(Trained::lora), theirs.lora()) {
                (Some(ours), Some(theirs)) => Some(larger(ours, theirs)),
                (ours, theirs) => ours.or(theirs),
            };
            let magnitude = match (ours, theirs) {
                (Some(Trained::Dora(ours)), _) => Some(ours.magnitude),
                (_, Trained::Dora(theirs)) => {
                    let tensor = &other.tensors()[theirs.magnitude];
                    Some(self.push(Role::Magnitude, tensor.name.clone(), [1, tensor.cols], true))
                }
                _ => None,
            };
            let trained = match (lora, magnitude) {
                (Some(lora), Some(magnitude)) => Trained::Dora(Dora { lora, magnitude }),
                (Some(lora), None) => Trained::Lora(lora),
                // A module that is trained whole needs nothing but its layer's gradient.
                (None, _) => theirs,
            };
            self.train(module, trained);
        }
    }
}

/// An update with room for both.
fn larger(ours: Lora, theirs: Lora) -> Lora {
    // Groups of few inputs leave more of them; 1 is none.
    let group = match (ours.group, theirs.group) {
        (1, group) | (group, 1) => group,
        (ours, theirs) => ours.min(theirs),
    };
    Lora { rank: ours.rank.max(theirs.rank), group, ..ours }
}
