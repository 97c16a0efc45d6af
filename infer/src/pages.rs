//! Who has which pages of the cache, and what stands in those that nobody has.
//!
//! A page that is full of a prompt's keys and values is named by the page before it and by its tokens. Who
//! begins with the same tokens under the same adapter takes it over; when nobody has it any more it is kept
//! until its room is needed, the one that was used longest ago first.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use model::{Adapter, PAGE};

/// What stands before a page: another one, or nothing, under some adapter. Never given twice.
type Name = u64;

/// Under what a page is found: what stands before it, and its tokens.
type Key = (Name, Box<[u32]>);

/// A page of the cache.
#[derive(Debug, Default)]
struct Page {
    /// Sequences that have it.
    users: usize,
    /// Under what it is found, if what it holds is of use to others.
    named: Option<Key>,
    /// When it was given back last, and how far in front it stood: of a beginning its end goes first.
    used: (u64, Reverse<usize>),
}

/// The pages of a cache.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: Vec<Page>,
    /// Those that hold nothing.
    free: Vec<u32>,
    /// Where a page stands that follows another one, and what the page itself is called.
    found: BTreeMap<Key, (u32, Name)>,
    /// What stands before the first page, for each adapter that sequences had. A weak reference keeps the
    /// place from being another adapter's.
    roots: Vec<(Weak<Adapter>, Name)>,
    root_of_base: Name,
    names: u64,
    clock: u64,
}

/// Pages of a sequence.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) pages: Vec<u32>,
    /// How many of the first ones were there.
    pub(crate) there: usize,
    /// What stands before the next one.
    pub(crate) before: Name,
}

impl Pages {
    pub(crate) fn new(count: usize) -> Self {
        Pages {
            pages: (0..count).map(|_| Page::default()).collect(),
            free: (0..count as u32).rev().collect(),
            found: BTreeMap::new(),
            roots: Vec::new(),
            root_of_base: 0,
            names: 1,
            clock: 0,
        }
    }

    /// All pages.
    pub(crate) fn count(&self) -> usize {
        self.pages.len()
    }

    /// Pages that sequences have.
    pub(crate) fn used(&self) -> usize {
        self.pages.iter().filter(|page| page.users > 0).count()
    }

    /// Pages that nobody has and that hold what somebody may begin with.
    pub(crate) fn kept(&self) -> usize {
        self.pages.len() - self.free.len() - self.used()
    }

    fn name(&mut self) -> Name {
        self.names += 1;
        self.names - 1
    }

    /// What stands before the first page of a sequence with this adapter.
    pub(crate) fn root(&mut self, adapter: Option<&Arc<Adapter>>) -> Name {
        let Some(adapter) = adapter else { return self.root_of_base };
        self.roots.retain(|(known, _)| known.strong_count() > 0);
        let found = self.roots.iter().find(|(known, _)| known.as_ptr() == Arc::as_ptr(adapter));
        if let Some((_, name)) = found {
            return *name;
        }
        let name = self.name();
        self.roots.push((Arc::downgrade(adapter), name));
        name
    }

    /// Takes `count` pages for a sequence that begins with `tokens` behind `root`: those of the beginning that
    /// are there, as many as there are, and new ones. None, and nothing is taken, if there are not enough.
    pub(crate) fn take(&mut self, root: Name, tokens: &[u32], count: usize) -> Option<Taken> {
        let (mut taken, mut before) = (Vec::with_capacity(count), root);
        for page in tokens.chunks_exact(PAGE).take(count) {
            let Some(&(at, name)) = self.found.get(&(before, page.into())) else { break };
            taken.push(at);
            before = name;
        }
        let there = taken.len();
        // Those that are taken over are not among those whose room can be had.
        taken.iter().for_each(|&page| self.pages[page as usize].users += 1);
        let evictable = self.pages.iter().filter(|page| page.users == 0 && page.named.is_some()).count();
        if self.free.len() + evictable < count - there {
            taken.iter().for_each(|&page| self.pages[page as usize].users -= 1);
            return None;
        }
        for _ in there..count {
            let page = self.free.pop().unwrap_or_else(|| self.evict());
            self.pages[page as usize].users = 1;
            taken.push(page);
        }
        Some(Taken { pages: taken, there, before })
    }

    /// The room of the page that was used longest ago, of those that nobody has.
    fn evict(&mut self) -> u32 {
        let idle = self.pages.iter().enumerate().filter(|(_, page)| page.users == 0 && page.named.is_some());
        let (at, _) = idle.min_by_key(|(_, page)| page.used).expect("there are enough");
        let named = self.pages[at].named.take().expect("it was looked for");
        self.found.remove(&named);
        at as u32
    }

    /// Says that a page is full of these tokens behind `before`, for others to begin with; returns what stands
    /// before the next one. If another page holds the same, that one stays the one that is found.
    pub(crate) fn fill(&mut self, page: u32, before: Name, tokens: &[u32]) -> Name {
        let key: Key = (before, tokens.into());
        if let Some(&(_, name)) = self.found.get(&key) {
            return name;
        }
        let name = self.name();
        self.pages[page as usize].named = Some(key.clone());
        self.found.insert(key, (page, name));
        name
    }

    /// Gives back a sequence's pages.
    pub(crate) fn give_back(&mut self, pages: &[u32]) {
        self.clock += 1;
        for (i, &page) in pages.iter().enumerate() {
            let of_page = &mut self.pages[page as usize];
            of_page.users -= 1;
            if of_page.users == 0 && of_page.named.is_none() {
                self.free.push(page);
            }
            of_page.used = (self.clock, Reverse(i));
        }
    }
}
