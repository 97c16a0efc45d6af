//! `luthier train`: fine-tunes a model as a run file says.
//!
//! In order: settings, model files, data, what is trained, memory, a look at all of it, then the loop.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use data::{Dataset, Tokenizer};
use model::adapter::targets;
use model::checkpoint::write_whole;
use model::memory::MemoryPlan;
use model::{Adapter, Decoder, StoredDType};
use train::{Event, Job, Outcome, Saving, StepPlan, Trainer};

use crate::cli::{self, Global};
use crate::error::{STOPPED, user};
use crate::run_file::{self, Method, Purpose, RunFile, Settings};
use crate::setup::{self, Base, Needs, Sizes, Trained};
use crate::signal;
use crate::terminal::{self, Progress, bytes, count};

/// Columns of the first example that are shown.
const SHOWN: usize = 1200;
const CHECKPOINTS: &str = "checkpoints";
const LOCK: &str = "lock";

pub(super) fn run(args: cli::Train, global: &Global) -> anyhow::Result<ExitCode> {
    let mut settings = args.settings()?;
    settings.validate(Purpose::Train)?;
    let folder = settings.run.output.clone().expect("validated");
    let base = Base::open(settings.run.model.as_deref().expect("validated"))?;
    base.config.check_quantization(&base.folder, setup::quantization(&settings.run))?;
    adopt_initial_adapter(&mut settings, &base)?;
    let resumed = holds_run(&folder)?;
    // A run that goes on is held before it is looked at. A new one is not: nothing is written before its input is seen.
    let held = if resumed && !args.dry_run { Some(lock(&folder)?) } else { None };
    if resumed {
        go_on(&folder, args.resume.is_some(), &mut settings.run)?;
    }
    let begun = begun(&folder, resumed);
    let tokenizer = base.tokenizer()?;
    let (train, eval) = setup::datasets(&settings.run, &base.config, &tokenizer, Some(begun))?;
    let batch = setup::settle_batch_size(&mut settings.run, &train);
    let run = &settings.run;
    let trained = setup::trained(run, &base.config, &base.name)?;
    let plan = step_plan(run, &train);
    let steps = steps(&settings, &plan)?;
    let needs = needs(eval.as_ref(), &plan, global.threads());
    setup::check_frozen(&settings, &base.config, &trained.layout, needs.repeated)?;
    let (sizes, memory) = setup::fit(run, &base.config, base.stored.as_ref(), &trained, needs)?;
    present(run, &base, &train, eval.as_ref(), &tokenizer, &trained, &memory, sizes, steps, batch.as_deref());
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    sizes.settle(&mut settings.run);
    let run = &settings.run;
    let device = global.device()?;
    let (decoder, adapter) = load(&settings, &base, &device, &trained)?;
    let eval = eval.map(|e| e.examples).unwrap_or_default();
    let stop = signal::stop_on_request()?;
    // All that can be wrong with the input has been seen: nothing is written before.
    let _lock = match held {
        Some(lock) => lock,
        None => {
            let lock = begin(&folder)?;
            claim(&folder, run, begun)?;
            lock
        }
    };
    let saving = match &trained.peft {
        Some(config) => Saving::Adapter(config),
        None => Saving::Model { base: &base.folder, dtype: base.dtype().unwrap_or(StoredDType::F32) },
    };
    let job = Job {
        decoder: &decoder,
        adapter,
        saving,
        train: &train,
        eval: &eval,
        settings: loop_settings(run, sizes),
        folder: &folder,
        stop: &stop,
    };
    let trainer = Trainer::open(job)?;
    debug_assert_eq!(trainer.memory(), &setup::buffers(run, &base.config, &trained, needs, sizes));
    if resumed && trainer.step_done() == 0 {
        eprintln!("no step of this run was saved: it begins anew");
    }
    if resumed && !trainer.finished() {
        claim(&folder, run, begun)?;
    }
    let mut narrator = Narrator::default();
    let outcome = trainer.run(&mut |event| narrator.tell(event))?;
    Ok(narrator.conclude(outcome, &folder))
}

