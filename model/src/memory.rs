//! The memory plan: the constructor of every long-lived buffer runs once to count and once to allocate.

use bytemuck::Pod;
use compute::quant::{Format, Quantized};
use compute::{DType, Device, Matrix, Vector};

/// What a buffer is for, as the plan's table shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The frozen model.
    Base,
    /// The trained tensors.
    Adapter,
    /// Their gradients.
    Gradients,
    /// The optimizer's moments.
    Optimizer,
    /// What the forward pass keeps for the backward pass.
    Activations,
    /// What frozen layers give, kept for examples that come again.
    FrozenActivations,
    /// Buffers that every layer uses in turn.
    Workspace,
    /// Keys and values of generated sequences.
    Cache,
}

impl Component {
    /// All components, in the order of the table.
    pub const ALL: [Component; 8] = [
        Component::Base,
        Component::Adapter,
        Component::Gradients,
        Component::Optimizer,
        Component::Activations,
        Component::FrozenActivations,
        Component::Workspace,
        Component::Cache,
    ];

    /// Whether its buffers are read before they are written: trained tensors that begin at zero, sums,
    /// moments.
    fn begins_at_zero(self) -> bool {
        matches!(self, Component::Adapter | Component::Gradients | Component::Optimizer)
    }

    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Component::Base => "base",
            Component::Adapter => "adapter",
            Component::Gradients => "gradients",
            Component::Optimizer => "optimizer",
            Component::Activations => "activations",
            Component::FrozenActivations => "frozen_activations",
            Component::Workspace => "workspace",
            Component::Cache => "cache",
        }
    }
}

/// Bytes by component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    bytes: [u64; Component::ALL.len()],
}

impl MemoryPlan {
    /// Adds a buffer. What is more than can be counted stays there: it does not fit anyhow.
    pub fn add(&mut self, component: Component, bytes: u64) {
        let sum = &mut self.bytes[component as usize];
        *sum = sum.saturating_add(bytes);
    }

    /// Bytes of a component.
    pub fn bytes(&self, component: Component) -> u64 {
        self.bytes[component as usize]
    }

    /// Bytes of everything.
    pub fn total(&self) -> u64 {
        self.bytes.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }

    /// Adds all of another plan.
    pub fn extend(&mut self, other: &MemoryPlan) {
        for (to, from) in self.bytes.iter_mut().zip(other.bytes) {
            *to = to.saturating_add(from);
        }
    }
}

/// Hands out buffers of a device and keeps the account; when only planning, the buffers are empty.
#[derive(Debug)]
pub struct Allocator {
    plan: MemoryPlan,
    /// None: only counts.
    device: Option<Device>,
}

impl Allocator {
    /// Counts, and allocates in the memory of a device.
    pub fn real(device: &Device) -> Self {
        Allocator { plan: MemoryPlan::default(), device: Some(device.clone()) }
    }

    /// Only counts.
    pub fn planning() -> Self {
        Allocator { plan: MemoryPlan::default(), device: None }
    }

    /// A matrix for this component: zeros where something is added up in it, else [`Matrix::unset`].
    pub fn matrix(&mut self, component: Component, rows: usize, cols: usize, dtype: DType) -> Matrix {
        let bytes = (rows as u64).saturating_mul(cols as u64).saturating_mul(dtype.size() as u64);
        match self.count(component, bytes) {
            None => Matrix::zeros(0, cols, dtype),
            Some(device) if component.begins_at_zero() => device.zeros(rows, cols, dtype),
            Some(device) => device.unset(rows, cols, dtype),
        }
    }

    /// A matrix of codes for this component.
    pub fn quantized(&mut self, component: Component, size: (usize, usize), format: Format) -> Quantized {
        let (rows, cols) = size;
        match self.count(component, format.size_bytes(rows * cols) as u64) {
            None => Quantized::zeros(&Device::null(), rows, cols, format),
            Some(device) => Quantized::zeros(device, rows, cols, format),
        }
    }

    /// A vector of whole numbers for this component.
    pub fn vector<T: Pod>(&mut self, component: Component, len: usize) -> Vector<T> {
        match self.count(component, (len * size_of::<T>()) as u64) {
            None => Vector::zeros(&Device::null(), 0),
            Some(device) => Vector::zeros(device, len),
        }
    }

    /// Counts memory that is made elsewhere: on this device, if it is to be made.
    pub fn count(&mut self, component: Component, bytes: u64) -> Option<&Device> {
        self.plan.add(component, bytes);
        self.device.as_ref()
    }

    /// What was handed out.
    pub fn into_plan(self) -> MemoryPlan {
        self.plan
    }
}
