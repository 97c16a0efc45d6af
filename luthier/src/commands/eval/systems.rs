//! What is evaluated: a base and adapters over it, which is in memory once.

use std::path::Path;
use std::sync::Arc;

use compute::Device;
use compute::Precision;
use compute::quant::Format;
use model::adapter::peft::folder::AdapterFolder;
use model::memory::Allocator;
use model::{Activations, Adapter, Decoder, Extent, Layout, Purpose};

use crate::cli;
use crate::error::user;
use crate::hub;
use crate::run_file::Settings;
use crate::run_folder;
use crate::setup::{self, Base, Inference, Subject};

/// Half of the longest example is proposed where the memory is not enough, but no less than this.
const SHORTEST: usize = 128;

/// One of what is compared.
pub(super) struct System {
    /// The base's title, or what the user called the adapter.
    pub(super) name: String,
    /// None: the base.
    pub(super) adapter: Option<Adapter>,
    /// Whether it is the base as its files hold it, though the others' base is quantized on loading.
    unquantized: bool,
}

impl System {
    pub(super) fn layout(&self) -> Layout {
        self.adapter.as_ref().map(|adapter| adapter.layout.clone()).unwrap_or_default()
    }
}

/// All that is compared.
pub(super) struct Systems {
    pub(super) base: Base,
    /// The base first, if it is one of them.
    pub(super) all: Vec<System>,
}

impl Systems {
    /// Opens what the arguments name. What the first adapter's run remembers is lent to settings that were
    /// left open.
    ///
    /// # Errors
    /// If an adapter does not fit the base, or changes it for the others.
    pub(super) fn open(
        args: &cli::Systems,
        settings: &mut Settings,
        device: &Device,
    ) -> anyhow::Result<Self> {
        let twice = |(n, name): &(usize, &String)| args.adapter[..*n].contains(name);
        if let Some((_, name)) = args.adapter.iter().enumerate().find(twice) {
            return Err(user(format!("--adapter {name} stands twice; each adapter is evaluated once")));
        }
        let first = args.adapter.first().map(String::as_str);
        let subject = Subject::open(args.model.as_deref(), first, device)?;
        subject.lend(settings);
        let Subject { base, adapter, .. } = subject;
        setup::check_model(settings, &base.config)?;
        let mut all = Vec::new();
        let mut title = base.title();
        if args.unquantized {
            if settings.run.quantization.is_none() {
                let message = "--unquantized puts the base as its files hold it beside one that is quantized on loading, \
                               and nothing quantizes it here: add --set quantization=nf4, or another type";
                return Err(user(message));
            }
            all.push(System { name: title.clone(), adapter: None, unquantized: true });
            title = format!("{title} in {}", settings.run.value("quantization"));
        }
        let changes_base = base.changed_by.is_some();
        if changes_base && args.adapter.len() > 1 {
            let first = &args.adapter[0];
            let message = "has weights of the base itself in its file, so others cannot be put beside it";
            return Err(user(format!("{first} {message}; evaluate it by itself")));
        }
        if first.is_none() || !(args.no_base || changes_base) {
            all.push(System { name: title, adapter: None, unquantized: false });
        } else if !args.no_base {
            eprintln!(
                "note: the adapter has weights of the base itself in its file, so the base is left out"
            );
        }
        let others = args.adapter.iter().skip(1).map(|name| other(name, &base, device));
        let adapters = adapter.into_iter().map(Ok).chain(others);
        for (name, adapter) in args.adapter.iter().zip(adapters) {
            all.push(System { name: called(name), adapter: Some(adapter?), unquantized: false });
        }
        distinguish(&mut all, &args.adapter);
        Ok(Systems { base, all })
    }

