//! Where this crate's memory comes from: bytes that begin with a cache line, or, to find faults, bytes under
//! guard.
//!
//! `LUTHIER_GUARD=1` puts every allocation between pages that may not be touched, so that it ends, to the
//! byte, where the second one begins: what reads or writes beyond it ends the process there and then. What
//! lies before its first byte is looked at when it is given back, and memory that need not be zero is filled
//! with NaN, so that whoever reads before writing is found by the result. The test suites run in it; results
//! are the same bytes.

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Pod;
use memmap2::{Mmap, MmapMut};

/// Allocations above this many bytes come straight from the system as lazily zeroed pages.
const MAP_THRESHOLD: usize = 1 << 20;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes, aligned to a cache line but under guard.
pub(crate) struct Bytes {
    start: NonNull<u8>,
    len: usize,
    _owner: Owner,
}

/// Who gives the memory back.
enum Owner {
    Heap {
        _lines: Vec<Line>,
    },
    Map {
        _map: MmapMut,
    },
    #[cfg(unix)]
    Guard {
        _pages: guard::Pages,
    },
}

// SAFETY: the bytes are owned as by a `Vec`.
unsafe impl Send for Bytes {}
// SAFETY: as above; shared, they are only read.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// `len` bytes, zero.
    ///
    /// # Panics
    /// If the system refuses the memory.
    pub(crate) fn zeroed(len: usize) -> Self {
        #[cfg(unix)]
        if guard::is_on() {
            return Bytes::guarded(len, 0);
        }
        if len < MAP_THRESHOLD {
            let mut lines = vec![Line([0; 64]); len.div_ceil(64)];
            let start = NonNull::from(lines.as_mut_slice()).cast();
            return Bytes { start, len, _owner: Owner::Heap { _lines: lines } };
        }
        let mut map =
            MmapMut::map_anon(len).unwrap_or_else(|e| panic!("cannot map {len} bytes of memory: {e}"));
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage); // only a hint: without it the run is slower, not wrong
        let start = NonNull::from(&mut map[..]).cast();
        Bytes { start, len, _owner: Owner::Map { _map: map } }
    }

    /// `len` bytes that are written before they are read: NaN in any type under guard, else zero.
    ///
    /// # Panics
    /// As [`Bytes::zeroed`].
    pub(crate) fn unset(len: usize) -> Self {
        #[cfg(unix)]
        if guard::is_on() {
            return Bytes::guarded(len, 0xff);
        }
        Bytes::zeroed(len)
    }

    #[cfg(unix)]
    fn guarded(len: usize, value: u8) -> Self {
        let (pages, start) = guard::Pages::new(len, value);
        Bytes { start, len, _owner: Owner::Guard { _pages: pages } }
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: the owner keeps so many bytes there, all of them initialized.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    #[inline]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and they are borrowed through nothing else.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// A vector of fixed length in memory of this crate's own; zero when made.
pub struct Buffer<T> {
    bytes: Bytes,
    elements: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// If the system refuses the memory.
    pub fn zeros(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).expect("size of a buffer overflows");
        Buffer { bytes: Bytes::zeroed(bytes), elements: PhantomData }
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes.as_slice())
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes.as_mut_slice())
    }
}

impl<T: Pod> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Self {
        let mut buffer = Buffer::zeros(values.len());
        buffer.copy_from_slice(&values);
        buffer
    }
}

impl<T: Pod> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut buffer = Buffer::zeros(self.len());
        buffer.copy_from_slice(self);
        buffer
    }
}

impl<T: Pod + PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A file as the system maps it: its bytes are read when they are needed, and given back when memory is.
///
/// They are those of the file as it is. Nobody may make it shorter while it is mapped: reading what is gone
/// ends the process.
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps all of a file that is open for reading.
    ///
    /// # Errors
    /// If the system cannot.
    pub fn open(file: &File) -> io::Result<Self> {
        // SAFETY: read-only, and private to this process. A file that somebody else changes meanwhile changes
        // numbers, and one that they cut ends the process: as with every program that maps its weights.
        Ok(MappedFile { map: unsafe { Mmap::map(file)? } })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedFile[{} bytes]", self.map.len())
    }
}

#[cfg(unix)]
mod guard {
    //! Memory between pages that may not be touched.

    use std::io::Error;
    use std::ptr::{NonNull, null_mut};
    use std::sync::LazyLock;

    /// What stands between the first page's begin and the first byte that was asked for.
    const SLACK: u8 = 0xa5;

    /// Whether `LUTHIER_GUARD` asks for it.
    pub(super) fn is_on() -> bool {
        static ON: LazyLock<bool> =
            LazyLock::new(|| std::env::var_os("LUTHIER_GUARD").is_some_and(|v| !v.is_empty() && v != "0"));
        *ON
    }

