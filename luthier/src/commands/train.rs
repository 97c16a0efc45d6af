//! `luthier train`: fine-tunes a model as a run file says.
//!
//! In order: settings, model files, data, what is trained, memory ([`Prepared`]), a look at all of it, then
//! the loop.

mod answering;
mod narrator;
mod prepared;
mod summary;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use data::ChatTemplate;
use model::adapter::peft::folder::AdapterFolder;
use model::adapter::peft::targets;
use model::{Adapter, Decoder, OnLoading, StoredDType};
use train::{History, Outcome, Saves, Saving, TrainError, Trainer};

pub(super) use narrator::forgotten;
pub(super) use prepared::{Examples, Prepared, line_of_time};
pub(super) use summary::{Ended, Summary};

use crate::cli::{self, Global};
use crate::error::{Advised, STOPPED};
use crate::run_file::{self, Method, Purpose, RunFile, Settings};
use crate::run_folder;
use crate::setup::{self, Base, Sizes, Trained};
use crate::signal;
use crate::terminal::live::{self, Live};
use crate::terminal::{self, quoted};
use answering::Answering;
use narrator::{Narrator, Shown};

/// Between two checkpoints, where `training.save_every` says nothing: what a crash costs at most.
const SAVE_EVERY: Duration = Duration::from_secs(600);
/// A loss that ends so many times higher than it began is no chance of the last examples.
const WORTH_A_WARNING: f64 = 1.1;
/// How long `--dry-run` and `plan` measure to tell a run's time; a slow model takes a few batches longer.
const REHEARSAL: Duration = Duration::from_secs(4);

pub(super) fn run(args: cli::Train, global: &Global) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let Some(summary) = train(args, global)? else { return Ok(ExitCode::SUCCESS) };
    match json {
        true => terminal::print_json(&summary)?,
        false if summary.ended() == Ended::AlreadyFinished => {}
        false => terminal::print_line(summary.to_string().trim_end())?,
    }
    Ok(match summary.ended() {
        Ended::Stopped => ExitCode::from(STOPPED),
        Ended::Finished | Ended::AlreadyFinished => ExitCode::SUCCESS,
    })
}

