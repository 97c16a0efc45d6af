//! How layers are told where their tokens stand: rotary tables, which row of them each token of a batch
//! takes, and how queries grow.

use compute::Device;
use compute::ops::attention::Segment;
use compute::ops::position_scale::PositionScale;
use compute::ops::rope::RopeTable;

use crate::batch::Batch;
use crate::config::{Config, QueryGrowth};
use crate::memory::{Allocator, Component};
use crate::staged::Staged;

/// Tables for sequences up to some length, and the rows that the batch at hand takes of them.
#[derive(Debug)]
pub(crate) struct Positions {
    /// One for each of [`Config::ropes`].
    pub(crate) tables: Vec<RopeTable>,
    /// The row of the tables of each token `[T]`.
    pub(crate) rows: Staged<u32>,
    /// The position of each token in its sequence `[T]`.
    pub(crate) positions: Staged<u32>,
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
        let component = Component::Workspace;
        let of_tables = config.ropes.iter().map(|rotation| RopeTable::size_bytes(rotation, positions));
        let of_growth = config.query_growth.map_or(0, |_| PositionScale::size_bytes(positions));
        let bytes = of_tables.sum::<usize>() + of_growth;
        let make = |device: &Device| {
            let table = |rotation| RopeTable::new(device, config.head_dim, rotation, positions);
            let growth =
                |growth: QueryGrowth| PositionScale::new(device, growth.beta, growth.original, positions);
            (config.ropes.iter().map(table).collect(), config.query_growth.map(growth))
        };
        let (tables, growth) = allocator.count(component, bytes as u64).map(make).unwrap_or_default();
        Positions {
            tables,
            rows: Staged::new(tokens, component, allocator),
            positions: Staged::new(tokens, component, allocator),
            growth,
            long: original.map(|original| Long { original, positions }),
        }
    }

    /// Takes up a batch of whole sequences, or of what is appended to sequences in a cache.
    pub(crate) fn set(&mut self, batch: &Batch, cached: bool) {
        self.positions.set(batch.positions.iter().copied());
        let row_of = |segment: &Segment| {
            // transformers decides by the length of the sequence. One that grows in a cache cannot change its
            // mind: there the longest that the buffers were laid out for decides.
            let first = self.long.map_or(0, |Long { original, positions }| {
                let length = if cached { positions } else { segment.keys.len() };
                if length > original { positions as u32 } else { 0 }
            });
            batch.positions[segment.queries.clone()].iter().map(move |position| first + position)
        };
        self.rows.set(batch.segments.iter().flat_map(row_of));
    }
}
