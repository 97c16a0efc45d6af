//! Where arithmetic happens.

use crate::cpu::Cpu;
use crate::profile::{Key, Profile, Watch, Work};

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

    /// The account of where its time goes.
    pub fn profile(&self) -> &Profile {
        match self {
            Device::Cpu(cpu) => &cpu.profile,
        }
    }

    /// Times an operation until what this returns is dropped, if somebody asked for a profile.
    pub(crate) fn watch(&self, key: impl Into<Key>, work: impl FnOnce() -> Work) -> Option<Watch<'_>> {
        self.profile().watch(key.into(), work)
    }
}
