//! Brings files into the cache over several connections: whole small files side by side, large ones in
//! segments.
//!
//! What is on disk of a file is always its beginning, as `<etag>.incomplete`, which is what `huggingface_hub`
//! leaves and takes up as well. Segments that come before those in front of them wait in memory, of which a
//! file takes no more than a few segments. So the hash runs along, nothing is written twice, and a download
//! that breaks off loses only what waits.
//!
//! Threads meet at a board with a slot for each file. One opens a file and asks for its first segment; where
//! the server keeps to the range the others take segments of it too, where it does not this one reads the
//! whole file. Whoever has the bytes that come next, and finds the file in its slot, takes it out and writes,
//! without holding the board.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::RepoId;
use super::cache::{self, Repo};
use super::download::{ATTEMPTS, Client, Hiccup, may_pass};
use crate::error::user;
use crate::terminal::Progress;

/// How far in front of what is written a segment of a file may be, for each connection.
const SEGMENTS_AHEAD: u64 = 2;

/// A file of a repository.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    /// The content's address: SHA-256 for large files, git's hash for small ones.
    pub(super) etag: String,
    pub(super) bytes: u64,
}

/// Bytes of files that are not on disk yet.
pub(super) fn bytes_to_come(repo: &Repo, files: &[RemoteFile]) -> u64 {
    let mut blobs: Vec<(&str, u64)> = files.iter().map(|file| (file.etag.as_str(), file.bytes)).collect();
    blobs.sort_unstable();
    blobs.dedup();
    let to_come = |(etag, bytes): (&str, u64)| {
        let blob = repo.blob(etag);
        let there = match blob.exists() {
            true => bytes,
            false => fs::metadata(incomplete(&blob)).map_or(0, |metadata| metadata.len()),
        };
        bytes.saturating_sub(there)
    };
    blobs.into_iter().map(to_come).fold(0, u64::saturating_add)
}

/// Brings files into a commit's snapshot, with progress on stderr.
pub(super) fn run(
    client: &Client,
    id: &RepoId,
    repo: &Repo,
    commit: &str,
    files: Vec<RemoteFile>,
) -> anyhow::Result<()> {
    let sum = |of: &dyn Fn(&RemoteFile) -> u64| files.iter().map(of).fold(0, u64::saturating_add);
    let total = sum(&|file| file.bytes);
    let segments = sum(&|file| file.bytes.div_ceil(client.segment).max(1));
    let slots = files.iter().map(|_| Slot::default()).collect();
    let meter =
        Meter { progress: Progress::bytes(&format!("downloading {id}"), total, 0), arrived: 0, told: None };
    let transfer = Transfer {
        client,
        id,
        repo,
        commit,
        files,
        board: Mutex::new(Board { slots, failed: None }),
        changed: Condvar::new(),
        meter: Mutex::new(meter),
    };
    let connections = usize::try_from(segments).unwrap_or(usize::MAX).min(client.connections);
    thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| transfer.work());
        }
    });
    match transfer.board.into_inner().expect("no thread panicked").failed {
        Some(error) => Err(error),
        None => {
            transfer.meter.into_inner().expect("no thread panicked").progress.finish("");
            Ok(())
        }
    }
}

struct Transfer<'a> {
    client: &'a Client,
    id: &'a RepoId,
    repo: &'a Repo,
    commit: &'a str,
    files: Vec<RemoteFile>,
    board: Mutex<Board>,
    /// Tells of every change of the board.
    changed: Condvar,
    meter: Mutex<Meter>,
}

struct Board {
    /// One for each file.
    slots: Vec<Slot>,
    /// Why the transfer ends early.
    failed: Option<anyhow::Error>,
}

/// How far a file is.
#[derive(Default)]
struct Slot {
    stage: Stage,
    /// Bytes on disk.
    written: u64,
    /// The first byte that nobody asks for yet.
    next: u64,
    /// The file; taken out by who writes to it.
    partial: Option<Partial>,
    /// Bytes that came before those in front of them, by where they belong.
    ahead: BTreeMap<u64, Vec<u8>>,
    /// Keeps other processes away.
    lock: Option<File>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Waiting,
    /// One thread has it: it is being opened, or read as a whole.
    Taken,
    /// Segments of it may be asked for.
    Segments,
    Done,
}

