//! `luthier import`: turns another program's configuration into a run file and says what it cannot carry
//! over.
//!
//! Each dialect has a file with its tables: what each of its keys means here. `translation` applies them;
//! `transformers` has what the programs share, since all of them hand their settings on to transformers'
//! Trainer and to PEFT.

mod axolotl;
mod llama_factory;
mod transformers;
mod translation;
mod trl;

use std::process::ExitCode;

use super::init::{check_free, write_new};
use crate::cli::{self, Global, Program};
use crate::error::user;
use crate::run_file::Foreign;
use translation::Translation;

/// Keys that tell a program's configuration from those of others. PEFT's and TRL's are read alike.
const SIGNS: [(Program, &[&str]); 3] = [
    (
        Program::Axolotl,
        &[
            "base_model",
            "datasets",
            "sequence_len",
            "micro_batch_size",
            "num_epochs",
            "lr_scheduler",
            "val_set_size",
        ],
    ),
    (
        Program::LlamaFactory,
        &[
            "finetuning_type",
            "stage",
            "dataset",
            "template",
            "cutoff_len",
            "lora_rank",
            "lora_target",
            "dataset_dir",
        ],
    ),
    (
        Program::Trl,
        &[
            "dataset_name",
            "use_peft",
            "max_seq_length",
            "max_length",
            "assistant_only_loss",
            "peft_type",
            "per_device_train_batch_size",
            "num_train_epochs",
        ],
    ),
];

/// What settings files are read, for messages.
const READ: &str =
    "a YAML file of Axolotl, LLaMA-Factory or TRL, saved training arguments, or PEFT's adapter_config.json";

pub(super) fn run(args: cli::Import, _global: &Global) -> anyhow::Result<ExitCode> {
    check_free(&args.output)?;
    let file = Foreign::read(&args.file)?;
    let program = match args.from {
        Some(program) => program,
        None => recognize(&file)?,
    };
    let mut translation = Translation::new(&file, name(program));
    match program {
        Program::Axolotl => axolotl::translate(&mut translation)?,
        Program::LlamaFactory => llama_factory::translate(&mut translation)?,
        Program::Trl => trl::translate(&mut translation)?,
    }
    let text = translation.run_file()?;
    write_new(&args.output, &text)?;
    translation.report();
    if args.output.as_os_str() != "-" {
        let output = crate::terminal::quoted(&args.output);
        eprintln!("wrote {output}; look at it, then check it with `luthier train {output} --dry-run`");
    }
    Ok(ExitCode::SUCCESS)
}

fn name(program: Program) -> &'static str {
    match program {
        Program::Axolotl => "Axolotl",
        Program::LlamaFactory => "LLaMA-Factory",
        Program::Trl => "TRL",
    }
}

/// Whose configuration it is: of the program that has most of its keys here. Says why.
fn recognize(file: &Foreign) -> anyhow::Result<Program> {
    let has = |key: &str| file.settings.iter().any(|setting| setting.key == key);
    if has("model") && (has("data") || has("adapter") || has("output")) {
        return Err(user(format!("{} is a run file already: `luthier train {0}`", file.path)));
    }
    let found =
        |signs: &[&'static str]| -> Vec<&str> { signs.iter().copied().filter(|key| has(key)).collect() };
    let mut candidates: Vec<_> = SIGNS.iter().map(|(program, signs)| (*program, found(signs))).collect();
    candidates.sort_by_key(|(_, keys)| std::cmp::Reverse(keys.len()));
    match candidates.as_slice() {
        [(_, keys), ..] if keys.is_empty() => Err(user(format!(
            "{}: none of its keys tells whose configuration it is; what is read: {READ}; say it by --from",
            file.path
        ))),
        [(first, keys), (second, others), ..] if keys.len() == others.len() => Err(user(format!(
            "{}: it could be a configuration of {} or of {}; say it by --from",
            file.path,
            name(*first),
            name(*second)
        ))),
        [(program, keys), ..] => {
            let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
            eprintln!(
                "{}: a configuration of {}, by its keys {}",
                file.path,
                name(*program),
                keys.join(", ")
            );
            Ok(*program)
        }
        [] => unreachable!("there are programs"),
    }
}

#[cfg(test)]
mod tests {
    use super::translation::{Meaning, Table};
    use super::*;
    use crate::run_file::keys;

    const TABLES: [(&str, &[&Table]); 4] = [
        ("Axolotl", &[axolotl::KEYS, transformers::TRAINING_ARGUMENTS]),
        ("LLaMA-Factory", &[llama_factory::KEYS, transformers::TRAINING_ARGUMENTS]),
        ("TRL", &[trl::KEYS, transformers::TRAINING_ARGUMENTS]),
        ("PEFT", &[transformers::PEFT]),
    ];

    #[test]
    fn tables_name_keys_of_the_run_file() {
        for (_, row) in TABLES.iter().flat_map(|(_, tables)| tables.iter()).flat_map(|table| table.iter()) {
            if let Meaning::Is(key) = row {
                assert!(keys().iter().any(|known| known.path == *key), "{key} is a key of the run file");
            }
        }
    }

    #[test]
    fn a_key_stands_in_one_row_of_a_table() {
        for table in TABLES.iter().flat_map(|(_, tables)| tables.iter()) {
            let mut names: Vec<&str> = table.iter().flat_map(|(row, _)| row.split_whitespace()).collect();
            names.sort_unstable();
            for pair in names.windows(2) {
                assert_ne!(pair[0], pair[1]);
            }
        }
    }

    #[test]
    fn each_program_knows_the_keys_it_is_recognized_by() {
        for (program, signs) in SIGNS {
            let tables: Vec<&Table> = TABLES
                .iter()
                .filter(|(of, _)| *of == name(program) || (program, *of) == (Program::Trl, "PEFT"))
                .flat_map(|(_, tables)| tables.iter().copied())
                .collect();
            for sign in signs {
                let known =
                    tables.iter().flat_map(|table| table.iter()).flat_map(|(row, _)| row.split_whitespace());
                assert!(known.clone().any(|key| key == *sign), "{sign}");
            }
        }
    }
}
