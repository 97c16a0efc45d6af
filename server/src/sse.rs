//! Server-sent events: an answer's pieces as they come.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;

/// Events that may wait for the connection.
const WAITING: usize = 16;

/// Where the events of a response go.
pub(crate) struct Events {
    sender: mpsc::Sender<Bytes>,
    patience: Duration,
}

/// The client has gone away, or takes nothing.
pub(crate) struct Gone;

impl Events {
    /// A response, and where its events go. A client that takes none of them within `patience` counts as gone.
    pub(crate) fn open(patience: Duration) -> (Self, Response) {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(WAITING);
        let events = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        let body = Body::from_stream(events.map(Ok::<_, std::convert::Infallible>));
        let head = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        (Events { sender, patience }, (head, body).into_response())
    }

    pub(crate) async fn send(&self, value: &Value) -> Result<(), Gone> {
        self.write(format!("data: {value}\n\n")).await
    }

    /// The last event.
    pub(crate) async fn done(&self) -> Result<(), Gone> {
        self.write("data: [DONE]\n\n".into()).await
    }

    async fn write(&self, text: String) -> Result<(), Gone> {
        self.sender.send_timeout(text.into(), self.patience).await.map_err(|_| Gone)
    }

    /// Does work as long as somebody listens, also where it has nothing to tell for a while.
    pub(crate) async fn while_heard(&self, work: impl Future<Output = Result<(), Gone>>) -> Result<(), Gone> {
        tokio::select! {
            done = work => done,
            () = self.sender.closed() => Err(Gone),
        }
    }
}
