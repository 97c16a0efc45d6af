//! All that can be known of a run before its first step: data, steps, memory, time.

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use data::{Dataset, Example, Tokenizer};
use model::adapter::peft::folder::AdapterFolder;
use model::memory::MemoryPlan;
use model::{Adapter, Decoder};
use serde_json::json;
use train::{Amount, Forgetting, History, Job, StepPlan, Trainer};

use super::answering::Answering;
use super::{REHEARSAL, load, loop_settings, rates, saving};
use crate::cli::Global;
use crate::forgetting;
use crate::plot::smoothed;
use crate::run_file::{self, Method, RunFile, Settings};
use crate::run_folder;
use crate::setup::{self, Base, ENOUGH_STEPS, Needs, Sizes, Trained};
use crate::terminal::live::View;
use crate::terminal::{self, bytes, count, rough};

/// Columns of the first example that are shown.
const SHOWN: usize = 1200;

/// Examples and the tokenizer that made them, which runs over the same data share.
#[derive(Clone)]
pub(in crate::commands) struct Examples {
    pub(in crate::commands) tokenizer: Rc<Tokenizer>,
    pub(in crate::commands) train: Rc<Dataset>,
    pub(in crate::commands) eval: Option<Rc<Dataset>>,
}

impl Examples {
    /// Reads the examples that a run's settings name.
    fn read(run: &RunFile, base: &Base, begun: Option<i64>) -> anyhow::Result<Self> {
        let tokenizer = base.tokenizer()?;
        let (train, eval) = setup::datasets(run, Some(&base.config), &tokenizer, begun)?;
        Ok(Examples { tokenizer: Rc::new(tokenizer), train: Rc::new(train), eval: eval.map(Rc::new) })
    }

    /// The held-out ones, if any.
    pub(in crate::commands) fn held_out(&self) -> &[Example] {
        self.eval.as_ref().map_or(&[], |eval| &eval.examples)
    }
}

/// A run whose input has been read and whose open settings are settled.
pub(in crate::commands) struct Prepared {
    pub(in crate::commands) settings: Settings,
    pub(in crate::commands) base: Rc<Base>,
    /// The adapter that training begins from.
    pub(in crate::commands) initial: Option<AdapterFolder>,
    pub(in crate::commands) data: Examples,
    /// What tells whether the model forgets, if that is measured.
    compared: Vec<Example>,
    pub(in crate::commands) trained: Trained,
    pub(in crate::commands) needs: Needs,
    pub(in crate::commands) sizes: Sizes,
    pub(super) memory: MemoryPlan,
    /// Bytes that the plan leaves of what the run may have; none: nobody knows.
    pub(super) spare: Option<u64>,
    pub(in crate::commands) steps: u64,
    /// Steps of an epoch.
    epoch_steps: u64,
    /// Settings that were left open and did not become what is usual: a word for each, and why.
    settled: Vec<(&'static str, String)>,
}

impl Prepared {
    /// Reads the examples, settles what was left open, and plans the memory. `begun`: the time that chat
    /// templates tell.
    ///
    /// # Errors
    /// If something is wrong with the input, or it does not fit into the memory.
    pub(in crate::commands) fn new(
        settings: Settings,
        base: Base,
        initial: Option<AdapterFolder>,
        begun: Option<i64>,
        global: &Global,
    ) -> anyhow::Result<Self> {
        Prepared::over(settings, Rc::new(base), initial, &mut None, begun, 0, global)
    }

