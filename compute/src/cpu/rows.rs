//! Rows shared out among threads: the one place where the element-wise kernels need `unsafe` to write in
//! parallel.

use std::marker::PhantomData;
use std::ops::Range;

use super::Cpu;

/// Elements that are worth one task, some microseconds of additions: below it, waking a thread costs more
/// than it saves.
const TASK_ELEMENTS: usize = 1 << 15;

/// Tasks per thread, so that one that started late does not keep the others waiting.
const TASKS_PER_THREAD: usize = 4;

/// A mutable slice seen as `rows` rows of equal width, to be divided among threads. The last one may be
/// shorter: what lies behind it belongs to somebody else.
pub(crate) struct RowsMut<'a, T> {
    start: *mut T,
    len: usize,
    rows: usize,
    width: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<'a, T> RowsMut<'a, T> {
    /// `slice` as `rows` rows.
    pub(crate) fn new(slice: &'a mut [T], rows: usize) -> Self {
        let width = slice.len().checked_div(rows).unwrap_or(0);
        assert_eq!(slice.len(), rows * width, "a slice divides into {rows} rows");
        RowsMut { start: slice.as_mut_ptr(), len: slice.len(), rows, width, slice: PhantomData }
    }

    /// `slice` as `rows` rows whose begins are `stride` apart.
    pub(crate) fn strided(slice: &'a mut [T], rows: usize, stride: usize) -> Self {
        assert!(slice.len() <= rows * stride, "a slice of {} in {rows} rows of {stride}", slice.len());
        RowsMut { start: slice.as_mut_ptr(), len: slice.len(), rows, width: stride, slice: PhantomData }
    }
}

// SAFETY: a `RowsMut` only hands out disjoint parts of a slice it borrows mutably (the contract of
// `Split::part`), which is sending pieces of that slice to other threads.
unsafe impl<T: Send> Sync for RowsMut<'_, T> {}

/// What can be divided into parts by ranges of rows.
///
/// # Safety
/// Parts of disjoint ranges must not alias.
pub(crate) unsafe trait Split: Sync {
    type Part;

    fn rows(&self) -> usize;

    /// The part of these rows.
    ///
    /// # Safety
    /// While a part lives, no other part may be taken of an overlapping range.
    unsafe fn part(&self, rows: Range<usize>) -> Self::Part;
}

// SAFETY: disjoint rows of one slice are disjoint slices.
unsafe impl<'a, T: Send> Split for RowsMut<'a, T> {
    type Part = &'a mut [T];

    fn rows(&self) -> usize {
        self.rows
    }

    unsafe fn part(&self, rows: Range<usize>) -> &'a mut [T] {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let [start, end] = [rows.start, rows.end].map(|row| self.len.min(row * self.width));
        // SAFETY: within the slice by the minimum; nobody else holds these rows by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), end - start) }
    }
}

macro_rules! split_tuple {
    ($($name:ident)+) => {
        // SAFETY: the parts of each member do not alias, and members borrow different slices.
        unsafe impl<$($name: Split),+> Split for ($($name,)+) {
            type Part = ($($name::Part,)+);

            #[allow(non_snake_case)]
            fn rows(&self) -> usize {
                let ($($name,)+) = self;
                let counts = [$($name.rows()),+];
                assert!(counts.iter().all(|&n| n == counts[0]), "unequal numbers of rows: {counts:?}");
                counts[0]
            }

            #[allow(non_snake_case)]
            unsafe fn part(&self, rows: Range<usize>) -> Self::Part {
                let ($($name,)+) = self;
                // SAFETY: the caller's promise holds for each member.
                unsafe { ($($name.part(rows.clone()),)+) }
            }
        }
    };
}
split_tuple!(A B);
split_tuple!(A B C);
split_tuple!(A B C D E);

impl Cpu {
    /// Calls `body(range, part of out)` on all threads for ranges that cover every row of `out` once.
    /// `row_work` is the number of elements that a row's computation visits. The ranges depend on the number
    /// of threads: what `body` writes to a row must depend on that row alone.
    pub(crate) fn for_rows<S: Split>(
        &self,
        row_work: usize,
        out: S,
        body: impl Fn(Range<usize>, S::Part) + Sync,
    ) {
        let rows = out.rows();
        if rows == 0 {
            return;
        }
        let worth = (rows.saturating_mul(row_work) / TASK_ELEMENTS).max(1);
        let threads = self.pool.threads();
        let tasks = if threads == 1 { 1 } else { worth.min(threads * TASKS_PER_THREAD).min(rows) };
        let run = |task: usize| {
            let range = task * rows / tasks..(task + 1) * rows / tasks;
            // SAFETY: the ranges of different tasks are disjoint and the pool runs each task once.
            let part = unsafe { out.part(range.clone()) };
            body(range, part);
        };
        if tasks == 1 { run(0) } else { self.pool.run(tasks, |task, _| run(task)) }
    }
}
