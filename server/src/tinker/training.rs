//! POST /api/v1/create_model, /get_info, /unload_model, /forward, /forward_backward and /optim_step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use rusqlite::Transaction;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::futures::{Answer, PROTOBUF};
use super::outputs::{Field, PassOutput};
use super::path::CheckpointPath;
use super::trainer::{Adam, Job, Lora, Objective, Outcome, Pass, Passed, Refused};
use super::{Model, Tinker, inputs, now, records, sessions};
use crate::app::{App, Body, Caller, aside, read_body};
use crate::asked::random;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::tenants::Tenant;

/// After this silence a session's client is gone: it would be heard of every ten seconds.
const SILENCE: Duration = Duration::from_secs(900);

/// The answer to what will be done: by which name its result is asked for.
fn promise(id: &str, model: &str) -> Json<Value> {
    Json(json!({"request_id": id, "model_id": model}))
}

/// What the thread has come to.
pub(super) async fn outcome(
    answer: oneshot::Receiver<Result<Outcome, Refused>>,
) -> Result<Outcome, ApiError> {
    match answer.await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(Refused { message, is_of_request: true })) => Err(ApiError::invalid(message)),
        Ok(Err(Refused { message, .. })) => Err(ApiError::internal(message)),
        Err(_) => Err(ApiError::gone("the model was unloaded, or training has stopped")),
    }
}

/// Whether this is the base's name.
pub(super) fn check_base(app: &App, base: &str) -> Result<(), ApiError> {
    if base == app.model { Ok(()) } else { Err(ApiError::no_model(base)) }
}

/// Only one optimizer is here.
pub(super) fn check_optimizer(fields: &Fields) -> Result<(), ApiError> {
    let config = fields.object("optimizer_config")?;
    match config.as_ref().map(|config| config.text("type")).transpose()?.flatten() {
        None | Some("adamw") => Ok(()),
        Some(other) => {
            let message = format!("there is no optimizer `{other}` here, but adamw");
            Err(ApiError::field("optimizer_config", message))
        }
    }
}

impl Tinker {
    /// The name of a new model of a session, if the tenant may have another one.
    pub(super) async fn place(&self, fields: &Fields, tenant: &Tenant) -> Result<(String, String), ApiError> {
        let session = fields.required_text("session_id")?.to_owned();
        self.require_session(&session, tenant).await?;
        fields.required("model_seq_id")?;
        let number = fields.whole("model_seq_id", 0..=i64::from(u32::MAX))?.unwrap_or_default();
        let id = format!("{session}:train:{number}");
        for model in self.silent() {
            self.unload(&model);
        }
        Ok((session, id))
    }

    /// Makes room for a model among those of its tenant.
    fn enter(&self, id: &str, model: Model) -> Result<(), ApiError> {
        let mut models = self.models();
        if models.contains_key(id) {
            return Err(ApiError::conflicting(format!("the model `{id}` is in training already")));
        }
        let count = models.values().filter(|other| other.tenant == model.tenant).count();
        if count >= self.most_models {
            return Err(ApiError::invalid(format!(
                "{count} models are in training already, as many as one tenant may have here; unload one, or end \
                 its session"
            )));
        }
        models.insert(id.to_owned(), model);
        Ok(())
    }

    /// Models whose sessions have not been heard of for long.
    fn silent(&self) -> Vec<String> {
        // In the order in which a request for a model takes both.
        let models = self.models();
        let mut heard = self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        heard.retain(|_, last| last.elapsed() <= SILENCE);
        let is_silent = |model: &Model| !heard.contains_key(&model.session);
        models.iter().filter(|(_, model)| is_silent(model)).map(|(id, _)| id.clone()).collect()
    }

    /// A tenant's model in training.
    pub(super) async fn lora_of(&self, id: &str, tenant: &Tenant) -> Result<Lora, ApiError> {
        let found = self.models().get(id).filter(|model| model.tenant == tenant.name).map(|model| {
            self.hear(&model.session);
            model.lora
        });
        if let Some(lora) = found {
            return Ok(lora);
        }
        let (run, name) = (id.to_owned(), tenant.name.clone());
        match self.records(move |all| records::run(all, &run, &name)).await? {
            Some(_) => Err(ApiError::gone(
                "the model is not in memory any more: it was unloaded, or the server was started anew; create one \
                 from its last checkpoint",
            )),
            None => Err(absent(id)),
        }
    }

