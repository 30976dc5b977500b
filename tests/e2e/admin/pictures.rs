//! Pictures of the page beside those that people have looked at, in tests/e2e/admin/pictures. UPDATE_PICTURES=1 renews them.
//! All numbers in them are made up, and the same each time.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use super::page::show;
use super::streams::daemon;
use crate::support::Browser;

/// The share of pixels that may differ: other versions of the browser draw letters differently.
const TOLERANCE: f64 = 0.04;

/// The share of pixels that differ by more than a shade, of two pictures in base64; 1 where the sizes differ by much.
const DIFFERENCE: &str = "(async (texts) => {
    const [one, two] = await Promise.all(texts.map(async (text) => {
        const bytes = Uint8Array.from(atob(text.replace(/\\s/g, '')), (letter) => letter.charCodeAt(0));
        const image = await createImageBitmap(new Blob([bytes], { type: 'image/png' }));
        const canvas = new OffscreenCanvas(image.width, image.height).getContext('2d');
        canvas.drawImage(image, 0, 0);
        return canvas.getImageData(0, 0, image.width, image.height);
    }));
    if (one.width != two.width || Math.abs(one.height - two.height) > 30) return 1;
    let differ = 0;
    const all = Math.min(one.data.length, two.data.length);
    for (let at = 0; at < all; at += 4)
        if ([0, 1, 2].some((colour) => Math.abs(one.data[at + colour] - two.data[at + colour]) > 60)) differ++;
    return differ / (all / 4);
})";

/// `base64`, with these arguments.
pub fn base64(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("base64").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

#[test]
#[ignore = "long: its fonts and browser are those of tests/install"]
fn it_looks_as_it_did() {
    let (_daemon, admin) = daemon(&[]);
    let mut browser = Browser::start();
    let (known, new) = (Path::new("tests/e2e/admin/pictures"), Path::new(env!("CARGO_TARGET_TMPDIR")));
    let mut pictures = Vec::new();
    for scenario in ["nothing", "one", "eight", "sixty-four", "trouble"] {
        show(&mut browser, admin, scenario);
        for (name, width, dark) in [("light", 1280, false), ("dark", 1280, true), ("narrow", 360, false)] {
            browser.look(width, dark);
            pictures.push((format!("{scenario}-{name}.png"), browser.picture()));
        }
    }
    // Where no policy of the page is in the way.
    browser.open("about:blank");
    browser.wait("location.href == 'about:blank'");
    let mut differ = Vec::new();
    for (file, picture) in pictures {
        std::fs::write(new.join(&file), base64(&["-d"], picture.as_bytes())).unwrap();
        if std::env::var_os("UPDATE_PICTURES").is_some() {
            std::fs::copy(new.join(&file), known.join(&file)).unwrap();
        }
        let before = base64(&["-w0"], &std::fs::read(known.join(&file)).unwrap());
        let texts = json!([String::from_utf8(before).unwrap(), picture]);
        let share = browser.js(&format!("{DIFFERENCE}({texts})")).as_f64().unwrap();
        if share > TOLERANCE {
            differ.push(format!("{file}: {:.1} % differ", share * 100.0));
        }
    }
    assert!(differ.is_empty(), "{differ:?}; the new ones are in {}", new.display());
}
