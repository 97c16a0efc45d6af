//! Where something large lives: in memory, or under a budget partly in a file.
//!
//! It is cut into pages. The first pages stay in memory; the others pass one after another through a frame
//! that they share, each written back to the file before the next comes. For a sequence that goes round and
//! round, as an optimizer over its state, or there and back, as the two passes over the layers, no other
//! choice of what stays reads and writes less by more than a frame. So what is held is fixed from the
//! beginning, and is within the budget at every moment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use compute::{DType, Matrix, MatrixMut, MatrixRef};

use crate::error::{ModelError, Result};
use crate::memory::{Allocator, Component};

/// The smallest budget, in bytes, which is also that of the smallest page.
pub const SMALLEST: u64 = 4096;
/// The largest page, in bytes: disks are as fast as they get.
const LARGEST_PAGE: u64 = 1 << 20;

/// Words that a page may have at most under a budget in bytes.
pub fn page_words(budget: Option<u64>) -> usize {
    budget.map_or(usize::MAX, |budget| ((budget / 4).clamp(SMALLEST, LARGEST_PAGE) / 4) as usize)
}

/// Pages of 32-bit words, zero in the beginning.
#[derive(Debug)]
pub struct Arena {
    pages: Vec<Page>,
    /// The memory of the first pages, one frame each.
    resident: Vec<Matrix>,
    /// The memory that the other pages use in turn.
    shared: Matrix,
    /// Which page the shared frame holds, and whether the file has it as it is.
    held: Option<(usize, bool)>,
    file: Option<(PathBuf, File)>,
}

#[derive(Debug)]
struct Page {
    words: usize,
    /// Its first byte in the file.
    position: u64,
    /// Whether the file has it; it is zero as long as not.
    written: bool,
}

impl Arena {
    /// Pages in runs of so many equal ones of so many words, of which as much stays in memory as the budget
    /// allows. When only planning, they are counted and not made.
    pub fn new(
        runs: &[(usize, usize)],
        budget: Option<u64>,
        component: Component,
        allocator: &mut Allocator,
    ) -> Self {
        let bytes = |words: usize| 4 * words as u64;
        let of_run = |&(count, words): &(usize, usize)| (count as u64).saturating_mul(bytes(words));
        let total = runs.iter().map(of_run).fold(0, u64::saturating_add);
        let fits = budget.is_none_or(|budget| total <= budget);
        let shared = if fits { 0 } else { runs.iter().map(|run| run.1).max().unwrap_or(0) };
        let mut left = budget.filter(|_| !fits).map_or(u64::MAX, |b| b.saturating_sub(bytes(shared)));
        let mut resident = Vec::new();
        for &(count, words) in runs {
            let stays = (left / bytes(words).max(1)).min(count as u64);
            left -= stays * bytes(words);
            if let Some(device) = allocator.count(component, stays * bytes(words)) {
                resident.extend((0..stays).map(|_| device.zeros(1, words, DType::F32)));
            }
            if stays < count as u64 {
                break;
            }
        }
        let shared = allocator.matrix(component, 1, shared, DType::F32);
        let mut pages = Vec::new();
        if allocator.count(component, 0).is_some() {
            let mut position = 0;
            for words in runs.iter().flat_map(|&(count, words)| std::iter::repeat_n(words, count)) {
                pages.push(Page { words, position, written: false });
                position += if pages.len() > resident.len() { bytes(words) } else { 0 };
            }
        }
        Arena { pages, resident, shared, held: None, file: None }
    }

    /// Makes the file `path`, if there are pages for it. It has no name from the beginning on, so that
    /// nothing is left of it whatever ends the run; a path that [`sweep`](crate::checkpoint::sweep) knows is
    /// removed by the next start where an open file cannot lose its name.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn open(&mut self, path: &Path) -> Result<()> {
        if self.resident.len() == self.pages.len() {
            return Ok(());
        }
        let make = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
            let _ = fs::remove_file(path);
            Ok(file)
        };
        let file = make().map_err(|e| ModelError::write(path, e))?;
        self.file = Some((path.to_owned(), file));
        Ok(())
    }

    /// A page `[1, words]`, to read.
    ///
    /// # Errors
    /// As for the others, if a page cannot be written to the file, or this one not be read from it.
    pub fn page(&mut self, index: usize) -> Result<MatrixRef<'_>> {
        self.load(index, true, false)?;
        let words = self.pages[index].words;
        Ok(self.resident.get(index).unwrap_or(&self.shared).as_ref().cols_range(0..words))
    }

    /// A page, to change.
    ///
    /// # Errors
    /// If a page cannot be written to the file, or this one not be read from it.
    pub fn page_mut(&mut self, index: usize) -> Result<MatrixMut<'_>> {
        self.frame(index, true, true)
    }

    /// A page, to fill anew: what it held is lost, and what it holds now is anything.
    ///
    /// # Errors
    /// If a page cannot be written to the file.
    pub fn blank_page(&mut self, index: usize) -> Result<MatrixMut<'_>> {
        self.frame(index, false, true)
    }

    /// Bytes that are held in memory.
    #[cfg(test)]
    fn resident_bytes(&self) -> u64 {
        4 * (self.resident.iter().map(Matrix::cols).sum::<usize>() + self.shared.cols()) as u64
    }

    fn frame(&mut self, index: usize, reads: bool, changes: bool) -> Result<MatrixMut<'_>> {
        self.load(index, reads, changes)?;
        let words = self.pages[index].words;
        Ok(self.resident.get_mut(index).unwrap_or(&mut self.shared).as_mut().cols_range(0..words))
    }

    /// Brings a page into the shared frame, unless it has its own.
    fn load(&mut self, index: usize, reads: bool, changes: bool) -> Result<()> {
        if index < self.resident.len() {
            return Ok(());
        }
        match &mut self.held {
            Some((held, saved)) if *held == index => *saved &= !changes,
            _ => {
                self.put_back()?;
                if reads {
                    self.fetch(index)?;
                }
                self.held = Some((index, !changes));
            }
        }
        Ok(())
    }

    /// Writes the page in the shared frame to the file, unless the file has it.
    fn put_back(&mut self) -> Result<()> {
        let Some((index, saved)) = self.held else { return Ok(()) };
        if !saved {
            let page = &mut self.pages[index];
            let (path, file) = self.file.as_mut().expect("the arena is open");
            let words = self.shared.as_ref().cols_range(0..page.words).download();
            let bytes: &[u8] = bytemuck::cast_slice(words.f32());
            let write = file.seek(SeekFrom::Start(page.position)).and_then(|_| file.write_all(bytes));
            write.map_err(|e| ModelError::write(path, e))?;
            page.written = true;
        }
        self.held = None;
        Ok(())
    }

    fn fetch(&mut self, index: usize) -> Result<()> {
        let page = &self.pages[index];
        let to = self.shared.as_mut().cols_range(0..page.words);
        if !page.written {
            to.upload(|to| to.f32().fill(0.0));
            return Ok(());
        }
        let (path, file) = self.file.as_mut().expect("the arena is open");
        let mut read = |to: MatrixMut<'_>| {
            file.seek(SeekFrom::Start(page.position))?;
            file.read_exact(bytemuck::cast_slice_mut(to.f32()))
        };
        to.upload(&mut read).map_err(|e| ModelError::read(path, e))
    }
}