/// Trains as the arguments say, telling about it on stderr. Nothing comes of a dry run but what it prints.
pub(super) fn train(args: cli::Train, global: &Global) -> anyhow::Result<Option<Summary>> {
    if let Some(Some(named)) = &args.resume
        && !named.is_file()
    {
        run_folder::require_run(named)?;
    }
    if args.tui {
        live::require_terminal()?;
    }
    let mut settings = args.settings()?;
    settings.validate(Purpose::Train)?;
    let folder = settings.run.output.clone().expect("validated");
    let resumed = run_folder::holds_run(&folder)?;
    // A run that goes on is held before it is looked at. A new one is not: nothing is written before its
    // input is seen.
    let held = if resumed && !args.dry_run { Some(run_folder::lock(&folder)?) } else { None };
    let base =
        Base::open(settings.run.model.as_deref().expect("validated")).map_err(|error| match resumed {
            true => {
                Advised::new(error, "if the model was moved since the run began, name it by --model").into()
            }
            false => error,
        })?;
    // What a run began from is needed only until it has saved a step; its settings stand in the run folder.
    let (initial, unread) = match adopt_initial_adapter(&mut settings, &base) {
        Ok(initial) => (initial, None),
        Err(error) if resumed && args.resume.is_some() => (None, Some(error)),
        Err(error) if !resumed => return Err(error),
        Err(_) => (None, None), // that there is a run already is told instead
    };
    if resumed && let Err(differs) = run_folder::go_on(&folder, args.resume.is_some(), &mut settings.run) {
        return Err(match (unread, &args.resume) {
            // Without the adapter's own settings what was typed cannot be compared with what was saved.
            (Some(error), Some(None)) => {
                let command = run_folder::resume_command(&folder);
                Advised::new(error, format!("a run that has saved a step goes on without it by `{command}`"))
                    .into()
            }
            _ => differs,
        });
    }
    if let Some(error) = &unread {
        eprintln!("note: what this run began from is needed only if no step was saved: {error:#}");
    }
    let begun = run_folder::begun(&folder, resumed);
    let mut prepared = Prepared::new(settings, base, initial, Some(begun), global)?;
    prepared.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    if !args.quiet {
        prepared.present();
    }
    if args.dry_run {
        prepared.tell_time(global, args.json)?;
        return Ok(None);
    }
    prepared.sizes.settle(&mut prepared.settings.run);
    let Prepared { settings, base, initial, data, trained, sizes, needs, .. } = &prepared;
    let run = &settings.run;
    let device = global.device()?;
    let (decoder, adapter) = load(settings, base, initial.as_ref(), &device, trained)?;
    let template = run_folder::template_source(run, &data.tokenizer, &data.train)?;
    let stop = signal::stop_on_request()?;
    // All that can be wrong with the input has been seen: nothing is written before.
    let _lock = match held {
        Some(lock) => lock,
        None => {
            let lock = run_folder::begin(&folder)?;
            run_folder::claim(&folder, run, begun)?;
            lock
        }
    };
    let job = prepared.job(&decoder, adapter, &folder, &stop, None);
    let trainer = Trainer::open(job).map_err(|error| advised(error, &folder))?;
    debug_assert_eq!(trainer.memory(), &setup::buffers(run, &base.config, trained, *needs, *sizes));
    if resumed && trainer.step_done() == 0 {
        if let Some(error) = unread {
            return Err(error.context("no step of this run was saved, and what it began from cannot be read"));
        }
        if !args.quiet {
            eprintln!("no step of this run was saved: it begins anew");
        }
    }
    if !trainer.finished() {
        if resumed {
            run_folder::claim(&folder, run, begun)?;
        }
        run_folder::write_tokenizer(base.tokenizer_folder()?, template.as_deref(), &folder)?;
    }
    let shown = match (args.tui, args.quiet) {
        (true, _) if !trainer.finished() => {
            let answering = Answering::of(&prepared, &decoder, template.as_deref());
            let history = History::read(&folder)?;
            let view = prepared.view(&folder, &history, answering.as_ref().ok());
            let live = Live::begin(view)?;
            let answering = answering.map_err(|why| live.change(|view| view.note(&format!("note: {why}"))));
            Shown::Live(live, answering.ok())
        }
        (_, true) => Shown::Quiet,
        _ => Shown::Lines(None),
    };
    let mut narrator = Narrator::new(&folder, shown);
    let outcome = trainer.run(&mut |event| narrator.tell(event));
    narrator.finish();
    let outcome = outcome.map_err(|error| advised(error, &folder))?;
    let history = History::read(&folder)?;
    if let Some(warning) = risen(&history).filter(|_| outcome == Outcome::Finished) {
        eprintln!("warning: {warning}");
    }
    let shown = folder.display();
    let ended = match outcome {
        Outcome::Paused => unreachable!("no step was named to pause at"),
        Outcome::Finished if narrator.unchanged => {
            eprintln!(
                "warning: nothing was trained: every value of the result in {shown} is what it was before the first step"
            );
            Ended::Finished
        }
        Outcome::Finished => {
            if narrator.without_effect {
                eprintln!("warning: every B of the adapter in {shown} is zero, so it changes nothing");
            }
            if !args.quiet {
                eprintln!("the result is in {shown}");
            }
            Ended::Finished
        }
        Outcome::AlreadyFinished => {
            if !args.quiet {
                eprintln!("{shown} is finished already; nothing to do");
            }
            if history.steps.last().is_some_and(|last| last.step < prepared.steps) {
                eprintln!("note: {}", why_over(run, &history, &folder));
            }
            Ended::AlreadyFinished
        }
        Outcome::Interrupted => {
            let checkpoint = narrator.stopped_at.as_ref().expect("a run that is stopped tells what it saved");
            let command = run_folder::resume_command(&folder);
            eprintln!(
                "stopped on request, all is in {}; go on with --resume: {command}",
                checkpoint.display()
            );
            Ended::Stopped
        }
    };
    if ended == Ended::Finished || (ended == Ended::AlreadyFinished && !run_folder::has_card(&folder)) {
        run_folder::write_card(&folder, run, &base.name, &history)?;
    }
    let chats = match &template {
        Some(_) => true,
        None => ChatTemplate::resolve(None, &data.tokenizer)?.is_some(),
    };
    // Known to the process that ended the run.
    let effect = (outcome == Outcome::Finished).then_some(!narrator.unchanged && !narrator.without_effect);
    let checkpoint = narrator.stopped_at.as_deref();
    Ok(Some(Summary::of(&folder, run, &history, ended, checkpoint, effect, chats)))
}

