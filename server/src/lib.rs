//! Many adapters over one base, served by the interfaces that clients know: OpenAI's, and vLLM's where that has
//! none, and Tinker's for training by clients.
//!
//! A request's way: `routes` finds its route, `app` who asks (`tenants`) and reads the body (`fields`);
//! `chat` or `completions` makes tokens of it (`words`), finds the adapter (`adapters`) and brings it to
//! the thread that drives the engine (`worker`), with a grammar where the answer has to have a form (`form`,
//! `outline`, `vocabulary`). What comes back becomes text in `answer`, of a chat thoughts, words and calls (`reader`,
//! by the `style` of its template), and goes out as one object or as events (`sse`). `listen` is the server's life
//! around that.
//!
//! A pool of jobs has a server of its own (`pool`), with the same life, errors and page.
//!
//! Knows nothing of models and files of weights: the binary gives it a worker, and a function that loads
//! adapters.

mod adapters;
mod answer;
mod app;
mod asked;
mod audit;
mod chat;
mod completions;
mod conversation;
mod error;
mod fields;
mod files;
mod form;
mod guard;
mod listen;
mod logprobs;
mod lora;
mod metrics;
mod models;
mod openapi;
mod outline;
mod page;
mod paging;
mod patience;
mod places;
mod pool;
mod reader;
mod routes;
mod sse;
mod status;
mod store;
mod style;
mod tenants;
mod tinker;
mod tokens;
pub mod tuning;
mod usage;
mod vocabulary;
mod words;
mod worker;

pub use adapters::{LoadedAdapter, Loader};
pub use app::Limits;
pub use audit::Record;
pub use error::ServerError;
pub use listen::{Place, Setup, serve};
pub use pool::{PoolLimits, PoolSetup, new_token, serve_pool, serve_pool_within};
pub use tenants::{Change, Keys, ListedKey, Made, Tenants, Terms};
pub use tinker::{Adam, BeginTraining, Example, Lora, Objective, Pass, Passed, Refused, Trainer, Training};
pub use words::{Chat, Stops, Words};
pub use worker::Worker;