    /// What is needed to hold the base, in the largest of the ways that are asked for.
    pub(super) fn inference(&self, settings: &Settings, threads: usize) -> Inference<'_> {
        let (precision, quantization) = held(settings);
        let quantization = quantization.filter(|_| !self.has_unquantized());
        Inference {
            config: &self.base.config,
            stored: self.base.stored.as_ref(),
            precision,
            quantization,
            threads,
        }
    }

    fn has_unquantized(&self) -> bool {
        self.all.iter().any(|system| system.unquantized)
    }

    /// What needs less, with what is to be typed for it.
    pub(super) fn smaller<'a>(&self, inference: Inference<'a>) -> Vec<(String, Inference<'a>)> {
        let quantization = match self.has_unquantized() {
            true => "no --unquantized",
            false => "--set quantization=nf4",
        };
        inference.smaller(quantization, "--set precision=bf16")
    }

    /// The sizes of a pass over examples of which the longest has so many tokens, if it fits into the memory;
    /// `tokens`: those that pass together, by the longest example's.
    pub(super) fn extent(
        &self,
        settings: &Settings,
        threads: usize,
        longest: usize,
        tokens: impl Fn(usize) -> usize,
    ) -> anyhow::Result<Extent> {
        let extent = |longest: usize, precision| {
            let purpose = Purpose::Infer;
            Extent { tokens: tokens(longest), positions: longest, purpose, precision }
        };
        let need = |inference: Inference<'_>, longest: usize| {
            let buffers = |layout: &Layout| {
                let (mut planning, config) = (Allocator::planning(), inference.config);
                Activations::new(config, layout, 0.0, extent(longest, inference.precision), &mut planning);
                planning.into_plan()
            };
            let plans = self.all.iter().map(|system| buffers(&system.layout()));
            let largest = plans.max_by_key(|plan| plan.total()).expect("there is a system");
            inference.plan(&largest, longest)
        };
        let inference = self.inference(settings, threads);
        setup::check_memory("the evaluation", &need(inference, longest), settings.run.memory, || {
            let half = longest / 2;
            let shorter = (longest > 2 * SHORTEST)
                .then(|| (format!("--set data.max_length={half}"), need(inference, half)));
            let smaller =
                self.smaller(inference).into_iter().map(|(words, other)| (words, need(other, longest)));
            shorter.into_iter().chain(smaller).collect()
        })?;
        Ok(extent(longest, inference.precision))
    }
}

/// The base in memory, in one way at a time.
pub(super) struct Holder<'a> {
    base: &'a Base,
    device: &'a Device,
    precision: Precision,
    quantization: Option<Format>,
    /// How it is held now.
    now: Option<(Option<Format>, Arc<Decoder>)>,
}

impl<'a> Holder<'a> {
    pub(super) fn new(base: &'a Base, settings: &Settings, device: &'a Device) -> Self {
        let (precision, quantization) = held(settings);
        Holder { base, device, precision, quantization, now: None }
    }

    /// The base as a system has it. It is loaded if it is not held so, in place of what is held.
    pub(super) fn decoder(&mut self, system: &System) -> anyhow::Result<Arc<Decoder>> {
        let wanted = self.quantization.filter(|_| !system.unquantized);
        if self.now.as_ref().is_none_or(|(quantization, _)| *quantization != wanted) {
            self.now = None;
            let decoder = self.base.load(self.device, self.precision, wanted)?;
            self.now = Some((wanted, Arc::new(decoder)));
        }
        Ok(Arc::clone(&self.now.as_ref().expect("just loaded").1))
    }
}

/// How the base is held.
fn held(settings: &Settings) -> (Precision, Option<Format>) {
    (settings.run.precision.engine(), setup::quantization(&settings.run))
}

/// A further adapter, which leaves the base as it is.
fn other(name: &str, base: &Base, device: &Device) -> anyhow::Result<Adapter> {
    let folder = hub::resolve_adapter(name)?;
    run_folder::require_adapter(&folder)?;
    let files = AdapterFolder::open(&folder, &base.config, None)?;
    files.require_unchanged_base()?;
    files.notes.iter().for_each(|note| eprintln!("note: {note}"));
    Ok(files.read(device)?)
}

/// The last part of a path.
fn called(name: &str) -> String {
    Path::new(name).file_name().map_or_else(|| name.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Calls adapters by all that was typed where their short names are not enough.
fn distinguish(all: &mut [System], typed: &[String]) {
    let short: Vec<String> = all.iter().map(|system| system.name.clone()).collect();
    let adapters = all.iter_mut().filter(|system| system.adapter.is_some()).zip(typed);
    for (system, typed) in adapters {
        if short.iter().filter(|other| **other == system.name).count() > 1 {
            system.name = typed.clone();
        }
    }
}
