//! Where arithmetic happens.

use crate::cpu::Cpu;

/// The place where matrices live and operations run. A closed set, matched inside each operation.
#[derive(Clone, Debug)]
pub enum Device {
    /// The host's processors, with a thread pool of our own.
    Cpu(Cpu),
}

impl Device {
    /// The host with `threads` threads; 0 means one per available processor.
    pub fn cpu(threads: usize) -> Self {
        Device::Cpu(Cpu::new(threads))
    }
}
