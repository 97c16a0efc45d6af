//! The server as its clients see it, over real sockets, with a worker that follows a script.

mod adapters;
mod browser;
mod chat;
mod completions;
mod keys;
mod limits;
mod openapi;
mod page;
mod pool;
mod pool_api;
mod pool_page;
mod status;
mod structured;
mod support;
mod tenants;
mod thoughts;
mod tinker;
mod tokens;
mod tools;
mod tuning;
