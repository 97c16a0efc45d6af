//! Machines, and what of them is taken: where a job's members fit.

use serde::{Deserialize, Serialize};

use crate::amounts::{Amounts, WHOLE};
use crate::job::Spec;

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// How many accelerators it has.
    pub devices: u32,
    /// Bytes of memory of each.
    pub device_memory: u64,
    /// Cores.
    pub cpus: u64,
    /// Bytes of the host's memory.
    pub memory: u64,
    /// Whether it is there.
    pub up: bool,
}

impl Node {
    /// All that it has.
    #[must_use]
    pub fn capacity(&self) -> Amounts {
        Amounts { devices: u64::from(self.devices) * WHOLE, cpus: self.cpus, memory: self.memory }
    }

    /// How many equal members of a job it holds at once.
    pub(crate) fn holds(&self, member: &Amounts) -> u64 {
        let devices = u64::from(self.devices);
        let by_devices = match member.devices {
            0 => u64::MAX,
            part if part < WHOLE => devices * (WHOLE / part),
            whole => devices / (whole / WHOLE),
        };
        let by = |has: u64, wants: u64| has.checked_div(wants).unwrap_or(u64::MAX);
        by_devices.min(by(self.cpus, member.cpus)).min(by(self.memory, member.memory))
    }
}

/// Where one member of a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The node's number.
    pub node: usize,
    /// Which of its devices.
    pub devices: Vec<u32>,
    /// Thousandths of each of them.
    pub part: u64,
    /// Cores.
    pub cpus: u64,
    /// Bytes of the host's memory.
    pub memory: u64,
}

impl Place {
    /// What it takes.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        Amounts { devices: self.part * self.devices.len() as u64, cpus: self.cpus, memory: self.memory }
    }
}

/// Where all members of a job are, and how big it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// A place for each member.
    pub members: Vec<Place>,
    /// Steps above the least that it asks for.
    pub steps: u64,
}

impl Placement {
    /// What it takes.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        self.members.iter().fold(Amounts::NONE, |sum, place| sum.plus(&place.amounts()))
    }
}

/// What is free of each machine.
///
/// Two are kept of a pool: what is free now, and what will be once those that were told to stop have left. A
/// job that starts has to fit in both, or it would take what was promised to another.
#[derive(Debug, Clone)]
pub(crate) struct Free {
    nodes: Vec<FreeNode>,
    total: Left,
}

#[derive(Debug, Clone, Default)]
struct FreeNode {
    /// Thousandths of each device.
    devices: Vec<u64>,
    left: Left,
}

/// What is left; below zero of a machine that has become smaller than what runs on it.
#[derive(Debug, Clone, Copy, Default)]
struct Left {
    devices: i64,
    cpus: i64,
    memory: i64,
}

impl Left {
    fn add(&mut self, amounts: &Amounts, sign: i64) {
        self.devices += sign * amounts.devices as i64;
        self.cpus += sign * amounts.cpus as i64;
        self.memory += sign * amounts.memory as i64;
    }

    fn holds(&self, want: &Amounts) -> bool {
        want.devices as i64 <= self.devices
            && want.cpus as i64 <= self.cpus
            && want.memory as i64 <= self.memory
    }

    fn amounts(&self) -> Amounts {
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        Amounts { devices: count(self.devices), cpus: count(self.cpus), memory: count(self.memory) }
    }
}

impl Free {
    /// All of all machines that are there.
    pub(crate) fn all(nodes: &[Node]) -> Self {
        let mut total = Left::default();
        let mut free = |node: &Node| {
            if !node.up {
                return FreeNode::default();
            }
            let mut left = Left::default();
            left.add(&node.capacity(), 1);
            total.add(&node.capacity(), 1);
            FreeNode { devices: vec![WHOLE; node.devices as usize], left }
        };
        Free { nodes: nodes.iter().map(&mut free).collect(), total }
    }

    /// Takes a place.
    ///
    /// # Panics
    /// If a part of a device is taken that is not free.
    pub(crate) fn take(&mut self, placement: &Placement) {
        placement.members.iter().for_each(|place| self.take_one(place));
    }

    fn take_one(&mut self, place: &Place) {
        let node = &mut self.nodes[place.node];
        for &device in &place.devices {
            // A machine that has become smaller lacks it.
            let Some(left) = node.devices.get_mut(device as usize) else { continue };
            *left = left.checked_sub(place.part).expect("a part of a device is taken twice");
        }
        node.left.add(&place.amounts(), -1);
        self.total.add(&place.amounts(), -1);
    }

    /// Gives a place back that was taken.
    pub(crate) fn give(&mut self, placement: &Placement) {
        placement.members.iter().for_each(|place| self.give_one(place));
    }

    pub(crate) fn give_one(&mut self, place: &Place) {
        let node = &mut self.nodes[place.node];
        for &device in &place.devices {
            let Some(left) = node.devices.get_mut(device as usize) else { continue };
            *left += place.part;
            assert!(*left <= WHOLE, "a part of a device is given back twice");
        }
        node.left.add(&place.amounts(), 1);
        self.total.add(&place.amounts(), 1);
    }

