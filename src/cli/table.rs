//! Aligned tables, measured in terminal columns. A table that is too wide loses its least important columns.

use anstyle::Style;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

const GAP: usize = 2;

#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    /// Numbers are aligned to the right.
    pub number: bool,
    /// Columns with the highest rank are dropped first; rank 0 always stays.
    pub rank: u8,
    /// The width to which it may be shortened, in terminal columns.
    pub least: Option<usize>,
}

impl Column {
    pub const fn text(title: &'static str, rank: u8) -> Self {
        Self { title, number: false, rank, least: None }
    }

    pub const fn number(title: &'static str, rank: u8) -> Self {
        Self { title, number: true, rank, least: None }
    }

    /// Text that may be cut down to `least` columns.
    pub const fn elastic(title: &'static str, rank: u8, least: usize) -> Self {
        Self { title, number: false, rank, least: Some(least) }
    }
}

#[derive(Debug, Clone)]
pub struct Cell {
    pub text: String,
    pub style: Style,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), style: Style::new() }
    }
}

/// The header and one line per row, none wider than `width`.
pub fn table(columns: &[Column], rows: &[Vec<Cell>], width: Option<usize>) -> String {
    let natural = columns.iter().enumerate().map(|(at, column)| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| columns_of(&cell.text));
        cells.chain([column.title.len()]).max().unwrap_or(0)
    });
    let widths = fit(columns, natural.collect(), width, GAP);
    let header: Vec<Cell> =
        columns.iter().map(|column| Cell { text: column.title.to_owned(), style: Style::new().dimmed() }).collect();
    let line = |row: &Vec<Cell>| line(columns, &widths, row, width);
    std::iter::once(&header).chain(rows).map(line).collect::<Vec<_>>().join("\n")
}

/// The width of each column, with `gap` spaces between them; `None`: it is dropped.
pub fn fit(columns: &[Column], natural: Vec<usize>, width: Option<usize>, gap: usize) -> Vec<Option<usize>> {
    let mut widths: Vec<_> = natural.into_iter().map(Some).collect();
    let Some(width) = width else { return widths };
    loop {
        let total: usize = widths.iter().flatten().map(|width| width + gap).sum::<usize>().saturating_sub(gap);
        let Some(excess) = total.checked_sub(width).filter(|&excess| excess > 0) else { return widths };
        let spare = |at: usize| Some(widths[at]?.saturating_sub(columns[at].least?));
        let spares: Vec<_> = (0..columns.len()).map(|at| spare(at).unwrap_or(0)).collect();
        let last = (0..columns.len()).filter(|&at| widths[at].is_some()).max_by_key(|&at| columns[at].rank);
        match last.filter(|&at| columns[at].rank > 0) {
            Some(last) if spares.iter().sum::<usize>() < excess => widths[last] = None,
            _ => {
                // What is shortened most is what has most to spare.
                let Some(at) = (0..columns.len()).max_by_key(|&at| spares[at]).filter(|&at| spares[at] > 0) else {
                    return widths;
                };
                widths[at] = widths[at].map(|width| width - 1);
            }
        }
    }
}

fn line(columns: &[Column], widths: &[Option<usize>], row: &[Cell], width: Option<usize>) -> String {
    let (mut line, mut column_of_line, mut pending) = (String::new(), 0, 0);
    for ((column, cell), column_width) in columns.iter().zip(row).zip(widths) {
        let Some(column_width) = *column_width else { continue };
        let text = cut(&cell.text, column_width);
        let padding = column_width - columns_of(&text);
        let (before, after) = if column.number { (pending + padding, 0) } else { (pending, padding) };
        // Only where not even the columns that always stay fit.
        let left = width.map_or(usize::MAX, |width| width.saturating_sub(column_of_line + before));
        let text = cut(&text, left);
        pending = if text.is_empty() { before + after + GAP } else { after + GAP };
        if !text.is_empty() {
            let style = cell.style;
            line.extend(std::iter::repeat_n(' ', before));
            line.push_str(&format!("{style}{text}{style:#}"));
            column_of_line += before + columns_of(&text);
        }
    }
    line
}

