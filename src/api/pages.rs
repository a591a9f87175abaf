//! Pages for people: the demo.

use std::sync::LazyLock;

use aws_lc_rs::digest;
use axum::{
    http::header,
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};

const DEMO: &str = include_str!("demo.html");

/// What the demo may load and run: its own style and script, known by their hashes, and streams
/// of this service (W3C Content Security Policy Level 3).
static DEMO_POLICY: LazyLock<String> = LazyLock::new(|| {
    let [style, script] = ["style", "script"].map(|name| hash(inline(DEMO, name)));
    format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// `GET /`: a blog page with its counter.
pub async fn demo() -> Response {
    let headers = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, DEMO_POLICY.as_str()),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Html(DEMO)).into_response()
}

/// What stands within the page's one element of this name; nothing where there is none.
fn inline<'a>(page: &'a str, name: &str) -> &'a str {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let element = page.split_once(&open).map_or("", |(_, after)| after);
    element
        .split_once(&close)
        .map_or("", |(content, _)| content)
}

/// The source expression that allows an inline element of this content and no other.
fn hash(content: &str) -> String {
    let digest = digest::digest(&digest::SHA256, content.as_bytes());
    format!("'sha256-{}'", STANDARD.encode(digest))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        app::{Face, routes},
        config::Config,
    };

    #[test]
    fn the_page_is_served_in_development_and_where_it_is_asked_for() {
        let served = |settings: &[(&str, &str)]| {
            let flags = settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            let (config, _) = Config::load(&flags, &BTreeMap::new()).unwrap();
            let routes = routes(&config, Face::Public);
            routes.iter().any(|(path, _)| *path == "/")
        };
        let key = ("jwt_secret", "a-secret-that-has-32-bytes-or-more");
        assert!(served(&[]));
        assert!(served(&[key, ("demo", "true")]));
        assert!(!served(&[key]));
        assert!(!served(&[("demo", "false")]));
    }

    #[test]
    fn a_hash_is_the_one_that_browsers_compute() {
        // The example of CSP Level 3, section 8.3.
        assert_eq!(
            hash("alert('Hello, world.');"),
            "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
        );
    }

    #[test]
    fn the_policy_allows_the_style_and_the_script_of_the_page() {
        for name in ["style", "script"] {
            let content = inline(DEMO, name);
            assert!(!content.is_empty(), "the page has a {name}");
            assert!(DEMO_POLICY.contains(&format!("{name}-src {};", hash(content))));
        }
    }

    #[test]
    fn the_page_has_nothing_inline_that_the_policy_would_block() {
        for name in ["style", "script"] {
            assert_eq!(DEMO.matches(&format!("<{name}")).count(), 1, "one {name}");
        }
        assert!(!DEMO.contains(" style="), "a style attribute has no hash");
        assert!(!DEMO.contains(" onclick="), "nor has a handler");
        assert!(!DEMO_POLICY.contains("unsafe"));
    }

    #[test]
    fn the_page_is_self_contained() {
        for loaded in [" src=", "@import", "url(", "http://", "https://"] {
            let found = DEMO.replace("http://www.w3.org/2000/svg", "");
            assert!(!found.contains(loaded), "{loaded}");
        }
    }
}
