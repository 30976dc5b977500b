//! HTTP endpoints and their limits (connections, header time, lifetime, Host check).

use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::future::select;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::sync::Mutex;

use super::client::Client;
use super::places::Places;
use super::stream_places::StreamPlaces;
use super::token::Token;
use super::{Ask, Open, actions, metrics, page, plain, stream};
use crate::control::history::{History, series, step};
use crate::control::status::{Daemon, ServiceState};
use crate::limited::Limited;
use crate::output::recent::Recent;

/// Time limit for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may leave what it was sent unacknowledged.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections accepted in a row; less than [`super::places`] allows.
const BUDGET: usize = 16;
/// Age up to which a state is reused.
const MAX_AGE: Duration = Duration::from_millis(200);
/// Time limit for the control thread's answer.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

/// What all connections share.
pub struct Shared {
    ask: Ask,
    last: Mutex<Option<(Instant, Arc<Daemon>)>>,
    history: std::sync::Mutex<History>,
    /// Points of a column of the history.
    pub series: AtomicUsize,
    pub recent: Recent,
    pub token: Token,
    /// The path of the control socket.
    pub control: Option<PathBuf>,
    /// Places for streams.
    pub streams: StreamPlaces,
    /// The last state that pages were sent, by viewer.
    pub rendered: Mutex<[Option<(Instant, Bytes)>; 2]>,
    pub started: Instant,
    wrong_tokens: std::sync::Mutex<Limited>,
}

impl Shared {
    fn new(token: Token, recent: Recent, ask: Ask, control: Option<PathBuf>) -> Self {
        Self {
            ask,
            last: Mutex::default(),
            history: std::sync::Mutex::default(),
            series: AtomicUsize::new(0),
            recent,
            token,
            control,
            streams: StreamPlaces::default(),
            rendered: Mutex::default(),
            started: Instant::now(),
            wrong_tokens: std::sync::Mutex::default(),
        }
    }

    /// The state, at most [`MAX_AGE`] old.
    pub async fn state(&self) -> Option<Arc<Daemon>> {
        // Concurrent requests share one question to the control thread.
        let mut last = self.last.lock().await;
        if let Some((at, daemon)) = &*last
            && at.elapsed() < MAX_AGE
        {
            return Some(daemon.clone());
        }
        let daemon = Arc::new(self.ask().await?);
        *last = Some((Instant::now(), daemon.clone()));
        Some(daemon)
    }

    async fn ask(&self) -> Option<Daemon> {
        let answer = self.ask.state()?;
        tokio::time::timeout(CONTROL_TIMEOUT, answer).await.ok()?.ok()
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a wrong token, with a line in the log.
    pub fn wrong_token(&self, peer: IpAddr) -> Response {
        let mut limited = self.wrong_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = limited.pass(Instant::now()) {
            tracing::warn!(%peer, suppressed, "wrong token over HTTP");
        }
        (StatusCode::UNAUTHORIZED, "wrong token\n").into_response()
    }

    /// Adds to the history; never returns.
    async fn sample(&self) {
        loop {
            // Not kept: the first probe after the start would be told of a service that is not online yet.
            if let Some(daemon) = self.ask().await {
                self.series.store(series(&daemon), Relaxed);
                self.history().sample(&daemon, Instant::now());
            }
            tokio::time::sleep(step(self.series.load(Relaxed))).await;
        }
    }
}

/// Accepts connections; never returns.
pub async fn serve(open: Open, ask: Ask, control: Option<PathBuf>) {
    let Open { listener, token, recent } = open;
    let shared = Arc::new(Shared::new(token, recent, ask, control));
    let router = Router::new()
        .route("/", get(page::page))
        .route("/events", get(stream::events))
        .route("/control", post(actions::control).layer(DefaultBodyLimit::max(actions::MAX_BODY)))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(all_metrics))
        .layer(from_fn(known_host))
        .with_state(shared.clone());
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    tokio::spawn(async move { shared.sample().await });
    let mut places = Places::default();
    let mut accepted = 0_usize;
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Most likely out of descriptors: this frees one.
            places.close_one();
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(ACK_TIMEOUT));
        let service = TowerToHyperService::new(router.clone());
        let client = Client::new(peer.ip());
        let asking = client.clone();
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            asking.begin_answer();
            request.extensions_mut().insert(asking.clone());
            service.call(request)
        });
        let stage = client.stage();
        let task = tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 * 1024)
                // A probe has no use for a connection that stays open.
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Errors concern its client only.
            select(pin!(connection), pin!(client.end())).await;
        });
        places.take(peer.ip(), task.abort_handle(), stage);
        accepted += 1;
        if accepted == BUDGET {
            accepted = 0;
            // Reads the requests of these before others are accepted, so that a rush of connects closes none unread.
            tokio::task::yield_now().await;
        }
    }
}

/// Rejects foreign host names, so that no web page reaches us by DNS rebinding.
async fn known_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let known =
        name.is_empty() || name == "localhost" || name.parse::<IpAddr>().is_ok() || host.parse::<IpAddr>().is_ok();
    match known {
        true => next.run(request).await,
        false => (StatusCode::MISDIRECTED_REQUEST, "ask by an IP address, or localhost\n").into_response(),
    }
}

const SILENT: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "the control thread does not answer\n");

async fn livez(State(shared): State<Arc<Shared>>) -> Response {
    match shared.state().await {
        Some(_) => "ok\n".into_response(),
        None => SILENT.into_response(),
    }
}

/// Whether the daemon should get traffic.
async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let Some(daemon) = shared.state().await else { return SILENT.into_response() };
    verdict(&daemon.sick())
}

/// Whether the services work, also while the daemon stops.
async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    let Some(daemon) = shared.state().await else { return SILENT.into_response() };
    verdict(&daemon.services.iter().filter_map(ServiceState::sick).collect::<Vec<_>>())
}

fn verdict(sick: &[String]) -> Response {
    match sick.is_empty() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", sick.join("\n"))).into_response(),
    }
}

async fn all_metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let Some(daemon) = shared.state().await else { return SILENT.into_response() };
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    match metrics::text(&daemon) {
        Ok(text) if plain::is_wanted(accept) => {
            ([(header::CONTENT_TYPE, plain::CONTENT_TYPE)], plain::from(&text)).into_response()
        }
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
