//! What the runs of a sweep are made of and share: bases and examples, each opened and read once.

use std::path::Path;
use std::rc::Rc;

use crate::cli::Global;
use crate::commands::train::{Examples, Prepared, adopt_initial_adapter};
use crate::run_file::{Member, RunFile};
use crate::run_folder;
use crate::setup::{self, Base};

use super::contender::{Contender, State};

pub(super) struct Pool<'g> {
    bases: Vec<Rc<Base>>,
    /// By what decides them.
    examples: Vec<(String, Option<Examples>)>,
    /// The time that chat templates tell.
    begun: i64,
    global: &'g Global,
}

impl<'g> Pool<'g> {
    /// Nothing is read yet.
    pub(super) fn new(members: &[Member], global: &'g Global) -> Self {
        // The time that the first process told, whichever runs are new now.
        let mut folders = members.iter().filter_map(|member| member.settings.run.output.as_deref());
        let known = folders.find(|folder| folder.join(run_folder::SETTINGS).exists());
        let begun = run_folder::begun(known.unwrap_or(Path::new("")), known.is_some());
        Pool { bases: Vec::new(), examples: Vec::new(), begun, global }
    }

    fn base(&mut self, model: &str) -> anyhow::Result<Rc<Base>> {
        if let Some(base) = self.bases.iter().find(|base| base.name == model) {
            return Ok(base.clone());
        }
        let base = Rc::new(Base::open(model)?);
        self.bases.push(base.clone());
        Ok(base)
    }

    /// The place of the examples that these words decide.
    fn examples(&mut self, data: String) -> &mut Option<Examples> {
        let place = self.examples.iter().position(|(of, _)| *of == data).unwrap_or_else(|| {
            self.examples.push((data, None));
            self.examples.len() - 1
        });
        &mut self.examples[place].1
    }

    /// Reads all input of a run, and plans it. Nothing is written yet.
    ///
    /// # Errors
    /// If something is wrong with it, or it does not fit into the memory even alone, or its folder holds a
    /// run with other settings.
    pub(super) fn prepare(&mut self, member: Member) -> anyhow::Result<Contender> {
        let Member { name, changes, mut settings } = member;
        let folder = settings.run.output.clone().expect("each run has a folder");
        let resumed = run_folder::holds_run(&folder)?;
        let lock = if resumed { Some(run_folder::lock(&folder)?) } else { None };
        let base = self.base(settings.run.model.as_deref().expect("validated"))?;
        let initial = adopt_initial_adapter(&mut settings, &base)?;
        // What runs have in common is asked before a part of it is settled.
        let data = setup::data_of(&settings.run);
        let company = setup::leaves_base(&settings.run).then(|| setup::company_of(&settings.run) + &data);
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
        let (begun, global) = (self.begun, self.global);
        let prepared = Prepared::over(settings, base, initial, self.examples(data), Some(begun), 0, global)?;
        Ok(Contender { name, changes, folder, prepared, company, begun, lock, state })
    }
}
