//! Records of a Parquet file: each row an object, read a few rows at a time, so that of a large file only a
//! page of each column is in memory.
//!
//! A nested column (`messages`) is a list of objects. Such a file has a place for every field in every
//! object, so that "null" and "not there" are the same: within objects such fields are left out, as the
//! template would otherwise see them. A row has a value for every column, null or not.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value as Json};

use super::{RawContent, RawRecord};
use crate::{DataError, Source};

/// Values of each column that are decoded at once.
const BATCH: usize = 64;
/// Values that a column may have beyond one a row for each byte that is stored: more would be a file that is
/// made to fill memory.
const VALUES_PER_BYTE: u64 = 4096;

/// Levels of nested columns that a file may have. The reader goes down them by recursion, in reading and in
/// dropping.
const MOST_LEVELS: usize = 64;
/// The stack that a file of too many levels is found out on; what is not used of it takes no memory.
const STACK: usize = 1 << 30;
/// The largest description of columns and row groups that is read; its levels have room on that stack.
const MOST_METADATA: u32 = 16 << 20;

/// The rows of a file.
pub(super) struct Rows {
    reader: SerializedFileReader<File>,
    file: Arc<PathBuf>,
    /// The row group that comes next.
    group: usize,
    rows: Option<ReaderIter>,
    /// Rows that were read.
    count: usize,
    open: bool,
}

impl Rows {
    pub(super) fn open(path: &Path, file: Arc<PathBuf>) -> Result<Self, DataError> {
        let handle = File::open(path).map_err(|source| DataError::Io { path: path.into(), source })?;
        let opened = check_footer(&handle).and_then(|()| open_on_large_stack(handle));
        let reader = opened.map_err(|message| DataError::Unsupported { path: path.into(), message })?;
        Ok(Rows { reader, file, group: 0, rows: None, count: 0, open: true })
    }

    fn read(&mut self) -> Result<Option<Row>, String> {
        loop {
            if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                return row.map(Some).map_err(|error| damaged(&error));
            }
            if self.group == self.reader.num_row_groups() {
                return Ok(None);
            }
            let group = self.reader.get_row_group(self.group).map_err(|error| damaged(&error))?;
            check(group.metadata())?;
            let schema = group.metadata().schema_descr_ptr();
            let rows = TreeBuilder::new().with_batch_size(BATCH).as_iter(schema, group.as_ref());
            self.rows = Some(rows.map_err(|error| damaged(&error))?);
            self.group += 1;
        }
    }
}

impl Iterator for Rows {
    type Item = Result<RawRecord, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.open {
            return None;
        }
        let at = Source { file: self.file.clone(), line: self.count + 1 };
        let read = guarded(|| Ok(self.read())).and_then(|read| read).transpose();
        self.open = matches!(read, Some(Ok(_)));
        self.count += 1;
        Some(match read? {
            Ok(row) => Ok(RawRecord { at, indent: 0, content: RawContent::Row(object(row, true)) }),
            Err(message) => Err(DataError::record(&at, message)),
        })
    }
}

/// Refuses a file whose description of itself is larger than any real one.
fn check_footer(mut file: &File) -> Result<(), String> {
    let mut end = [0; 8];
    let read =
        file.seek(SeekFrom::End(-8)).and_then(|_| file.read_exact(&mut end)).and_then(|()| file.rewind());
    // What is shorter is refused by the reader, in its words.
    if read.is_err() {
        return file.rewind().map_err(|error| error.to_string());
    }
    let length = u32::from_le_bytes(end[..4].try_into().expect("four bytes"));
    match end[4..] == *b"PAR1" && length > MOST_METADATA {
        true => Err(format!("claims {length} bytes of metadata; up to {MOST_METADATA} are read")),
        false => Ok(()),
    }
}

/// Opens a file where columns that are nested without end do no harm, and refuses it if they are.
fn open_on_large_stack(file: File) -> Result<SerializedFileReader<File>, String> {
    let open = move || {
        let reader = guarded(|| SerializedFileReader::new(file))?;
        let levels = levels(reader.metadata().file_metadata().schema());
        match levels > MOST_LEVELS {
            true => Err(format!("has columns nested {levels} levels deep; up to {MOST_LEVELS} are read")),
            false => Ok(reader),
        }
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(open);
    let thread = thread.map_err(|error| format!("cannot be opened: no thread could be started ({error})"))?;
    thread.join().expect("the reader's panics are caught")
}

fn levels(column: &Type) -> usize {
    let below = if column.is_group() { column.get_fields() } else { &[] };
    1 + below.iter().map(|field| levels(field)).max().unwrap_or(0)
}

/// What the file says of itself must be such that its rows have room.
fn check(group: &RowGroupMetaData) -> Result<(), String> {
    let count = |n: i64| u64::try_from(n).map_err(|_| format!("the file is damaged: it has {n} values"));
    let rows = count(group.num_rows())?;
    for column in group.columns() {
        let (values, bytes) = (count(column.num_values())?, count(column.compressed_size())?);
        if values > bytes.saturating_mul(VALUES_PER_BYTE).saturating_add(rows) {
            let name = column.column_path().string();
            return Err(format!(
                "the column {name:?} claims {values} values for {rows} rows in {bytes} bytes; the file is damaged"
            ));
        }
    }
    Ok(())
}

/// Runs the reader and says in words what went wrong. It asserts what a damaged file does not hold; such a
/// panic is an error of the file, and its own message is not shown.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    thread_local!(static READING: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !READING.get() {
                others(panic);
            }
        }));
    });
    READING.set(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    READING.set(false);
    match result {
        Ok(result) => result.map_err(|error| damaged(&error)),
        Err(_) => Err("cannot be read as Parquet, is it damaged? (its parts contradict each other)".into()),
    }
}

fn damaged(error: &ParquetError) -> String {
    let what = match error {
        ParquetError::General(what) | ParquetError::EOF(what) | ParquetError::NYI(what) => what.clone(),
        other => other.to_string(),
    };
    if what.contains("Disabled feature") {
        let name = what.rsplit(' ').next().unwrap_or_default();
        return format!(
            "is compressed by {name}, which is not read; write it anew with snappy, gzip or zstd"
        );
    }
    format!("cannot be read as Parquet, is it damaged or cut off? ({what})")
}

/// A row's columns, or an object's fields without those that have no value.
fn object(row: Row, with_nulls: bool) -> Map<String, Json> {
    let fields = row.into_columns().into_iter().map(|(name, field)| (name, value(field)));
    fields.filter(|(_, value)| with_nulls || !value.is_null()).collect()
}

fn value(field: Field) -> Json {
    match field {
        Field::Null => Json::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => number(value.to_f64()),
        Field::Float(value) => number(value.into()),
        Field::Double(value) => number(value),
        Field::Str(text) => text.into(),
        // Older writers do not say which columns are text. What is none has no place in a record.
        Field::Bytes(bytes) => bytes.as_utf8().map_or(Json::Null, Json::from),
        Field::Group(row) => Json::Object(object(row, false)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let entry = |(key, field): &(Field, Field)| {
                let name = match key {
                    Field::Str(name) => name.clone(),
                    other => other.to_string(),
                };
                (name, value(field.clone()))
            };
            Json::Object(map.entries().iter().map(entry).collect())
        }
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => field.to_string().into(),
    }
}

fn number(value: f64) -> Json {
    Number::from_f64(value).map_or(Json::Null, Json::Number)
}