    /// Has the thread do something at its number in the model's line.
    pub(super) fn line_up<F>(
        &self,
        tenant: &Tenant,
        (model, seq): (&str, u64),
        job: Job,
        then: impl FnOnce(oneshot::Receiver<Result<Outcome, Refused>>) -> F,
    ) -> Result<Json<Value>, ApiError>
    where
        F: Future<Output = Result<Answer, ApiError>> + Send + 'static,
    {
        let id = format!("{model}:{seq}");
        self.futures.begin(&id, &tenant.name, || {
            if !self.trainer.is_alive() {
                return Err(ApiError::internal("the thread that trains has stopped"));
            }
            Ok(then(self.trainer.send(tenant.owner, (model, seq), job)))
        })?;
        Ok(promise(&id, model))
    }

    /// What came of a request with a number of a model. One that is refused for what it says uses its number up, or
    /// those after it would wait for it for ever: clients do not send it again.
    pub(super) async fn in_order(
        &self,
        tenant: &Tenant,
        place: Option<(String, u64)>,
        done: Result<Json<Value>, ApiError>,
    ) -> Result<Json<Value>, ApiError> {
        if let (Err(error), Some((model, seq))) = (&done, place)
            && error.is_final()
            && self.lora_of(&model, tenant).await.is_ok()
        {
            drop(self.trainer.send(tenant.owner, (&model, seq), Job::Nothing));
        }
        done
    }
}

pub(super) fn absent(model: &str) -> ApiError {
    ApiError::absent("model_id", format!("there is no model `{model}`"))
}

/// Makes a model, perhaps out of a checkpoint, and remembers its run.
pub(super) fn make(
    app: &Arc<App>,
    caller: &Caller,
    (session, id): (String, String),
    lora: Lora,
    from: Option<(CheckpointPath, bool)>,
    notes: Option<String>,
) -> Result<Json<Value>, ApiError> {
    let (tinker, tenant) = (app.tinker()?, &caller.0);
    let folder = from.as_ref().map(|(path, with_optimizer)| (tinker.folder(path), *with_optimizer));
    let model = Model { tenant: tenant.name.clone(), session: session.clone(), lora };
    let (request, name) = (format!("{id}:0"), tenant.name.clone());
    if tinker.futures.is_begun(&request, &tenant.name) {
        return Ok(promise(&request, &id));
    }
    tinker.enter(&id, model)?;
    let (shared, made, caller) = (Arc::clone(app), id.clone(), caller.clone());
    let lined = tinker.line_up(tenant, (&id, 0), Job::Create(lora, folder), move |answer| async move {
        let tinker = shared.tinker()?;
        let created = match outcome(answer).await {
            Ok(_) => {
                let run = records::Run { base: shared.model.clone(), lora };
                let id = made.clone();
                let add = move |all: &Transaction<'_>| {
                    records::add_run(all, (&id, &session, &name), &run, now(), notes.as_deref())
                };
                tinker.records(add).await
            }
            Err(error) => Err(error),
        };
        shared.audit(&caller, "run.create", &made, &created);
        if let Err(error) = created {
            tinker.unload(&made);
            return Err(error);
        }
        Ok(Answer::Json(match from {
            None => json!({"type": "create_model", "model_id": made}),
            Some((path, _)) => json!({"type": "load_weights", "model_id": made, "path": path.to_string()}),
        }))
    });
    if lined.is_err() {
        tinker.models().remove(&id);
    }
    lined
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    check_base(&app, fields.required_text("base_model")?)?;
    check_optimizer(&fields)?;
    let Some(config) = fields.object("lora_config")? else {
        let message = "`lora_config` is missing: models are trained by low-rank updates here";
        return Err(ApiError::field("lora_config", message));
    };
    let trains = |name: &str| config.boolean(name).map(|trains| trains.unwrap_or(true));
    let lora = Lora {
        rank: config.count("rank", 1)?.ok_or_else(|| ApiError::field("rank", "`rank` is missing"))?,
        seed: config.whole("seed", i64::MIN..=i64::MAX)?.map_or_else(random, |seed| seed as u64),
        attention: trains("train_attn")?,
        mlp: trains("train_mlp")?,
        head: trains("train_unembed")?,
    };
    let notes = sessions::metadata(&fields)?;
    let place = tinker.place(&fields, &caller.0).await?;
    make(&app, &caller, place, lora, None, notes)
}

