//! A blog's count as a small picture, for pages without scripts, README files and mails.
//!
//! In the manner of shields.io, so that it stands well beside others. What comes from the query
//! is checked or escaped: a badge's address can be written by anybody.

use std::fmt::Write;

use axum::{extract::State, http::HeaderValue, response::Response};

use super::{
    error::{ApiError, Code},
    history::{DRAWING, SVG},
    request::{BlogRoom, Named, Query},
    rooms::{Audience, Known, tagged},
    svg::{escape, is_text, pixels, width},
};
use crate::{app::App, auth::Reader};

/// What stands before the number unless the caller says otherwise.
const LABEL: &str = "reading now";
/// Longest label, in characters.
const LONGEST_LABEL: usize = 64;
/// How long a cache may keep what anybody may see, in seconds: shorter than a reader looks twice,
/// long enough to spare a service whose badge is on a busy page.
const MAX_AGE: u8 = 5;

/// Named colours: those of shields.io.
const COLORS: [(&str, Rgb); 13] = [
    ("brightgreen", Rgb(0x44, 0xcc, 0x11)),
    ("green", Rgb(0x97, 0xca, 0x00)),
    ("yellowgreen", Rgb(0xa4, 0xa6, 0x1d)),
    ("yellow", Rgb(0xdf, 0xb3, 0x17)),
    ("orange", Rgb(0xfe, 0x7d, 0x37)),
    ("red", Rgb(0xe0, 0x5d, 0x44)),
    ("blue", Rgb(0x00, 0x7e, 0xc6)),
    ("purple", Rgb(0x98, 0x59, 0xb3)),
    ("grey", Rgb(0x55, 0x55, 0x55)),
    ("gray", Rgb(0x55, 0x55, 0x55)),
    ("lightgrey", Rgb(0x9f, 0x9f, 0x9f)),
    ("lightgray", Rgb(0x9f, 0x9f, 0x9f)),
    ("black", Rgb(0x22, 0x22, 0x22)),
];

/// Behind the number where somebody reads, where nobody does, and behind the label.
const SOMEBODY: Rgb = Rgb(0x44, 0xcc, 0x11);
const NOBODY: Rgb = Rgb(0x9f, 0x9f, 0x9f);
const BEHIND_LABEL: Rgb = Rgb(0x55, 0x55, 0x55);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rgb(u8, u8, u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Flat,
    FlatSquare,
    Plastic,
    ForTheBadge,
}

#[derive(Debug)]
struct Badge<'a> {
    label: &'a str,
    number: u32,
    color: Rgb,
    label_color: Rgb,
    style: Style,
}