/// What a thread does next.
enum Task {
    Open(usize),
    Fetch(Segment),
}

/// Bytes of a file that one thread brings.
struct Segment {
    file: usize,
    /// The bytes that came and are neither written nor put ahead; the first of them is at `start`.
    bytes: Vec<u8>,
    start: u64,
    end: u64,
    /// Whether this is the file's first request, which finds out whether the server keeps to ranges.
    first: bool,
}

impl Segment {
    /// Where the next byte belongs.
    fn at(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

struct Meter {
    progress: Progress,
    arrived: u64,
    /// Until when the last note about waiting holds.
    told: Option<Instant>,
}

impl Transfer<'_> {
    fn work(&self) {
        while let Some(task) = self.next_task() {
            let result = match task {
                Task::Open(file) => self.open(file),
                Task::Fetch(segment) => self.bring(segment),
            };
            if let Err(error) = result {
                let mut board = self.board();
                board.failed.get_or_insert(error);
                // Another thread may wait for one of them: two files of one content have one lock.
                board.slots.iter_mut().for_each(|slot| slot.lock = None);
                drop(board);
                self.changed.notify_all();
            }
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().expect("no thread panicked")
    }

    fn has_failed(&self) -> bool {
        self.board().failed.is_some()
    }

    /// Waits for something to do; none when all is done or something failed.
    fn next_task(&self) -> Option<Task> {
        let window = self.client.segment * SEGMENTS_AHEAD * self.client.connections as u64;
        let mut board = self.board();
        loop {
            if board.failed.is_some() || board.slots.iter().all(|slot| slot.stage == Stage::Done) {
                return None;
            }
            for (file, slot) in board.slots.iter_mut().enumerate() {
                let bytes = self.files[file].bytes;
                match slot.stage {
                    Stage::Waiting => {
                        slot.stage = Stage::Taken;
                        return Some(Task::Open(file));
                    }
                    Stage::Segments if slot.next < bytes && slot.next < slot.written + window => {
                        let (start, end) = (slot.next, bytes.min(slot.next + self.client.segment));
                        slot.next = end;
                        return Some(Task::Fetch(Segment {
                            file,
                            bytes: Vec::new(),
                            start,
                            end,
                            first: false,
                        }));
                    }
                    _ => {}
                }
            }
            board = self.changed.wait(board).expect("no thread panicked");
        }
    }

    /// Opens a file, unless it is there, and brings its first segment.
    fn open(&self, file: usize) -> anyhow::Result<()> {
        let RemoteFile { name, etag, bytes } = &self.files[file];
        let path = self.repo.snapshot_folder(self.commit).join(name);
        let lock = self.repo.lock(etag)?;
        if self.has_failed() {
            return Ok(());
        }
        let blob = self.repo.blob(etag);
        // Another process may have been faster.
        if blob.exists() {
            if !path.exists() {
                self.repo.link(self.commit, name, etag)?;
            }
            self.arrived(*bytes as i64);
            return self.done(file);
        }
        let partial = Partial::open(&blob, *bytes)?;
        self.arrived(partial.bytes as i64);
        let (start, end) = (partial.bytes, (*bytes).min(partial.bytes + self.client.segment));
        let mut board = self.board();
        let slot = &mut board.slots[file];
        (slot.written, slot.next, slot.lock) = (start, end, Some(lock));
        if start == *bytes {
            drop(board);
            return self.finish(file, partial);
        }
        slot.partial = Some(partial);
        drop(board);
        self.bring(Segment { file, bytes: Vec::new(), start, end, first: true })
    }

    /// Brings a segment, taking it up where it breaks off.
    fn bring(&self, mut segment: Segment) -> anyhow::Result<()> {
        let (mut failures, mut best) = (0, segment.at());
        while segment.at() < segment.end && !self.has_failed() {
            let Err(hiccup) = self.attempt(&mut segment)? else { continue };
            failures = if segment.at() > best { 1 } else { failures + 1 };
            best = best.max(segment.at());
            if failures >= ATTEMPTS {
                let RemoteFile { name, bytes, .. } = &self.files[segment.file];
                let written = self.board().slots[segment.file].written;
                return Err(user(format!(
                    "{}: the download of {name} broke off at {written} of {bytes} bytes ({}); run again to go on from there",
                    self.id, hiccup.reason
                )));
            }
            self.pause(&hiccup, failures);
        }
        self.pass_on(&mut segment, true)
    }

    /// One request for what a segment lacks. The outer error is final, the inner one may pass.
    fn attempt(&self, segment: &mut Segment) -> anyhow::Result<Result<(), Hiccup>> {
        let RemoteFile { name, bytes, .. } = &self.files[segment.file];
        let (from, end) = (segment.at(), segment.end);
        let whole = from == 0 && end == *bytes;
        let url = self.client.address(self.id, self.commit, name);
        let mut response = match self.client.get(&url, (!whole).then_some(from..end)) {
            Ok(response) => response,
            Err(error) => return Ok(Err(Hiccup::lost(error))),
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, from) => {
                self.let_others_in(segment);
            }
            StatusCode::OK if whole => {}
            // The server knows no ranges, or cannot go on from here: this request brings the whole file.
            StatusCode::OK if segment.first => self.begin_anew(segment)?,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if segment.first => {
                self.begin_anew(segment)?;
                return Ok(Err(Hiccup::answer(&response)));
            }
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                return Ok(Err(Hiccup::lost("the server sends other bytes than were asked for")));
            }
            status if may_pass(status) => return Ok(Err(Hiccup::answer(&response))),
            status => return Err(self.client.refusal(self.id, status)),
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        while segment.at() < segment.end && !self.has_failed() {
            let room = usize::try_from(segment.end - segment.at()).unwrap_or(usize::MAX).min(buffer.len());
            match body.read(&mut buffer[..room]) {
                Ok(0) => return Ok(Err(Hiccup::lost("it ended early"))),
                Ok(n) => {
                    segment.bytes.extend_from_slice(&buffer[..n]);
                    self.arrived(n as i64);
                    self.pass_on(segment, false)?;
                }
                Err(error) => return Ok(Err(Hiccup::lost(error))),
            }
        }
        Ok(Ok(()))
    }

    /// The server keeps to ranges: if this is what the file's first request found, other threads may take
    /// segments of it.
    fn let_others_in(&self, segment: &mut Segment) {
        if std::mem::take(&mut segment.first) {
            self.board().slots[segment.file].stage = Stage::Segments;
            self.changed.notify_all();
        }
    }

    /// Throws away what there is of a file of which no other thread has a segment, and makes this segment all
    /// of it.
    fn begin_anew(&self, segment: &mut Segment) -> anyhow::Result<()> {
        let mut board = self.board();
        let slot = &mut board.slots[segment.file];
        let partial = slot.partial.as_mut().expect("only this thread has the file");
        partial.restart()?;
        let gone = slot.written + segment.bytes.len() as u64;
        let bytes = self.files[segment.file].bytes;
        (slot.written, slot.next) = (0, bytes);
        (segment.bytes, segment.start, segment.end) = (Vec::new(), 0, bytes);
        drop(board);
        self.arrived(-(gone as i64));
        Ok(())
    }

    /// Writes what came of a segment if that is what comes next in its file. At the segment's end (`last`),
    /// what is not goes ahead.
    fn pass_on(&self, segment: &mut Segment, last: bool) -> anyhow::Result<()> {
        if segment.bytes.is_empty() {
            return Ok(());
        }
        let file = segment.file;
        let mut board = self.board();
        let slot = &mut board.slots[file];
        let partial = slot.partial.take_if(|_| slot.written == segment.start);
        let mut bytes = match (&partial, last) {
            (None, false) => return Ok(()),
            _ => std::mem::take(&mut segment.bytes),
        };
        let start = segment.start;
        segment.start += bytes.len() as u64;
        let Some(mut partial) = partial else {
            slot.ahead.insert(start, bytes);
            return Ok(());
        };
        loop {
            drop(board);
            partial.append(&bytes)?;
            board = self.board();
            let slot = &mut board.slots[file];
            slot.written = partial.bytes;
            match slot.ahead.remove(&slot.written) {
                Some(next) => bytes = next,
                None => break,
            }
        }
        self.changed.notify_all();
        if partial.bytes == self.files[file].bytes {
            drop(board);
            return self.finish(file, partial);
        }
        board.slots[file].partial = Some(partial);
        Ok(())
    }

    /// Checks a whole file and gives it its names.
    fn finish(&self, file: usize, partial: Partial) -> anyhow::Result<()> {
        let remote = &self.files[file];
        partial.finish(self.id, remote, &self.repo.blob(&remote.etag))?;
        if !self.repo.snapshot_folder(self.commit).join(&remote.name).exists() {
            self.repo.link(self.commit, &remote.name, &remote.etag)?;
        }
        self.done(file)
    }

    fn done(&self, file: usize) -> anyhow::Result<()> {
        let mut board = self.board();
        board.slots[file].stage = Stage::Done;
        board.slots[file].lock = None;
        self.changed.notify_all();
        Ok(())
    }

    fn arrived(&self, bytes: i64) {
        let mut meter = self.meter.lock().expect("no thread panicked");
        meter.arrived = meter.arrived.saturating_add_signed(bytes);
        let arrived = meter.arrived;
        meter.progress.set(arrived, "");
    }

    /// Waits before the next attempt, and says so, once where several connections wait for the same reason.
    fn pause(&self, hiccup: &Hiccup, failures: u32) {
        let wait = hiccup.wait(self.client.first_wait, failures);
        let until = Instant::now() + wait;
        let mut meter = self.meter.lock().expect("no thread panicked");
        if meter.told.is_none_or(|told| told <= Instant::now()) {
            meter.progress.note(&hiccup.note(wait));
            meter.told = Some(until);
        }
        drop(meter);
        while !self.has_failed()
            && let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            thread::sleep(left.min(Duration::from_millis(200)));
        }
    }
}

