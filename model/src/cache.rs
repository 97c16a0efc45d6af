//! Keys and values of sequences that are being generated, one matrix a layer for all of them.

use std::ops::Range;

use compute::ops::copy;
use compute::{Device, Matrix, Precision};

use crate::batch::Batch;
use crate::config::Config;
use crate::memory::{Allocator, Component};

/// Keys and values, `[rows, K * D]` for each layer. A sequence owns a contiguous range of rows, or pages of
/// them; who owns which is its user's concern.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<LayerCache>,
}

/// One layer's keys and values.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) keys: Matrix,
    pub(crate) values: Matrix,
}

impl Cache {
    /// A cache of `rows` tokens in all.
    pub fn new(config: &Config, precision: Precision, rows: usize, allocator: &mut Allocator) -> Self {
        let width = config.kv_heads * config.head_dim;
        let mut matrix = || allocator.matrix(Component::Cache, rows, width, precision.dtype());
        let layers = (0..config.layers).map(|_| LayerCache { keys: matrix(), values: matrix() }).collect();
        Cache { layers }
    }

    /// Number of tokens that fit.
    pub fn rows(&self) -> usize {
        self.layers.first().map_or(0, |l| l.keys.rows())
    }

    pub(crate) fn layer(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }
}

impl LayerCache {
    /// Writes the new rows of every segment behind what the cache holds of it, and those that branches need.
    pub(crate) fn append(&mut self, device: &Device, batch: &Batch, keys: &Matrix, values: &Matrix) {
        for segment in &batch.segments {
            let (len, mut first) = (segment.keys.len(), segment.queries.start);
            for rows in segment.keys.runs(len - segment.queries.len()..len) {
                let new = first..first + rows.len();
                first = new.end;
                self.write(device, rows, new, keys, values);
            }
        }
        for (new, rows) in &batch.copies {
            self.write(device, rows.clone(), new.clone(), keys, values);
        }
    }

    /// Writes rows of a batch into as many of the cache.
    fn write(
        &mut self,
        device: &Device,
        to: Range<usize>,
        from: Range<usize>,
        keys: &Matrix,
        values: &Matrix,
    ) {
        for (cached, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let new = new.as_ref().rows_range(from.clone());
            copy::copy(device, cached.as_mut().rows_range(to.clone()), new);
        }
    }
}
