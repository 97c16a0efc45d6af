//! `luthier export gguf`: an adapter as llama.cpp and Ollama load it.

use std::path::Path;
use std::process::ExitCode;

use model::checkpoint::Staging;
use model::gguf::adapter::{Exported, export};
use serde_json::json;

use crate::cli::{self, Global};
use crate::error::user;
use crate::setup::Subject;
use crate::terminal::{self, quoted};

pub(super) fn run(args: cli::ExportGguf, global: &Global) -> anyhow::Result<ExitCode> {
    let staging = Staging::file(&args.output)?;
    let subject = Subject::open_by("--base", args.base.as_deref(), Some(&args.adapter), &global.device()?)?;
    let Subject { base, adapter, .. } = subject;
    if base.changed_by.is_some() {
        let problem =
            "holds weights of the base itself, which an adapter of llama.cpp cannot; merge it instead";
        return Err(user(format!("{} {problem}", args.adapter)));
    }
    let (adapter, named) = (adapter.expect("an adapter was named"), Path::new(&args.adapter));
    let exported = export(&adapter, named, &base.config, staging.path())?;
    staging.publish()?;
    let Exported { architecture, alpha, updates, rescaled } = &exported;
    if args.json {
        let file = args.output.display().to_string();
        let facts = json!({
            "output": file,
            "architecture": architecture,
            "alpha": alpha,
            "updates": updates,
            "rescaled": rescaled,
        });
        terminal::print_json(&facts)?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.output.display();
    let scales = match rescaled {
        0 => "their values are the adapter's own".to_owned(),
        _ => format!("of {rescaled} the scale stands in B, since a file has one alpha"),
    };
    terminal::print_line(format!("{file}\n{updates} updates of {architecture}, alpha {alpha}; {scales}"))?;
    let file = quoted(&args.output);
    terminal::print_line(format!(
        "read back and found the same; use it by `llama-cli -m BASE.gguf --lora {file}`"
    ))?;
    Ok(ExitCode::SUCCESS)
}
