//! What is on a terminal, as a picture that browsers show: SVG.

use std::fmt::Write;

/// Size of a cell and of the letters in it, in pixels.
const WIDTH: f32 = 8.4;
const HEIGHT: f32 = 17.0;
const LETTERS: u8 = 14;
const MARGIN: f32 = 12.0;
const GROUND: &str = "#10141a";
const TEXT: &str = "#d5dae1";
/// The eight colours of a terminal, and the eight brighter ones.
const COLOURS: [&str; 16] = [
    "#10141a", "#ff7b72", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#d5dae1", "#6e7681", "#ffa198",
    "#7ee787", "#f2cc60", "#a5d6ff", "#e2c5ff", "#b3f0ff", "#ffffff",
];

/// How cells look that are drawn as one piece.
#[derive(Debug, Clone, PartialEq)]
struct Look {
    text: String,
    ground: Option<String>,
    bold: bool,
    dim: bool,
}

fn colour(colour: vt100::Color) -> Option<String> {
    match colour {
        vt100::Color::Default => None,
        vt100::Color::Idx(at) => Some(COLOURS[usize::from(at) % 16].to_owned()),
        vt100::Color::Rgb(red, green, blue) => Some(format!("#{red:02x}{green:02x}{blue:02x}")),
    }
}

fn look(cell: &vt100::Cell) -> Look {
    let (mut text, mut ground) = (colour(cell.fgcolor()), colour(cell.bgcolor()));
    if cell.inverse() {
        (text, ground) = (ground.or(Some(GROUND.to_owned())), text.or(Some(TEXT.to_owned())));
    }
    Look { text: text.unwrap_or_else(|| TEXT.to_owned()), ground, bold: cell.bold(), dim: cell.dim() }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A block of a plot: eighths of a cell, from below.
fn eighths(text: &str) -> Option<f32> {
    let letter = text.chars().next()?;
    ('\u{2581}'..='\u{2588}').contains(&letter).then(|| (letter as u32 - 0x2580) as f32 / 8.0)
}

/// A picture of a screen, with a title for those who hear it.
pub fn svg(screen: &vt100::Screen, title: &str) -> String {
    let (height, width) = screen.size();
    let (height, width) = (height.get(), width.get());
    let size = (f32::from(width) * WIDTH + 2.0 * MARGIN, f32::from(height) * HEIGHT + 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {:.0}\" role=\"img\" shape-rendering=\"crispEdges\" font-size=\"{LETTERS}\" \
         font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\">\n<title>{}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{GROUND}\"/>\n",
        size.0,
        size.1,
        escaped(title)
    );
    for row in 0..height {
        let mut column = 0;
        while column < width {
            let Some(first) = screen.cell(row, column) else { break };
            let (begin, look_of, block) = (column, look(first), eighths(first.contents()).is_some());
            let (mut text, mut blocks) = (String::new(), Vec::new());
            // Cells that look the same.
            while let Some(cell) = (column < width).then(|| screen.cell(row, column)).flatten() {
                if look(cell) != look_of || eighths(cell.contents()).is_some() != block {
                    break;
                }
                blocks.extend(eighths(cell.contents()).map(|part| (column, part)));
                if !cell.is_wide_continuation() {
                    text.push_str(if cell.has_contents() { cell.contents() } else { " " });
                }
                column += 1;
            }
            piece(&mut out, row, begin, column, &look_of, &text, &blocks);
        }
    }
    out + "</svg>\n"
}

fn piece(out: &mut String, row: u16, begin: u16, end: u16, look: &Look, text: &str, blocks: &[(u16, f32)]) {
    let x = |column: u16| MARGIN + f32::from(column) * WIDTH;
    let top = MARGIN + f32::from(row) * HEIGHT;
    let (from, width) = (x(begin), f32::from(end - begin) * WIDTH);
    if let Some(ground) = &look.ground {
        let _ = writeln!(
            out,
            "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" fill=\"{ground}\"/>"
        );
    }
    // Letters for blocks leave gaps in many fonts.
    for &(column, part) in blocks {
        let (left, height) = (x(column), part * HEIGHT);
        let y = top + HEIGHT - height;
        let _ = writeln!(
            out,
            "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{height:.1}\" fill=\"{}\"/>",
            look.text
        );
    }
    let trimmed = text.trim_end();
    if !blocks.is_empty() || trimmed.trim_start().is_empty() {
        return;
    }
    let spaces = trimmed.chars().take_while(|&letter| letter == ' ').count() as u16;
    let (from, letters) = (x(begin + spaces), unicode_width::UnicodeWidthStr::width(trimmed.trim_start()));
    let (length, base) = (letters as f32 * WIDTH, top + HEIGHT * 0.76);
    let weight = if look.bold { " font-weight=\"bold\"" } else { "" };
    let faint = if look.dim { " opacity=\".65\"" } else { "" };
    let _ = writeln!(
        out,
        "<text x=\"{from:.1}\" y=\"{base:.1}\" textLength=\"{length:.1}\" fill=\"{}\"{weight}{faint} \
         xml:space=\"preserve\">{}</text>",
        look.text,
        escaped(trimmed.trim_start())
    );
}