/// With `adapter.init_from`, that folder's configuration counts: it is taken over, and a setting that says otherwise is
/// refused.
fn adopt_initial_adapter(settings: &mut Settings, base: &Base) -> anyhow::Result<()> {
    let Some(folder) = settings.run.adapter.init_from.clone() else { return Ok(()) };
    if settings.run.adapter.method == Method::Full {
        return Err(
            settings.refuse("adapter.init_from", "goes on from an adapter, but adapter.method is full")
        );
    }
    let files = base.adapter_folder(&folder)?;
    files.require_unchanged_base()?;
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
            .is_ok_and(|r| r.targets == files.resolution.targets && r.saved == files.resolution.saved);
        if !same {
            let message = format!(
                "differs from {}/adapter_config.json, from which adapter.init_from goes on; leave it out",
                folder.display()
            );
            return Err(settings.refuse(&format!("adapter.{key}"), message));
        }
    }
    settings.run.adapter = adopted;
    Ok(())
}

/// Whether a folder holds a run. One that holds anything else is refused.
fn holds_run(folder: &Path) -> anyhow::Result<bool> {
    let only = |folder: &Path, ours: fn(&str) -> bool| match fs::read_dir(folder) {
        Ok(mut entries) => entries.all(|e| e.is_ok_and(|e| ours(&e.file_name().to_string_lossy()))),
        Err(_) => true, // there is none, or its use will tell
    };
    // A run that was killed while it claimed the folder is none.
    let empty = only(folder, |name| name == CHECKPOINTS || name.starts_with(".run.yaml."))
        && only(&folder.join(CHECKPOINTS), |name| name == LOCK);
    // Looked at last: another process may be claiming the folder just now.
    if folder.join("run.yaml").exists() {
        return Ok(true);
    }
    if folder.exists() && !folder.is_dir() {
        let message = "is a file; `output` names the folder for the result";
        return Err(user(format!("{} {message}", folder.display())));
    }
    if !empty {
        let message = "is not empty and holds no run of luthier; choose another folder for `output`";
        return Err(user(format!("{} {message}", folder.display())));
    }
    Ok(false)
}

/// A run that goes on takes the sizes on which its result depends, if they are left open, from its saved settings and must
/// agree with the rest of them.
fn go_on(folder: &Path, resume: bool, run: &mut RunFile) -> anyhow::Result<()> {
    if !resume {
        let message = "holds a run already: go on with it by --resume, or choose another folder for `output`";
        return Err(user(format!("{} {message}", folder.display())));
    }
    let saved = Settings::resolve(Some(&folder.join("run.yaml")), Vec::new())?.run;
    run.adopt_settled(&saved);
    run_file::check_resume(&saved, run)
}

/// Seconds since 1970 at which the run first began: templates may print the date, and a resumed run must print the same.
fn begun(folder: &Path, resumed: bool) -> i64 {
    let saved = fs::read_to_string(begun_path(folder)).ok().filter(|_| resumed);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    saved.and_then(|text| text.trim().parse().ok()).unwrap_or_else(now)
}

fn begun_path(folder: &Path) -> PathBuf {
    folder.join(CHECKPOINTS).join("begun")
}

/// Writes the resolved settings into the run folder; they come first, since they make the folder a run's.
fn claim(folder: &Path, run: &RunFile, begun: i64) -> anyhow::Result<()> {
    write_whole(&folder.join("run.yaml"), run.to_yaml()?.as_bytes())?;
    Ok(write_whole(&begun_path(folder), format!("{begun}\n").as_bytes())?)
}

/// Makes and holds the folder of a new run, in which another process may have begun one meanwhile.
fn begin(folder: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make the run folder {}", folder.display()))?;
    let lock = lock(folder)?;
    if holds_run(folder)? {
        let message = "was taken by another run meanwhile; wait for it and go on with it by --resume, or choose another folder";
        return Err(user(format!("{} {message}", folder.display())));
    }
    Ok(lock)
}

/// Holds the run folder until this process ends, however it ends: two at once would write into each other's checkpoints.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join(CHECKPOINTS).join(LOCK);
    // Not the folder above it: one that was removed meanwhile is not made again.
    let made = fs::create_dir(folder.join(CHECKPOINTS)).or_else(|e| match e.kind() {
        ErrorKind::AlreadyExists => Ok(()),
        _ => Err(e),
    });
    let file = made
        .and_then(|()| File::options().append(true).create(true).open(&path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let message = "is being trained by another process; wait until it has ended, or end it";
            Err(user(format!("{} {message}", folder.display())))
        }
        // Not every file system has locks; a folder on such a one is not refused.
        _ => Ok(file),
    }
}

