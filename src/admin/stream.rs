//! Server-sent events for pages: the history, then the state once a second.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde_json::{Value, json};

use super::client::Client;
use super::serve::Shared;
use super::stream_places::StreamPlace;
use super::token::{self, Claim};
use super::view::{self, Viewer};
use crate::control::history::{Column, step};

/// The shortest time from one state to the next.
const PACE: Duration = Duration::from_secs(1);
/// Columns of the history that are sent together.
const COLUMNS: usize = 12;

/// What a page is sent next.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Hello,
    FirstState,
    State,
}

/// One page that listens.
struct Listener {
    shared: Arc<Shared>,
    client: Client,
    viewer: Viewer,
    may_act: bool,
    /// Columns of the history that it lacks, the oldest first.
    columns: Vec<Arc<Column>>,
    stage: Stage,
    /// Numbers of the next column and event for it.
    next_column: u64,
    next_event: u64,
    _place: StreamPlace,
}

/// `/events`.
pub async fn events(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let Some(client) = request.extensions().get::<Client>().cloned() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let headers = request.headers();
    if is_from_elsewhere(headers) {
        return (StatusCode::FORBIDDEN, "only this daemon's own page may ask\n").into_response();
    }
    let claim = shared.token.claim(headers);
    let Some(viewer) = token::viewer(claim, client.peer, headers) else {
        return shared.wrong_token(client.peer);
    };
    let place = match shared.streams.take(viewer, client.peer) {
        Ok(place) => place,
        Err(why) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    };
    client.begin_stream();
    let may_act = claim == Claim::Right;
    let (columns, next_column) = shared.history().since(0);
    let listener = Listener {
        shared,
        client,
        viewer,
        may_act,
        columns,
        stage: Stage::Hello,
        next_column,
        next_event: 0,
        _place: place,
    };
    let body = unfold(listener, |mut listener| async move {
        let text = listener.next().await?;
        Some((Ok::<_, Infallible>(text), listener))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(body)).into_response()
}

/// Whether a browser says that another site's page asks. It could not read the answer, but it could take the places.
pub fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let other_site = value("sec-fetch-site").is_some_and(|site| !["same-origin", "none"].contains(&site));
    let own = value("host").unwrap_or_default();
    let other_origin = value("origin")
        .is_some_and(|origin| origin.split_once("://").is_none_or(|(_, host)| !host.eq_ignore_ascii_case(own)));
    other_site || other_origin
}

impl Listener {
    /// The next piece; `None` ends the stream. It is called when the piece before has left.
    async fn next(&mut self) -> Option<Bytes> {
        self.client.reads();
        match self.stage {
            Stage::Hello => {
                self.stage = Stage::FirstState;
                let token = self.shared.token.is_configured();
                let hello = json!({"trusted": self.viewer == Viewer::Trusted, "mayAct": self.may_act, "token": token});
                return Some(message("hello", &hello));
            }
            Stage::FirstState if !self.columns.is_empty() => {
                let part = self.columns.drain(..self.columns.len().min(COLUMNS));
                let pieces: Vec<Bytes> = part.map(|column| message("column", &view::column(&column))).collect();
                return Some(pieces.concat().into());
            }
            Stage::FirstState => self.stage = Stage::State,
            // All pages are due at the same time, and share one state.
            Stage::State => tokio::time::sleep(self.shared.until_next()).await,
        }
        self.client.reads();
        let state = self.shared.rendered(self.viewer).await;
        let (columns, next_column) = self.shared.history().since(self.next_column);
        let events = self.shared.recent.since(self.next_event);
        self.next_column = next_column;
        self.next_event = events.last().map_or(self.next_event, |last| last.number + 1);
        let columns = columns.iter().map(|column| message("column", &view::column(column)));
        let events = events.iter().map(|event| message("log", &view::event(event, self.viewer)));
        let pieces: Vec<Bytes> = columns.chain(events).chain([state]).collect();
        Some(pieces.concat().into())
    }
}

/// One event of the stream. JSON has no line breaks.
fn message(kind: &str, data: &Value) -> Bytes {
    format!("event: {kind}\ndata: {data}\n\n").into()
}

impl Shared {
    /// The time until the next states are due.
    fn until_next(&self) -> Duration {
        // Five times less often than the history, which is 5 s apart or more.
        let pace = (step(self.series.load(Relaxed)) / 5).max(PACE);
        let since = self.started.elapsed();
        let left = pace.as_nanos() - since.as_nanos() % pace.as_nanos();
        Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))
    }

    /// The state as a message, shared by those who may see the same.
    async fn rendered(&self, viewer: Viewer) -> Bytes {
        let mut kept = self.rendered.lock().await;
        if let Some((at, text)) = &kept[viewer as usize]
            && at.elapsed() < PACE / 2
        {
            return text.clone();
        }
        let text = match self.state().await {
            Some(daemon) => {
                let now = self.history().now(&daemon, Instant::now());
                message("state", &view::state(&daemon, &now, viewer))
            }
            None => message("silent", &json!({})),
        };
        kept[viewer as usize] = Some((Instant::now(), text.clone()));
        text
    }
}