    /// [`Prepared::new`] over a base and, once they have been read, examples that other runs use, too. `loaded`:
    /// bytes of the base's weights that are in memory already.
    pub(in crate::commands) fn over(
        mut settings: Settings,
        base: Rc<Base>,
        initial: Option<AdapterFolder>,
        data: &mut Option<Examples>,
        begun: Option<i64>,
        loaded: u64,
        global: &Global,
    ) -> anyhow::Result<Self> {
        base.files.check_quantization(setup::quantization(&settings.run))?;
        setup::check_model(&settings, &base.config)?;
        let mut settled = setup::settle_by_model(&mut settings.run, &base.config);
        let data = match data {
            Some(data) => data.clone(),
            None => data.insert(Examples::read(&settings.run, &base, begun)?).clone(),
        };
        let (train, eval) = (&data.train, data.eval.as_deref());
        settled.extend(setup::settle_by_data(&mut settings.run, &base.config, train, eval));
        let run = &settings.run;
        let trained = setup::trained(run, &base.config, &base.name)?;
        let plan = step_plan(run, train);
        let steps = match plan.steps().min(run.training.max_steps.unwrap_or(u64::MAX)) {
            0 => {
                let message = "has weights so small that these epochs visit no example";
                return Err(settings.refuse("data.train", message));
            }
            steps => steps,
        };
        let held_out = data.held_out();
        let repeated = Some(plan.repeated(held_out).iter().sum());
        let beside = setup::resident_memory().saturating_sub(loaded);
        let compared = compared(run, &base, &data.tokenizer, begun)?;
        let needs =
            Needs { demand: plan.demand(held_out, &compared), repeated, beside, threads: global.threads() };
        let epoch_steps = train.rows(&setup::order(run)).len().div_ceil(setup::batch_size(run)) as u64;
        setup::check_frozen(&settings, &base.config, &trained.layout, needs.repeated)?;
        let (sizes, memory) = setup::fit(run, &base.config, base.stored.as_ref(), &trained, needs)?;
        let spare = setup::budget(run, needs.beside).map(|budget| budget.saturating_sub(memory.total()));
        Ok(Prepared {
            settings,
            base,
            initial,
            data,
            compared,
            trained,
            needs,
            sizes,
            memory,
            spare,
            steps,
            epoch_steps,
            settled,
        })
    }

    /// Makes the folder, which this process holds, the run's: settings, and the tokenizer with its template.
    pub(in crate::commands) fn claim(&mut self, folder: &Path, begun: i64) -> anyhow::Result<()> {
        let Prepared { settings, base, data, sizes, .. } = self;
        sizes.settle(&mut settings.run);
        run_folder::claim(folder, &settings.run, begun)?;
        let template = run_folder::template_source(&settings.run, &data.tokenizer, &data.train)?;
        run_folder::write_tokenizer(base.tokenizer_folder()?, template.as_deref(), folder)
    }

    /// What is trained at its beginning, over a base that it leaves as it is.
    pub(in crate::commands) fn begin(&self, decoder: &Decoder) -> anyhow::Result<Adapter> {
        let (trained, run) = (&self.trained, &self.settings.run);
        let mut adapter = Adapter::zeros(trained.layout.clone(), trained.dropout, &decoder.device);
        match &self.initial {
            Some(files) => adapter.parameters = files.read(&decoder.device)?.parameters,
            None => adapter.initialize(run.adapter.init.engine(), run.training.seed, decoder),
        }
        Ok(adapter)
    }

