//! Trains a server's fine-tuning jobs over the base that it serves: each is a run as `luthier train` makes it,
//! in a folder of its own, and ends in the same bytes.

use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use model::Decoder;
use serde_json::Value;
use server::tuning::{Ended, Plan, Setting, Task, Told};
use train::{Event, History, Outcome, Trainer};

use crate::cli::Global;
use crate::commands::train::{Prepared, risen};
use crate::run_file::{Method, Override, Precision, Purpose, Settings};
use crate::run_folder;
use crate::setup::{self, Base, Beside, Company};

/// Rows of a step: all who train wait for it.
const MOST_ROWS: usize = 256;

/// Trains over a base that is in memory.
pub(super) struct Tuner {
    pub(super) decoder: Arc<Decoder>,
    /// What the base is called on the command line, and how it is held.
    pub(super) model: String,
    pub(super) precision: Precision,
    pub(super) quantization: Option<compute::quant::Format>,
    /// What was typed of the settings that jobs begin with.
    pub(super) defaults: Vec<String>,
    /// The part of the time that training gets while requests are computed.
    pub(super) share: f64,
    /// Bytes of the base's weights.
    pub(super) loaded: u64,
    /// The largest rank that the engine has room for.
    pub(super) max_rank: usize,
    pub(super) global: Global,
}

/// A job whose input has been read.
struct Member {
    place: usize,
    prepared: Prepared,
    begun: i64,
    lock: Option<File>,
    /// Whether its folder holds a run.
    is_resumed: bool,
    company: String,
}