    /// Whether a placement is free as it is.
    pub(crate) fn has(&mut self, placement: &Placement) -> bool {
        // Members may share a machine: each is taken before the next is looked at.
        let mut taken = 0;
        let fits = placement.members.iter().all(|place| {
            let node = &self.nodes[place.node];
            let part = |&d: &u32| node.devices.get(d as usize).is_some_and(|&left| left >= place.part);
            let fits = node.left.holds(&place.amounts()) && place.devices.iter().all(part);
            if fits {
                self.take_one(place);
                taken += 1;
            }
            fits
        });
        placement.members[..taken].iter().for_each(|place| self.give_one(place));
        fits
    }

    /// What is free of everything together.
    pub(crate) fn total(&self) -> Amounts {
        self.total.amounts()
    }

    /// What is free of one machine.
    pub(crate) fn of(&self, node: usize) -> Amounts {
        self.nodes[node].left.amounts()
    }

    /// A place for every member of a job of a size, or none. Takes the tightest that fits, so that what is
    /// left stays together. `both` is another book in which it has to be free, too.
    pub(crate) fn place(&self, spec: &Spec, steps: u64, both: Option<&Free>) -> Option<Placement> {
        self.place_beside(spec, steps, both, None)
    }

    /// The same on other machines than one.
    pub(crate) fn place_elsewhere(&self, spec: &Spec, steps: u64, machine: usize) -> Option<Placement> {
        self.place_beside(spec, steps, None, Some(machine))
    }

    /// Whether there is a place for every member of a job of a size.
    pub(crate) fn fits(&self, spec: &Spec, steps: u64) -> bool {
        self.total.holds(&spec.total(steps)) && self.has_room(spec, steps, None, None)
    }

    /// Whether a machine has room for one member.
    pub(crate) fn fits_on(&self, machine: usize, want: &Amounts) -> bool {
        self.nodes[machine].holds(want, None) > 0
    }

    /// Members of a job are alike, so each machine takes as many as it can, whatever the others do.
    fn has_room(&self, spec: &Spec, steps: u64, both: Option<&Free>, except: Option<usize>) -> bool {
        let want = spec.member(steps);
        let mut missing = u64::from(spec.members);
        for (index, node) in self.nodes.iter().enumerate() {
            if Some(index) != except {
                missing = missing.saturating_sub(node.holds(&want, both.map(|both| &both.nodes[index])));
            }
            if missing == 0 {
                return true;
            }
        }
        false
    }

    fn place_beside(
        &self,
        spec: &Spec,
        steps: u64,
        both: Option<&Free>,
        except: Option<usize>,
    ) -> Option<Placement> {
        let want = spec.member(steps);
        let mut total = self.total;
        if let Some(machine) = except {
            total.add(&self.of(machine), -1);
        }
        if !total.holds(&spec.total(steps)) {
            return None;
        }
        if spec.members == 1 {
            return Some(Placement { members: vec![self.place_one(&want, both, except)?], steps });
        }
        if !self.has_room(spec, steps, both, except) {
            return None;
        }
        let (mut first, mut second) = (self.clone(), both.cloned());
        let mut members = Vec::with_capacity(spec.members as usize);
        for _ in 0..spec.members {
            let place = first.place_one(&want, second.as_ref(), except)?;
            first.take_one(&place);
            if let Some(second) = &mut second {
                second.take_one(&place);
            }
            members.push(place);
        }
        Some(Placement { members, steps })
    }

    fn place_one(&self, want: &Amounts, both: Option<&Free>, except: Option<usize>) -> Option<Place> {
        let fits = |index: usize| {
            let other = both.map(|both| &both.nodes[index]);
            self.nodes[index].tightness(want, other).map(|tightness| (tightness, index))
        };
        let others = (0..self.nodes.len()).filter(|&index| Some(index) != except);
        let (_, node) = others.filter_map(fits).min()?;
        self.place_on(node, want, both)
    }

    /// A place for one member on one machine.
    pub(crate) fn place_on(&self, index: usize, want: &Amounts, both: Option<&Free>) -> Option<Place> {
        let node = &self.nodes[index];
        let other = both.map(|both| &both.nodes[index]);
        node.tightness(want, other)?;
        let lefts = || node.lefts(other).enumerate();
        let devices = match want.devices {
            0 => Vec::new(),
            part if part < WHOLE => {
                let fits = lefts().filter(|&(_, left)| left >= part);
                vec![fits.min_by_key(|&(_, left)| left)?.0 as u32]
            }
            whole => {
                let free = lefts().filter(|&(_, left)| left == WHOLE).map(|(d, _)| d as u32);
                free.take((whole / WHOLE) as usize).collect()
            }
        };
        let part = want.devices.min(WHOLE);
        Some(Place { node: index, devices, part, cpus: want.cpus, memory: want.memory })
    }
}

