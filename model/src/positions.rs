//! How layers are told where their tokens stand: rotary tables, which row of them each token of a batch
//! takes, and how queries grow.

use compute::ops::position_scale::PositionScale;
use compute::ops::rope::{RopeTable, Rotation};

use crate::batch::Batch;
use crate::config::Config;
use crate::memory::{Allocator, Component};

/// Tables for sequences up to some length, and the rows that the batch at hand takes of them.
#[derive(Debug)]
pub(crate) struct Positions {
    /// One for each of [`Config::ropes`].
    pub(crate) tables: Vec<RopeTable>,
    /// The row of the tables of each token `[T]`.
    pub(crate) rows: Vec<u32>,
    pub(crate) growth: Option<PositionScale>,
    /// Where frequencies depend on a sequence's length (LongRoPE): the longest that takes the short ones,
    /// whose rows come first.
    long: Option<Long>,
}

#[derive(Clone, Copy, Debug)]
struct Long {
    /// The longest sequence that takes the short frequencies.
    original: usize,
    /// Positions of each half of a table.
    positions: usize,
}

impl Positions {
    /// Tables for sequences of at most so many tokens.
    pub(crate) fn new(config: &Config, tokens: usize, positions: usize, allocator: &mut Allocator) -> Self {
        let original = config.ropes.iter().find_map(|rotation| rotation.scaling.short_context());
        let bytes: usize =
            config.ropes.iter().map(|rotation| RopeTable::size_bytes(rotation, positions)).sum();
        let real = allocator.count(Component::Workspace, bytes as u64);
        let made = if real { positions } else { 0 };
        let table = |rotation: &Rotation| RopeTable::new(config.head_dim, rotation, made);
        let growth = config.query_growth.map(|growth| PositionScale::new(growth.beta, growth.original, made));
        Positions {
            tables: config.ropes.iter().map(table).collect(),
            rows: Vec::with_capacity(if real { tokens } else { 0 }),
            growth,
            long: original.map(|original| Long { original, positions }),
        }
    }

    /// Takes up a batch of whole sequences, or of what is appended to sequences in a cache.
    pub(crate) fn set(&mut self, batch: &Batch, cached: bool) {
        self.rows.clear();
        self.rows.extend_from_slice(&batch.positions);
        let Some(Long { original, positions }) = self.long else { return };
        for segment in &batch.segments {
            // transformers decides by the length of the sequence. One that grows in a cache cannot change its
            // mind: there the longest that the buffers were laid out for decides.
            let length = if cached { positions } else { segment.keys.len() };
            if length > original {
                self.rows[segment.queries.clone()].iter_mut().for_each(|row| *row += positions as u32);
            }
        }
    }
}