    /// The run, as the loop takes it.
    pub(in crate::commands) fn job<'a>(
        &'a self,
        decoder: &'a Decoder,
        adapter: Adapter,
        folder: &'a Path,
        stop: &'a AtomicBool,
        pause: Option<u64>,
    ) -> Job<'a> {
        Job {
            decoder,
            adapter,
            saving: saving(&self.trained, &self.base, folder),
            train: &self.data.train,
            eval: self.data.held_out(),
            forgetting: self.forgetting(),
            settings: loop_settings(&self.settings.run, self.sizes),
            folder,
            stop,
            pause,
        }
    }

    /// What is measured of forgetting.
    fn forgetting(&self) -> Option<Forgetting<'_>> {
        let training = &self.settings.run.training;
        let (texts, limit) = (&self.compared[..], training.forgetting_limit);
        training.forgetting_every.map(|every| Forgetting { texts, every, limit })
    }

    /// What a person should know before the first step.
    pub(in crate::commands) fn warnings(&self) -> Vec<String> {
        let run = &self.settings.run;
        let mut warnings = setup::warnings(&self.data.train.report, &self.base.config);
        let of_held_out =
            self.data.eval.iter().flat_map(|eval| setup::warnings(&eval.report, &self.base.config));
        let held_out: Vec<String> = of_held_out.filter(|warning| !warnings.contains(warning)).collect();
        warnings.extend(held_out.into_iter().map(|warning| format!("held out: {warning}")));
        warnings.extend(rates(run, self.steps).or_else(|| self.few_steps()));
        warnings
    }

    /// That the run has few steps, and the settings that make more.
    fn few_steps(&self) -> Option<String> {
        let run = &self.settings.run;
        if self.steps >= ENOUGH_STEPS {
            return None;
        }
        let mut more = Vec::new();
        if run.training.max_steps.is_some_and(|most| most <= self.steps) {
            more.push("a larger training.max_steps".to_owned());
        } else {
            more.push(format!("training.epochs: {}", ENOUGH_STEPS.div_ceil(self.epoch_steps.max(1))));
        }
        if setup::batch_size(run) > 1 {
            more.push("a smaller training.batch_size".to_owned());
        } else if run.data.packing && self.data.train.examples.len() as u64 > self.epoch_steps {
            more.push("data.packing: false".to_owned());
        }
        Some(format!(
            "the run has only {} step{}, and few models learn much in fewer than {ENOUGH_STEPS}; more of them: {}",
            self.steps,
            if self.steps == 1 { "" } else { "s" },
            more.join(", or ")
        ))
    }

    /// Shows all of it on stderr.
    pub(super) fn present(&self) {
        let Prepared { base, trained, sizes, memory, .. } = self;
        let (all, some) = (base.config.parameter_count(), trained.layout.len() as u64);
        let family = base.config.family.model_type();
        eprintln!("model    {}: {family}, {} parameters", base.name, count(all as f64));
        let share = 100.0 * some as f64 / all as f64;
        eprintln!("trained  {} parameters ({share:.2} %)", count(some as f64));
        self.lines_of_data().iter().for_each(|line| eprintln!("{line}"));
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
        let runs = self.first_example();
        let segments = runs.iter().map(|(text, trained)| (text.as_str(), *trained));
        let (shown, cut) = terminal::cut_segments(segments, SHOWN);
        let shown = terminal::paint_segments(shown, terminal::stderr_colour());
        let cut = if cut { " ..." } else { "" };
        let source = &self.data.train.examples[0].source;
        eprintln!("the first example, what is trained marked ({source}):\n{shown}{cut}\n");
    }

    /// Pieces of the first example's text, and whether they are trained on.
    fn first_example(&self) -> Vec<(String, bool)> {
        data::preview::runs(&self.data.train.examples[0], &self.data.tokenizer)
    }

    /// What is seen of the run where it is watched, with what an earlier process did of it.
    pub(super) fn view(&self, folder: &Path, history: &History, answering: Option<&Answering<'_>>) -> View {
        let run = &self.settings.run;
        let trained = match run.adapter.method {
            Method::Full => "all weights".to_owned(),
            _ => format!("an adapter of rank {}", run.adapter.r),
        };
        View {
            title: format!("{trained} on {}, into {}", self.base.name, folder.display()),
            steps: self.steps,
            planned_bytes: self.memory.total() + answering.map_or(0, Answering::memory),
            losses: smoothed(history.steps.iter().map(|step| (step.step, step.loss))).collect(),
            held_out: history.evaluations.iter().map(|of| (of.step, of.eval_loss)).collect(),
            example: self.first_example(),
            answered: answering.map_or_else(Vec::new, Answering::prompts),
            colour: terminal::stderr_colour(),
            ..View::default()
        }
    }

    /// The examples, the steps they make, and what was settled by them.
    pub(in crate::commands) fn lines_of_data(&self) -> Vec<String> {
        let run = &self.settings.run;
        let mut lines = Vec::new();
        for (what, set) in [("data", Some(&self.data.train)), ("held out", self.data.eval.as_ref())] {
            let Some(report) = set.map(|s| &s.report) else { continue };
            let format =
                report.files.first().map_or(String::new(), |file| format!(", format {}", file.format));
            lines.push(format!(
                "{what:8} {} examples, {} tokens, {} of them carry loss{format}",
                report.examples,
                count(report.tokens as f64),
                count(report.trained_tokens as f64)
            ));
        }
        let Amount { tokens, .. } = self.amount();
        let epochs = self.epochs();
        lines.push(format!(
            "steps    {} of {}, {} tokens in {epochs} epoch{}",
            self.steps,
            setup::rows_in_words(run, setup::batch_size(run)),
            count(tokens as f64),
            if epochs == 1 { "" } else { "s" }
        ));
        lines.extend(self.settled.iter().map(|(what, why)| format!("{what:8} {why}")));
        lines
    }

    /// Epochs that the run begins.
    pub(in crate::commands) fn epochs(&self) -> u64 {
        step_plan(&self.settings.run, &self.data.train).epochs()
    }

    /// Steps, tokens and evaluations of the run.
    fn amount(&self) -> Amount {
        let run = &self.settings.run;
        let eval = (run.training.eval_every, self.data.held_out());
        step_plan(run, &self.data.train).amount(self.steps, eval, self.forgetting().as_ref())
    }

    /// How long the run takes, measured on its first micro-batches and some held-out examples. Loads the
    /// model.
    pub(in crate::commands) fn time(&self, global: &Global) -> anyhow::Result<Duration> {
        // What is not to be in memory lies in files, which are gone afterwards.
        let folder = match self.settings.run.output.as_deref().and_then(existing_above) {
            Some(above) => tempfile::tempdir_in(above),
            None => tempfile::tempdir(),
        }?;
        let (device, initial) = (global.device()?, self.initial.as_ref());
        let (decoder, adapter) = load(&self.settings, &self.base, initial, &device, &self.trained)?;
        let stop = Default::default();
        let job = self.job(&decoder, adapter, folder.path(), &stop, None);
        Ok(self.amount().time(Trainer::open(job)?.rehearse(REHEARSAL)?))
    }

    /// Measures and tells the time, and as JSON all of it in numbers.
    pub(super) fn tell_time(&self, global: &Global, as_json: bool) -> anyhow::Result<()> {
        let time = self.time(global)?;
        eprintln!("{}", line_of_time(time));
        if as_json {
            terminal::print_json(&self.json(time))?;
        }
        Ok(())
    }

    /// Its steps, the tokens that pass through the model in all of them, and the bytes that it is planned to need.
    pub(in crate::commands) fn extent(&self) -> (u64, u64, u64) {
        let Amount { steps, tokens, .. } = self.amount();
        (steps, tokens, self.memory.total())
    }

    /// What the run is, in numbers.
    pub(in crate::commands) fn json(&self, time: Duration) -> serde_json::Value {
        let Amount { steps, tokens, evaluations, .. } = self.amount();
        let set = |set: &Dataset| {
            json!({
                "examples": set.report.examples,
                "tokens": set.report.tokens,
                "trained_tokens": set.report.trained_tokens,
                "longest": set.report.longest,
            })
        };
        let run = &self.settings.run;
        json!({
            "steps": steps,
            "tokens": tokens,
            "evaluations": evaluations,
            "expected_seconds": time.as_secs_f64(),
            "epochs": self.epochs(),
            "batch_size": setup::batch_size(run),
            "max_length": setup::max_length(run, None),
            "learning_rate": setup::learning_rate(run),
            "data": set(&self.data.train),
            "held_out": self.data.eval.as_deref().map(set),
            "trainable_parameters": self.trained.layout.len(),
            "memory_bytes": self.memory.total(),
            "warnings": self.warnings(),
        })
    }
}