/// `GET /v1/blogs/{blog_id}/badge.svg`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn badge(
    State(app): State<App>,
    reader: Reader,
    Named(BlogRoom(room)): Named<BlogRoom>,
    query: Query,
    known: Known,
) -> Result<Response, ApiError> {
    reader.may_read(&room)?;
    let badge = Badge::read(&query, app.hub().occupancy(&room).viewers)?;
    let audience = if reader.anonymous().open(&room) {
        Audience::Public(MAX_AGE)
    } else {
        Audience::Private
    };
    let mut response = tagged(badge.draw().into_bytes(), SVG, audience, &known)?;
    for (name, value) in DRAWING {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

impl<'a> Badge<'a> {
    fn read(query: &'a Query, number: u32) -> Result<Self, ApiError> {
        let label = query.get("label").unwrap_or(LABEL).trim();
        if label.chars().count() > LONGEST_LABEL || !label.chars().all(is_text) {
            return Err(ApiError::new(
                Code::InvalidLabel,
                format!("label takes up to {LONGEST_LABEL} characters that can be seen."),
            ));
        }
        let color = |name: &str, otherwise: Rgb| match query.get(name) {
            None => Ok(otherwise),
            Some(text) => Rgb::read(text).ok_or_else(|| {
                ApiError::new(
                    Code::InvalidColor,
                    format!(
                        "{name} must be 3 or 6 hexadecimal digits, or one of {}.",
                        COLORS.map(|(name, _)| name).join(", ")
                    ),
                )
            }),
        };
        Ok(Self {
            label,
            number,
            color: color("color", if number > 0 { SOMEBODY } else { NOBODY })?,
            label_color: color("label_color", BEHIND_LABEL)?,
            style: Style::read(query.get("style"))?,
        })
    }

    fn draw(&self) -> String {
        let style = self.style;
        let number = self.number.to_string();
        let label = match style {
            Style::ForTheBadge => self.label.to_uppercase(),
            Style::Flat | Style::FlatSquare | Style::Plastic => self.label.to_owned(),
        };
        let (left, right) = (style.part(&label), style.part(&number));
        let (whole, height) = (left + right, style.height());
        let name = if self.label.is_empty() {
            number.clone()
        } else {
            format!("{}: {number}", self.label)
        };
        let name = escape(&name);
        let [whole_px, left_px, right_px] = [whole, left, right].map(pixels);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{whole_px}\" height=\"{height}\" \
             role=\"img\" aria-label=\"{name}\"><title>{name}</title>"
        );
        let (color, label_color) = (self.color.hex(), self.label_color.hex());
        let corners = style.corners();
        // Writing to a String cannot fail.
        let _ = write!(
            svg,
            "{}<clipPath id=\"c\"><rect width=\"{whole_px}\" height=\"{height}\" rx=\"{corners}\"/></clipPath>\
             <g clip-path=\"url(#c)\"><rect width=\"{left_px}\" height=\"{height}\" fill=\"{label_color}\"/>\
             <rect x=\"{left_px}\" width=\"{right_px}\" height=\"{height}\" fill=\"{color}\"/>",
            style.gradient(),
        );
        if !style.gradient().is_empty() {
            let _ = write!(
                svg,
                "<rect width=\"{whole_px}\" height=\"{height}\" fill=\"url(#g)\"/>"
            );
        }
        let _ = write!(
            svg,
            "</g><g text-anchor=\"middle\" font-family=\"Verdana,Geneva,DejaVu Sans,sans-serif\" \
             font-size=\"{}\" text-rendering=\"geometricPrecision\">",
            style.font_size(),
        );
        self.text(&mut svg, &label, left / 2.0, self.label_color, false);
        self.text(&mut svg, &number, left + right / 2.0, self.color, true);
        svg.push_str("</g></svg>");
        svg
    }

    /// One text, stretched to the width that was counted with whatever font the reader has.
    fn text(&self, svg: &mut String, text: &str, middle: f32, behind: Rgb, bold: bool) {
        if text.is_empty() {
            return;
        }
        let style = self.style;
        let (x, length) = (pixels(middle), pixels(style.text_width(text)));
        let base = style.baseline();
        let text = escape(text);
        let (ink, shadow) = behind.inks();
        let weight = if bold && style == Style::ForTheBadge {
            " font-weight=\"bold\""
        } else {
            ""
        };
        // Writing to a String cannot fail.
        if style.has_shadow() {
            let _ = write!(
                svg,
                "<text aria-hidden=\"true\" x=\"{x}\" y=\"{}\" fill=\"{shadow}\" fill-opacity=\".3\" textLength=\"{length}\">{text}</text>",
                base + 1,
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{x}\" y=\"{base}\" fill=\"{ink}\" textLength=\"{length}\"{weight}>{text}</text>"
        );
    }
}

impl Style {
    fn read(text: Option<&str>) -> Result<Self, ApiError> {
        match text {
            None | Some("flat") => Ok(Self::Flat),
            Some("flat-square") => Ok(Self::FlatSquare),
            Some("plastic") => Ok(Self::Plastic),
            Some("for-the-badge") => Ok(Self::ForTheBadge),
            Some(_) => Err(ApiError::new(
                Code::InvalidStyle,
                "style must be flat, flat-square, plastic or for-the-badge.",
            )),
        }
    }

    fn height(self) -> u8 {
        match self {
            Self::Flat | Self::FlatSquare => 20,
            Self::Plastic => 18,
            Self::ForTheBadge => 28,
        }
    }

    fn baseline(self) -> u8 {
        match self {
            Self::Flat | Self::FlatSquare => 14,
            Self::Plastic => 13,
            Self::ForTheBadge => 18,
        }
    }

    fn font_size(self) -> u8 {
        match self {
            Self::Flat | Self::FlatSquare | Self::Plastic => 11,
            Self::ForTheBadge => 10,
        }
    }

    fn corners(self) -> u8 {
        match self {
            Self::Flat => 3,
            Self::FlatSquare | Self::ForTheBadge => 0,
            Self::Plastic => 4,
        }
    }

    fn has_shadow(self) -> bool {
        matches!(self, Self::Flat | Self::Plastic)
    }

    /// What makes it look round, if anything does.
    fn gradient(self) -> &'static str {
        match self {
            Self::Flat => {
                "<linearGradient id=\"g\" x2=\"0\" y2=\"100%\">\
                 <stop offset=\"0\" stop-color=\"#bbb\" stop-opacity=\".1\"/>\
                 <stop offset=\"1\" stop-opacity=\".1\"/></linearGradient>"
            }
            Self::Plastic => {
                "<linearGradient id=\"g\" x2=\"0\" y2=\"100%\">\
                 <stop offset=\"0\" stop-color=\"#fff\" stop-opacity=\".7\"/>\
                 <stop offset=\".1\" stop-color=\"#aaa\" stop-opacity=\".1\"/>\
                 <stop offset=\".9\" stop-opacity=\".3\"/>\
                 <stop offset=\"1\" stop-opacity=\".5\"/></linearGradient>"
            }
            Self::FlatSquare | Self::ForTheBadge => "",
        }
    }

    fn text_width(self, text: &str) -> f32 {
        match self {
            Self::Flat | Self::FlatSquare | Self::Plastic => width(text),
            // Smaller, but set apart by a pixel and a quarter; the bold one is as wide as that.
            Self::ForTheBadge => {
                let gaps = text.chars().count().saturating_sub(1);
                width(text) * 10.0 / 11.0 + gaps as f32 * 1.25
            }
        }
    }

    /// Width of a part with what is around its text; nothing where there is no text.
    fn part(self, text: &str) -> f32 {
        if text.is_empty() {
            return 0.0;
        }
        let around = match self {
            Self::Flat | Self::FlatSquare | Self::Plastic => 5.0,
            Self::ForTheBadge => 12.0,
        };
        (self.text_width(text) + 2.0 * around).ceil()
    }
}

impl Rgb {
    /// `4c1`, `44cc11`, either with `#` before it, or a name.
    fn read(text: &str) -> Option<Self> {
        let named = COLORS.iter().find(|(name, _)| *name == text);
        if let Some((_, color)) = named {
            return Some(*color);
        }
        let digits = text.strip_prefix('#').unwrap_or(text);
        let digits: Option<Vec<u8>> = digits
            .chars()
            .map(|digit| {
                digit
                    .to_digit(16)
                    .and_then(|digit| u8::try_from(digit).ok())
            })
            .collect();
        match digits?[..] {
            [r, g, b] => Some(Self(r * 17, g * 17, b * 17)),
            [r, r2, g, g2, b, b2] => Some(Self(r * 16 + r2, g * 16 + g2, b * 16 + b2)),
            _ => None,
        }
    }

    fn hex(self) -> String {
        let Self(r, g, b) = self;
        format!("#{r:02x}{g:02x}{b:02x}")
    }

    /// Text and shadow that can be read on this: white on dark, dark on light. The bound is that
    /// of shields.io, by the brightness of ITU-R BT.601.
    fn inks(self) -> (&'static str, &'static str) {
        let [r, g, b] = [self.0, self.1, self.2].map(u32::from);
        let brightness = (299 * r + 587 * g + 114 * b) / 1_000;
        if brightness > 175 {
            ("#333", "#ccc")
        } else {
            ("#fff", "#010101")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_read_in_every_way_and_nothing_else_is() {
        let green = Some(Rgb(0x44, 0xcc, 0x11));
        for text in ["4c1", "#4c1", "44cc11", "#44CC11", "brightgreen"] {
            assert_eq!(Rgb::read(text), green, "{text}");
        }
        for text in [
            "", "#", "4c", "4c11", "44cc1", "44cc111", "+4c", "url(#c)", "green\"", "４c１",
        ] {
            assert_eq!(Rgb::read(text), None, "{text}");
        }
    }

    #[test]
    fn text_is_dark_on_light_and_light_on_dark() {
        assert_eq!(Rgb(255, 255, 255).inks().0, "#333");
        assert_eq!(Rgb(0, 0, 0).inks().0, "#fff");
        assert_eq!(SOMEBODY.inks().0, "#fff");
    }

    #[test]
    fn a_badge_is_as_wide_as_its_parts() {
        let draw = |label, number| {
            let badge = Badge {
                label,
                number,
                color: SOMEBODY,
                label_color: BEHIND_LABEL,
                style: Style::Flat,
            };
            badge.draw()
        };
        // "passing" is 41.46 px and "7" 6.99, each with 5 around.
        assert!(draw("passing", 7).contains("width=\"69\" height=\"20\" role"));
        assert!(draw("", 7).contains("width=\"17\" height=\"20\" role=\"img\" aria-label=\"7\""));
        assert!(draw("passing", 1_000_000).contains(">1000000</text>"));
    }
}
