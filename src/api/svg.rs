//! What drawings share: text that cannot break out, and how wide it is.

use std::fmt::Write;

/// Text for an element or a quoted attribute (XML 1.0, section 2.4).
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

/// True for what XML can hold (XML 1.0, section 2.2) and people can see: no control characters.
pub(super) fn is_text(letter: char) -> bool {
    !letter.is_control() && !matches!(letter, '\u{fffe}' | '\u{ffff}')
}

/// Advance widths of Verdana at 11 px, in hundredths of a pixel, from space to `~`: what a badge's
/// first font has, and its usual replacement nearly so.
const VERDANA_11: [u16; 95] = [
    387, 433, 505, 900, 699, 1184, 799, 295, 500, 500, 699, 900, 400, 500, 400, 500, // to /
    699, 699, 699, 699, 699, 699, 699, 699, 699, 699, 500, 500, 900, 900, 900, 600, // to ?
    1100, 752, 754, 768, 848, 696, 632, 853, 827, 463, 500, 762, 612, 927, 823, 866, // to O
    663, 866, 765, 752, 678, 805, 752, 1088, 754, 677, 754, 500, 500, 500, 900, 699, // to _
    699, 661, 685, 573, 685, 655, 387, 685, 696, 302, 379, 651, 302, 1070, 696, 668, // to o
    685, 685, 469, 573, 433, 696, 651, 900, 651, 651, 578, 698, 500, 698, 900, // to ~
];

/// Width of a text in Verdana at 11 px, in pixels. Of letters beyond ASCII the usual width of
/// their kind is taken: a badge's text is stretched to what was counted.
pub(super) fn width(text: &str) -> f32 {
    let of = |letter: char| {
        let place = (letter as usize).checked_sub(0x20);
        let known = place.and_then(|place| VERDANA_11.get(place));
        match (known, letter) {
            (Some(hundredths), _) => f32::from(*hundredths) / 100.0,
            // Alphabets; ideographs and what else is as wide as high begin here (Unicode 16,
            // block CJK Radicals).
            (None, ..'\u{2e80}') if letter.is_uppercase() => 8.0,
            (None, ..'\u{2e80}') => 6.8,
            (None, _) => 11.0,
        }
    };
    text.chars().map(of).sum()
}

/// A number of pixels with at most one decimal.
pub(super) fn pixels(number: f32) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "{number:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out() {
        let escaped = escape("a\"b'c<d>e&f");
        assert_eq!(escaped, "a&quot;b&#39;c&lt;d&gt;e&amp;f");
    }

    #[test]
    fn widths_are_nearly_those_of_the_font_that_replaces_verdana() {
        // DejaVu Sans at 11 px, as Chromium measures it.
        for (text, measured) in [("build", 27.05), ("passing", 42.20)] {
            let off = (width(text) - measured).abs() / measured;
            assert!(off < 0.02, "{text}: {}", width(text));
        }
        assert!((width("漢字") - 22.0).abs() < 0.01);
        assert!((width("Üü") - 14.8).abs() < 0.01);
    }

    #[test]
    fn pixels_are_short() {
        assert_eq!(pixels(12.0), "12");
        assert_eq!(pixels(12.26), "12.3");
    }
}