/// The nearest folder above a path that is there: it lies on the disk that the run will use.
fn existing_above(path: &Path) -> Option<&Path> {
    let above = path.ancestors().skip(1).find(|folder| folder.is_dir() || folder.as_os_str().is_empty())?;
    Some(if above.as_os_str().is_empty() { Path::new(".") } else { above })
}

/// The expected time in a line of those before a run.
pub(in crate::commands) fn line_of_time(time: Duration) -> String {
    format!(
        "time     about {} for the whole run, measured on a few batches, evaluations counted in",
        rough(time)
    )
}

/// The examples by which a run's settings measure forgetting.
fn compared(
    run: &RunFile,
    base: &Base,
    tokenizer: &Tokenizer,
    begun: Option<i64>,
) -> anyhow::Result<Vec<Example>> {
    match (run.training.forgetting_every, &run.training.forgetting_data) {
        (None, _) => Ok(Vec::new()),
        (Some(_), None) => forgetting::texts(tokenizer, base.config.max_position_embeddings),
        (Some(_), Some(path)) => {
            // Found by looking: other text seldom has the form of what is trained on.
            let mut run = run.clone();
            run.data.format = run_file::Format::Auto;
            let data = setup::dataset(&run, path, Some(&base.config), tokenizer, begun)?;
            let warnings = setup::warnings(&data.report, &base.config);
            warnings.iter().for_each(|warning| eprintln!("warning: training.forgetting_data: {warning}"));
            Ok(data.examples)
        }
    }
}

fn step_plan<'a>(run: &RunFile, train: &'a Dataset) -> StepPlan<'a> {
    let order = setup::order(run);
    StepPlan::new(train, order, setup::batch_size(run), setup::epochs(run), run.training.max_steps)
}
