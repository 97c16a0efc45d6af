//! A server's life: it listens, answers, and ends once what it has begun is done.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioTimer;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::adapters::{Adapters, Loader};
use crate::app::{App, Limits, aside};
use crate::audit::{Asking, Audit};
use crate::error::{ApiError, ServerError};
use crate::files;
use crate::metrics::Metrics;
use crate::patience::Patient;
use crate::places::Places;
use crate::routes;
use crate::store::Store;
use crate::tenants::Tenants;
use crate::tinker::{self, Tinker, TrainerHandle, Training};
use crate::tuning::{Bench, Tuner};
use crate::words::Words;
use crate::worker::{Handle, Worker};

/// Threads for connections: the engine's do the work.
pub(crate) const THREADS: usize = 2;
/// Files that clients send at once.
const UPLOADS: usize = 16;
/// Long texts that are made into tokens at once.
const LONG_TEXTS: usize = 2;
/// How often is looked whether the server is to end, and whether it can.
const LOOK: Duration = Duration::from_millis(20);
/// How often is looked whether keys have changed.
const LOOK_AT_KEYS: Duration = Duration::from_millis(250);
/// Time for what is already answered to reach its clients.
const FLUSH: Duration = Duration::from_secs(2);

/// A place where clients will find the server. From here on the port is its own.
#[derive(Debug)]
pub struct Place {
    listener: TcpListener,
    address: SocketAddr,
}

impl Place {
    /// Takes a port; 0: any that is free.
    ///
    /// # Errors
    /// If it is taken, or there are no keys and others than this machine could reach it.
    pub fn take(host: &str, port: u16, tenants: &Tenants) -> Result<Self, ServerError> {
        Place::find(host, port, |address| match tenants.has_keys() || address.is_loopback() {
            true => Ok(()),
            false => Err(ServerError::NotLoopback(address)),
        })
    }

    /// Takes a port for a server that asks everybody for a key; 0: any that is free.
    ///
    /// # Errors
    /// If it is taken.
    pub fn bind(host: &str, port: u16) -> Result<Self, ServerError> {
        Place::find(host, port, |_| Ok(()))
    }

    fn find(
        host: &str,
        port: u16,
        may_be: impl Fn(IpAddr) -> Result<(), ServerError>,
    ) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Listen { address: format!("{host}:{port}"), source };
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(failed)?.collect();
        addresses.iter().try_for_each(|address| may_be(address.ip()))?;
        let listener = TcpListener::bind(&addresses[..]).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Place { listener, address })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as clients write it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes connections from now on; within a runtime.
    pub(crate) fn listen(self) -> std::io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.listener)
    }
}

/// What a server is made of.
pub struct Setup {
    /// What the base is called.
    pub model: String,
    /// What computes.
    pub worker: Box<dyn Worker>,
    /// The base's tokenizer and how conversations are written.
    pub words: Words,
    /// Reads adapters.
    pub loader: Box<Loader>,
    /// Adapters to load at once and keep, by name.
    pub adapters: Vec<(String, PathBuf)>,
    /// Where further ones may come from.
    pub adapter_root: Option<PathBuf>,
    /// Bytes that adapters may take of the memory.
    pub adapter_bytes: Option<u64>,
    /// Where it remembers what is to outlive it, such as jobs.
    pub state: Option<PathBuf>,
    /// Who trains, if anybody does; of use with a state alone.
    pub tuner: Option<Arc<dyn Tuner>>,
    /// What trains for clients, if anything does; it needs `state`.
    pub training: Option<Training>,
    /// Who may ask.
    pub tenants: Tenants,
    /// How much is taken on.
    pub limits: Limits,
}

/// Serves until `stop` is set: then no request is taken any more, and those that run have their time to end.
/// `listening` is called when requests can come.
///
/// # Errors
/// If an adapter cannot be loaded, the system refuses threads or sockets, or the engine stops by itself.
pub fn serve(
    place: Place,
    setup: Setup,
    stop: &AtomicBool,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), ServerError> {
    let Setup {
        model,
        worker,
        words,
        loader,
        adapters,
        adapter_root,
        adapter_bytes,
        state,
        tuner,
        training,
        tenants,
        limits,
    } = setup;
    let remembered = state.as_deref().map(Store::open).transpose()?.map(Arc::new);
    let store = Adapters::open(loader, adapter_root.as_deref(), adapter_bytes, model.clone())?;
    for (name, path) in &adapters {
        store.preload(name, path)?;
    }
    let adapters = Arc::new(store);
    let mut bench = None;
    if let (Some(store), Some(tuner)) = (&remembered, tuner) {
        files::tidy(store)?;
        let least = limits.least_training;
        let started = Bench::start(Arc::clone(store), Arc::clone(&adapters), tuner, least)?;
        started.0.show_all().map_err(|error| std::io::Error::other(error.message().to_owned()))?;
        bench = Some(started);
    }
    let (engine, thread) = Handle::start(worker)?;
    if let Some(store) = &remembered {
        tinker::tidy(store);
    }
    let (mut tinker, mut training_thread) = (None, None);
    if let (Some(store), Some(Training { begin, models, tokenizer })) = (&remembered, training) {
        let (trainer, thread) = TrainerHandle::start(begin)?;
        training_thread = Some((trainer.clone(), thread));
        tinker = Some(Tinker::new(Arc::clone(store), trainer, models, tokenizer));
    }
    let app = Arc::new(App {
        metrics: Arc::new(Metrics::new(&model)),
        model,
        words: Arc::new(words),
        engine: engine.clone(),
        adapters,
        tenants,
        audit: Audit::start(remembered.as_ref())?,
        store: remembered,
        bench: bench.as_ref().map(|(bench, _)| Arc::clone(bench)),
        uploads: Places::new(UPLOADS),
        long_texts: Semaphore::new(LONG_TEXTS),
        tinker,
        limits,
        places: Places::new(limits.requests),
        draining: AtomicBool::new(false),
        begun: Instant::now(),
    });
    weigh(&app);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let ended = runtime.block_on(async {
        let address = place.address();
        let listener = place.listen()?;
        listening(address);
        run(&app, listener, stop).await
    });
    // What trains is saved, and goes on when the server is started again.
    if let Some((bench, thread)) = bench {
        bench.end();
        join(&thread, limits.drain_time);
    }
    // Loads of adapters that nobody waits for any more.
    runtime.shutdown_background();
    app.audit.end();
    engine.stop();
    if let Some((trainer, thread)) = training_thread {
        trainer.stop();
        join(&thread, limits.drain_time);
    }
    match thread.join() {
        Ok(()) => ended,
        Err(_) => Err(ServerError::EngineStopped),
    }
}

