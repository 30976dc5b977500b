//! HTTP endpoints and their limits (connections, header time, lifetime, Host check).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Mutex;

use super::places::Places;
use super::{Ask, metrics};
use crate::control::status::{Daemon, ServiceState};

/// Time limit for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest life of a connection; normally it ends with its answer.
const MAX_LIFETIME: Duration = Duration::from_secs(10);
/// Connections accepted in a row; less than [`super::places`] allows.
const BUDGET: usize = 16;
/// Age up to which a state is reused.
const MAX_AGE: Duration = Duration::from_millis(200);
/// Time limit for the control thread's answer.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

struct Shared {
    ask: Ask,
    last: Mutex<Option<(Instant, Arc<Daemon>)>>,
}

impl Shared {
    /// The state, at most [`MAX_AGE`] old.
    async fn state(&self) -> Option<Arc<Daemon>> {
        // Concurrent requests share one question to the control thread.
        let mut last = self.last.lock().await;
        if let Some((at, daemon)) = &*last
            && at.elapsed() < MAX_AGE
        {
            return Some(daemon.clone());
        }
        let answer = self.ask.state()?;
        let daemon = Arc::new(tokio::time::timeout(CONTROL_TIMEOUT, answer).await.ok()?.ok()?);
        *last = Some((Instant::now(), daemon.clone()));
        Some(daemon)
    }
}

/// Accepts connections; never returns.
pub async fn serve(listener: std::net::TcpListener, ask: Ask) {
    let shared = Arc::new(Shared { ask, last: Mutex::new(None) });
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(all_metrics))
        .layer(from_fn(known_host))
        .with_state(shared);
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let mut places = Places::default();
    let mut accepted = 0_usize;
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Most likely out of descriptors: this frees one.
            places.close_one();
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let asked = Arc::new(AtomicBool::new(false));
        let answering = asked.clone();
        let service = service_fn(move |request| {
            asked.store(true, Relaxed);
            service.call(request)
        });
        let task = tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 * 1024)
                // A probe has no use for a connection that stays open.
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Errors concern its client only.
            let _ = tokio::time::timeout(MAX_LIFETIME, connection).await;
        });
        places.take(peer.ip(), task.abort_handle(), answering);
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

async fn all_metrics(State(shared): State<Arc<Shared>>) -> Response {
    let Some(daemon) = shared.state().await else { return SILENT.into_response() };
    match metrics::text(&daemon) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