    /// Pages around which nothing may be touched, of which some bytes are used: up to the end of the last
    /// one.
    pub(super) struct Pages {
        first: NonNull<u8>,
        slack: usize,
        used: usize,
    }

    fn page() -> usize {
        // SAFETY: a question about a constant of the system.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page has a size")
    }

    impl Pages {
        /// `len` bytes of this value, and where they are.
        ///
        /// # Panics
        /// If the system refuses the memory.
        pub(super) fn new(len: usize, value: u8) -> (Self, NonNull<u8>) {
            let page = page();
            let size = len.checked_next_multiple_of(page).expect("size of a buffer overflows");
            let (none, private) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping touches nothing that is there.
            let start = unsafe { libc::mmap(null_mut(), size + 2 * page, none, private, -1, 0) };
            assert!(
                start != libc::MAP_FAILED,
                "cannot map {len} bytes of memory: {}",
                Error::last_os_error()
            );
            let start = NonNull::new(start.cast::<u8>()).expect("a mapping has an address");
            // SAFETY: the page behind the first one, inside the mapping.
            let first = unsafe { start.add(page) };
            if size > 0 {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                // SAFETY: pages of the mapping.
                let result = unsafe { libc::mprotect(first.as_ptr().cast(), size, access) };
                assert!(result == 0, "cannot open {len} bytes of memory: {}", Error::last_os_error());
            }
            let slack = size - len;
            // SAFETY: `size` bytes can be written; they are zero now.
            let used = unsafe {
                first.write_bytes(SLACK, slack);
                let used = first.add(slack);
                if value != 0 {
                    used.write_bytes(value, len);
                }
                used
            };
            (Pages { first, slack, used: len }, used)
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            let (first, page) = (self.first.as_ptr(), page());
            // SAFETY: the slack is part of the pages, which nobody has a pointer to any more.
            let untouched = unsafe {
                let slack = std::slice::from_raw_parts(first, self.slack);
                let untouched = slack.iter().all(|byte| *byte == SLACK);
                libc::munmap(first.sub(page).cast(), self.slack + self.used + 2 * page);
                untouched
            };
            // A second panic would end the process without the message of the first.
            if !std::thread::panicking() {
                assert!(untouched, "something was written before the begin of {} bytes", self.used);
            }
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};

    use super::*;

    /// Which of its faults the process is to commit.
    const FAULT: &str = "LUTHIER_TEST_FAULT";

    /// This very test in a process of its own, under guard, with a fault.
    fn with_fault(test: &str, fault: &str) -> Output {
        let program = std::env::current_exe().expect("the test's own path");
        Command::new(program)
            .args(["--exact", &format!("memory::tests::{test}"), "--nocapture"])
            .envs([("LUTHIER_GUARD", "1"), (FAULT, fault)])
            .output()
            .expect("the test starts itself")
    }

    #[test]
    fn under_guard_memory_ends_where_it_ends() {
        let name = "under_guard_memory_ends_where_it_ends";
        match std::env::var(FAULT).as_deref() {
            Err(_) => {
                let signal = |fault| with_fault(name, fault).status.signal();
                assert_eq!(signal("read"), Some(libc::SIGSEGV));
                assert_eq!(signal("write"), Some(libc::SIGSEGV));
                let before = with_fault(name, "before");
                let text = String::from_utf8_lossy(&before.stdout).into_owned()
                    + &String::from_utf8_lossy(&before.stderr);
                assert!(text.contains("something was written before the begin of 1000 bytes"), "{text}");
                assert!(with_fault(name, "none").status.success());
            }
            Ok(fault) => {
                let mut bytes = Bytes::unset(1000);
                assert!(bytes.as_slice().iter().all(|byte| *byte == 0xff));
                assert!(Bytes::zeroed(1000).as_slice().iter().all(|byte| *byte == 0));
                bytes.as_mut_slice().fill(1);
                let start = bytes.start.as_ptr();
                // SAFETY: none: this is what the guard is there to find.
                unsafe {
                    match fault {
                        "read" => assert_eq!(start.add(1000).read_volatile(), 0),
                        "write" => start.add(1000).write_volatile(0),
                        "before" => start.sub(1).write_volatile(0),
                        _ => {}
                    }
                }
            }
        }
    }

    #[test]
    fn a_buffer_is_as_long_as_it_was_made_and_begins_with_zeros() {
        for len in [0, 1, 17, 4096, 300_000] {
            let buffer = Buffer::<u16>::zeros(len);
            assert!(buffer.len() == len && buffer.iter().all(|v| *v == 0));
            let counted: Buffer<f32> = (0..len).map(|i| i as f32).collect::<Vec<_>>().into();
            assert!(counted == counted.clone() && counted.iter().enumerate().all(|(i, v)| *v == i as f32));
        }
    }
}
