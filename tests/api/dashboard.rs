//! The dashboard's page and files: where they are served, and under which headers.

use axum::http::StatusCode;
use livecount::app::{Face, routes};

use crate::helpers::TestApp;

/// The page and one file of each type.
const SERVED: [(&str, &str); 3] = [
    ("/dashboard", "text/html; charset=utf-8"),
    ("/dashboard/main.js", "text/javascript; charset=utf-8"),
    ("/dashboard/dashboard.css", "text/css; charset=utf-8"),
];

#[tokio::test(start_paused = true)]
async fn the_dashboard_is_served_to_everyone_since_it_holds_no_number() {
    let app = TestApp::new();
    for (path, media_type) in SERVED {
        let answer = app.get(path, &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(answer.header("content-type"), media_type);
        assert!(!answer.text().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn the_dashboard_may_load_nothing_from_elsewhere_and_stand_in_no_frame() {
    let app = TestApp::new();
    for (path, _) in SERVED {
        let answer = app.get(path, &[]).await;
        let policy = answer.header("content-security-policy").to_owned();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(
                policy.split("; ").any(|given| given == part),
                "{part} in {policy}"
            );
        }
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        assert!(!answer.headers.contains_key("set-cookie"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_browser_that_has_a_file_of_the_dashboard_is_not_sent_it_again() {
    let app = TestApp::new();
    for (path, _) in SERVED {
        let answer = app.get(path, &[]).await;
        assert_eq!(answer.header("cache-control"), "no-cache");
        let tag = answer.header("etag").to_owned();
        let again = app.get(path, &[("if-none-match", &tag)]).await;
        assert_eq!(again.status, StatusCode::NOT_MODIFIED, "{path}");
        assert_eq!(again.header("etag"), tag);
        assert!(again.text().await.is_empty());
        let other = app.get(path, &[("if-none-match", "\"another\"")]).await;
        assert_eq!(other.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_the_dashboard_does_not_have_is_not_found() {
    let app = TestApp::new();
    for path in [
        "/dashboard/",
        "/dashboard/index.html",
        "/dashboard/mod.rs",
        "/dashboard/..%2Fmod.rs",
        "/dashboard/main.js/",
    ] {
        app.get(path, &[])
            .await
            .expect_problem(404, "not_found")
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_dashboard_is_the_operators_alone_where_they_have_a_listener_of_their_own() {
    let app = TestApp::with(&[("ops_listen", "127.0.0.1:9090")]);
    for (path, _) in SERVED {
        app.get(path, &[])
            .await
            .expect_problem(404, "not_found")
            .await;
    }
    let theirs = routes(app.app().config(), Face::Operators);
    for path in ["/dashboard", "/dashboard/{file}", "/v1/stats", "/v1/join"] {
        assert!(theirs.iter().any(|(route, _)| *route == path), "{path}");
    }
}
