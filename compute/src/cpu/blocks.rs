//! Quantizing to blocks and back on the host.

use super::Cpu;
use super::rows::RowsMut;
use super::simd::{Element, by_dtype};
use crate::MatrixRef;
use crate::quant::blocks::{BlockType, Blocks, GROUP};

/// What a block costs in units of an addition, about: the fit of a scale tries several.
const COST_OF_GROUP: usize = 512;

/// Writes a matrix's blocks one after the other.
pub(crate) fn quantize(cpu: &Cpu, values: MatrixRef<'_>, kind: BlockType, to: &mut [u8]) {
    let (elements, count) = (kind.elements(), to.len() / kind.bytes());
    by_dtype!(values.dtype(), X => {
        let values = X::of(values);
        cpu.for_rows(COST_OF_GROUP * elements / GROUP, RowsMut::new(to, count), |range, to| {
            let mut wide = vec![0.0; elements];
            for (block, to) in range.zip(to.chunks_exact_mut(kind.bytes())) {
                let from = &values[block * elements..][..elements];
                wide.iter_mut().zip(from).for_each(|(wide, x)| *wide = x.load());
                kind.encode(&wide, to);
            }
        });
    });
}

/// The values that follow each other from element `first` on.
#[inline(always)]
pub(crate) fn run<X: Element>(from: &Blocks, first: usize, to: &mut [X]) {
    let (kind, mut done) = (from.kind(), 0);
    while done < to.len() {
        let element = first + done;
        let (block, within) = (element / kind.elements(), element % kind.elements());
        let bytes = &from.bytes()[block * kind.bytes()..][..kind.bytes()];
        let values = kind.values(bytes, within / GROUP);
        let values = &values[within % GROUP..];
        for (to, value) in to[done..].iter_mut().zip(values) {
            *to = X::store(*value);
        }
        done += values.len();
    }
}