/// Terminal columns of a text.
pub fn columns_of(text: &str) -> usize {
    text.width()
}

/// At most `width` columns of a text; what is cut off is shown as `…`.
pub fn cut(text: &str, width: usize) -> String {
    if columns_of(text) <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let fits = |c: &char| {
        let own = c.width().unwrap_or(0);
        let fits = own <= left;
        left = left.saturating_sub(own);
        fits
    };
    let mut text: String = text.chars().take_while(fits).collect();
    if width > 0 {
        text.push('…');
    }
    text
}

/// A label and a text in lines of at most `width` columns, broken at spaces; further lines begin with `indent` spaces.
pub fn wrap(label: &str, text: &str, indent: usize, width: Option<usize>) -> String {
    let width = width.map_or(usize::MAX, |width| width.max(indent + 8));
    let (mut lines, mut line, mut empty) = (Vec::new(), label.to_owned(), true);
    for word in text.split(' ') {
        let mut word = word.to_owned();
        if !empty && columns_of(&line) + 1 + columns_of(&word) > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        } else if !empty {
            line.push(' ');
        }
        // A word that is longer than a line.
        while columns_of(&line) + columns_of(&word) > width {
            let mut left = width.saturating_sub(columns_of(&line));
            while let Some(c) = word.chars().next().filter(|c| c.width().unwrap_or(0) <= left) {
                left -= c.width().unwrap_or(0);
                line.push(c);
                word.remove(0);
            }
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        }
        line.push_str(&word);
        empty = false;
    }
    lines.push(line);
    lines.join("\n")
}

/// A text from elsewhere without characters that would move the cursor, colour what follows or change its direction.
pub fn printable(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] = [
        Column::elastic("NAME", 0, 5),
        Column::text("STATE", 0),
        Column::number("PID", 1),
        Column::elastic("ON", 2, 6),
    ];

    fn shown(width: Option<usize>) -> Vec<String> {
        let row = |name: &str| vec![name.into(), "online".into(), "12345".into(), "127.0.0.1:8080".into()];
        let text = table(&COLUMNS, &[row("web"), row("日本語のサービス")], width);
        anstream::adapter::strip_str(&text).to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn columns_are_aligned_by_their_width_on_the_terminal() {
        let wanted = [
            "NAME              STATE     PID  ON",
            "web               online  12345  127.0.0.1:8080",
            "日本語のサービス  online  12345  127.0.0.1:8080",
        ];
        assert_eq!(shown(None), wanted);
    }

    #[test]
    fn a_table_fits_every_width_and_loses_what_matters_least() {
        for width in 1..=60 {
            for line in shown(Some(width)) {
                assert!(columns_of(&line) <= width, "{width}: {line:?}");
            }
        }
        assert_eq!(shown(Some(40))[2], "日本語のサ…  online  12345  127.0.0.1:8…");
        assert_eq!(shown(Some(32))[1], "web      online  12345  127.0.0…");
        assert_eq!(shown(Some(20))[2], "日本…  online  12345");
        assert_eq!(shown(Some(13))[1], "web    online");
    }

    #[test]
    fn wrapped_text_keeps_its_words_and_its_width() {
        let text = "node server.js --with many words and-one-that-is-much-longer-than-the-line-is-wide end";
        for width in 18..90 {
            let wrapped = wrap("  label ", text, 10, Some(width));
            assert!(wrapped.lines().all(|line| columns_of(line) <= width), "{width}: {wrapped}");
            let joined: String = wrapped.chars().filter(|c| !c.is_whitespace()).collect();
            assert_eq!(joined, format!("label{}", text.replace(' ', "")));
            assert!(
                wrapped.starts_with("  label ") && wrapped.lines().skip(1).all(|line| line.starts_with("          "))
            );
        }
        assert_eq!(wrap("", text, 4, None), text);
        assert_eq!(wrap("a ", "b", 4, Some(20)), "a b");
    }
}
