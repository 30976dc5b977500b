//! `/`: one HTML file with its style and script, and what a browser may do with it.

use std::sync::LazyLock;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::sys::random;

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: [&str; 5] = [
    include_str!("page/connection.js"),
    include_str!("page/findings.js"),
    include_str!("page/plots.js"),
    include_str!("page/tables.js"),
    include_str!("page/main.js"),
];

/// The page. Only the style and script in it run: they have a number that is new each time.
pub async fn page() -> Response {
    let mut bytes = [0; 16];
    if random::fill(&mut bytes).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let nonce: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = html(&nonce).into_response();
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// The style and the script, without indentation and comments.
static PARTS: LazyLock<[String; 2]> = LazyLock::new(|| {
    let small = |text: &str| {
        let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with("//"));
        lines.flat_map(|line| [line, "\n"]).collect()
    };
    [small(STYLE), small(&SCRIPT.concat())]
});

fn html(nonce: &str) -> String {
    let [style, script] = &*PARTS;
    HTML.replace("NONCE", nonce).replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small_and_whole_and_needs_nothing_from_elsewhere() {
        let page = html("abc");
        assert!(page.len() <= 60_000, "{} bytes", page.len());
        println!("{} bytes", page.len());
        assert_eq!(page.matches("nonce=\"abc\"").count(), 2);
        // Names and texts of servers are never HTML.
        let words = ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "localStorage", "cookie"];
        for word in words.into_iter().chain(["://", "@import", "url(", " onclick=", " style="]) {
            let page = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!page.contains(word), "{word}");
        }
    }
}
