//! The optimizer's loop, over one run or several that share their base.
//!
//! A step is: the examples that the plan names, in micro-batches that fit the memory; the sum of token losses
//! over the whole step divided by its trained tokens, whatever the micro-batches; clip; update; a line of
//! metrics. Nothing that a step does depends on anything but the state at its beginning, so a run that is
//! stopped anywhere and resumed writes the bytes of one that was not.
//!
//! Nor does it depend on the runs beside it: each has its own order of examples, seed, rates and number of
//! steps, and ends in the bytes that it comes to alone. They have in common the frozen base, the buffers, and
//! the passes ([`pass_all`]).

use model::memory::{Allocator, Component, MemoryPlan};
use model::{Activations, Adapter, Config, Extent, FrozenActivations, FrozenExtent, Layout, Parameters};

use crate::course::Course;
use crate::error::{Result, TrainError};
use crate::job::{Event, Job, Outcome, Together};
use crate::metrics::StepMetrics;
use crate::optimizer::{Optimizer, OptimizerSettings};
use crate::pass::{Room, Underway, pass_all};

/// What a run trains, as far as memory is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Planned<'a> {
    /// The trained tensors.
    pub layout: &'a Layout,
    /// Probability with which inputs are dropped.
    pub dropout: f32,
    /// The moments.
    pub optimizer: OptimizerSettings,
}

/// The memory of the trained tensors, gradients and moments of runs that train together, and of activations,
/// without the base. `frozen`: what is kept of what frozen layers give, of a run alone.
pub fn memory_plan(
    config: &Config,
    runs: &[Planned<'_>],
    extent: Extent,
    frozen: Option<FrozenExtent<'_>>,
) -> MemoryPlan {
    let mut planning = Allocator::planning();
    for &Planned { layout, optimizer, .. } in runs {
        Adapter::count(layout, &mut planning);
        Parameters::zeros(layout, Component::Gradients, &mut planning);
        Optimizer::new(optimizer, layout, &mut planning);
    }
    buffers(config, runs.iter().map(|run| (run.layout, run.dropout)), extent, frozen, &mut planning);
    planning.into_plan()
}

/// The buffers of passes for all of these adapters.
fn buffers<'l>(
    config: &Config,
    adapters: impl Iterator<Item = (&'l Layout, f32)> + Clone,
    extent: Extent,
    frozen: Option<FrozenExtent<'_>>,
    allocator: &mut Allocator,
) -> Activations {
    let layout = Layout::joint(adapters.clone().map(|(layout, _)| layout));
    let dropout = adapters.map(|(_, dropout)| dropout).fold(0.0, f32::max);
    let frozen = frozen
        .and_then(|frozen| FrozenActivations::new(config, &layout, extent.precision, frozen, allocator));
    Activations::new(config, &layout, dropout, extent, allocator).keeping_frozen(frozen)
}

/// Runs a job to its end, from its last checkpoint if it has one.
pub fn train(job: Job<'_>, observe: &mut dyn FnMut(Event<'_>)) -> Result<Outcome> {
    Trainer::open(job)?.run(observe)
}

/// Runs that stand at their last checkpoints, or at their beginning.
#[derive(Debug)]
pub struct Trainer<'a> {
    pub(crate) room: Room<'a>,
    pub(crate) runs: Vec<Course<'a>>,
    /// The place of each run in the list of jobs, and of those that could not be taken up.
    places: Vec<usize>,
    broken: Vec<(usize, TrainError)>,
    memory: MemoryPlan,
}

impl<'a> Trainer<'a> {
    /// Takes up a job where its last checkpoint that is whole left it. No other process may be at work in its
    /// folder.
    ///
    /// # Errors
    /// If there are checkpoints and none is whole, or the last is of other data, or there is no room for what
    /// is not to be in memory.
    pub fn open(job: Job<'a>) -> Result<Self> {
        let together = Together::alone(&job.settings);
        let mut trainer = Trainer::open_all(vec![job], together)?;
        match trainer.broken.pop() {
            Some((_, error)) => Err(error),
            None => Ok(trainer),
        }
    }