impl FreeNode {
    /// What is left of each device, in both books.
    fn lefts<'a>(&'a self, other: Option<&'a FreeNode>) -> impl Iterator<Item = u64> + 'a {
        let least = move |(d, &left): (usize, &u64)| left.min(other.map_or(WHOLE, |other| other.devices[d]));
        self.devices.iter().enumerate().map(least)
    }

    /// How many equal members go here, in both books.
    fn holds(&self, want: &Amounts, other: Option<&FreeNode>) -> u64 {
        if !self.left.holds(want) || !other.is_none_or(|other| other.left.holds(want)) {
            return 0;
        }
        let by_devices = match want.devices {
            0 => u64::MAX,
            part if part < WHOLE => self.lefts(other).map(|left| left / part).sum(),
            whole => self.lefts(other).filter(|&left| left == WHOLE).count() as u64 / (whole / WHOLE),
        };
        let books = [Some(self), other];
        let by_left = books.into_iter().flatten().map(|book| {
            let by = |has: i64, wants: u64| (has as u64).checked_div(wants).unwrap_or(u64::MAX);
            let (devices, cpus) = (by(book.left.devices, want.devices), by(book.left.cpus, want.cpus));
            devices.min(cpus).min(by(book.left.memory, want.memory))
        });
        by_left.fold(by_devices, u64::min)
    }

    /// How little would be left if a member went here, as something to compare; `None` if it does not fit.
    fn tightness(&self, want: &Amounts, other: Option<&FreeNode>) -> Option<(u64, i64, i64)> {
        if !self.left.holds(want) || !other.is_none_or(|other| other.left.holds(want)) {
            return None;
        }
        let slack = match want.devices {
            // What needs no device goes where few are free.
            0 => self.left.devices as u64,
            part if part < WHOLE => self.lefts(other).filter(|&left| left >= part).min()? - part,
            whole => {
                let free = self.lefts(other).filter(|&left| left == WHOLE).count() as u64;
                free.checked_sub(whole / WHOLE)?
            }
        };
        Some((slack, self.left.cpus - want.cpus as i64, self.left.memory - want.memory as i64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{Class, Launch, Range};

    fn spec(members: u32, devices: u64, cpus: u64, memory: u64) -> Spec {
        Spec {
            name: String::new(),
            project: String::new(),
            user: String::new(),
            class: Class::Train,
            priority: 0,
            members,
            devices: Range::exactly(devices),
            cpus: Range::exactly(cpus),
            memory,
            takes: None,
            launch: Launch::default(),
        }
    }

    /// Whether all members find a place one after the other.
    fn one_by_one(free: &Free, spec: &Spec, except: Option<usize>) -> bool {
        let mut free = free.clone();
        (0..spec.members).all(|_| match free.place_one(&spec.member(0), None, except) {
            Some(place) => {
                free.take_one(&place);
                true
            }
            None => false,
        })
    }

    fn devices() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), (1..4_u64).prop_map(|n| n * 250), (1..4_u64).prop_map(|n| n * WHOLE)]
    }

    fn shape() -> impl Strategy<Value = (u32, u64, u64, u64)> {
        (1..6_u32, devices(), 1..4_u64, 0..4_u64)
    }

    proptest! {
        /// What is counted is what is found by trying.
        #[test]
        fn a_gang_fits_if_its_members_find_places(
            nodes in proptest::collection::vec((0..5_u32, 1..9_u64, 0..9_u64, any::<bool>()), 1..5),
            taken in proptest::collection::vec(shape(), 0..6),
            (members, devices, cpus, memory) in shape(),
        ) {
            let node = |(n, &(devices, cpus, memory, up)): (usize, &(u32, u64, u64, bool))| {
                Node { name: n.to_string(), devices, device_memory: 0, cpus, memory, up }
            };
            let nodes: Vec<Node> = nodes.iter().enumerate().map(node).collect();
            let spec_of = |(members, devices, cpus, memory)| spec(members, devices, cpus, memory);
            let wanted = spec_of((members, devices, cpus, memory));
            let mut free = Free::all(&nodes);
            let room: u64 = nodes.iter().filter(|node| node.up).map(|node| node.holds(&wanted.member(0))).sum();
            prop_assert_eq!(room >= u64::from(members), one_by_one(&free, &wanted, None));
            for shape in taken {
                if let Some(placement) = free.place(&spec_of(shape), 0, None) {
                    free.take(&placement);
                }
            }
            let fits = one_by_one(&free, &wanted, None);
            prop_assert_eq!(free.fits(&wanted, 0), fits);
            prop_assert_eq!(free.place(&wanted, 0, None).is_some(), fits);
            for machine in 0..nodes.len() {
                let elsewhere = free.place_elsewhere(&wanted, 0, machine);
                prop_assert_eq!(elsewhere.is_some(), one_by_one(&free, &wanted, Some(machine)));
                prop_assert!(elsewhere.is_none_or(|p| p.members.iter().all(|place| place.node != machine)));
                let one = free.place_on(machine, &wanted.member(0), None);
                prop_assert_eq!(free.fits_on(machine, &wanted.member(0)), one.is_some());
            }
        }
    }
}
