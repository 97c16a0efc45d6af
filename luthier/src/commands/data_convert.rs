//! `luthier data convert`: writes data of any supported kind as lines of JSON.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Error};
use data::convert::{Converted, convert};
use tempfile::Builder;

use crate::cli::{self, Global};
use crate::error::user;
use crate::run_file::Purpose;
use crate::setup;
use crate::terminal::StdoutClosed;

pub(super) fn run(args: cli::Convert, _global: &Global) -> anyhow::Result<ExitCode> {
    let settings = args.settings()?;
    settings.validate(Purpose::Other)?;
    let data = &settings.run.data;
    let sources = setup::source_specs(data.sources())?;
    if sources.is_empty() {
        let message = "is required: a file of examples, by --data or in the run file";
        return Err(settings.refuse("data.train", message));
    }
    let (format, oasst) = (setup::format(data.format), setup::oasst(data));
    let converted = if args.output.as_os_str() == "-" {
        let mut out = BufWriter::new(io::stdout().lock());
        let converted =
            convert(&sources, format, &oasst, args.to, |line| write_line(&mut out, line, "stdout"))?;
        out.flush().map_err(|error| failed(error, "stdout"))?;
        converted
    } else {
        to_file(&args.output, |out, name| {
            convert(&sources, format, &oasst, args.to, |line| write_line(out, line, name))
        })?
    };
    summarize(&converted);
    Ok(ExitCode::SUCCESS)
}

/// Writes aside and renames: the file is whole or not there, and takes no other's place.
fn to_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>, &str) -> anyhow::Result<Converted>,
) -> anyhow::Result<Converted> {
    let shown = path.display().to_string();
    let taken =
        || user(format!("{shown}: is there already; name a new file, so that nothing is overwritten"));
    let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|e| e == "jsonl")) else {
        return Err(user(format!(
            "{shown}: what is written are lines of JSON; name a file ending in .jsonl"
        )));
    };
    if path.symlink_metadata().is_ok() {
        return Err(taken());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Made as any file is: a temporary one would be its owner's alone to read.
    let file = Builder::new()
        .prefix(&format!(".{}.", name.to_string_lossy()))
        .suffix(".tmp")
        .make_in(folder, |path| File::create_new(path))
        .map_err(|error| failed(error, &shown))?;
    let mut out = BufWriter::new(file.as_file());
    let converted = write(&mut out, &shown)?;
    out.flush().map_err(|error| failed(error, &shown))?;
    drop(out);
    file.as_file().sync_all().map_err(|error| failed(error, &shown))?;
    file.persist_noclobber(path).map_err(|error| match error.error.kind() {
        ErrorKind::AlreadyExists => taken(),
        _ => failed(error.error, &shown),
    })?;
    Ok(converted)
}

fn write_line(out: &mut impl Write, line: &str, name: &str) -> anyhow::Result<()> {
    writeln!(out, "{line}").map_err(|error| failed(error, name))
}

fn failed(error: io::Error, name: &str) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe => StdoutClosed.into(),
        _ => Err::<(), _>(error).context(format!("{name}: cannot be written")).unwrap_err(),
    }
}

/// What was read and written, on stderr.
fn summarize(converted: &Converted) {
    for file in &converted.files {
        let found = if file.found { " (found by looking)" } else { "" };
        eprintln!("{}: {} records, format {}{found}", file.path.display(), file.records, file.format);
    }
    let left_out = match converted.left_out {
        0 => String::new(),
        count => format!("; {count} left out, being marked as not to be learnt"),
    };
    for (what, count) in &converted.unfit {
        eprintln!("left out, {what}: {count}");
    }
    eprintln!("{} records written{left_out}", converted.records);
}
