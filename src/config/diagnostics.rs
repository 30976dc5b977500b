//! Mistakes in a configuration file, shown as compilers do: file, line, column, caret.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, and what would be right.
    pub message: String,
    /// In bytes of the file.
    pub span: Range<usize>,
}

impl Problem {
    pub fn new(message: impl Into<String>, span: Range<usize>) -> Self {
        Self { message: message.into(), span }
    }
}

/// All problems as text, in the order of the file.
pub fn report(path: &str, text: &str, problems: &mut [Problem]) -> String {
    problems.sort_by_key(|problem| problem.span.start);
    let renderer = Renderer::plain();
    let show = |problem: &Problem| {
        let (from, to) = (problem.span.start.min(text.len()), problem.span.end.min(text.len()));
        // Only the first line of a longer span is shown.
        let end = text.get(from..to).and_then(|part| part.find('\n')).map_or(to, |newline| from + newline);
        let here = AnnotationKind::Primary.span(from..end.max(from));
        let snippet = Snippet::source(text).path(path).annotation(here);
        renderer.render(&[Level::ERROR.primary_title(problem.message.as_str()).element(snippet)])
    };
    let shown: Vec<_> = problems.iter().map(show).collect();
    shown.join("\n\n")
}

/// The most similar name, if one is similar enough to be meant.
pub fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.to_ascii_lowercase().replace('_', "-");
    let scored = names.into_iter().map(|name| (strsim::jaro_winkler(&wrong, name), name));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}
