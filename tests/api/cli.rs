//! The program as it is typed: its subcommands, and settings that stop it.

use std::{io::Write, net::TcpListener, process::Output, time::Duration};

use crate::{
    helpers::{SECRET, TestApp, bearer},
    server::{Binary, run},
};

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that the program does not start, and that it says what this is about.
fn expect_unusable(arguments: &[&str], settings: &[(&str, &str)], about: &[&str]) {
    let output = run(arguments, settings);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for word in about {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    assert_eq!(stdout(&output), "");
}

/// A file that is gone at the end of its test.
struct TempFile(std::path::PathBuf);

impl TempFile {
    fn with(name: &str, text: &str) -> Self {
        let name = format!("livecount-cli-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut file = std::fs::File::create(&path).expect("the temporary folder takes files");
        file.write_all(text.as_bytes())
            .expect("the temporary folder takes files");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0
            .to_str()
            .expect("the temporary folder has a plain name")
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

// ---- check-config ----

/// The value that `check-config` shows for a setting.
fn shown(output: &Output, name: &str) -> String {
    let text = stdout(output);
    let line = text.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("{name} is not in {text}"));
    line[name.len()..].trim().to_owned()
}

#[test]
fn check_config_prints_the_settings_in_force_with_secrets_hidden() {
    let output = run(
        &["check-config", "--push-interval", "200ms"],
        &[("jwt_secret", SECRET), ("heartbeat", "15s")],
    );
    assert_eq!(output.status.code(), Some(0));
    assert!(shown(&output, "push_interval").contains("200ms"));
    assert!(shown(&output, "heartbeat").contains("15s"));
    assert!(shown(&output, "jwt_secret").contains("(hidden)"));
    let all = stdout(&output) + &stderr(&output);
    assert!(!all.contains(SECRET));
}

#[test]
fn flags_go_over_the_environment_which_goes_over_the_file() {
    let file = TempFile::with(
        "layers.toml",
        "drain = \"1s\"\nheartbeat = \"2s\"\npush_interval = \"50ms\"\n",
    );
    let output = run(
        &["check-config", "--config", file.path(), "--drain", "3s"],
        &[("jwt_secret", SECRET), ("drain", "4s"), ("heartbeat", "5s")],
    );
    assert!(shown(&output, "drain").starts_with("3s"));
    assert!(shown(&output, "heartbeat").starts_with("5s"));
    assert!(shown(&output, "push_interval").starts_with("50ms"));
}

#[test]
fn check_config_refuses_what_serve_would() {
    expect_unusable(
        &["check-config"],
        &[("heartbeat", "soon")],
        &["LIVECOUNT_HEARTBEAT"],
    );
}

// ---- token ----

#[tokio::test]
async fn a_token_of_the_command_line_is_one_that_the_service_takes() {
    let output = run(
        &[
            "token",
            "--sub",
            "7",
            "--scope",
            "publish read",
            "--rooms",
            "blog:*,match:1",
            "--ttl",
            "2h",
        ],
        &[("jwt_secret", SECRET)],
    );
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    let token = text.strip_suffix('\n').expect("a line");
    assert!(!token.contains('\n'), "it is the only line");
    let app = TestApp::of_one_node(&[]);
    let claims = app.app().verifier().verify(token).await;
    let claims = claims.expect("the service takes it");
    assert_eq!(claims.user.as_str(), "7");
    assert_eq!(format!("{:?}", claims.scopes), "{Read, Publish}");
    let rooms = claims.rooms.as_ref().expect("the claim is there");
    assert_eq!(rooms.iter().collect::<Vec<_>>(), ["blog:*", "match:1"]);
    let left = app.app().time_left(claims.expires_unix);
    let expected = Duration::from_secs(7_190)..=Duration::from_secs(7_200);
    assert!(expected.contains(&left), "{left:?}");
    let headers = bearer(token);
    let answer = app.get("/v1/stats", &[("authorization", &headers)]).await;
    assert_eq!(answer.status, 200);
}

#[test]
fn no_token_is_made_without_a_secret_that_a_service_knows() {
    expect_unusable(&["token", "--sub", "7"], &[], &["LIVECOUNT_JWT_SECRET"]);
}

// ---- healthcheck ----

#[test]
fn a_running_service_is_healthy_until_it_is_not() {
    let program = Binary::start(&[]);
    let address = program.address().to_string();
    let url = format!("http://{address}");
    let by_url = || run(&["healthcheck", "--url", &url], &[]);
    let by_setting = || run(&["healthcheck"], &[("listen", &address)]);
    assert_eq!(by_url().status.code(), Some(0));
    assert_eq!(by_setting().status.code(), Some(0));
    drop(program);
    for output in [by_url(), by_setting()] {
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("not healthy"));
    }
}

#[test]
fn a_draining_service_is_alive_and_not_ready() {
    let program = Binary::start(&[("drain", "60s")]);
    let _stream = program.open("/v1/stream?blog_id=1", "");
    program.terminate();
    while program.get("/readyz", "").starts_with("HTTP/1.1 200") {
        std::thread::yield_now();
    }
    let ask = |path: &str| {
        let url = format!("http://{}{path}", program.address());
        run(&["healthcheck", "--url", &url], &[]).status.code()
    };
    assert_eq!(ask("/livez"), Some(0));
    assert_eq!(ask("/readyz"), Some(1));
}

// ---- serve ----

#[test]
fn a_bad_setting_stops_the_program_before_it_binds_a_port() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let listen = taken.local_addr().expect("it has an address").to_string();
    // With a port that cannot be bound, whichever is met first is told.
    let listen = [("listen", listen.as_str()), ("jwt_secret", SECRET)];
    expect_unusable(&[], &listen, &["LIVECOUNT_LISTEN"]);
    for (name, value) in [
        ("push_interval", "1ms"),
        ("heartbeat", "20"),
        ("jwt_secret", "short"),
        ("ticket_key", "short"),
        ("ticket_ttl", "0s"),
        ("anonymous_rooms", "user:*"),
        ("cors_origins", "https://example.org/path"),
        ("trusted_proxies", "10.0.0.0/33"),
        ("max_connections", "0"),
        ("public_url", "ftp://example.org"),
        ("ops_listen", "localhost"),
        ("log", "loud"),
        ("jwks_file", "/nowhere/jwks.json"),
        ("redis_url", "http://localhost"),
    ] {
        let mut settings = listen.to_vec();
        settings
            .retain(|(other, _)| *other != name && (*other != "jwt_secret" || name != "jwks_file"));
        settings.push((name, value));
        let variable = format!("LIVECOUNT_{}", name.to_uppercase());
        expect_unusable(&["serve"], &settings, &[&variable]);
    }
}

#[test]
fn a_secret_of_a_bad_setting_is_not_shown() {
    let output = run(&[], &[("jwt_secret", "too-short-a-secret")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!stderr(&output).contains("too-short"));
}

#[test]
fn keys_that_are_none_stop_the_program_before_it_binds_a_port() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let listen = taken.local_addr().expect("it has an address").to_string();
    let file = TempFile::with("keys.json", "{\"keys\":[]}");
    for name in ["jwks_file", "jwt_public_key_file"] {
        let variable = format!("LIVECOUNT_{}", name.to_uppercase());
        let settings = [("listen", listen.as_str()), (name, file.path())];
        expect_unusable(&[], &settings, &[&variable]);
    }
}

#[test]
fn without_a_key_only_a_loopback_listener_starts() {
    expect_unusable(
        &[],
        &[("listen", "0.0.0.0:0")],
        &["LIVECOUNT_JWT_SECRET", "LIVECOUNT_DEV"],
    );
}

#[test]
fn an_unknown_key_of_the_file_stops_the_program() {
    let file = TempFile::with("unknown.toml", "puhs_interval = \"1s\"\n");
    expect_unusable(
        &["--config", file.path()],
        &[],
        &["LIVECOUNT_CONFIG", "puhs_interval"],
    );
}

#[test]
fn an_unknown_flag_stops_the_program() {
    expect_unusable(&["--puhs-interval", "1s"], &[], &["--puhs-interval"]);
}

#[test]
fn an_unknown_variable_is_a_warning() {
    let program = Binary::start(&[("puhs_interval", "1s")]);
    assert!(program.log().contains("LIVECOUNT_PUHS_INTERVAL"));
}

#[test]
fn port_0_picks_a_port_and_the_log_says_which() {
    for format in ["text", "json"] {
        let program = Binary::start(&[("log_format", format)]);
        assert_ne!(program.address().port(), 0);
        assert!(program.get("/livez", "").starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn development_starts_with_an_admin_token_and_a_demo_page_in_the_log() {
    let program = Binary::start_bare(&[]);
    let url = format!("http://{}/", program.address());
    let log = log_with(&program, "Admin token");
    assert!(log.contains(&format!("demo page: {url}")), "{log}");
    let token = log
        .split_whitespace()
        .find(|word| word.starts_with("eyJ"))
        .expect("the log has a token");
    let authorization = format!("Authorization: Bearer {token}\r\n");
    let stats = program.get("/v1/stats", &authorization);
    assert!(stats.starts_with("HTTP/1.1 200"), "{stats}");
    let demo = program.get("/", "");
    assert!(demo.starts_with("HTTP/1.1 200"), "{demo}");
}

#[test]
fn with_a_key_there_is_neither_a_token_in_the_log_nor_a_demo_page() {
    let program = Binary::start(&[]);
    assert!(program.get("/", "").starts_with("HTTP/1.1 404"));
    assert!(!program.log().contains("eyJ"));
}

#[test]
fn operators_have_a_listener_of_their_own() {
    let program = Binary::start(&[("ops_listen", "127.0.0.1:0")]);
    let log = log_with(&program, "listening for operators");
    let line = log
        .lines()
        .find(|line| line.contains("listening for operators"))
        .expect("the log names both");
    let address = line.split("http://").nth(1).expect("it has an address");
    let url = format!("http://{}/metrics", address.trim());
    let healthy = run(&["healthcheck", "--url", &url], &[]);
    assert_eq!(healthy.status.code(), Some(0));
    assert!(program.get("/metrics", "").starts_with("HTTP/1.1 404"));
}

/// The log once this is in it: the address comes first.
fn log_with(program: &Binary, mark: &str) -> String {
    let deadline = tokio::time::Instant::now() + crate::server::PATIENCE;
    loop {
        let log = program.log();
        if log.contains(mark) {
            return log;
        }
        assert!(tokio::time::Instant::now() < deadline, "no {mark} in {log}");
        std::thread::yield_now();
    }
}