#[cfg(test)]
mod tests {
    use compute::Device;

    use super::*;

    const SIZES: [usize; 6] = [1000, 7, 1024, 1024, 3, 512];
    const RUNS: [(usize, usize); 5] = [(1, 1000), (1, 7), (2, 1024), (1, 3), (1, 512)];

    fn under(budget: u64, allocator: &mut Allocator) -> Arena {
        Arena::new(&RUNS, Some(budget), Component::Optimizer, allocator)
    }

    /// Three rounds over an arena, each adding to every word, and then the words.
    fn rounds(arena: &mut Arena) -> Result<Vec<f32>> {
        for round in 1..4 {
            for index in 0..SIZES.len() {
                for (i, word) in arena.page_mut(index)?.f32().iter_mut().enumerate() {
                    *word += (round * index * i) as f32 + 0.5;
                }
            }
        }
        let mut all = Vec::new();
        for (index, &words) in SIZES.iter().enumerate() {
            assert_eq!(arena.page(index)?.cols(), words);
            all.extend_from_slice(arena.page(index)?.f32());
        }
        Ok(all)
    }

    #[test]
    fn pages_come_back_as_they_went_and_the_budget_holds() {
        let folder = tempfile::tempdir().unwrap();
        let total = 4 * SIZES.iter().sum::<usize>() as u64;
        let mut whole = Arena::new(&RUNS, None, Component::Optimizer, &mut Allocator::real(&Device::cpu(1)));
        assert_eq!(whole.resident_bytes(), total);
        let want = rounds(&mut whole).unwrap();
        for budget in [SMALLEST, SMALLEST + 3999, 8096, 12_000, total - 1, total, u64::MAX] {
            let mut arena = under(budget, &mut Allocator::real(&Device::cpu(1)));
            arena.open(&folder.path().join(".pages")).unwrap();
            assert_eq!(arena.file.is_some(), budget < total);
            assert_eq!(rounds(&mut arena).unwrap(), want, "under {budget} bytes");
            assert!(arena.resident_bytes() <= budget, "{} of {budget} bytes", arena.resident_bytes());
            let mut planning = Allocator::planning();
            under(budget, &mut planning);
            assert_eq!(planning.into_plan().bytes(Component::Optimizer), arena.resident_bytes());
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
        }
    }

    #[test]
    fn as_much_stays_in_memory_as_fits_beside_the_shared_frame() {
        let resident = |budget| under(budget, &mut Allocator::real(&Device::cpu(1))).resident.len();
        assert_eq!(resident(SMALLEST), 0);
        assert_eq!(resident(SMALLEST + 3999), 0);
        assert_eq!(resident(SMALLEST + 4000), 1);
        assert_eq!(resident(SMALLEST + 4028), 2);
    }

    #[test]
    fn pages_that_are_filled_anew_each_time_hold_what_they_were_filled_with_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut arena = under(SMALLEST, &mut Allocator::real(&Device::cpu(1)));
        arena.open(&folder.path().join(".pages")).unwrap();
        for round in 0..3 {
            for index in 0..SIZES.len() {
                arena.blank_page(index).unwrap().f32().fill((10 * round + index) as f32);
            }
            for index in (0..SIZES.len()).rev() {
                let want = (10 * round + index) as f32;
                assert!(
                    arena.page(index).unwrap().f32().iter().all(|&word| word == want),
                    "{round}, {index}"
                );
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let path = PathBuf::from("/dev/full");
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut arena = under(SMALLEST, &mut Allocator::real(&Device::cpu(1)));
        arena.file = Some((path, file));
        let error = rounds(&mut arena).unwrap_err().to_string();
        assert!(error.contains("cannot write /dev/full"), "{error}");
        assert!(error.contains("No space left"), "{error}");
    }
}