fn step_plan<'a>(run: &RunFile, train: &'a Dataset) -> StepPlan<'a> {
    let training = &run.training;
    StepPlan::new(train, setup::order(run), setup::batch_size(run), training.epochs, training.max_steps)
}

/// The optimizer steps of the run, of which there must be one at least.
fn steps(settings: &Settings, plan: &StepPlan<'_>) -> anyhow::Result<u64> {
    match plan.steps().min(settings.run.training.max_steps.unwrap_or(u64::MAX)) {
        0 => Err(settings.refuse("data.train", "has weights so small that these epochs visit no example")),
        steps => Ok(steps),
    }
}

fn needs(eval: Option<&Dataset>, plan: &StepPlan<'_>, threads: usize) -> Needs {
    let eval = eval.map_or(&[][..], |e| &e.examples);
    let repeated = Some(plan.repeated(eval).iter().sum());
    Needs { demand: plan.demand(eval), repeated, beside: setup::resident_memory(), threads }
}

/// The frozen base and what is trained on it, with its initial values.
fn load(
    settings: &Settings,
    base: &Base,
    device: &compute::Device,
    trained: &Trained,
) -> anyhow::Result<(Decoder, Adapter)> {
    let run = &settings.run;
    let (precision, seed) = (run.precision.engine(), run.training.seed);
    let decoder = match base.stored {
        Some(_) => base.load(device, precision, setup::quantization(run))?,
        None if trained.peft.is_none() && run.adapter.init == run_file::Init::Gaussian => {
            eprintln!("note: {} has no weights; training begins from random ones", base.folder.display());
            Decoder::random(&base.config, device, precision, None, seed)
        }
        None => {
            let message = "names a folder without weights (model.safetensors); to train a model from nothing, set \
                           adapter.method: full and adapter.init: gaussian";
            return Err(settings.refuse("model", message));
        }
    };
    let mut adapter = Adapter::zeros(trained.layout.clone(), trained.dropout);
    match &run.adapter.init_from {
        Some(folder) => adapter.parameters = base.adapter(folder)?.parameters,
        None => adapter.initialize(setup::init(run), seed, &decoder),
    }
    Ok((decoder, adapter))
}

pub(super) fn loop_settings(run: &RunFile, sizes: Sizes) -> train::Settings {
    let training = &run.training;
    train::Settings {
        optimizer: setup::optimizer(run),
        schedule: setup::schedule(run),
        order: setup::order(run),
        epochs: training.epochs,
        max_steps: training.max_steps,
        batch_size: setup::batch_size(run),
        micro_batch_tokens: sizes.micro_batch_tokens,
        checkpointing: sizes.checkpointing,
        frozen_activations: sizes.frozen_memory,
        eval_every: training.eval_every,
        save_every: training.save_every,
        keep_checkpoints: training.keep_checkpoints,
        early_stopping_patience: training.early_stopping_patience,
        seed: training.seed,
    }
}

