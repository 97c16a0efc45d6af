//! The server as its clients see it, over real sockets, with a worker that follows a script.

mod adapters;
mod chat;
mod completions;
mod limits;
mod status;
mod support;
mod tenants;
mod tinker;
mod tokens;
