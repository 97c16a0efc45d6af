//! `luthier export ollama`: a folder with a GGUF file and the Modelfile by which `ollama create` makes a model
//! of it.

mod formats;

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use data::ChatTemplate;
use model::checkpoint::{Staging, write_whole};
use serde_json::json;

use super::export_gguf::{Asked, Exporting, note_window, write_adapter, write_model};
use super::proof::ADAPTER_ADVICE;
use crate::cli::{self, Global};
use crate::error::user;
use crate::setup::Base;
use crate::terminal::{self, quoted};

/// The file beside the Modelfile.
const MODEL: &str = "model.gguf";
const ADAPTER: &str = "adapter.gguf";

pub(super) fn run(args: cli::ExportOllama, global: &Global) -> anyhow::Result<ExitCode> {
    let staging = Staging::folder(&args.output)?;
    let (modelfile, format) = match &args.from {
        Some(from) => (adapter_file(&args, from, global, staging.path())?, None),
        None => model_file(&args, global, staging.path())?,
    };
    write_whole(&staging.path().join("Modelfile"), modelfile.as_bytes())?;
    staging.publish()?;
    let output = args.output.display().to_string();
    if args.json {
        terminal::print_json(&json!({
            "output": output,
            "modelfile": args.output.join("Modelfile").display().to_string(),
            "template": format,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let template = match (&args.from, format) {
        (Some(from), _) => format!("its template is that of {from}"),
        (None, Some(name)) => format!("its chat template is {name}"),
        (None, None) => "Ollama reads the chat template of the GGUF file".to_owned(),
    };
    let modelfile = quoted(args.output.join("Modelfile"));
    terminal::print_line(format!("{output}\n{template}\nuse it by `ollama create NAME -f {modelfile}`"))?;
    Ok(ExitCode::SUCCESS)
}

/// The Modelfile of an adapter over a model that Ollama has.
fn adapter_file(
    args: &cli::ExportOllama,
    from: &str,
    global: &Global,
    folder: &Path,
) -> anyhow::Result<String> {
    if from.is_empty() || from.contains(char::is_whitespace) {
        return Err(user(format!("--from {from:?}: expected a name of Ollama's, such as llama3.2")));
    }
    let named = args.adapter.as_deref().expect("--from needs an adapter");
    write_adapter(named, args.model.as_deref(), global, &folder.join(ADAPTER))?;
    Ok(format!("FROM {from}\nADAPTER ./{ADAPTER}\n") + &system(args.system.as_deref())?)
}

/// The Modelfile of a whole model, and the name of its chat template if Ollama is told one.
fn model_file(
    args: &cli::ExportOllama,
    global: &Global,
    folder: &Path,
) -> anyhow::Result<(String, Option<&'static str>)> {
    let (model, adapter) = (args.model.as_deref(), args.adapter.as_deref());
    let asked = Asked { model, adapter, kind: args.kind, max_divergence: None };
    let Exporting { base, told, proof, .. } = write_model(asked, global, &folder.join(MODEL))?;
    note_window(&base, told.lost_window);
    proof.warn(ADAPTER_ADVICE);
    let mut modelfile = format!("FROM ./{MODEL}\n");
    let found = recognize(&base)?;
    let mut usual = None;
    if let Some(found) = &found {
        let _ = writeln!(modelfile, "TEMPLATE \"\"\"{}\"\"\"", found.format.go_template());
        for stop in found.format.stops() {
            let _ = writeln!(modelfile, "PARAMETER stop {stop:?}");
        }
        usual = found.system.clone();
    }
    modelfile += &system(args.system.as_deref().or(usual.as_deref()))?;
    Ok((modelfile, found.map(|found| found.format.name)))
}

/// The line that tells a model something before every conversation.
fn system(text: Option<&str>) -> anyhow::Result<String> {
    match text {
        None => Ok(String::new()),
        Some(text) if text.contains("\"\"\"") => {
            Err(user("--system has three quotes in a row, which a Modelfile cannot hold"))
        }
        Some(text) => Ok(format!("SYSTEM \"\"\"{text}\"\"\"\n")),
    }
}

/// The format by which the base's chat template writes conversations, if it is a known one.
fn recognize(base: &Base) -> anyhow::Result<Option<formats::Found>> {
    let tokenizer = base.tokenizer()?;
    let Some(template) = ChatTemplate::resolve(None, &tokenizer)? else { return Ok(None) };
    let begin = tokenizer.special_tokens().iter().find(|(name, _)| name == "bos_token");
    let begin = begin.map_or("", |(_, token)| token);
    Ok(formats::recognize(&template, begin))
}