/// Waits for a thread that trains, but not longer than this: a step that takes more is given up, and what was
/// saved before it has all that anybody was told of.
fn join(thread: &JoinHandle<()>, most: Duration) {
    let end = Instant::now() + most;
    while !thread.is_finished() && Instant::now() < end {
        std::thread::sleep(LOOK);
    }
}

async fn run(
    app: &Arc<App>,
    listener: tokio::net::TcpListener,
    stop: &AtomicBool,
) -> Result<(), ServerError> {
    let connections = GracefulShutdown::new();
    let router: Router = routes::router(Arc::clone(app));
    let service = |peer| answering(Arc::clone(app), router.clone(), peer);
    let accepting = accept(&listener, &connections, Patience::from(&app.limits), service);
    let ended = tokio::select! {
        () = accepting => Ok(()),
        () = app.engine.ended() => Err(ServerError::EngineStopped),
        () = watch_keys(app) => Ok(()),
        () = drained(app, stop) => Ok(()),
    };
    drop(listener);
    end(connections).await;
    ended
}

/// Waits a little for connections that still write, and ends those that nothing is asked on.
pub(crate) async fn end(connections: GracefulShutdown) {
    let _ = timeout(FLUSH, connections.shutdown()).await;
}

/// Returns when the server was asked to end and nothing runs any more, or the time for that is over. Until
/// then connections are taken, so that whoever asks is told.
async fn drained(app: &App, stop: &AtomicBool) {
    told(stop).await;
    app.draining.store(true, Ordering::Relaxed);
    let end = Instant::now() + app.limits.drain_time;
    while app.places.taken() > 0 && Instant::now() < end {
        sleep(LOOK).await;
    }
}

/// Returns when the flag is set.
pub(crate) async fn told(flag: &AtomicBool) {
    while !flag.load(Ordering::Relaxed) {
        sleep(LOOK).await;
    }
}

/// Looks for keys that were made or revoked. Never returns.
async fn watch_keys(app: &Arc<App>) {
    if !app.tenants.may_change() {
        return std::future::pending().await;
    }
    loop {
        sleep(LOOK_AT_KEYS).await;
        let changing = Arc::clone(app);
        let refresh =
            move || changing.tenants.refresh().map_err(|error| ApiError::internal(error.to_string()));
        // What cannot be read now is tried again; until then things stay as they are.
        if let Ok(true) = aside(refresh).await {
            weigh(app);
        }
    }
}

/// Tells the engine whose requests get how many turns.
fn weigh(app: &App) {
    app.tenants.weights().into_iter().for_each(|(owner, weight)| app.engine.set_weight(owner, weight));
}

/// What connections are given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Connections at once; further ones wait.
    pub(crate) connections: usize,
    /// Time for the head of a request.
    pub(crate) read_time: Duration,
    /// Time in which a client must take some of what is written for it.
    pub(crate) write_time: Duration,
}

impl From<&Limits> for Patience {
    fn from(limits: &Limits) -> Self {
        let Limits { connections, read_time, write_time, .. } = *limits;
        Patience { connections, read_time, write_time }
    }
}

/// Takes connections, and has what `answering` gives for a client's address answer their requests. Never returns.
pub(crate) async fn accept<S>(
    listener: &tokio::net::TcpListener,
    connections: &GracefulShutdown,
    patience: Patience,
    answering: impl Fn(IpAddr) -> S,
) where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Send + 'static,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience.read_time);
    let places = Arc::new(Semaphore::new(patience.connections));
    loop {
        // Further connections wait with the operating system.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The client is gone already, or there are no more files: either passes.
            Err(_) => {
                sleep(LOOK).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let connection =
            http.serve_connection(Patient::new(stream, patience.write_time), answering(peer.ip()));
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // What goes wrong with a connection is its client's business.
            let _ = connection.await;
            drop(place);
        });
    }
}

/// Answers the requests of a connection, and notes those that are refused for want of a key or a right.
fn answering(
    app: Arc<App>,
    router: Router,
    peer: IpAddr,
) -> impl Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> {
    let router = TowerToHyperService::new(router);
    service_fn(move |mut request: Request<Incoming>| {
        let (app, asking) = (Arc::clone(&app), Asking::from(peer));
        request.extensions_mut().insert(Arc::clone(&asking));
        let what = format!("{} {}", request.method(), request.uri().path());
        let answer = router.call(request);
        async move {
            let answer = answer.await?;
            if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&answer.status()) {
                app.audit.refused(&asking, &what, answer.status());
            }
            Ok(answer)
        }
    })
}
