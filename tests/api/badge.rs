//! A blog's count as a picture.

use axum::http::StatusCode;

use crate::helpers::{Answer, TestApp, bearer, token, token_for};

const BADGE: &str = "/v1/blogs/42/badge.svg";

async fn drawn(app: &TestApp, query: &str) -> String {
    let answer = app.get(&format!("{BADGE}{query}"), &[]).await;
    assert_eq!(answer.status, StatusCode::OK);
    answer.text().await
}

fn assert_drawing(answer: &Answer) {
    assert_eq!(answer.header("content-type"), "image/svg+xml");
    assert_eq!(
        answer.header("content-security-policy"),
        "default-src 'none'"
    );
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

#[tokio::test(start_paused = true)]
async fn a_badge_shows_a_blogs_viewers_and_says_them() {
    let app = TestApp::new();
    let _viewers = [app.join("42").await, app.join("42").await];
    let answer = app.get(BADGE, &[]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_drawing(&answer);
    let svg = answer.text().await;
    assert!(
        svg.contains("role=\"img\" aria-label=\"reading now: 2\""),
        "{svg}"
    );
    assert!(svg.contains("<title>reading now: 2</title>"), "{svg}");
    assert!(svg.contains(">2</text>"), "{svg}");
    assert!(svg.contains(">reading now</text>"), "{svg}");
}

#[tokio::test(start_paused = true)]
async fn a_blog_that_nobody_reads_has_a_grey_badge() {
    let app = TestApp::new();
    let svg = drawn(&app, "").await;
    assert!(svg.contains("aria-label=\"reading now: 0\""));
    assert!(
        svg.contains("fill=\"#9f9f9f\"") && !svg.contains("#44cc11"),
        "{svg}"
    );
    let _viewer = app.join("42").await;
    assert!(drawn(&app, "").await.contains("fill=\"#44cc11\""));
}

#[tokio::test(start_paused = true)]
async fn label_colours_and_style_are_as_asked() {
    let app = TestApp::new();
    let svg = drawn(
        &app,
        "?label=Leser&color=blue&label_color=fff&style=flat-square",
    )
    .await;
    assert!(svg.contains("aria-label=\"Leser: 0\""));
    assert!(
        svg.contains("fill=\"#007ec6\"") && svg.contains("fill=\"#ffffff\""),
        "{svg}"
    );
    assert!(!svg.contains("linearGradient"));
    assert!(
        drawn(&app, "?color=%23aBc")
            .await
            .contains("fill=\"#aabbcc\"")
    );
    let heights = [
        ("flat", 20),
        ("flat-square", 20),
        ("plastic", 18),
        ("for-the-badge", 28),
    ];
    for (style, height) in heights {
        let svg = drawn(&app, &format!("?style={style}")).await;
        assert!(
            svg.contains(&format!("height=\"{height}\" role=\"img\"")),
            "{svg}"
        );
    }
    assert!(
        drawn(&app, "?style=for-the-badge")
            .await
            .contains(">READING NOW</text>")
    );
    let bare = drawn(&app, "?label=").await;
    assert!(
        bare.contains("aria-label=\"0\"") && !bare.contains("reading"),
        "{bare}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_label_cannot_bring_anything_but_text() {
    let app = TestApp::new();
    let label = "%22%3E%3C/title%3E%3Cscript%3Ealert(%27%26%27)%3C/script%3E";
    for style in ["flat", "for-the-badge"] {
        let svg = drawn(&app, &format!("?label={label}&style={style}")).await;
        assert!(!svg.to_lowercase().contains("<script"), "{svg}");
        assert!(svg.contains("&quot;&gt;&lt;/title&gt;&lt;script&gt;alert(&#39;&amp;&#39;)"));
        assert_eq!(svg.matches("</title>").count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_drawn_is_refused() {
    let app = TestApp::new();
    let long = format!("label={}", "x".repeat(65));
    for (query, code) in [
        (long.as_str(), "invalid_label"),
        ("label=a%00b", "invalid_label"),
        ("label=a%0Ab", "invalid_label"),
        ("color=", "invalid_color"),
        ("color=chartreuse-ish", "invalid_color"),
        ("color=12345", "invalid_color"),
        ("color=url(%23c)", "invalid_color"),
        ("label_color=%22onload=", "invalid_color"),
        ("style=social", "invalid_style"),
        ("style=", "invalid_style"),
    ] {
        let answer = app.get(&format!("{BADGE}?{query}"), &[]).await;
        answer.expect_problem(400, code).await;
    }
    let answer = app.get("/v1/blogs/4%202/badge.svg", &[]).await;
    answer.expect_problem(400, "invalid_blog_id").await;
    let fits = format!("?label={}", "%C3%BC".repeat(64));
    assert!(drawn(&app, &fits).await.contains(&"ü".repeat(64)));
}

#[tokio::test(start_paused = true)]
async fn any_cache_may_keep_a_public_badge_for_a_moment() {
    let app = TestApp::new();
    let fresh = app.get(BADGE, &[]).await;
    assert_eq!(fresh.header("cache-control"), "public, max-age=5");
    assert!(!fresh.header("vary").contains("authorization"));
    let tag = fresh.header("etag").to_owned();
    let known = [("if-none-match", tag.as_str())];
    let same = app.get(BADGE, &known).await;
    assert_eq!(same.status, StatusCode::NOT_MODIFIED);
    assert_eq!(same.header("cache-control"), "public, max-age=5");
    let other = app.get(&format!("{BADGE}?color=red"), &known).await;
    assert_eq!(other.status, StatusCode::OK);
    let _viewer = app.join("42").await;
    assert_eq!(app.get(BADGE, &known).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_private_blogs_badge_is_for_whoever_may_read_its_count() {
    let app = TestApp::with(&[("anonymous_rooms", "")]);
    let answer = app.get(BADGE, &[]).await;
    answer.expect_problem(401, "token_required").await;
    let other = bearer(&token_for(
        "7",
        "",
        Some(&["blog:1"]),
        std::time::Duration::from_secs(60),
    ));
    let answer = app.get(BADGE, &[("authorization", &other)]).await;
    answer.expect_problem(403, "forbidden_room").await;
    let member = token("7", "");
    let headers = bearer(&member);
    let answer = app.get(BADGE, &[("authorization", &headers)]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("cache-control"), "private, no-cache");
    assert_eq!(answer.header("vary"), "authorization, cookie");
    // As an image of the site's own page sends it.
    let cookie = format!("livecount_token={member}");
    let headers = [
        ("cookie", cookie.as_str()),
        ("sec-fetch-site", "same-origin"),
    ];
    assert_eq!(app.get(BADGE, &headers).await.status, StatusCode::OK);
}
