//! A server of ours on a loopback address, made for being measured.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use compute::random;
use data::Tokenizer;
use infer::{Engine, Extent, Sums};
use model::adapter::peft::files::save_adapter;
use model::{Adapter, Decoder};
use serde_json::{Map, Value, json};
use server::{Limits, Place, ServerError, Setup, Stops, Tenants, Words};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::super::{Subject, settings};
use super::Planned;
use super::client::Client;
use crate::cli::{self, Global};
use crate::commands::serve::Reader;
use crate::error::user;
use crate::setup;

/// Tokens of a step.
const STEP: usize = 512;
/// The base's name.
const BASE: &str = "base";
/// Who asks, each a tenant of its own with the name as its key.
const TENANTS: [&str; 2] = ["quiet", "greedy"];
/// Weights of the adapters, so that they change what comes.
const SIZE: f32 = 0.02;

/// The server, and who may ask it.
pub(super) struct Local {
    pub(super) client: Client,
    /// Another tenant.
    pub(super) greedy: Client,
    /// What is measured, in words and by its settings.
    pub(super) words: String,
    pub(super) facts: Value,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), ServerError>>,
    /// Its adapters and its keys.
    _folder: TempDir,
}

impl Local {
    /// Loads or makes the base, writes the adapters, and begins to serve.
    ///
    /// # Errors
    /// If a setting is wrong, or the folder of adapters cannot be written.
    pub(super) fn start(
        subject: &Subject,
        planned: &[Planned],
        args: &cli::BenchServe,
        global: &Global,
    ) -> anyhow::Result<Self> {
        let settings = settings(&args.bench)?;
        let (run, device) = (&settings.run, global.device()?);
        let trained = setup::trained(run, &subject.config, &subject.name)?;
        let decoder = Arc::new(subject.load(&device, run)?);
        let folder = tempfile::tempdir()?;
        let adapters = folder.path().join("adapters");
        fs::create_dir(&adapters)?;
        if args.adapters > 0 {
            let peft = trained.peft.as_ref();
            let peft =
                peft.ok_or_else(|| user("adapter.method full makes no adapter; choose another one"))?;
            let mut adapter = Adapter::zeros(trained.layout.clone(), 0.0, &device);
            for (i, value) in adapter.parameters.values_mut().f32().iter_mut().enumerate() {
                *value = SIZE * (2.0 * random::uniform(1, i as u64) as f32 - 1.0);
            }
            let first = adapters.join(name(0));
            save_adapter(&first, peft, &adapter.layout, &adapter.parameters)?;
            // The same bytes under many names: each is read and held as if it was another one.
            (1..args.adapters).try_for_each(|n| link_all(&first, &adapters.join(name(n))))?;
        }
        let running = args.parallel as usize;
        let longest = planned.iter().map(|of| of.prompt.len() + of.new).max().unwrap_or(1);
        let extent = Extent {
            context: longest,
            cached_tokens: running * longest.next_multiple_of(model::PAGE),
            step_tokens: STEP,
            running,
            max_rank: trained.layout.max_rank().max(1),
            sums: if args.exact_logprobs { Sums::Tiles } else { Sums::Rows },
        };
        let facts = json!({
            "shape": subject.name, "precision": run.precision, "quantization": run.quantization,
            "threads": device.threads(), "isa": device.isa(), "rank": trained.layout.max_rank(),
        });
        let words = format!(
            "{}, rank {}, {} threads, {}",
            subject.name,
            trained.layout.max_rank(),
            device.threads(),
            device.isa()
        );
        let tokenizer = Arc::new(tokenizer(subject)?);
        let keys = folder.path().join("keys.yaml");
        fs::write(&keys, TENANTS.map(entry).concat())?;
        let tenants = Tenants::read(&keys)?;
        let place = Place::take("127.0.0.1", 0, &tenants)?;
        let url = format!("http://{}", place.address());
        let setup = serve(decoder, tokenizer, extent, &adapters, tenants);
        let stop = Arc::new(AtomicBool::new(false));
        let raised = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("server".into())
            .spawn(move || server::serve(place, setup, &raised, |_| ()))?;
        let [client, greedy] = TENANTS.map(|key| Client::open(&url, Some(key)));
        Ok(Local { client: client?, greedy: greedy?, words, facts, stop, thread, _folder: folder })
    }

    /// Ends the server.
    ///
    /// # Errors
    /// If it has failed meanwhile.
    pub(super) fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join().map_err(|_| anyhow!("the server has failed"))?;
        Ok(ended?)
    }
}

/// What `luthier serve` would serve.
fn serve(
    decoder: Arc<Decoder>,
    tokenizer: Arc<Tokenizer>,
    extent: Extent,
    adapters: &Path,
    tenants: Tenants,
) -> Setup {
    let reader = Reader {
        decoder: Arc::clone(&decoder),
        tokenizer: Arc::clone(&tokenizer),
        max_rank: extent.max_rank,
        has_template: true,
    };
    Setup {
        model: BASE.into(),
        worker: Box::new(Engine::new(decoder, extent)),
        words: Words::new(tokenizer, Stops { tokens: Vec::new(), text: None }, None),
        loader: Box::new(move |path| reader.read(path)),
        adapters: Vec::new(),
        adapter_root: Some(adapters.to_owned()),
        adapter_bytes: None,
        state: None,
        tuner: None,
        training: None,
        tenants,
        limits: Limits { drain_time: Duration::from_secs(1), ..Limits::of_context(extent.context) },
    }
}

fn name(number: u32) -> String {
    format!("adapter-{number:04}")
}

/// A tenant as a file of keys has it.
fn entry(tenant: &str) -> String {
    let hash: String = Sha256::digest(tenant).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("- {{tenant: {tenant}, key_sha256: {hash}, adapters: ['*']}}\n")
}

/// Gives the files of a folder further names in another one.
fn link_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::hard_link(entry.path(), to.join(entry.file_name())).context("an adapter's further name")?;
    }
    Ok(())
}

/// The base's tokenizer; of a shape, which has none, one with a word for each token.
fn tokenizer(subject: &Subject) -> anyhow::Result<Tokenizer> {
    if let Some(base) = &subject.base {
        return base.tokenizer();
    }
    let words: Map<String, Value> =
        (0..subject.config.vocab_size).map(|id| (format!("w{id}"), id.into())).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    });
    let none = Map::new();
    Ok(Tokenizer::from_objects(Path::new("tokenizer.json"), json.to_string().as_bytes(), &none, &none)?)
}
