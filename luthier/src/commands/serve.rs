//! `luthier serve`: a base and its adapters, behind OpenAI's interface, and Tinker's for training.

mod tinker;

mod tuning;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use data::{ChatTemplate, Tokenizer};
use infer::{Engine, Extent, Sums};
use model::adapter::peft::folder::AdapterFolder;
use model::memory::{Allocator, Component, MemoryPlan};
use model::{Adapter, Config, Decoder};
use serde_json::Value;
use server::{Chat, Limits, LoadedAdapter, Place, Setup, Tenants, Words};

use super::generate::{Stops, stops};
use crate::cli::{self, Global};
use crate::error::{fault, user};
use crate::hub;
use crate::run_folder;
use crate::setup::{self, Base, Inference, files};
use crate::signal;

/// The longest sequence where nobody says how long it is to be.
const USUAL_CONTEXT: usize = 8192;
/// More requests than anybody waits for.
const MOST_REQUESTS: usize = 1 << 20;
/// More connections than an address has ports.
const MOST_CONNECTIONS: usize = 1 << 20;
/// Tokens of the cache where nobody says how many it is to have.
const USUAL_CACHE: usize = 16384;

pub(super) fn run(args: cli::Serve, global: &Global) -> anyhow::Result<ExitCode> {
    let device = global.device()?;
    let tenants = tenants(args.keys.as_deref(), args.state.as_deref())?;
    // What can be wrong without the weights is known before they are read.
    let place = Place::take(&args.host, args.port, &tenants)?;
    let base = Base::open(&args.model)?;
    let tokenizer = Arc::new(base.tokenizer()?);
    let template = ChatTemplate::resolve(args.chat_template.as_deref(), &tokenizer)?;
    let extent = extent(&args, &base.config)?;
    check_memory(&args, &base, extent, device.threads())?;
    let words = Words::new(
        Arc::clone(&tokenizer),
        engine_stops(stops(&base.config, &tokenizer, None)),
        template.map(|template| chat(&base.config, &tokenizer, template)),
    );
    let adapters =
        args.adapter.iter().map(|named| Ok((named.name.clone(), hub::resolve_adapter(&named.adapter)?)));
    let adapters: Vec<(String, PathBuf)> = adapters.collect::<anyhow::Result<_>>()?;
    let decoder = Arc::new(base.load(&device, args.precision.engine(), args.quantization.0)?);
    let reader = Reader {
        decoder: Arc::clone(&decoder),
        tokenizer,
        max_rank: extent.max_rank,
        has_template: args.chat_template.is_some(),
    };
    let served_name = args.served_model_name.clone().unwrap_or_else(|| name(&base));
    let training = tinker::extent(&args, extent).map(|studio| {
        tinker::training(Arc::clone(&decoder), &base, &served_name, studio, args.training_share)
    });
    let tuner = match &args.state {
        None => None,
        Some(_) => Some(tuning::Tuner {
            decoder: Arc::clone(&decoder),
            model: args.model.clone(),
            precision: args.precision,
            quantization: args.quantization.0,
            defaults: args.set.set.clone(),
            share: args.training_share,
            loaded: decoder_bytes(&base, &args),
            max_rank: extent.max_rank,
            global: global.clone(),
        }),
    };
    if let Some(tuner) = &tuner {
        tuner.check_defaults()?;
    }
    let engine = Engine::new(decoder, extent);
    let setup = Setup {
        model: served_name,
        worker: Box::new(engine),
        words,
        loader: Box::new(move |path| reader.read(path)),
        adapters,
        adapter_root: args.adapter_root.clone(),
        adapter_bytes: Some(args.adapter_memory.0),
        state: args.state.clone(),
        tuner: tuner.map(|tuner| Arc::new(tuner) as _),
        training,
        tenants,
        limits: Limits {
            requests: args.requests.min(MOST_REQUESTS),
            connections: connections(args.connections),
            drain_time: Duration::from_secs(args.drain_time),
            ..Limits::of_context(extent.context)
        },
    };
    let model = setup.model.clone();
    let stop = signal::stop_on_request()?;
    let served = server::serve(place, setup, &stop, |address| {
        eprintln!("serving {model} at http://{address}");
    });
    match served {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(server::ServerError::EngineStopped) => Err(fault("the engine has stopped")),
        Err(error) => Err(error.into()),
    }
}

/// Bytes of the base's weights.
fn decoder_bytes(base: &Base, args: &cli::Serve) -> u64 {
    let (precision, quantization) = (args.precision.engine(), args.quantization.0);
    Decoder::base_memory(&base.config, base.stored.as_ref(), precision, quantization).total()
}

/// A file of keys alone counts; without one those of the state's folder do.
fn tenants(keys: Option<&Path>, state: Option<&Path>) -> anyhow::Result<Tenants> {
    let stored = state.map(Tenants::stored).transpose()?;
    let Some(path) = keys else { return Ok(stored.unwrap_or_else(Tenants::open_to_all)) };
    if stored.is_some_and(|stored| stored.has_keys()) {
        eprintln!("note: the keys in --state are not looked at, since those of --keys alone count");
    }
    Ok(Tenants::read(path)?)
}

/// As many connections as are asked for, or as the system allows.
fn connections(wanted: usize) -> usize {
    let most = files::connections(wanted.min(MOST_CONNECTIONS));
    if most < wanted {
        eprintln!("note: there can be {most} connections at once, not {wanted}: see `ulimit -n`");
    }
    most
}

/// What clients call the base.
fn name(base: &Base) -> String {
    match hub::is_id(&base.name) {
        true => base.name.split('@').next().unwrap_or_default().to_owned(),
        false => base.title(),
    }
}