impl Tuner {
    /// The settings of a run over this base.
    fn settings(
        &self,
        settings: &[Setting],
        data: &Path,
        held_out: Option<&Path>,
        output: &Path,
    ) -> anyhow::Result<Settings> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let precision = match self.precision {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        };
        let mut overrides = Override::sets(&self.defaults)?;
        overrides.push(Override::flag("--model", "model", &self.model));
        overrides.push(Override::flag("--precision", "precision", precision));
        if let Some(format) = self.quantization {
            overrides.push(Override::flag("--quantization", "quantization", format.name()));
        }
        overrides.push(Override::flag("training_file", "data.train", &text(data)));
        overrides.extend(held_out.map(|path| Override::flag("validation_file", "data.eval", &text(path))));
        overrides.push(Override::flag("--state", "output", &text(output)));
        for Setting { field, key, value } in settings {
            overrides.push(Override::parsed(field, key, &value.to_string())?);
        }
        let settings = Settings::resolve(None, overrides)?;
        settings.validate(Purpose::Train)?;
        if !setup::leaves_base(&settings.run) {
            let message =
                "changes the base, which requests use as it is; choose another one, or `luthier train`";
            let is_whole = settings.run.adapter.method == Method::Full;
            return Err(settings.refuse(if is_whole { "adapter.method" } else { "adapter.init" }, message));
        }
        // What is trained here is to be served here, and a step of one is a step of all.
        let mut settled = settings.run.clone();
        setup::settle_by_model(&mut settled, &self.decoder.config);
        let layout = setup::trained(&settled, &self.decoder.config, &self.model)?.layout;
        if layout.max_rank() > self.max_rank {
            let message = format!(
                "makes ranks up to {}; this server's --max-rank is {}",
                layout.max_rank(),
                self.max_rank
            );
            return Err(settings.refuse("adapter.r", message));
        }
        if let Some(group) = layout.smallest_group().filter(|group| *group < infer::SMALLEST_GROUP) {
            let message =
                format!("is {group}; of what is served it must be {} or more", infer::SMALLEST_GROUP);
            return Err(settings.refuse("adapter.group_size", message));
        }
        if setup::batch_size(&settings.run) > MOST_ROWS {
            let message = format!(
                "is {}; of a job on a server it may be {MOST_ROWS}",
                setup::batch_size(&settings.run)
            );
            return Err(settings.refuse("training.batch_size", message));
        }
        Ok(settings)
    }

    /// Refuses settings of the command line that no job could train with.
    pub(super) fn check_defaults(&self) -> anyhow::Result<()> {
        let nowhere = Path::new("unknown.jsonl");
        self.settings(&[], nowhere, None, nowhere).map(drop)
    }

    /// Reads the input of a job.
    fn prepare(&self, place: usize, task: &Task, base: &Rc<Base>) -> anyhow::Result<Member> {
        let mut settings =
            self.settings(&task.settings, &task.training, task.validation.as_deref(), &task.folder)?;
        if task.rate != 1.0 {
            let mut usual = settings.run.clone();
            setup::settle_by_model(&mut usual, &base.config);
            settings.run.optimizer.learning_rate = Some(setup::learning_rate(&usual) * task.rate);
        }
        let is_resumed = run_folder::holds_run(&task.folder)?;
        let lock = if is_resumed { Some(run_folder::lock(&task.folder)?) } else { None };
        let company = setup::company_of(&settings.run);
        if is_resumed {
            run_folder::go_on(&task.folder, true, &mut settings.run)?;
        }
        let begun = run_folder::begun(&task.folder, is_resumed);
        let prepared = Prepared::over(
            settings,
            Rc::clone(base),
            None,
            &mut None,
            Some(begun),
            self.loaded,
            &self.global,
        )?;
        Ok(Member { place, prepared, begun, lock, is_resumed, company })
    }

    /// Those that train together next: the first job, and those after it that can be with it and fit.
    fn company(&self, mut members: Vec<Member>) -> (Vec<Member>, train::Together) {
        let company = members[0].company.clone();
        members.retain(|member| member.company == company);
        fn beside(member: &Member) -> Beside<'_> {
            let Prepared { settings, trained, needs, sizes, .. } = &member.prepared;
            Beside { run: &settings.run, trained, needs: *needs, sizes: *sizes }
        }
        let Prepared { settings, base, needs, .. } = &members[0].prepared;
        let budget = setup::budget(&settings.run, needs.beside.saturating_add(self.loaded));
        let runs: Vec<Beside<'_>> = members.iter().map(beside).collect();
        let Company { runs, together, .. } =
            Company::fitting(&base.config, base.stored.as_ref(), &runs, budget);
        members.truncate(runs);
        (members, together)
    }

    /// Trains jobs that fit, and tells how each ended.
    ///
    /// # Errors
    /// If something went wrong that may be about any of those that had not ended.
    fn train_company(
        &self,
        tasks: &[Task],
        members: Vec<Member>,
        tell: &mut dyn FnMut(usize, Told),
    ) -> Result<(), String> {
        let (members, together) = self.company(members);
        let (mut company, mut adapters) = (Vec::new(), Vec::new());
        for mut member in members {
            let begun = Self::claim(&tasks[member.place], &mut member)
                .and_then(|()| member.prepared.begin(&self.decoder));
            match begun {
                Ok(adapter) => {
                    if !member.is_resumed {
                        let warnings = member.prepared.warnings();
                        warnings.into_iter().for_each(|words| tell(member.place, Told::Warning(words)));
                    }
                    company.push(member);
                    adapters.push(adapter);
                }
                Err(error) => tell(member.place, Told::Ended(failed(&error))),
            }
        }
        if company.is_empty() {
            return Ok(());
        }
        let jobs = company.iter().zip(adapters).map(|(Member { place, prepared, .. }, adapter)| {
            let Task { folder, stop, .. } = &tasks[*place];
            prepared.job(&self.decoder, adapter, folder, stop, None)
        });
        let trainer = Trainer::open_all(jobs.collect(), together).map_err(|error| error.to_string())?;
        let mut of_company = None;
        trainer.run_all(&mut |number, event| {
            let (member, place) = (&company[number], company[number].place);
            let ended = match event {
                Event::Ended(Ok(Outcome::Interrupted | Outcome::Paused)) => Ended::Interrupted,
                Event::Ended(Ok(Outcome::Finished | Outcome::AlreadyFinished)) => {
                    match self.end(member, &tasks[place].folder) {
                        Ok((tokens, warning)) => {
                            warning.into_iter().for_each(|words| tell(place, Told::Warning(words)));
                            Ended::Finished { tokens }
                        }
                        Err(error) => failed(&error),
                    }
                }
                // Of those nothing is told, since each may go on.
                Event::Ended(Err(error)) if error.is_of_company() => {
                    of_company = Some(error.to_string());
                    return;
                }
                Event::Ended(Err(error)) if is_full(error) => Ended::Full,
                Event::Ended(Err(error)) => Ended::Failed(error.to_string()),
                other => return told(other).into_iter().for_each(|told| tell(place, told)),
            };
            tell(place, Told::Ended(ended));
        });
        of_company.map_or(Ok(()), Err)
    }

    /// Makes or takes over the folder of a job.
    fn claim(task: &Task, member: &mut Member) -> anyhow::Result<()> {
        if member.lock.is_none() {
            member.lock = Some(run_folder::begin(&task.folder)?);
        }
        member.prepared.claim(&task.folder, member.begun)
    }

    /// What belongs to a result; its tokens, and what a person should know.
    fn end(&self, member: &Member, folder: &Path) -> anyhow::Result<(u64, Option<String>)> {
        let history = History::read(folder)?;
        let Prepared { settings, base, .. } = &member.prepared;
        run_folder::write_card(folder, &settings.run, &base.name, &history)?;
        Ok((history.steps.iter().map(|step| step.tokens).sum(), risen(&history)))
    }
}

