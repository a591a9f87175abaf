//! The dashboard at `/dashboard`: a page for operators and the files that it loads.
//!
//! The files hold no number and no secret, so whoever reaches the listener may have them; what the
//! page shows it asks the API for, with the token that its reader signs in with.

use std::{collections::BTreeMap, sync::LazyLock};

use axum::{
    extract::Path,
    http::{HeaderName, header},
    response::Response,
    routing::{MethodRouter, get},
};

use super::{
    asset::Asset,
    error::{ApiError, Code},
    rooms::Known,
};
use crate::app::App;

/// What the page may load and do (W3C Content Security Policy Level 3): its own files, calls to
/// this service, nothing inline, no frame around it. Trusted Types: no script makes markup of text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

const PAGE: &str = include_str!("index.html");

macro_rules! files {
    ($($name:literal)*) => {
        [$(($name, include_str!($name)),)*]
    };
}

/// What the page loads, by name.
const FILES: [(&str, &str); 15] = files! {
    "api.js" "connections.js" "dashboard.css" "dom.js" "history.js" "main.js" "message.js" "nodes.js"
    "overview.js" "parts.js" "plot.js" "room.js" "stream.js" "time.js" "token.js"
};

static SERVED: LazyLock<BTreeMap<&str, Asset>> = LazyLock::new(|| {
    let served = FILES.map(|(name, text)| (name, guarded(media_type(name), text)));
    served.into()
});

fn media_type(name: &str) -> &'static str {
    if name.ends_with(".css") {
        "text/css; charset=utf-8"
    } else {
        "text/javascript; charset=utf-8"
    }
}

fn guarded(media_type: &'static str, text: &'static str) -> Asset {
    Asset::new(media_type, text)
        .with(header::CONTENT_SECURITY_POLICY, POLICY)
        .with(
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        )
        .with(
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        )
}

/// Serves `GET /dashboard`: the page.
pub fn page() -> MethodRouter<App> {
    guarded("text/html; charset=utf-8", PAGE).route()
}

/// Serves `GET /dashboard/{file}`: what the page loads.
pub fn files() -> MethodRouter<App> {
    get(file)
}

async fn file(Path(name): Path<String>, known: Known) -> Result<Response, ApiError> {
    let asset = SERVED
        .get(name.as_str())
        .ok_or_else(|| ApiError::new(Code::NotFound, "The dashboard has no file of this name."))?;
    Ok(asset.answer(&known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_nothing_inline_that_the_policy_would_block() {
        assert!(!PAGE.contains("<style"));
        assert_eq!(PAGE.matches("<script").count(), 1, "one script");
        assert!(PAGE.contains("<script type=\"module\" src=\"dashboard/main.js\"></script>"));
        for inline in [" style=", " onclick=", "javascript:"] {
            assert!(!PAGE.contains(inline), "{inline}");
        }
        assert!(!POLICY.contains("unsafe"));
    }

    #[test]
    fn the_scripts_load_each_other_and_nothing_else() {
        for (name, text) in FILES {
            for line in text.lines().filter(|line| line.starts_with("import ")) {
                let (_, from) = line.split_once(" from ").expect("an import has a source");
                let from = from.trim_matches(['"', ';']);
                let file = from.strip_prefix("./").expect("one beside it");
                assert!(SERVED.contains_key(file), "{name} loads {from}");
            }
            for foreign in ["https://", ": url(", "@import", "import("] {
                assert!(!text.contains(foreign), "{foreign} in {name}");
            }
        }
    }

    #[test]
    fn nothing_that_outlives_the_tab_is_written() {
        for (name, text) in FILES {
            for lasting in ["localStorage", "indexedDB", "document.cookie", "caches."] {
                assert!(!text.contains(lasting), "{lasting} in {name}");
            }
        }
    }
}