fn extent(args: &cli::Serve, config: &Config) -> anyhow::Result<Extent> {
    let longest = config.max_position_embeddings;
    let context = args.context.unwrap_or(USUAL_CONTEXT.min(longest));
    if context > longest {
        return Err(user(format!("--context {context}: the model was made for {longest} tokens")));
    }
    let cached_tokens = args.cached_tokens.unwrap_or(USUAL_CACHE.max(context));
    if cached_tokens < context {
        return Err(user(format!(
            "--cached-tokens {cached_tokens} cannot hold one sequence of --context {context}: raise the one or \
             lower the other"
        )));
    }
    Ok(Extent {
        context,
        cached_tokens,
        step_tokens: args.step_tokens,
        running: args.running,
        max_rank: args.max_rank,
        sums: if args.exact_logprobs { Sums::Tiles } else { Sums::Rows },
    })
}

/// Refuses what does not fit into the memory: the base, the cache, the buffers of a step, and the adapters.
fn check_memory(args: &cli::Serve, base: &Base, extent: Extent, threads: usize) -> anyhow::Result<()> {
    let inference = Inference {
        config: &base.config,
        stored: base.stored.as_ref(),
        precision: args.precision.engine(),
        quantization: args.quantization.0,
        threads,
    };
    let studio = tinker::extent(args, extent);
    let has_adapters = args.adapter_root.is_some() || !args.adapter.is_empty() || studio.is_some();
    let studio = studio.map(|studio| tinker::memory_plan(&base.config, args, studio)).transpose()?;
    let need = |inference: Inference<'_>, cached_tokens: usize| {
        let extent = Extent { cached_tokens, ..extent };
        let buffers = Engine::memory_plan(inference.config, inference.precision, extent);
        let mut plan = inference.plan(&buffers, extent.context);
        plan.add(Component::Adapter, if has_adapters { args.adapter_memory.0 } else { 0 });
        plan
    };
    let with_studio = |mut plan: MemoryPlan| {
        studio.iter().for_each(|studio| plan.extend(studio));
        plan
    };
    let all = with_studio(need(inference, extent.cached_tokens));
    setup::check_memory("serving", &all, None, || {
        let fewer = extent.context;
        let fewer = (format!("--cached-tokens {fewer}"), with_studio(need(inference, fewer)));
        let idle = ("--training-memory 0".to_owned(), need(inference, extent.cached_tokens));
        let idle = studio.is_some().then_some(idle);
        let smaller = inference.smaller("--quantization nf4", "--precision bf16");
        let smaller =
            smaller.into_iter().map(|(words, other)| (words, with_studio(need(other, extent.cached_tokens))));
        [fewer].into_iter().chain(idle).chain(smaller).collect()
    })
}

fn engine_stops(stops: Stops) -> server::Stops {
    server::Stops { tokens: stops.tokens, text: stops.text }
}

/// How conversations are written with a template.
fn chat(config: &Config, tokenizer: &Tokenizer, template: ChatTemplate) -> Chat {
    let stops = engine_stops(stops(config, tokenizer, Some(&template)));
    Chat::new(template, stops)
}

/// Reads adapters for a base.
pub(super) struct Reader {
    pub(super) decoder: Arc<Decoder>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) max_rank: usize,
    /// Whether one chat template was named for all.
    pub(super) has_template: bool,
}

impl Reader {
    pub(super) fn read(&self, folder: &Path) -> Result<LoadedAdapter, String> {
        self.open(folder).map_err(|error| format!("{error:#}"))
    }

    fn open(&self, folder: &Path) -> anyhow::Result<LoadedAdapter> {
        run_folder::require_adapter(folder)?;
        let files = AdapterFolder::open(folder, &self.decoder.config, None)?;
        files.require_unchanged_base()?;
        files.notes.iter().for_each(|note| eprintln!("note: {note}"));
        let adapter = files.read(&self.decoder.device)?;
        let rank = adapter.layout.max_rank();
        if rank > self.max_rank {
            return Err(user(format!(
                "{}: its rank is {rank}, and --max-rank is {}",
                folder.display(),
                self.max_rank
            )));
        }
        // Here, and not on the engine's thread, whose other requests would wait.
        self.decoder.fix(&adapter);
        let mut counting = Allocator::planning();
        Adapter::count(&adapter.layout, &mut counting);
        let chat = match self.has_template {
            true => None,
            false => self.chat(folder)?,
        };
        let bytes = counting.into_plan().total();
        Ok(LoadedAdapter { adapter: Arc::new(adapter), rank, bytes, chat })
    }

    /// The chat template that the adapter was trained with, where its folder or its run has one.
    fn chat(&self, folder: &Path) -> anyhow::Result<Option<Chat>> {
        let run = run_folder::of_adapter(folder);
        for folder in [Some(folder), run.as_deref()].into_iter().flatten() {
            if let Some(source) = template_in(folder)? {
                let origin = folder.display().to_string();
                let template = ChatTemplate::compile(&source, &origin)?.with_special_tokens(&self.tokenizer);
                return Ok(Some(chat(&self.decoder.config, &self.tokenizer, template)));
            }
        }
        Ok(None)
    }
}

/// The chat template of a folder with a tokenizer: a file of its own, or in the tokenizer's configuration.
fn template_in(folder: &Path) -> anyhow::Result<Option<String>> {
    let read = |name: &str| {
        let path = folder.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    };
    if let Some(template) = read("chat_template.jinja")? {
        return Ok(Some(template));
    }
    let Some(text) = read("tokenizer_config.json")? else { return Ok(None) };
    let config: Value = serde_json::from_str(&text)
        .with_context(|| folder.join("tokenizer_config.json").display().to_string())?;
    Ok(config.get("chat_template").and_then(Value::as_str).map(str::to_owned))
}
