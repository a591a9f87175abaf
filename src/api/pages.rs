//! Pages for people and what other people's pages load: the widget, the demo.

use axum::{http::header, routing::MethodRouter};

use super::asset::Asset;
use crate::app::App;

/// For an hour a page asks nobody whether the widget has changed; then the entity tag tells.
const WIDGET_CACHE: &str = "public, max-age=3600";

/// What the demo may load and run: its own files, and the calls and streams of this service (W3C
/// Content Security Policy Level 3).
const DEMO_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A route as `app.rs` lists it.
type Route = (&'static str, MethodRouter<App>);

/// `GET /widget.js` and `GET /widget.d.ts`: the counter for any page, and its types.
pub fn widget() -> [Route; 2] {
    let types = include_str!("widget/widget.d.ts");
    [
        (
            "/widget.js",
            Asset::packed_script(include_str!("widget/widget.js")),
        ),
        (
            "/widget.d.ts",
            Asset::new("application/typescript; charset=utf-8", types),
        ),
    ]
    .map(|(path, asset)| {
        (
            path,
            asset.with(header::CACHE_CONTROL, WIDGET_CACHE).route(),
        )
    })
}

/// `GET /`: a blog page with its counter, and what it loads.
pub fn demo() -> [Route; 3] {
    let page = Asset::new("text/html; charset=utf-8", include_str!("demo/index.html"))
        .with(header::CONTENT_SECURITY_POLICY, DEMO_POLICY);
    let style = Asset::new("text/css; charset=utf-8", include_str!("demo/demo.css"));
    let script = Asset::script(include_str!("demo/demo.js"));
    [
        ("/", page.route()),
        ("/demo.css", style.route()),
        ("/demo.js", script.route()),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::{
        app::{Face, routes},
        config::Config,
    };

    #[test]
    fn the_demo_is_served_in_development_and_where_it_is_asked_for() {
        let served = |settings: &[(&str, &str)]| {
            let flags = settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            let (config, _) = Config::load(&flags, &BTreeMap::new()).unwrap();
            let routes = routes(&config, Face::Public);
            let paths = ["/", "/demo.css", "/demo.js"];
            paths.map(|path| routes.iter().any(|(route, _)| *route == path))
        };
        let key = ("jwt_secret", "a-secret-that-has-32-bytes-or-more");
        assert_eq!(served(&[]), [true; 3]);
        assert_eq!(served(&[key, ("demo", "true")]), [true; 3]);
        assert_eq!(served(&[key]), [false; 3]);
        assert_eq!(served(&[("demo", "false")]), [false; 3]);
    }
}