/// All that can be known before the first step, on stderr.
fn present(
    run: &RunFile,
    base: &Base,
    train: &Dataset,
    eval: Option<&Dataset>,
    tokenizer: &Tokenizer,
    trained: &Trained,
    memory: &MemoryPlan,
    sizes: Sizes,
    steps: u64,
    batch: Option<&str>,
) {
    let (all, some) = (base.config.parameter_count(), trained.layout.len() as u64);
    let family = base.config.family.model_type();
    eprintln!("model    {}: {family}, {} parameters", base.name, count(all as f64));
    let share = 100.0 * some as f64 / all as f64;
    eprintln!("trained  {} parameters ({share:.2} %)", count(some as f64));
    for (what, set) in [("data", Some(train)), ("held out", eval)] {
        let Some(report) = set.map(|s| &s.report) else { continue };
        let formats: Vec<&str> = report.files.iter().map(|f| f.format.name()).collect();
        let formats = formats.first().map_or(String::new(), |f| format!(", format {f}"));
        eprintln!(
            "{what:8} {} examples, {} tokens, {} of them carry loss{formats}",
            report.examples,
            count(report.tokens as f64),
            count(report.trained_tokens as f64)
        );
        report.warnings().iter().for_each(|w| eprintln!("warning: {w}"));
    }
    let (longest, context) = (train.report.longest, base.config.max_position_embeddings);
    if longest > context {
        eprintln!(
            "warning: the longest example has {longest} tokens, more than the {context} the model was made for."
        );
    }
    let what = if run.data.packing { "rows" } else { "examples" };
    eprintln!("steps    {steps} of {} {what}", setup::batch_size(run));
    if let Some(batch) = batch {
        eprintln!("batch    {batch}");
    }
    if let Some(warning) = rates(run, steps) {
        eprintln!("warning: {warning}");
    }
    eprintln!("memory   {} planned: {}", bytes(memory.total()), setup::parts(memory));
    if let Some(again) = sizes.computed_again_words(trained.layers(&base.config)) {
        eprintln!("backward {again}; it changes no result");
    }
    if let Some(paging) = sizes.paging() {
        eprintln!("paging   {paging}");
    }
    if let Some(kept) = sizes.kept() {
        eprintln!("kept     {kept}");
    }
    let runs = data::preview::runs(&train.examples[0], tokenizer);
    let segments = runs.iter().map(|(text, trained)| (text.as_str(), *trained));
    let (shown, cut) = terminal::cut_segments(segments, SHOWN);
    let shown = terminal::paint_segments(shown, terminal::stderr_colour());
    let cut = if cut { " ..." } else { "" };
    eprintln!("the first example, what is trained marked ({}):\n{shown}{cut}\n", train.examples[0].source);
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
        let rate = run.optimizer.learning_rate;
        format!(
            "the warm-up of {warmup} step{} (schedule.warmup) is not over when the run ends after {steps}: the learning rate \
             reaches {:.2e}, not the {rate:e} of optimizer.learning_rate",
            s(warmup),
            peak * rate
        )
    })
}

/// Tells on stderr what the loop does.
#[derive(Default)]
struct Narrator {
    progress: Option<Progress>,
    facts: String,
    /// Whether the result is what the run began with.
    unchanged: bool,
    /// What a run that was stopped on request goes on from.
    stopped_at: Option<PathBuf>,
}

impl Narrator {
    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Damaged { path, why } => {
                let path = path.display();
                self.note(&format!(
                    "warning: {path} is damaged ({why}); the run goes on from the checkpoint before it"
                ));
            }
            Event::Started { step, steps } => {
                if step > 0 {
                    self.note(&format!("going on after step {step}"));
                }
                self.progress = Some(Progress::items("training", steps, step));
            }
            Event::Step(metrics) => {
                self.facts =
                    terminal::training_facts(metrics.loss, metrics.tokens_per_second, metrics.memory_bytes);
                if let Some(progress) = &mut self.progress {
                    progress.set(metrics.step, &self.facts);
                }
            }
            Event::Evaluated(metrics) => {
                self.note(&format!("step {}: held-out loss {:.4}", metrics.step, metrics.eval_loss));
            }
            Event::Saved(path) => self.note(&format!("saved {}", path.display())),
            Event::Stopped(path) => self.stopped_at = Some(path.to_owned()),
            Event::StoppedEarly { step, eval_loss } => {
                self.note(&format!(
                    "stopped early: the best held-out loss was {eval_loss:.4} at step {step}"
                ));
            }
            Event::Unchanged => self.unchanged = true,
        }
    }

    /// A line of its own, above the progress if there is any.
    fn note(&self, line: &str) {
        match &self.progress {
            Some(progress) => progress.note(line),
            None => eprintln!("{line}"),
        }
    }

    fn conclude(self, outcome: Outcome, folder: &Path) -> ExitCode {
        if let Some(progress) = self.progress {
            progress.finish(&self.facts);
        }
        let folder = folder.display();
        match (outcome, self.stopped_at) {
            (Outcome::Finished, _) if self.unchanged => eprintln!(
                "warning: nothing was trained: every value of the result in {folder} is what it was before the first step"
            ),
            (Outcome::Finished, _) => eprintln!("the result is in {folder}"),
            (Outcome::AlreadyFinished, _) => eprintln!("{folder} is finished already; nothing to do"),
            (Outcome::Interrupted, checkpoint) => {
                let checkpoint = checkpoint.expect("a run that is stopped tells what it saved");
                eprintln!("stopped on request, all is in {}; go on with --resume", checkpoint.display());
                return ExitCode::from(STOPPED);
            }
        }
        ExitCode::SUCCESS
    }
}
