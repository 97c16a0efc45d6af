//! All runs of a sweep: gathered, put into companies that share a base and fit into the memory, and trained.

use std::sync::atomic::{AtomicBool, Ordering};

use model::adapter::peft::folder::AdapterFolder;
use model::{Adapter, Decoder};
use train::{History, Outcome, Together, Trainer};

use super::contender::{Contender, State};
use super::narrator::Narrator;
use super::pool::Pool;
use crate::cli::Global;
use crate::commands::train::{Prepared, advised, load, risen};
use crate::run_file::Member;
use crate::run_folder;
use crate::setup::{self, Beside, Company};

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

impl<'g> Field<'g> {
    /// Reads all input of all runs, and plans them. Nothing is written yet.
    ///
    /// # Errors
    /// If something is wrong with a run, or it does not fit into the memory even alone.
    pub(super) fn gather(members: Vec<Member>, global: &'g Global, quiet: bool) -> anyhow::Result<Self> {
        let mut pool = Pool::new(&members, global);
        let (mut companies, mut groups) = (Vec::<String>::new(), Vec::new());
        let (mut contenders, mut warnings) = (Vec::new(), Vec::new());
        for member in members {
            let contender = pool.prepare(member)?;
            for warning in contender.prepared.warnings() {
                if !warnings.contains(&warning) {
                    eprintln!("warning: {warning}");
                    warnings.push(warning);
                }
            }
            // A run without company has a group of its own.
            let known = companies.iter().position(|other| Some(other) == contender.company.as_ref());
            groups.push(known.unwrap_or(companies.len()));
            if known.is_none() {
                companies.push(contender.company.clone().unwrap_or_default());
            }
            contenders.push(contender);
        }
        let budget = |group: usize| {
            let first = groups.iter().position(|of| *of == group).expect("a group has a run");
            let prepared: &Prepared = &contenders[first].prepared;
            setup::budget(&prepared.settings.run, prepared.needs.beside)
        };
        let budgets = (0..companies.len()).map(budget).collect();
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
            prepared.job(decoder, adapter, folder, stop, pause)
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
        if !setup::leaves_base(&first.settings.run) {
            let Prepared { settings, base, initial, trained, .. } = first;
            // Two bases at once may be one too many.
            self.loaded = None;
            let (decoder, adapter) = load(settings, base, initial.as_ref(), &device, trained)?;
            self.loaded = Some((group, decoder));
            return Ok(vec![adapter]);
        }
        self.load(company[0])?;
        let decoder = &self.loaded.as_ref().expect("just loaded").1;
        company.iter().map(|&n| self.contenders[n].prepared.begin(decoder)).collect()
    }

    /// Loads the base of a run that leaves it as it is, unless it is there.
    fn load(&mut self, n: usize) -> anyhow::Result<()> {
        let group = self.groups[n];
        if self.loaded.as_ref().is_some_and(|(of, _)| *of == group) {
            return Ok(());
        }
        self.loaded = None;
        let Prepared { settings, base, .. } = &self.contenders[n].prepared;
        let (precision, quantization) = (settings.run.precision.engine(), setup::quantization(&settings.run));
        self.loaded = Some((group, base.load(&self.global.device()?, precision, quantization)?));
        Ok(())
    }

    /// Runs of the same number share a base.
    pub(super) fn group(&self, n: usize) -> usize {
        self.groups[n]
    }

    /// The adapter that a run came to, and its base, which it leaves as it is.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub(super) fn result(&mut self, n: usize) -> anyhow::Result<(&Decoder, Adapter)> {
        self.load(n)?;
        let Contender { prepared, folder, .. } = &self.contenders[n];
        let adapter =
            AdapterFolder::open(folder, &prepared.base.config, None)?.read(&self.global.device()?)?;
        Ok((&self.loaded.as_ref().expect("just loaded").1, adapter))
    }
}
