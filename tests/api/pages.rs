//! Embedded files: the widget that any page may load, the demo page.

use crate::helpers::TestApp;

#[tokio::test(start_paused = true)]
async fn any_page_may_load_the_widget_and_caches_may_keep_it() {
    let app = TestApp::new();
    for (path, media_type, part) in [
        (
            "/widget.js",
            "text/javascript; charset=utf-8",
            "export class LiveCount",
        ),
        (
            "/widget.d.ts",
            "application/typescript; charset=utf-8",
            "export class LiveCount",
        ),
    ] {
        let answer = app.get(path, &[("origin", "https://blog.example")]).await;
        assert_eq!(answer.status.as_u16(), 200, "{path}");
        assert_eq!(answer.header("content-type"), media_type);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cache-control"), "public, max-age=3600");
        let tag = answer.header("etag").to_owned();
        assert!(answer.text().await.contains(part), "{path}");

        let again = app.get(path, &[("if-none-match", &tag)]).await;
        assert_eq!(again.status.as_u16(), 304, "{path}");
        assert_eq!(again.header("etag"), tag);
        assert_eq!(again.text().await, "");
    }
}

#[tokio::test(start_paused = true)]
async fn the_widgets_comments_stay_in_the_repository() {
    let script = TestApp::new().get("/widget.js", &[]).await.text().await;
    let comments = script.lines().filter(|line| line.trim().starts_with("//"));
    assert_eq!(comments.count(), 0);
    assert!(!script.contains("\n "), "nor is there indentation");
}

#[tokio::test(start_paused = true)]
async fn the_demo_runs_its_own_files_and_no_other() {
    let app = TestApp::with(&[("demo", "true")]);
    let page = app.get("/", &[]).await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(page.header("cache-control"), "no-cache");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    let policy = page.header("content-security-policy").to_owned();
    assert!(policy.contains("default-src 'none'; script-src 'self'; style-src 'self'"));
    assert!(!policy.contains("unsafe"));
    let page = page.text().await;
    let sources: Vec<&str> = [" src=\"", "<link rel=\"stylesheet\" href=\""]
        .iter()
        .flat_map(|opening| page.split(opening).skip(1))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert_eq!(sources, ["widget.js", "demo.js", "demo.css"]);
    for source in sources {
        let file = app.get(&format!("/{source}"), &[]).await;
        assert_eq!(file.status.as_u16(), 200, "{source}");
        assert_eq!(file.header("x-content-type-options"), "nosniff", "{source}");
    }
    for inline in ["<style", " style=", " onclick=", "<script>"] {
        assert!(!page.contains(inline), "{inline} would be blocked");
    }
}
