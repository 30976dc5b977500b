//! Verbs from a page: requests of the control protocol in a POST, passed on to the control socket.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request as HttpRequest, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, http};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::client::Client;
use super::serve::Shared;
use super::stream::is_from_elsewhere;
use super::token::Claim;
use crate::control::{Reply, Request};
use crate::sys::reason;

/// The longest body of a request.
pub const MAX_BODY: usize = 4096;
/// How long an answer waits for the end of an operation, which goes on after that.
const TIMEOUT: Duration = Duration::from_secs(8);
const JSON: [(http::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];

/// `POST /control`.
pub async fn control(
    State(shared): State<Arc<Shared>>,
    Extension(client): Extension<Client>,
    request: HttpRequest,
) -> Response {
    let headers = request.headers();
    if let Some(response) = refusal(&shared, client.peer, headers) {
        return response;
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY as u64) {
        return too_large();
    }
    let body = match Bytes::from_request(request, &()).await {
        Ok(body) => body,
        Err(why) if why.status() == StatusCode::PAYLOAD_TOO_LARGE => return too_large(),
        Err(_) => return error(StatusCode::BAD_REQUEST, "the body ends early"),
    };
    let request = match serde_json::from_slice::<Request>(&body) {
        Ok(request) if is_action(&request) => request,
        Ok(_) => return error(StatusCode::BAD_REQUEST, "this request is for the control socket only"),
        Err(why) => return error(StatusCode::BAD_REQUEST, &format!("bad request: {why}")),
    };
    let Some(path) = &shared.control else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the daemon has no control socket");
    };
    if let (Ok(request), peer) = (serde_json::to_string(&request), client.peer) {
        tracing::info!(%peer, request, "asked over HTTP");
    }
    let mut last = Reply::Step("begun".to_owned());
    match tokio::time::timeout(TIMEOUT, ask(path, &request, &mut last)).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => return error(StatusCode::BAD_GATEWAY, &format!("control socket: {}", reason(&why))),
        // Its steps are events.
        Err(_) => {}
    }
    let status = match last {
        Reply::Done(_) => StatusCode::OK,
        Reply::Step(_) => StatusCode::ACCEPTED,
        Reply::Error(_) => StatusCode::CONFLICT,
    };
    (status, JSON, serde_json::to_string(&last).unwrap_or_default()).into_response()
}

/// Why a request may not change anything; `None` for one with the token, from no other site's page.
fn refusal(shared: &Shared, peer: IpAddr, headers: &HeaderMap) -> Option<Response> {
    if !shared.token.is_configured() {
        return Some(error(StatusCode::FORBIDDEN, "no actions here: the daemon runs without --admin-token-file"));
    }
    if is_from_elsewhere(headers) {
        return Some(error(StatusCode::FORBIDDEN, "only this daemon's own page may ask"));
    }
    match shared.token.claim(headers) {
        Claim::Right => {}
        Claim::Wrong => return Some(shared.wrong_token(peer)),
        Claim::None => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            let why = error(StatusCode::UNAUTHORIZED, "Authorization: Bearer TOKEN is needed");
            return Some((challenge, why).into_response());
        }
    }
    let kind = headers.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let is_json = kind.starts_with(b"application/json");
    (!is_json).then(|| error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be application/json"))
}

/// Whether a request is one of those that may be asked here.
fn is_action(request: &Request) -> bool {
    matches!(
        request,
        Request::Reload { .. }
            | Request::Restart { .. }
            | Request::Stop { .. }
            | Request::Start { .. }
            | Request::Drain { .. }
            | Request::Undrain { .. }
            | Request::Weight { .. }
            | Request::Scale { .. }
    )
}

/// Asks the control socket; `last` is what it said last.
async fn ask(path: &Path, request: &Request, last: &mut Reply) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(path).await?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next_line().await? {
        *last = serde_json::from_str(&line)?;
        if !matches!(last, Reply::Step(_)) {
            break;
        }
    }
    Ok(())
}

fn too_large() -> Response {
    error(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body is larger than {MAX_BODY} bytes"))
}

fn error(status: StatusCode, why: &str) -> Response {
    let text = serde_json::to_string(&Reply::Error(why.to_owned())).unwrap_or_default();
    (status, JSON, text).into_response()
}