    /// Takes up several jobs over one base, to train together. What frozen layers give is kept for a run
    /// alone only. A job that [`Trainer::open`] would refuse is left out, and ends with that error.
    ///
    /// # Errors
    /// If no job can be taken up, or there is no room for what is not to be in memory.
    ///
    /// # Panics
    /// If there is no job, they have different bases, or they round weights to different types.
    pub fn open_all(jobs: Vec<Job<'a>>, together: Together) -> Result<Self> {
        let decoder = jobs.first().expect("there is a job").decoder;
        assert!(jobs.iter().all(|job| std::ptr::eq(job.decoder, decoder)), "runs over one base");
        let mut allocator = Allocator::real(&decoder.device);
        let (mut runs, mut places, mut broken) = (Vec::new(), Vec::new(), Vec::new());
        for (place, job) in jobs.into_iter().enumerate() {
            match Course::new(job, &mut allocator) {
                Ok(run) => {
                    runs.push(run);
                    places.push(place);
                }
                Err(error) => broken.push((place, error)),
            }
        }
        if runs.is_empty() {
            return Err(broken.remove(0).1);
        }
        let extent = together.extent(runs.iter().map(|run| run.alone));
        let (mut lengths, mut kept) = (Vec::new(), None);
        if let [run] = &runs[..] {
            lengths = run.plan.repeated(run.eval);
            kept = run.settings.frozen_activations;
        }
        let frozen = kept.map(|memory| FrozenExtent { lengths: &lengths, memory });
        let adapters = runs.iter().map(|run| (&run.adapter.layout, run.adapter.dropout));
        let mut buffers = buffers(&decoder.config, adapters, extent, frozen, &mut allocator);
        let opened = buffers.open(runs[0].folder()).map_err(TrainError::of_pages);
        opened.map_err(|error| runs[0].ended(error))?;
        let (mut whole, mut whole_places) = (Vec::new(), Vec::new());
        for (place, mut run) in places.into_iter().zip(runs) {
            match run.restore() {
                Ok(()) => {
                    whole.push(run);
                    whole_places.push(place);
                }
                Err(e @ (TrainError::Checkpoint { .. } | TrainError::Setting { .. })) => {
                    broken.push((place, e))
                }
                Err(e) => broken.push((place, run.ended(e))),
            }
        }
        let room = Room { decoder, buffers };
        Ok(Trainer { room, runs: whole, places: whole_places, broken, memory: allocator.into_plan() })
    }

    /// What was allocated, for adapters too: what [`memory_plan`] counts.
    pub fn memory(&self) -> &MemoryPlan {
        &self.memory
    }

    /// Steps that the first run has done.
    pub fn step_done(&self) -> u64 {
        self.runs[0].step_done()
    }

    /// Whether the results of all runs are written: there is nothing left to do.
    pub fn finished(&self) -> bool {
        self.runs.iter().all(Course::finished)
    }

