//! Whole numbers that are put together on the host, once a batch, and brought to the device.

use bytemuck::Pod;
use compute::{Vector, VectorRef};

use crate::memory::{Allocator, Component};

/// At most as many numbers as there is room for.
#[derive(Debug)]
pub(crate) struct Staged<T> {
    host: Vec<T>,
    device: Vector<T>,
}

impl<T: Pod> Staged<T> {
    pub(crate) fn new(most: usize, component: Component, allocator: &mut Allocator) -> Self {
        let device = allocator.vector(component, most);
        allocator.count(component, (most * size_of::<T>()) as u64);
        Staged { host: Vec::with_capacity(device.len()), device }
    }

    /// Takes these in place of those before.
    ///
    /// # Panics
    /// If there is no room for them.
    pub(crate) fn set(&mut self, numbers: impl Iterator<Item = T>) {
        self.host.clear();
        self.host.extend(numbers);
        self.device.upload(&self.host);
    }

    /// Whether there is room for none.
    pub(crate) fn is_for_none(&self) -> bool {
        self.device.is_empty()
    }

    /// The numbers as the host has them.
    pub(crate) fn host(&self) -> &[T] {
        &self.host
    }

    /// The numbers as the device has them.
    pub(crate) fn get(&self) -> VectorRef<'_, T> {
        self.device.top(self.host.len())
    }
}
