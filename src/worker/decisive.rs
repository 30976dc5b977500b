//! Which of a failed worker's last lines say why it failed.

/// So many lines are shown.
const SHOWN: usize = 10;

/// The lines that matter: in Node and Python the place in the program and the error, without the runtimes' own frames; of
/// everything else the last ones.
pub fn decisive(lines: &[String]) -> Vec<&str> {
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut found = node(&lines).or_else(|| python(&lines)).unwrap_or_default();
    if found.is_empty() {
        return lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default().to_vec();
    }
    found.truncate(SHOWN);
    found
}

/// `app.js:1`, the source, the caret, the error, and the program's own frames.
fn node<'a>(lines: &[&'a str]) -> Option<Vec<&'a str>> {
    // The last report: the place, one line of source, then the caret.
    let head = (0..lines.len())
        .rev()
        .find(|&at| is_place(lines[at]) && lines.get(at + 2).is_some_and(|line| is_caret(line)))?;
    let from = if lines[head].starts_with("node:") { head + 3 } else { head };
    let own = |line: &&&str| {
        let text = line.trim_start();
        let internal = text.starts_with("at ") && (text.contains("(node:") || text.contains("at node:"));
        !(text.is_empty() || internal || text.starts_with("Node.js v"))
    };
    Some(lines[from..].iter().filter(own).copied().collect())
}

/// `/srv/app.js:12`, `file:///srv/app.mjs:3` or `node:internal/modules/cjs/loader:1228`.
fn is_place(line: &str) -> bool {
    let Some((path, number)) = line.rsplit_once(':') else { return false };
    let number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number && (path.starts_with('/') || path.starts_with("file:") || path.starts_with("node:"))
}

fn is_caret(line: &str) -> bool {
    let text = line.trim();
    !text.is_empty() && text.bytes().all(|byte| byte == b'^')
}

/// The innermost frame and the error of the last traceback.
fn python<'a>(lines: &[&'a str]) -> Option<Vec<&'a str>> {
    let frame = lines.iter().rposition(|line| line.starts_with("  File \"") && line.contains(", line "))?;
    Some(lines[frame..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        decisive(&lines).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn node_shows_the_place_and_the_error_without_its_own_frames() {
        let frames = "    at wrapSafe (node:internal/modules/cjs/loader:1464:18)\n".repeat(12);
        let text = format!(
            "starting\n/srv/app.js:1\nsyntax error here(\n       ^^^^^\n\nSyntaxError: Unexpected identifier 'error'\n{frames}    \
             at node:internal/main/run_main_module:28:49\n\nNode.js v20.20.0\n"
        );
        let wanted =
            ["/srv/app.js:1", "syntax error here(", "       ^^^^^", "SyntaxError: Unexpected identifier 'error'"];
        assert_eq!(of(&text), wanted);
        // Thrown by Node: its own place says nothing.
        let text = "node:internal/modules/cjs/loader:1228\n  throw err;\n  ^\n\nError: Cannot find module './x'\nRequire stack:\n\
                    - /srv/app.js\n    at Module._load (node:internal/modules/cjs/loader:1051:27)\n    \
                    at Object.<anonymous> (/srv/app.js:3:1) {\n  code: 'MODULE_NOT_FOUND'\n}\n\nNode.js v20.20.0\n";
        let of_text = of(text);
        assert_eq!(of_text.first().map(String::as_str), Some("Error: Cannot find module './x'"));
        assert!(of_text.iter().any(|line| line.contains("/srv/app.js:3:1")), "{of_text:?}");
    }

    #[test]
    fn python_shows_the_innermost_frame_and_the_error() {
        let text = "Traceback (most recent call last):\n  File \"/srv/app.py\", line 9, in <module>\n    main()\n  \
                    File \"/srv/app.py\", line 2, in main\n    1 / 0\n    ~~^~~\nZeroDivisionError: division by zero\n";
        let wanted = [
            "  File \"/srv/app.py\", line 2, in main",
            "    1 / 0",
            "    ~~^~~",
            "ZeroDivisionError: division by zero",
        ];
        assert_eq!(of(text), wanted);
    }

    #[test]
    fn of_everything_else_the_last_lines_are_shown() {
        let text: String = (0..30).map(|n| format!("line {n}\n")).collect();
        assert_eq!(of(&text), (20..30).map(|n| format!("line {n}")).collect::<Vec<_>>());
        assert_eq!(of("one"), ["one"]);
        assert!(of("").is_empty());
    }
}