    /// Runs a job to the end, or until it is asked to stop.
    ///
    /// # Errors
    /// If a number is no longer finite, or a file cannot be written or read; the error tells what there is to
    /// go on from. There is no result then.
    ///
    /// # Panics
    /// If there are several jobs.
    pub fn run(self, observe: &mut dyn FnMut(Event<'_>)) -> Result<Outcome> {
        assert_eq!(self.runs.len(), 1, "several runs end in several ways");
        self.run_all(&mut |_, event| observe(event)).pop().expect("there is a run")
    }

    /// Runs all jobs to their ends. What happens is told with the job's place in the list, and so is how each
    /// ended, at once and in the list that is returned: an error, as [`Trainer::run`] has it, ends only its
    /// own run, unless it is in a pass of several ([`TrainError::is_of_company`]).
    pub fn run_all(mut self, observe: &mut dyn FnMut(usize, Event<'_>)) -> Vec<Result<Outcome>> {
        let Trainer { room, runs, places, broken, .. } = &mut self;
        let broken: Vec<(usize, Result<Outcome>)> =
            broken.drain(..).map(|(place, error)| (place, Err(error))).collect();
        broken.iter().for_each(|(place, end)| observe(*place, Event::Ended(end)));
        let mut observe = |run: usize, event: Event<'_>| observe(places[run], event);
        let mut ends = Ends(runs.iter().map(|_| None).collect());
        for (i, run) in runs.iter_mut().enumerate() {
            let end = run.start(&mut |event| observe(i, event));
            ends.note(i, run, end, &mut observe);
        }
        loop {
            for (i, run) in ends.going(runs) {
                let end = run.before_step(room, &mut |event| observe(i, event));
                ends.note(i, run, end, &mut observe);
            }
            let (numbers, mut going): (Vec<usize>, Vec<&mut Course<'a>>) =
                ends.going(runs).into_iter().unzip();
            if numbers.is_empty() {
                let ended = ends.0.into_iter().map(|end| end.expect("all runs have ended"));
                let mut all: Vec<(usize, Result<Outcome>)> = places.iter().copied().zip(ended).collect();
                all.extend(broken);
                all.sort_by_key(|(place, _)| *place);
                return all.into_iter().map(|(_, end)| end).collect();
            }
            match step(room, &mut going) {
                Ok(steps) => {
                    for ((i, run), step) in numbers.into_iter().zip(going).zip(steps) {
                        let end =
                            step.and_then(|step| run.after_step(room, &step, &mut |event| observe(i, event)));
                        ends.note(i, run, end, &mut observe);
                    }
                }
                Err(error) => {
                    let cause = error.to_string();
                    let mut alone = Some(error).filter(|_| numbers.len() == 1);
                    for (i, run) in numbers.into_iter().zip(going) {
                        let beside = || TrainError::Beside { cause: cause.clone() };
                        let error = alone.take().unwrap_or_else(beside);
                        ends.note(i, run, Err(error), &mut observe);
                    }
                }
            }
        }
    }

    /// One optimizer step of every run: gradients of its examples, clipping, update. [`Trainer::run_all`]
    /// does this and all that belongs around it.
    ///
    /// # Errors
    /// If the loss or the gradient of a run is no longer a finite number, or what is not in memory cannot be
    /// written or read.
    pub fn step(&mut self) -> Result<Vec<StepMetrics>> {
        let mut runs: Vec<&mut Course<'a>> = self.runs.iter_mut().collect();
        step(&mut self.room, &mut runs)?.into_iter().collect()
    }
}

/// One step of each of these runs.
fn step<'a>(room: &mut Room<'a>, runs: &mut [&mut Course<'a>]) -> Result<Vec<Result<StepMetrics>>> {
    let device = &room.decoder.device;
    let mut steps: Vec<Underway> = runs.iter_mut().map(|run| run.begin_step(device)).collect();
    let mut passing: Vec<_> = runs.iter_mut().map(|run| &mut **run).zip(steps.iter_mut()).collect();
    pass_all(room, &mut passing)?;
    Ok(runs.iter_mut().zip(steps).map(|(run, underway)| run.end_step(device, underway)).collect())
}

/// How the runs ended that have.
struct Ends(Vec<Option<Result<Outcome>>>);

impl Ends {
    /// A run has ended, which is told, or goes on.
    fn note(
        &mut self,
        place: usize,
        run: &Course<'_>,
        end: Result<Option<Outcome>>,
        observe: &mut dyn FnMut(usize, Event<'_>),
    ) {
        let end = end.map_err(|error| run.ended(error)).transpose();
        end.iter().for_each(|end| observe(place, Event::Ended(end)));
        self.0[place] = end;
    }

    /// The runs that go on, with their places.
    fn going<'r, 'a>(&self, runs: &'r mut [Course<'a>]) -> Vec<(usize, &'r mut Course<'a>)> {
        runs.iter_mut().enumerate().filter(|(place, _)| self.0[*place].is_none()).collect()
    }
}