/// That the loss of a run is higher in the end than it was at first, beyond what single steps differ by.
pub(super) fn risen(history: &History) -> Option<String> {
    let losses: Vec<f64> = history.steps.iter().map(|step| step.loss).collect();
    let part = losses.len().div_ceil(10).max(1);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    // The first step alone: a rate that is far too high ruins the second.
    let first = *losses.first()?;
    let last = mean(&losses[losses.len() - part..]);
    (last > WORTH_A_WARNING * first).then(|| {
        format!(
            "the loss has risen from {first:.4} to {last:.4}: the run diverged; train again with a lower --lr"
        )
    })
}

/// Why a run that has ended before its last step does not go on, and what to do instead.
fn why_over(run: &RunFile, history: &History, folder: &Path) -> String {
    let limit = run.training.forgetting_limit;
    let ended = match (limit, history.forgetting.last()) {
        (Some(limit), Some(last)) if last.forgetting_kl > limit => format!(
            "training.forgetting_limit ended it, for its divergence from the base was {:.4}, beyond {limit}",
            last.forgetting_kl
        ),
        _ => "training.early_stopping_patience ended it, for its held-out loss no longer fell".to_owned(),
    };
    let begin = match run.adapter.method {
        Method::Full => format!("--model {}", quoted(folder)),
        _ => format!("--set adapter.init_from={}", quoted(folder)),
    };
    format!("{ended}; its steps do not go on. To train its result further, begin another run by {begin}")
}

/// How the result is written.
pub(super) fn saving<'a>(trained: &'a Trained, base: &'a Base, tokenizer: &'a Path) -> Saving<'a> {
    match &trained.peft {
        Some(config) => Saving::Adapter(config),
        None => {
            Saving::Model { base: &base.files, tokenizer, dtype: base.dtype().unwrap_or(StoredDType::F32) }
        }
    }
}

/// The error with what a person can do now, which the loop does not know.
pub(super) fn advised(error: TrainError, folder: &Path) -> anyhow::Error {
    let TrainError::Ended { checkpoint, .. } = &error else { return error.into() };
    let command = run_folder::resume_command(folder);
    let advice = match checkpoint {
        Some(checkpoint) if error.comes_again() => format!(
            "try what was learnt until then with `--adapter {}`, or train into another folder with other settings",
            quoted(checkpoint)
        ),
        Some(_) => format!("go on from it with --resume: {command}"),
        None if error.comes_again() => "train into another folder with other settings".to_owned(),
        None => format!("--resume begins anew: {command}"),
    };
    Advised::new(error, advice).into()
}

/// With `adapter.init_from`, that folder's configuration counts: it is taken over, and a setting that says
/// otherwise is refused. Returns the folder.
pub(super) fn adopt_initial_adapter(
    settings: &mut Settings,
    base: &Base,
) -> anyhow::Result<Option<AdapterFolder>> {
    let Some(folder) = settings.run.adapter.init_from.clone() else { return Ok(None) };
    if settings.run.adapter.method == Method::Full {
        return Err(
            settings.refuse("adapter.init_from", "goes on from an adapter, but adapter.method is full")
        );
    }
    let files = base.adapter_folder(&folder)?;
    let adopted = setup::adopt(&settings.run.adapter, &files);
    let written = settings.run.adapter.clone();
    for key in setup::ADOPTED {
        if !settings.is_set(&format!("adapter.{key}")) {
            continue;
        }
        let mut mixed = settings.run.clone();
        mixed.adapter = adopted.clone();
        setup::take(&mut mixed.adapter, &written, key);
        let same = targets::resolve(&setup::peft_config(&mixed, &base.name), &base.config)
            .is_ok_and(|r| r.without_unused() == files.resolution.without_unused());
        if !same {
            let message = format!(
                "differs from {}/adapter_config.json, from which adapter.init_from goes on; leave it out",
                folder.display()
            );
            return Err(settings.refuse(&format!("adapter.{key}"), message));
        }
    }
    settings.run.adapter = adopted;
    Ok(Some(files))
}