pub(super) async fn info(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    let id = fields.required_text("model_id")?;
    let lora = tinker.lora_of(id, &tenant).await?;
    // A folder's name is for clients on this machine only.
    let tokenizer = tinker.tokenizer.as_ref().filter(|_| !app.tenants.has_keys());
    Ok(Json(json!({
        "type": "get_info", "model_id": id, "model_name": app.model, "is_lora": true, "lora_rank": lora.rank,
        "model_data": {"arch": null, "model_name": app.model, "tokenizer_id": tokenizer},
    })))
}

pub(super) async fn unload(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    let model = fields.required_text("model_id")?.to_owned();
    tinker.lora_of(&model, &tenant).await?;
    tinker.unload(&model);
    let id = format!("{model}:unload");
    let done = Answer::Json(json!({"type": "unload_model", "model_id": model}));
    tinker.futures.begin(&id, &tenant.name, || Ok(async { Ok(done) }))?;
    Ok(promise(&id, &model))
}

pub(super) async fn forward(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    pass(&app, &tenant, request, ("forward_input", false)).await
}

pub(super) async fn forward_backward(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    pass(&app, &tenant, request, ("forward_backward_input", true)).await
}

/// Whether a body is protobuf, and whether it is packed.
fn kind_of(headers: &HeaderMap) -> Result<(bool, bool), ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_packed = match text(header::CONTENT_ENCODING) {
        "" | "identity" => false,
        "zstd" => true,
        other => {
            let message = format!("a body may be packed by zstd here, and not by {other}");
            return Err(ApiError::invalid(message));
        }
    };
    Ok((text(header::CONTENT_TYPE).starts_with(PROTOBUF), is_packed))
}

