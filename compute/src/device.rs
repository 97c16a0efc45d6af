//! Where arithmetic happens.

use std::sync::Arc;

use crate::cpu::Cpu;
use crate::profile::{Key, Profile, Watch, Work};
use crate::{DType, Foreground, Home, Matrix, Precision};

/// The place where matrices live and operations run. A closed set, matched inside each operation.
#[derive(Clone, Debug)]
pub enum Device {
    /// The host's processors, with a thread pool of our own.
    Cpu(Cpu),
    /// Nothing: memory without elements, operations that only look at their arguments' shapes and homes. What
    /// runs on it from end to end touches a device's memory by operations and transfers alone.
    Null(Null),
}

/// A handle on a device that computes nothing.
#[derive(Clone, Debug, Default)]
pub struct Null {
    profile: Arc<Profile>,
}

impl Device {
    /// The host with `threads` threads; 0 means one per available processor.
    pub fn cpu(threads: usize) -> Self {
        Device::Cpu(Cpu::new(threads))
    }

    /// The device that computes nothing.
    pub fn null() -> Self {
        Device::Null(Null::default())
    }

    /// The name of the instruction set in use.
    pub fn isa(&self) -> &'static str {
        match self {
            Device::Cpu(cpu) => cpu.isa(),
            Device::Null(_) => "none",
        }
    }

    /// Floating-point operations a second that it could reach ([`Cpu::peak_flops`]).
    pub fn peak_flops(&self, precision: Precision) -> f64 {
        match self {
            Device::Cpu(cpu) => cpu.peak_flops(precision),
            Device::Null(_) => f64::INFINITY,
        }
    }

    /// Threads of the host that work for it.
    pub fn threads(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.threads(),
            Device::Null(_) => 1,
        }
    }

    /// Whose memory its operations work on.
    pub fn home(&self) -> Home {
        match self {
            Device::Cpu(_) => Home::Host,
            Device::Null(_) => Home::Null,
        }
    }

    /// A matrix of zeros in its memory.
    ///
    /// # Panics
    /// As [`Matrix::zeros`].
    pub fn zeros(&self, rows: usize, cols: usize, dtype: DType) -> Matrix {
        match self {
            Device::Cpu(_) => Matrix::zeros(rows, cols, dtype),
            Device::Null(_) => Matrix::null(rows, cols, dtype),
        }
    }

    /// A matrix in its memory whose elements are written before they are read.
    ///
    /// # Panics
    /// As [`Matrix::zeros`].
    pub fn unset(&self, rows: usize, cols: usize, dtype: DType) -> Matrix {
        match self {
            Device::Cpu(_) => Matrix::unset(rows, cols, dtype),
            Device::Null(_) => Matrix::null(rows, cols, dtype),
        }
    }

    /// Brings a matrix of the host's into its memory; on the host it is there.
    pub fn take(&self, matrix: Matrix) -> Matrix {
        match self {
            Device::Cpu(_) => matrix,
            Device::Null(_) => Matrix::null(matrix.rows(), matrix.cols(), matrix.dtype()),
        }
    }

    /// As long as what this returns lives, operations of threads that yield ([`yielding`](crate::yielding))
    /// stand back.
    pub fn foreground(&self) -> Foreground {
        Foreground::enter(match self {
            Device::Cpu(cpu) => Some(Arc::clone(&cpu.pool)),
            Device::Null(_) => None,
        })
    }

    /// The account of where its time goes.
    pub fn profile(&self) -> &Profile {
        match self {
            Device::Cpu(cpu) => &cpu.profile,
            Device::Null(null) => &null.profile,
        }
    }

    /// Makes sure that what an operation works on is in this device's memory, and times it until what this
    /// returns is dropped, if somebody asked for a profile.
    ///
    /// # Panics
    /// If something is in other memory.
    pub(crate) fn watch(
        &self,
        key: impl Into<Key>,
        homes: impl IntoIterator<Item = Home>,
        work: impl FnOnce() -> Work,
    ) -> Option<Watch<'_>> {
        let (key, own) = (key.into(), self.home());
        for home in homes {
            assert_eq!(home, own, "memory that the operation `{}` works on", key.operation);
        }
        self.profile().watch(key, work)
    }
}
