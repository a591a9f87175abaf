//! Embedded files, served as they are: the widget, the pages and what these load.

use std::{borrow::Cow, sync::Arc};

use aws_lc_rs::digest;
use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};

use super::rooms::Known;
use crate::app::App;

/// A file within the binary.
#[derive(Debug)]
pub struct Asset {
    body: Cow<'static, str>,
    tag: String,
    headers: HeaderMap,
}

impl Asset {
    /// A file of this media type, which browsers ask for again each time unless
    /// [`with`](Self::with) says otherwise.
    #[must_use]
    pub fn new(media_type: &'static str, body: impl Into<Cow<'static, str>>) -> Self {
        let body = body.into();
        let digest = digest::digest(&digest::SHA256, body.as_bytes());
        let half = digest.as_ref().first_chunk().copied().unwrap_or_default();
        let asset = Self {
            body,
            tag: format!("\"{:032x}\"", u128::from_be_bytes(half)),
            headers: HeaderMap::new(),
        };
        asset
            .with(header::CONTENT_TYPE, media_type)
            .with(header::CACHE_CONTROL, "no-cache")
            .with(header::REFERRER_POLICY, "no-referrer")
            .with(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
    }

    /// A JavaScript file, as [`slim`] makes it.
    #[must_use]
    pub fn script(source: &str) -> Self {
        Self::new("text/javascript; charset=utf-8", slim(source))
    }

    /// A JavaScript file that is to be small, as [`packed`] makes it.
    #[must_use]
    pub fn packed_script(source: &str) -> Self {
        Self::new("text/javascript; charset=utf-8", packed(source))
    }

    /// Answers with this header, in the place of one that has its name.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }

    /// What serves it.
    pub fn route(self) -> MethodRouter<App> {
        let asset = Arc::new(self);
        get(move |known: Known| std::future::ready(asset.answer(&known)))
    }

    /// The file, or 304 where the client has it (RFC 9110, section 13.1.2).
    pub(super) fn answer(&self, known: &Known) -> Response {
        let mut response = if known.has(&self.tag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.body.clone().into_response()
        };
        let headers = response.headers_mut();
        headers.extend(self.headers.clone());
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            headers.insert(header::ETAG, tag);
        }
        response
    }
}

/// The script without what only its author reads: lines that are comments, empty lines,
/// indentation. So comments cost a page's readers nothing, and nothing is built. No line of a
/// template literal may begin with `//` or depend on its indentation.
fn slim(source: &str) -> String {
    let lines = source.lines().map(str::trim);
    let told: Vec<&str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .collect();
    told.join("\n")
}

/// The slim script without white space beside punctuation, and without the semicolon before a
/// brace: some 3 % of what is left after compression. For scripts in which every statement ends
/// with a semicolon or a block, none is empty, comments have lines of their own, and no regular
/// expression has a quotation mark or a space.
fn packed(source: &str) -> String {
    let source = slim(source);
    let mut packed = String::with_capacity(source.len());
    let mut quote = None;
    let mut chars = source.chars().peekable();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(_), '\\') => {
                packed.push(char);
                packed.extend(chars.next());
                continue;
            }
            (Some(open), _) if open == char => quote = None,
            (None, '"' | '\'' | '`') => quote = Some(char),
            (None, ' ' | '\n') if parts(packed.chars().last(), chars.peek().copied()) => continue,
            (None, '}') if packed.ends_with(';') => {
                packed.pop();
            }
            _ => {}
        }
        packed.push(char);
    }
    packed
}

/// True where two tokens with these ends need nothing between them.
fn parts(before: Option<char>, after: Option<char>) -> bool {
    let is = |marks: &str, char: Option<char>| char.is_some_and(|char| marks.contains(char));
    // `a + +b` is no `a++b`.
    let signs = is("+-", before) && is("+-", after);
    let marks = "=(){}[],;:.?&|<>*!+-";
    !signs && (is(marks, before) || is(marks, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_script_has_the_white_space_that_it_needs() {
        let source = "// Why.\nconst a = `x; ${b}\n  y { z }`;\nif (a) {\n  c = d + +e - f;\n} else {\n  \
                      return \"a \\\" = b; }\" ?? 'c = \"d';\n}\nlet g;\n";
        let packed = packed(source);
        let expected = "const a=`x; ${b}\ny { z }`;if(a){c=d+ +e-f}else{return \"a \\\" = b; }\"??'c = \"d'}let g;";
        assert_eq!(packed, expected);
    }

    #[test]
    fn a_slim_script_has_neither_comments_nor_indentation() {
        let source = "// Why.\n\nif (a) {\n  // Because.\n  b(\"//\"); // stays\n}\n";
        assert_eq!(slim(source), "if (a) {\nb(\"//\"); // stays\n}");
    }
}