/// Whether a partial answer begins where it was asked to.
fn starts_at(response: &Response<Body>, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}

/// Where the beginning of a blob is kept.
fn incomplete(blob: &Path) -> PathBuf {
    blob.with_added_extension("incomplete")
}

/// A blob on its way: `<etag>.incomplete`, which stays for the next attempt when this one breaks off.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Partial {
    /// Opens what an earlier attempt left, or a new file. What is longer than the whole file cannot be a
    /// beginning.
    fn open(blob: &Path, whole: u64) -> anyhow::Result<Self> {
        cache::create_parent(blob)?;
        let path = incomplete(blob);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut partial = Self { path, file, hasher: Sha256::new(), bytes: 0 };
        let read = io::copy(&mut partial.file, &mut HashWriter(&mut partial.hasher));
        partial.bytes = read.with_context(|| format!("cannot read {}", partial.path.display()))?;
        if partial.bytes > whole {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        let restart = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        restart.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.hasher = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.path.display()))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Checks the hash, where the etag is one, and gives the blob its name.
    fn finish(self, id: &RepoId, file: &RemoteFile, blob: &Path) -> anyhow::Result<()> {
        let is_sha256 = file.etag.len() == 64;
        let hash: String = self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if is_sha256 && hash != file.etag {
            fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
            return Err(user(format!(
                "{id}: {} was damaged on the way (SHA-256 is {hash}, not {}); it has been removed, run again to fetch it \
                 anew",
                file.name, file.etag
            )));
        }
        self.file.sync_all().with_context(|| format!("cannot write {}", self.path.display()))?;
        fs::rename(&self.path, blob).with_context(|| format!("cannot write {}", blob.display()))
    }
}

/// Feeds what is copied to a hash.
struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
