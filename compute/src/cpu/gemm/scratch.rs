//! Working memory for products, of fixed sizes, allocated by a thread when it first needs it and kept until
//! it ends.

use std::cell::RefCell;

use crate::{DType, Matrix};

/// Bytes of a block of `a` that a task packs for itself: it stays in the second-level cache.
pub(super) const A_BYTES: usize = 512 << 10;
/// Bytes of a packed panel of `b`: it stays in the first-level cache.
pub(super) const B_BYTES: usize = 32 << 10;
/// Sums (`f32`) of a block of `c`, kept between blocks of `K`.
pub(super) const SUMS: usize = 128 << 10;
/// Bytes of `a` that are packed once for all tasks: 512 rows of `f32` and what makes whole tiles of them,
/// 4096 deep and with an update of the usual rank.
pub(super) const SHARED_A_BYTES: usize = 9 << 20;
/// Sums of the rows of `a` that are packed for all tasks a part of `K` at a time.
pub(super) const SHARED_SUMS: usize = 1 << 20;

/// Bytes that the tasks of a product share, in the thread that began it.
pub(crate) const SHARED_MEMORY: u64 = (SHARED_A_BYTES + 4 * SHARED_SUMS) as u64;
/// Bytes that every thread has for its tasks, about.
pub(crate) const THREAD_MEMORY: u64 = (A_BYTES + 2 * B_BYTES + 4 * SUMS).next_multiple_of(256 << 10) as u64;

/// Memory that a kernel writes to by a pointer: handed out in parts, each of which is held against what there
/// is.
#[derive(Clone, Copy)]
pub(super) struct Room {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: a pointer and a length. Whoever writes through it says why no other thread does so at the same
// place.
unsafe impl Send for Room {}
// SAFETY: as above.
unsafe impl Sync for Room {}

impl Room {
    fn of(matrix: &mut Matrix) -> Self {
        let floats = matrix.as_mut().f32();
        Room { start: floats.as_mut_ptr().cast(), bytes: size_of_val(floats) }
    }

    /// So many bytes of it, from this one on.
    ///
    /// # Panics
    /// If they are not there.
    #[inline]
    pub(super) fn part(self, first: usize, bytes: usize) -> Room {
        let end = first.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "scratch of {} bytes is asked for {bytes} at {first}",
            self.bytes
        );
        Room { start: self.start.wrapping_add(first), bytes }
    }

    /// How many bytes it has.
    pub(super) fn bytes(self) -> usize {
        self.bytes
    }

    /// Takes so many bytes off its front.
    ///
    /// # Panics
    /// If they are not there.
    pub(super) fn take(&mut self, bytes: usize) -> Room {
        let taken = self.part(0, bytes);
        *self = self.part(bytes, self.bytes - bytes);
        taken
    }

    /// [`Room::part`], counted in sums.
    #[inline]
    pub(super) fn sums(self, first: usize, count: usize) -> *mut f32 {
        self.part(first * size_of::<f32>(), count * size_of::<f32>()).start()
    }

    /// Where its first byte is.
    #[inline]
    pub(super) fn start<T>(self) -> *mut T {
        self.start.cast()
    }
}

/// A thread's memory for one task at a time.
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    /// A packed block of `a`, [`A_BYTES`].
    pub(super) a: Room,
    /// A packed panel of `b`, [`B_BYTES`].
    pub(super) b: Room,
    /// The values of a panel whose factor stands in four bits, as many bytes.
    pub(super) values: Room,
    /// [`SUMS`].
    pub(super) sums: Room,
}

/// Cuts a list into parts that each have room in what tasks share, all that is packed of them together.
pub(super) fn rounds<T>(mut list: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut used = 0;
        let fits = |item: &&T| {
            used += bytes(item);
            used <= SHARED_A_BYTES
        };
        let count = list.iter().take_while(fits).count();
        assert!(count > 0 || list.is_empty(), "what is packed of one product has room");
        let (round, rest) = list.split_at(count);
        list = rest;
        (count > 0).then_some(round)
    })
}

fn floats(count: usize) -> Matrix {
    Matrix::unset(1, count, DType::F32)
}

thread_local! {
    static SCRATCH: RefCell<[Matrix; 4]> =
        RefCell::new([A_BYTES / 4, B_BYTES / 4, B_BYTES / 4, SUMS].map(floats));
    static SHARED: RefCell<[Matrix; 2]> = RefCell::new([SHARED_A_BYTES / 4, SHARED_SUMS].map(floats));
}

/// Runs `body` with this thread's scratch, which nothing else uses meanwhile.
pub(super) fn with<R>(body: impl FnOnce(Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(|matrices| {
        let [a, b, values, sums] = matrices.each_mut().map(Room::of);
        body(Scratch { a, b, values, sums })
    })
}

/// Runs `body` with this thread's room for `a` packed for all tasks, and for sums.
pub(super) fn with_shared<R>(body: impl FnOnce(Room, Room) -> R) -> R {
    SHARED.with_borrow_mut(|matrices| {
        let [a, sums] = matrices.each_mut().map(Room::of);
        body(a, sums)
    })
}
