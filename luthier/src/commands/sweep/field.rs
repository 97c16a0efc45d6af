//! All runs of a sweep: gathered, put into companies that share a base and fit into the memory, and trained.

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use model::{Adapter, Decoder};
use train::{History, Job, Outcome, Together, Trainer};

use super::contender::{Contender, State};
use super::narrator::Narrator;
use crate::cli::Global;
use crate::commands::train::{
    Examples, Prepared, adopt_initial_adapter, advised, load, loop_settings, risen, saving,
};
use crate::run_file::{Member, Method, RunFile};
use crate::run_folder;
use crate::setup::{self, Base, Beside, Company};

/// The runs, and the base that is loaded.
pub(super) struct Field<'g> {
    pub(super) contenders: Vec<Contender>,
    /// Runs with the same number share a base and their examples.
    groups: Vec<usize>,
    /// Bytes that each group may have; none: nobody knows.
    budgets: Vec<Option<u64>>,
    /// The base of a group, until another one is needed.
    loaded: Option<(usize, Decoder)>,
    global: &'g Global,
    quiet: bool,
}

/// What runs have in common that share a base, in words.
fn shared(run: &RunFile) -> String {
    let training = &run.training;
    let seed = run.data.eval_fraction.map(|_| training.seed);
    let of = (&run.model, run.precision, &run.quantization, run.memory, data_of(run), seed);
    let how = (training.checkpointing, training.activation_offloading, training.activation_precision);
    serde_json::to_string(&(of, how, training.quantization_aware)).expect("settings are plain data")
}

/// What decides a run's examples.
fn data_of(run: &RunFile) -> String {
    let seed = run.data.eval_fraction.map(|_| run.training.seed);
    serde_json::to_string(&(&run.model, &run.data, seed)).expect("settings are plain data")
}

/// Whether a run leaves the base as the others have it, and begins apart from it.
fn leaves_base(run: &RunFile) -> bool {
    run.adapter.method != Method::Full && !run.adapter.init.engine().decomposes()
}

impl<'g> Field<'g> {
    /// Reads all input of all runs, and plans them. Nothing is written yet.
    ///
    /// # Errors
    /// If something is wrong with a run, or it does not fit into the memory even alone.
    pub(super) fn gather(members: Vec<Member>, global: &'g Global, quiet: bool) -> anyhow::Result<Self> {
        let (mut bases, mut examples) = (Vec::<Rc<Base>>::new(), Vec::<(String, Option<Examples>)>::new());
        let (mut keys, mut groups, mut contenders) = (Vec::<String>::new(), Vec::new(), Vec::new());
        // What chat templates tell of the time is what the first process told them, whichever runs are new.
        let mut folders = members.iter().filter_map(|member| member.settings.run.output.as_deref());
        let known = folders.find(|folder| folder.join(run_folder::SETTINGS).exists());
        let begun = run_folder::begun(known.unwrap_or(Path::new("")), known.is_some());
        let mut warnings = Vec::new();
        for (n, Member { name, changes, mut settings }) in members.into_iter().enumerate() {
            let folder = settings.run.output.clone().expect("each run has a folder");
            let resumed = run_folder::holds_run(&folder)?;
            let lock = if resumed { Some(run_folder::lock(&folder)?) } else { None };
            let model = settings.run.model.clone().expect("validated");
            let base = match bases.iter().find(|base| base.name == model) {
                Some(base) => base.clone(),
                None => {
                    bases.push(Rc::new(Base::open(&model)?));
                    bases[bases.len() - 1].clone()
                }
            };
            let initial = adopt_initial_adapter(&mut settings, &base)?;
            // What runs over the same data have in common is asked before a part of it is settled.
            let (mut key, data) = (shared(&settings.run), data_of(&settings.run));
            if !leaves_base(&settings.run) {
                key += &format!(" {n}");
            }
            let mut state = State::Waiting;
            if resumed {
                let saved = run_folder::settings(&folder);
                run_folder::go_on(&folder, true, &mut settings.run)?;
                let length = |run: &RunFile| (run.training.epochs, run.training.max_steps);
                let grown = saved.is_none_or(|saved| length(&saved) != length(&settings.run));
                if !grown && Contender::has_result(&folder) {
                    state = State::Finished;
                }
            }
            let place = match examples.iter().position(|(of, _)| *of == data) {
                Some(place) => place,
                None => {
                    examples.push((data, None));
                    examples.len() - 1
                }
            };
            let known = &mut examples[place].1;
            let prepared = Prepared::over(settings, base, initial, known, Some(begun), global)?;
            let new = prepared.warnings().into_iter().filter(|warning| !warnings.contains(warning));
            let new: Vec<String> = new.collect();
            new.iter().for_each(|warning| eprintln!("warning: {warning}"));
            warnings.extend(new);
            let group = keys.iter().position(|other| *other == key).unwrap_or_else(|| {
                keys.push(key);
                keys.len() - 1
            });
            groups.push(group);
            contenders.push(Contender { name, changes, folder, prepared, begun, lock, state });
        }
        let budget = |group: usize| {
            let first = groups.iter().position(|of| *of == group).expect("a group has a run");
            let prepared: &Prepared = &contenders[first].prepared;
            setup::budget(&prepared.settings.run, prepared.needs.beside)
        };
        let budgets = (0..keys.len()).map(budget).collect();
        if !quiet && let Some(Contender { prepared, .. }) = contenders.first() {
            eprintln!("sweep    {} runs over {}; the first:", contenders.len(), prepared.base.name);
            prepared.lines_of_data().iter().for_each(|line| eprintln!("{line}"));
        }
        Ok(Field { contenders, groups, budgets, loaded: None, global, quiet })
    }