/// How a job ended that met an error.
fn failed(error: &anyhow::Error) -> Ended {
    if is_full(error.as_ref()) { Ended::Full } else { Ended::Failed(format!("{error:#}")) }
}

/// Whether an error is that the disk has no room.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let kind = |error: &(dyn std::error::Error + 'static)| Some(error.downcast_ref::<io::Error>()?.kind());
    causes.any(|error| kind(error) == Some(io::ErrorKind::StorageFull))
}

/// What a client is told of an event.
fn told(event: Event<'_>) -> Option<Told> {
    Some(match event {
        Event::Started { step, steps, .. } => Told::Started { step, steps },
        Event::Step(step) => Told::Step {
            step: step.step,
            loss: step.loss,
            grad_norm: step.grad_norm,
            learning_rate: step.learning_rate,
        },
        Event::Evaluated { metrics, .. } => Told::Evaluated { step: metrics.step, loss: metrics.eval_loss },
        Event::Saved(path) => Told::Saved(path.to_owned()),
        Event::Damaged { why, .. } => {
            Told::Warning(format!("a checkpoint is damaged ({why}); the job goes on from the one before it"))
        }
        Event::StoppedEarly { step, eval_loss } => {
            Told::Warning(format!("stopped early: the best held-out loss was {eval_loss:.4} at step {step}"))
        }
        Event::Forgot { divergence, .. } => Told::Warning(format!(
            "ended: the divergence from the base, {divergence:.4}, is beyond training.forgetting_limit"
        )),
        Event::Unchanged => Told::Warning("nothing was trained".into()),
        Event::NoEffect => Told::Warning("every B of the adapter is zero, so it changes nothing".into()),
        Event::Measured { .. } | Event::Stopped(_) | Event::Ended(_) => return None,
    })
}

impl server::tuning::Tuner for Tuner {
    fn check(&self, settings: &[Setting], rate: f64, held_out: bool) -> Result<(), (String, String)> {
        let nowhere = Path::new("unknown.jsonl");
        let wrong = |settings: &[Setting], held_out: bool| {
            let held_out = held_out.then_some(nowhere);
            self.settings(settings, nowhere, held_out, nowhere).err().map(|error| format!("{error:#}"))
        };
        if let Some(why) = wrong(settings, held_out) {
            // The one to blame is one without which that is not what is wrong.
            let is_to_blame = |left_out: &usize| {
                let mut rest = settings.to_vec();
                rest.remove(*left_out);
                wrong(&rest, held_out).as_ref() != Some(&why)
            };
            let field = match (0..settings.len()).find(is_to_blame) {
                Some(place) => settings[place].field.as_str(),
                None if held_out && wrong(settings, false).as_ref() != Some(&why) => "validation_file",
                None => "model",
            };
            return Err((field.to_owned(), why));
        }
        match rate.is_finite() && rate > 0.0 {
            true => Ok(()),
            false => Err(("learning_rate_multiplier".into(), format!("must be above 0, and is {rate}"))),
        }
    }

    fn plan(&self, task: &Task) -> Result<Plan, String> {
        let planned = || {
            let base = Rc::new(Base::open(&self.model)?);
            let prepared = self.prepare(0, task, &base)?.prepared;
            let run = &prepared.settings.run;
            anyhow::Ok(Plan {
                epochs: prepared.epochs(),
                batch_size: setup::batch_size(run),
                learning_rate: setup::learning_rate(run),
                steps: prepared.steps,
                seed: run.training.seed,
            })
        };
        planned().map_err(|error| format!("{error:#}"))
    }

    fn train(&self, tasks: &[Task], tell: &mut dyn FnMut(usize, Told)) -> Result<(), String> {
        let _yielding = compute::yielding(self.share);
        let base = Rc::new(Base::open(&self.model).map_err(|error| format!("{error:#}"))?);
        let mut members = Vec::new();
        for (place, task) in tasks.iter().enumerate() {
            if task.stop.load(Ordering::Relaxed) {
                tell(place, Told::Ended(Ended::Interrupted));
                continue;
            }
            match self.prepare(place, task, &base) {
                Ok(member) => members.push(member),
                Err(error) => tell(place, Told::Ended(failed(&error))),
            }
        }
        if members.is_empty() { Ok(()) } else { self.train_company(tasks, members, tell) }
    }

    fn metrics(&self, task: &Task) -> Result<Vec<Value>, String> {
        let History { steps, evaluations, forgetting } =
            History::read(&task.folder).map_err(|error| error.to_string())?;
        let steps = steps.iter().map(serde_json::to_value);
        let evaluations = evaluations.iter().map(serde_json::to_value);
        let forgetting = forgetting.iter().map(serde_json::to_value);
        steps
            .chain(evaluations)
            .chain(forgetting)
            .map(|line| line.map_err(|error| error.to_string()))
            .collect()
    }
}