/// The frozen base and what is trained on it, with its initial values: those of the adapter `initial`, if
/// there is one.
pub(super) fn load(
    settings: &Settings,
    base: &Base,
    initial: Option<&AdapterFolder>,
    device: &compute::Device,
    trained: &Trained,
) -> anyhow::Result<(Decoder, Adapter)> {
    let run = &settings.run;
    let (precision, seed, init) = (run.precision.engine(), run.training.seed, run.adapter.init.engine());
    let quantization = setup::quantization(run);
    let mut adapter = Adapter::zeros(trained.layout.clone(), trained.dropout, device);
    let decoder = match (base.stored.is_some(), initial) {
        (true, None) => {
            let on_loading = quantization.map(|format| OnLoading { format, held: precision });
            let begin = (init, seed);
            Decoder::load_and_begin(&base.files, device, precision, on_loading, begin, &mut adapter)?
        }
        (true, Some(files)) => {
            let decoder = base.load(device, precision, quantization)?;
            adapter.parameters = files.read(device)?.parameters;
            decoder
        }
        (false, _) if trained.peft.is_none() && run.adapter.init == run_file::Init::Gaussian => {
            eprintln!("note: {} has no weights; training begins from random ones", base.files.path.display());
            let decoder = Decoder::random(&base.config, device, precision, None, seed);
            adapter.initialize(init, seed, &decoder);
            decoder
        }
        (false, _) => {
            let message = "names a folder without weights (model.safetensors); to train a model from nothing, set \
                           adapter.method: full and adapter.init: gaussian";
            return Err(settings.refuse("model", message));
        }
    };
    Ok((decoder, adapter))
}

pub(super) fn loop_settings(run: &RunFile, sizes: Sizes) -> train::Settings {
    let training = &run.training;
    train::Settings {
        optimizer: setup::optimizer(run),
        schedule: setup::schedule(run),
        order: setup::order(run),
        epochs: setup::epochs(run),
        max_steps: training.max_steps,
        batch_size: setup::batch_size(run),
        micro_batch_tokens: sizes.micro_batch_tokens,
        checkpointing: sizes.checkpointing,
        frozen_activations: sizes.frozen_memory,
        tensorboard: training.tensorboard,
        eval_every: training.eval_every,
        saves: training.save_every.map_or(Saves::Every(SAVE_EVERY), Saves::EverySteps),
        keep_checkpoints: training.keep_checkpoints,
        early_stopping_patience: training.early_stopping_patience,
        router_aux_loss: training.router_aux_loss as f32,
        seed: training.seed,
    }
}

/// What is wrong with the learning rate in a run of so many steps, if anything is.
fn rates(run: &RunFile, steps: u64) -> Option<String> {
    let (schedule, all) = (setup::schedule(run), run.training.max_steps.unwrap_or(steps));
    let (warmup, peak) = (schedule.warmup_steps(all), schedule.peak(steps, all));
    let s = |n: u64| if n == 1 { "" } else { "s" };
    if peak == 0.0 {
        return Some(format!(
            "nothing will be trained: the run has {steps} step{}, and the learning rate is 0 in {}, since schedule.warmup makes \
             it begin there; set schedule.warmup: 0, or make more steps by training.epochs, training.max_steps, or a \
             smaller training.batch_size or data.max_length",
            s(steps),
            if steps == 1 { "it" } else { "all of them" },
        ));
    }
    (warmup >= steps).then(|| {
        let rate = setup::learning_rate(run);
        format!(
            "the warm-up of {warmup} step{} (schedule.warmup) is not over when the run ends after {steps}: the learning rate \
             reaches {:.2e}, not the {rate:e} of optimizer.learning_rate",
            s(warmup),
            peak * rate
        )
    })
}
