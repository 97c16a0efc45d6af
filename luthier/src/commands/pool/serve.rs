//! `luthier pool serve`: the pool of one machine.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use jobs::executor::Local;
use jobs::store::Store;
use jobs::supervisor::{Insight, Progress, Setup, Supervisor};
use jobs::{Node, Spec};
use server::{Place, PoolSetup};

use super::client::{ADDRESS, TOKEN};
use crate::cli;
use crate::error::user;
use crate::output;
use crate::run_file::read_policy;
use crate::run_folder;
use crate::setup;
use crate::signal;
use crate::terminal::bytes;

pub(super) fn run(args: cli::PoolServe) -> anyhow::Result<ExitCode> {
    let policy = args.policy.as_deref().map(read_policy).transpose()?;
    let state = &args.state;
    if policy.is_none() && !state.join("pool.db").is_file() {
        return Err(user(
            "a new pool needs --policy POLICY.yaml: which projects there are, and what each may have",
        ));
    }
    let place = Place::bind(&args.host, args.port)?;
    let store = Store::open(state)?;
    // Messages of jobs are nobody else's.
    fs::set_permissions(state, fs::Permissions::from_mode(0o700))?;
    let state = fs::canonicalize(state).with_context(|| args.state.display().to_string())?;
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let program = program.to_str().context("this program's path is no text")?.to_owned();
    let beside = vec![program.clone(), "pool".into(), "attempt".into()];
    let executor = Local::new(state.join("jobs"), program, beside)?;
    let node = machine(&args);
    eprintln!(
        "{}: {} cpus, {} of memory{}",
        node.name,
        node.cpus,
        bytes(node.memory),
        if node.devices > 0 { format!(", {} devices", node.devices) } else { String::new() }
    );
    let supervisor = Supervisor::start(Setup {
        store,
        policy,
        nodes: vec![node],
        executor: Box::new(executor),
        insight: Box::new(RunFolders),
    })?;
    let root = token(&state)?;
    let stop = signal::stop_on_request()?;
    let name =
        std::env::var("USER").ok().filter(|name| jobs::policy::is_name(name)).unwrap_or("admin".into());
    let url = place.url();
    output::write(&state.join(ADDRESS), format!("{url}\n").as_bytes())?;
    let token = state.join(TOKEN);
    eprintln!("the pool listens at {url}; its page is there, too. The token is in {}", token.display());
    let setup = PoolSetup { handle: supervisor.handle(), root, name, any_command: args.any_command };
    server::serve_pool(place, setup, &stop)?;
    supervisor.end();
    eprintln!("the pool has ended; its jobs go on, and it finds them again when it is started again");
    Ok(ExitCode::SUCCESS)
}

/// This machine, or the part of it that jobs may have.
fn machine(args: &cli::PoolServe) -> Node {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    Node {
        name: if jobs::policy::is_name(name) { name.to_owned() } else { "here".to_owned() },
        devices: args.devices,
        device_memory: args.device_memory.0,
        cpus: args.cpus.map_or(cores, u64::from),
        memory: args.memory.map(|memory| memory.0).or_else(setup::available_memory).unwrap_or(1 << 30),
        up: true,
    }
}

/// The token of who starts the pool, which only this account can read; made at the first start.
fn token(state: &Path) -> anyhow::Result<String> {
    let path = state.join(TOKEN);
    if let Ok(token) = fs::read_to_string(&path) {
        return Ok(token.trim().to_owned());
    }
    let token = server::new_token()?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(format!("{token}\n").as_bytes())?;
    Ok(token)
}

/// What run folders tell of the runs that jobs are.
struct RunFolders;

impl Insight for RunFolders {
    fn progress(&self, spec: &Spec) -> Option<Progress> {
        let folder: &PathBuf = spec.launch.output.as_ref()?;
        let (done, saved) = run_folder::steps(folder)?;
        Some(Progress { done, saved, total: spec.launch.steps })
    }
}
