//! How much of each resource: what is asked for, what there is, and bounds that may be missing.

use std::fmt;
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// What a pool divides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Accelerators, in thousandths of one.
    Devices,
    /// Cores of processors.
    Cpus,
    /// Memory of the host, in bytes.
    Memory,
}

/// All resources, in the order in which they are compared.
pub const RESOURCES: [Resource; 3] = [Resource::Devices, Resource::Cpus, Resource::Memory];

/// Thousandths of a device that are a whole one.
pub const WHOLE: u64 = 1000;

impl Resource {
    /// An amount as the number that shares are computed in: devices, cores, bytes.
    #[must_use]
    pub fn units(self, amount: u64) -> f64 {
        self.units_of_sum(amount as f64)
    }

    /// The same of a sum that may be more than fits into an amount.
    pub(crate) fn units_of_sum(self, sum: f64) -> f64 {
        match self {
            Resource::Devices => sum / WHOLE as f64,
            Resource::Cpus | Resource::Memory => sum,
        }
    }

    /// What people call it: in a policy, in an answer.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Resource::Devices => "devices",
            Resource::Cpus => "cpus",
            Resource::Memory => "memory",
        }
    }

    /// An amount in words: `1.5 devices`, `4 cpus`, `12.0 GiB of memory`.
    #[must_use]
    pub fn say(self, amount: u64) -> String {
        let count = |n: f64, one: &str| if n == 1.0 { format!("1 {one}") } else { format!("{n} {one}s") };
        match self {
            Resource::Devices => count(self.units(amount), "device"),
            Resource::Cpus => count(amount as f64, "cpu"),
            Resource::Memory if amount < 1 << 30 => format!("{} MiB of memory", amount.div_ceil(1 << 20)),
            Resource::Memory => format!("{:.1} GiB of memory", amount as f64 / f64::from(1 << 30)),
        }
    }
}

/// An amount of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amounts {
    /// Thousandths of a device.
    #[serde(default)]
    pub devices: u64,
    /// Cores.
    #[serde(default)]
    pub cpus: u64,
    /// Bytes of the host's memory.
    #[serde(default)]
    pub memory: u64,
}

impl Amounts {
    /// Nothing of anything.
    pub const NONE: Amounts = Amounts { devices: 0, cpus: 0, memory: 0 };

    /// Whether no resource of it is more than in `other`.
    #[must_use]
    pub fn fits_in(&self, other: &Amounts) -> bool {
        RESOURCES.iter().all(|&r| self[r] <= other[r])
    }

    /// The sum.
    ///
    /// # Panics
    /// On overflow: amounts are bounded where they enter.
    #[must_use]
    pub fn plus(mut self, other: &Amounts) -> Amounts {
        self.add(other);
        self
    }

    /// The difference; zero where `other` has more.
    #[must_use]
    pub fn less(&self, other: &Amounts) -> Amounts {
        Amounts {
            devices: self.devices.saturating_sub(other.devices),
            cpus: self.cpus.saturating_sub(other.cpus),
            memory: self.memory.saturating_sub(other.memory),
        }
    }

    /// `count` times as much.
    #[must_use]
    pub fn times(&self, count: u64) -> Amounts {
        Amounts { devices: self.devices * count, cpus: self.cpus * count, memory: self.memory * count }
    }

    /// The smaller of each.
    #[must_use]
    pub fn least(&self, other: &Amounts) -> Amounts {
        Amounts {
            devices: self.devices.min(other.devices),
            cpus: self.cpus.min(other.cpus),
            memory: self.memory.min(other.memory),
        }
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Amounts) {
        self.devices += other.devices;
        self.cpus += other.cpus;
        self.memory += other.memory;
    }

    /// Takes `other` away.
    ///
    /// # Panics
    /// If there is less: whoever frees more than was taken has lost count.
    pub fn sub(&mut self, other: &Amounts) {
        assert!(other.fits_in(self), "{other} is taken away from {self}");
        *self = self.less(other);
    }
}

impl Index<Resource> for Amounts {
    type Output = u64;

    fn index(&self, resource: Resource) -> &u64 {
        match resource {
            Resource::Devices => &self.devices,
            Resource::Cpus => &self.cpus,
            Resource::Memory => &self.memory,
        }
    }
}

impl IndexMut<Resource> for Amounts {
    fn index_mut(&mut self, resource: Resource) -> &mut u64 {
        match resource {
            Resource::Devices => &mut self.devices,
            Resource::Cpus => &mut self.cpus,
            Resource::Memory => &mut self.memory,
        }
    }
}

impl fmt::Display for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said: Vec<String> = RESOURCES.iter().filter(|&&r| self[r] > 0).map(|&r| r.say(self[r])).collect();
        f.write_str(if said.is_empty() { "nothing".into() } else { said.join(", ") }.as_str())
    }
}

/// A bound for each resource; `None` is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Thousandths of a device.
    pub devices: Option<u64>,
    /// Cores.
    pub cpus: Option<u64>,
    /// Bytes of the host's memory.
    pub memory: Option<u64>,
}

impl Bounds {
    /// The bound of one resource.
    #[must_use]
    pub fn of(&self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::Devices => self.devices,
            Resource::Cpus => self.cpus,
            Resource::Memory => self.memory,
        }
    }

    /// The place of one resource's bound.
    pub fn of_mut(&mut self, resource: Resource) -> &mut Option<u64> {
        match resource {
            Resource::Devices => &mut self.devices,
            Resource::Cpus => &mut self.cpus,
            Resource::Memory => &mut self.memory,
        }
    }

    /// The first resource of which `amounts` has more than its bound.
    #[must_use]
    pub fn passed_by(&self, amounts: &Amounts) -> Option<Resource> {
        RESOURCES.into_iter().find(|&r| self.of(r).is_some_and(|bound| amounts[r] > bound))
    }
}