    /// Makes and holds the folders of all runs.
    pub(super) fn claim(&mut self) -> anyhow::Result<()> {
        self.contenders.iter_mut().try_for_each(Contender::claim)
    }

    /// Runs that have not come to their end do not come to it any more: a person stopped the sweep.
    pub(super) fn interrupt(&mut self) {
        for contender in self.contenders.iter_mut().filter(|c| c.state == State::Waiting) {
            contender.state = State::Interrupted;
        }
    }

    /// Trains some of the runs to their ends, or to a step where all of them pause.
    pub(super) fn train(
        &mut self,
        some: &[usize],
        pause: Option<u64>,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let going = |field: &Self, n: &usize| field.contenders[*n].state == State::Waiting;
        let all: Vec<usize> = some.iter().copied().filter(|n| going(self, n)).collect();
        let steps = |n: &usize| self.contenders[*n].steps().min(pause.unwrap_or(u64::MAX));
        let steps: Vec<(usize, u64)> = all.iter().map(|n| (*n, steps(n))).collect();
        let names = self.contenders.iter().map(|contender| contender.name.clone()).collect();
        let mut narrator = Narrator::new(names, &steps, self.quiet);
        for group in 0..self.budgets.len() {
            let mut left: Vec<usize> = all.iter().copied().filter(|n| self.groups[*n] == group).collect();
            while !left.is_empty() && !stop.load(Ordering::Relaxed) {
                let company = self.company(group, &left);
                narrator.tell_company(&company, left.len());
                let rest = left.split_off(company.runs);
                self.train_company(group, &left, company.together, pause, stop, &mut narrator)?;
                left = rest;
            }
        }
        narrator.finish();
        Ok(())
    }

    /// Which of these runs of a group train together next.
    fn company(&self, group: usize, left: &[usize]) -> Company {
        let beside = |n: &usize| -> Beside<'_> {
            let Prepared { settings, trained, needs, sizes, .. } = &self.contenders[*n].prepared;
            Beside { run: &settings.run, trained, needs: *needs, sizes: *sizes }
        };
        let runs: Vec<Beside<'_>> = left.iter().map(beside).collect();
        let base = &self.contenders[left[0]].prepared.base;
        Company::fitting(&base.config, base.stored.as_ref(), &runs, self.budgets[group])
    }

    fn train_company(
        &mut self,
        group: usize,
        company: &[usize],
        together: Together,
        pause: Option<u64>,
        stop: &AtomicBool,
        narrator: &mut Narrator,
    ) -> anyhow::Result<()> {
        let adapters = self.adapters(group, company)?;
        let decoder = &self.loaded.as_ref().expect("the adapters are for a base that is loaded").1;
        let jobs = company.iter().zip(adapters).map(|(&n, adapter)| {
            let Contender { prepared, folder, .. } = &self.contenders[n];
            Job {
                decoder,
                adapter,
                saving: saving(&prepared.trained, &prepared.base, folder),
                train: &prepared.data.train,
                eval: prepared.data.held_out(),
                settings: loop_settings(&prepared.settings.run, prepared.sizes),
                folder,
                stop,
                pause,
            }
        });
        let trainer = Trainer::open_all(jobs.collect(), together)?;
        let outcomes = trainer.run_all(&mut |place, event| narrator.tell(company[place], event));
        for (&n, outcome) in company.iter().zip(outcomes) {
            let contender = &mut self.contenders[n];
            contender.state = match outcome {
                Ok(Outcome::Paused) => State::Waiting,
                Ok(Outcome::Interrupted) => State::Interrupted,
                Ok(Outcome::Finished | Outcome::AlreadyFinished) => State::Finished,
                Err(error) => State::Failed(format!("{:#}", advised(error, &contender.folder))),
            };
            match &contender.state {
                State::Finished => {
                    let history = History::read(&contender.folder)?;
                    let Prepared { settings, base, .. } = &contender.prepared;
                    run_folder::write_card(&contender.folder, &settings.run, &base.name, &history)?;
                    if let Some(warning) = risen(&history) {
                        narrator.warn(n, &warning);
                    }
                }
                State::Failed(why) => narrator.warn(n, why),
                _ => {}
            }
        }
        Ok(())
    }

    /// The adapters of a company at their beginnings, over their base, which is loaded if it is not there.
    fn adapters(&mut self, group: usize, company: &[usize]) -> anyhow::Result<Vec<Adapter>> {
        let device = self.global.device()?;
        let first = &self.contenders[company[0]].prepared;
        if !leaves_base(&first.settings.run) {
            let Prepared { settings, base, initial, trained, .. } = first;
            // Two bases at once may be one too many.
            self.loaded = None;
            let (decoder, adapter) = load(settings, base, initial.as_ref(), &device, trained)?;
            self.loaded = Some((group, decoder));
            return Ok(vec![adapter]);
        }
        if self.loaded.as_ref().is_none_or(|(of, _)| *of != group) {
            self.loaded = None;
            let run = &first.settings.run;
            let decoder = first.base.load(&device, run.precision.engine(), setup::quantization(run))?;
            self.loaded = Some((group, decoder));
        }
        let decoder = &self.loaded.as_ref().expect("just loaded").1;
        let begin = |&n: &usize| -> anyhow::Result<Adapter> {
            let Prepared { settings, initial, trained, .. } = &self.contenders[n].prepared;
            let mut adapter = Adapter::zeros(trained.layout.clone(), trained.dropout, &decoder.device);
            match initial {
                Some(files) => adapter.parameters = files.read(&decoder.device)?.parameters,
                None => {
                    let run = &settings.run;
                    adapter.initialize(run.adapter.init.engine(), run.training.seed, decoder);
                }
            }
            Ok(adapter)
        };
        company.iter().map(begin).collect()
    }
}