async fn pass(
    app: &Arc<App>,
    tenant: &Arc<Tenant>,
    request: Request,
    (field, backward): (&'static str, bool),
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    let (is_proto, is_packed) = kind_of(request.headers())?;
    tenant.admit(1)?;
    let room = tinker.bodies.take(tenant.owner, inputs::mebibytes(request.headers()), app.tenants.count());
    let room = room.ok_or_else(ApiError::busy)?;
    let body = read_body(request, inputs::MOST_BYTES, app.limits.read_time).await?;
    // Read, a body takes several times its bytes: few at once.
    let turn = tinker.readers.acquire().await;
    let read = move || {
        let unpacked = if is_packed { Some(inputs::unpack(&body)?) } else { None };
        let body = unpacked.as_deref().unwrap_or(&body);
        let read = match is_proto {
            true => inputs::read_proto(body)
                .map(|asked| inputs::Asked { backward: asked.backward && backward, ..asked }),
            false => inputs::read_json(&Fields::parse(body)?, field, backward),
        };
        Ok(read.map_err(|error| (inputs::place(body, is_proto), error)))
    };
    let asked = aside(read).await?;
    drop((turn, room));
    match asked {
        Err((place, error)) => tinker.in_order(tenant, place, Err(error)).await,
        Ok(asked) => {
            let place = Some((asked.model.clone(), asked.seq));
            let done = line_up_pass(app, tenant, asked).await;
            tinker.in_order(tenant, place, done).await
        }
    }
}

/// A pass that was read takes its place in its model's line.
async fn line_up_pass(
    app: &Arc<App>,
    tenant: &Arc<Tenant>,
    asked: inputs::Asked,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    let inputs::Asked { model, seq, backward, objective, columns, examples } = asked;
    tinker.lora_of(&model, tenant).await?;
    let request = format!("{model}:{seq}");
    if tinker.futures.is_begun(&request, &tenant.name) {
        return Ok(promise(&request, &model));
    }
    let tokens = examples.iter().map(|example| example.ids.len()).sum();
    if app.is_draining() {
        return Err(ApiError::unavailable("the server is about to end"));
    }
    let room = tinker.queue_room(&tenant.name, tokens)?;
    tenant.charge(tokens);
    let weights: Vec<Vec<f32>> = match objective {
        Objective::CrossEntropy => examples.iter().map(|example| example.weights.clone()).collect(),
        _ => Vec::new(),
    };
    let pass = Pass { model: model.clone(), examples, objective, backward };
    tinker.line_up(tenant, (&model, seq), Job::Pass(pass), move |answer| async move {
        let outcome = outcome(answer).await?;
        let _room: OwnedSemaphorePermit = room;
        match outcome {
            Outcome::Passed(passed) => Ok(Answer::Pass(output(passed, &columns, &weights))),
            _ => Err(ApiError::internal("a pass came to nothing")),
        }
    })
}

/// What a pass came to, by the examples as the client has them.
fn output(passed: Passed, columns: &[Option<usize>], weights: &[Vec<f32>]) -> PassOutput {
    let mut next = 0;
    let examples = columns.iter().map(|&columns| {
        let own = next..next + columns.unwrap_or(1);
        next = own.end;
        // Columns become one matrix again.
        let matrix = |lists: &[Vec<f32>]| -> Vec<f32> {
            let rows = lists.first().map_or(0, Vec::len);
            (0..rows).flat_map(|row| lists.iter().map(move |list| list[row])).collect()
        };
        let numbers = matrix(&passed.logprobs[own.clone()]);
        let mut fields = BTreeMap::new();
        if let Some(weights) = weights.get(own) {
            let losses = matrix(weights).iter().zip(&numbers).map(|(weight, p)| -weight * p).collect();
            fields.insert("elementwise_loss", Field { numbers: losses, columns });
        }
        fields.insert("logprobs", Field { numbers, columns });
        fields
    });
    let examples = examples.collect();
    PassOutput { examples, metrics: [("loss:sum".to_owned(), passed.loss)].into() }
}

pub(super) async fn step(
    State(app): State<Arc<App>>,
    Caller(tenant, _): Caller,
    Body(fields): Body,
) -> Result<Json<Value>, ApiError> {
    let done = line_up_step(&app, &tenant, &fields).await;
    app.tinker()?.in_order(&tenant, inputs::place_of(&fields), done).await
}

async fn line_up_step(
    app: &Arc<App>,
    tenant: &Arc<Tenant>,
    fields: &Fields,
) -> Result<Json<Value>, ApiError> {
    let tinker = app.tinker()?;
    let (model, seq) = (fields.required_text("model_id")?, inputs::read_seq(fields)?);
    fields.refuse("optimizer_params", |_| false)?;
    let given = match fields.object("adam_params")? {
        Some(given) => given,
        None => fields.object("optim_params")?.ok_or_else(|| {
            ApiError::field("adam_params", "`adam_params` is missing: the optimizer here is AdamW")
        })?,
    };
    // A misspelt one would be missed when all is trained.
    given.only(&["type", "learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm"])?;
    let number = |name: &str, usual: f64| Ok(given.number(name, 0.0..=f64::MAX)?.unwrap_or(usual));
    let beta = |name: &str, usual: f64| match given.number(name, 0.0..=1.0)?.unwrap_or(usual) {
        one if one >= 1.0 => Err(ApiError::field(name, format!("`{name}` must be below 1, and is {one}"))),
        beta => Ok(beta),
    };
    let adam = Adam {
        learning_rate: number("learning_rate", 1e-4)?,
        betas: [beta("beta1", 0.9)?, beta("beta2", 0.95)?],
        eps: match given.number("eps", 0.0..=1.0)?.unwrap_or(1e-12) {
            eps if eps > 0.0 => eps,
            _ => return Err(ApiError::field("eps", "`eps` must be above 0")),
        },
        weight_decay: number("weight_decay", 0.0)?,
        clip: given.number("grad_clip_norm", f64::MIN..=f64::MAX)?.unwrap_or(0.0).max(0.0),
    };
    tinker.lora_of(model, tenant).await?;
    tinker.line_up(tenant, (model, seq), Job::Step(adam), |answer| async {
        match outcome(answer).await? {
            Outcome::Norm(norm) => Ok(Answer::Json(json!({"metrics": {"grad_norm": norm}}))),
            _ => Err(ApiError::internal("a step came to nothing")),
        }
    })
}
