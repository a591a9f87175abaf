//! `openapi.yaml` and the service agree, both ways: paths and methods, codes, reasons, events.
//!
//! Answers are held against their schemas by the contract check of `tests/run`; here is what that
//! one cannot see.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    body::Body,
    http::{Method, Request},
};
use livecount::{
    api::error::Code,
    app::{Face, routes},
    hub::Reason,
};
use serde_json::{Value, json};

use crate::helpers::{Answer, Event, TestApp, bearer, token};

/// The document in the repository.
const TEXT: &str = include_str!("../../openapi.yaml");

/// The methods of HTTP that a path may take; `HEAD` comes with `GET`, and `OPTIONS` is answered
/// as a preflight everywhere.
const METHODS: [Method; 6] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::TRACE,
];

/// The document, parsed.
struct Contract(Value);

/// The methods of each path.
type Paths = BTreeMap<String, BTreeSet<String>>;

impl Contract {
    fn read() -> Self {
        Self(serde_yaml_ng::from_str(TEXT).expect("the document is YAML"))
    }

    fn paths(&self) -> Paths {
        let paths = self.0["paths"].as_object().expect("paths");
        let methods = |item: &Value| {
            let keys = item.as_object().expect("a path").keys();
            keys.map(|key| key.to_uppercase())
                .filter(|key| METHODS.iter().any(|method| method.as_str() == key))
                .collect()
        };
        paths
            .iter()
            .map(|(path, item)| (path.clone(), methods(item)))
            .collect()
    }

    /// A schema by its name, with what it refers to merged in.
    fn schema(&self, name: &str) -> Value {
        self.resolved(&self.0["components"]["schemas"][name])
    }

    fn resolved(&self, schema: &Value) -> Value {
        let mut schema = schema.clone();
        while let Some(reference) = schema["$ref"].as_str() {
            let mut target = self.target(reference).expect("it is there").clone();
            let fields = schema.as_object_mut().expect("a schema");
            fields.remove("$ref");
            let inherited = target.as_object_mut().expect("a schema");
            inherited.extend(std::mem::take(fields));
            schema = target;
        }
        schema
    }

    fn target(&self, reference: &str) -> Option<&Value> {
        self.0.pointer(reference.strip_prefix('#')?)
    }

    fn strings(&self, pointer: &str) -> BTreeSet<&str> {
        let list = self.0.pointer(pointer).and_then(Value::as_array);
        let list = list.expect("a list").iter();
        list.map(|item| item.as_str().expect("a string")).collect()
    }
}

/// Calls `visit` with every value in `value`, itself included.
fn walk<'a>(value: &'a Value, visit: &mut dyn FnMut(&'a Value)) {
    visit(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        Value::Object(fields) => fields.values().for_each(|field| walk(field, visit)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A service that has every route that there can be on the public listener.
fn whole_app() -> TestApp {
    TestApp::of_one_node(&[("demo", "true")])
}

/// A path with its names filled in.
fn filled(path: &str) -> String {
    path.replace("{connection}", "9f2c41d07b6e4a5f8c3d2e1f0a9b8c7d")
        .replace("{blog_id}", "42")
        .replace("{room}", "blog:42")
        .replace("{user_id}", "7")
        .replace("{file}", "main.js")
}

async fn call(app: &TestApp, method: &Method, path: &str) -> Answer {
    let admin = bearer(&token("tester", "admin"));
    let request = Request::builder()
        .method(method)
        .uri(filled(path))
        .header("authorization", admin)
        .body(Body::empty());
    app.send(request.expect("the request is well formed")).await
}

#[tokio::test(start_paused = true)]
async fn every_route_is_documented_and_every_documented_path_is_a_route() {
    let app = whole_app();
    let config = app.app().config();
    let routed: BTreeSet<String> = [Face::Public, Face::Operators]
        .into_iter()
        .flat_map(|face| routes(config, face))
        .map(|(path, _)| path.to_owned())
        .collect();
    let documented: BTreeSet<String> = Contract::read().paths().into_keys().collect();
    assert_eq!(routed, documented);
}

#[tokio::test(start_paused = true)]
async fn a_path_takes_the_documented_methods_and_no_other() {
    let app = whole_app();
    for (path, documented) in Contract::read().paths() {
        for method in METHODS {
            let answer = call(&app, &method, &path).await;
            if documented.contains(method.as_str()) {
                let status = answer.status.as_u16();
                assert_ne!(status, 405, "{method} {path}");
                // Streams do not end; what is no stream says whether there is such a path.
                if status == 404 {
                    answer.expect_problem(404, "unknown_connection").await;
                }
                continue;
            }
            let allowed: BTreeSet<String> = answer
                .header("allow")
                .split(',')
                .map(|method| method.trim().to_owned())
                .collect();
            let mut expected = documented.clone();
            if expected.contains("GET") {
                expected.insert("HEAD".to_owned());
            }
            assert_eq!(allowed, expected, "what {path} says that it takes");
            answer.expect_problem(405, "method_not_allowed").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn head_is_answered_where_get_is_and_nowhere_else() {
    let app = whole_app();
    for (path, documented) in Contract::read().paths() {
        let head = call(&app, &Method::HEAD, &path).await;
        if documented.contains("GET") {
            let get = call(&app, &Method::GET, &path).await;
            assert_eq!(head.status, get.status, "{path}");
        } else {
            assert_eq!(head.status.as_u16(), 405, "{path}");
        }
    }
    assert_eq!(app.hub().totals().turnover.opened, 0, "nobody joined");
}

#[tokio::test(start_paused = true)]
async fn the_document_is_served_as_it_is() {
    let app = TestApp::of_one_node(&[]);
    let answer = app.get("/openapi.yaml", &[]).await;
    assert_eq!(answer.header("content-type"), "application/yaml");
    assert_eq!(answer.text().await, TEXT);
}

#[test]
fn every_reference_in_the_document_has_its_target() {
    let contract = Contract::read();
    let mut references = 0;
    walk(&contract.0, &mut |value| {
        let Some(reference) = value.get("$ref").and_then(Value::as_str) else {
            return;
        };
        references += 1;
        assert!(contract.target(reference).is_some(), "{reference}");
    });
    assert!(references > 100, "the walk finds references");
}

#[test]
fn the_document_lists_every_error_code_and_no_other() {
    let contract = Contract::read();
    let codes: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    let documented = contract.strings("/components/schemas/ErrorCode/enum");
    assert_eq!(documented, codes);
    // The table for people says the same, with the status of each.
    let table = contract.schema("ErrorCode");
    let table = table["description"].as_str().expect("a description");
    let rows: BTreeSet<(u16, &str)> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let status = cells.next()?.parse().ok()?;
            Some((status, cells.next()?.trim_matches('`')))
        })
        .collect();
    let expected = Code::ALL
        .iter()
        .map(|code| (code.status().as_u16(), code.as_str()));
    assert_eq!(rows, expected.collect());
}

#[test]
fn every_error_code_has_an_example_with_its_status() {
    let contract = Contract::read();
    for code in Code::ALL {
        let example = &contract.0["components"]["examples"][code.as_str()]["value"];
        assert_eq!(example["type"], json!("about:blank"), "{code:?}");
        assert_eq!(example["code"], json!(code.as_str()));
        assert_eq!(example["status"], json!(code.status().as_u16()));
        let title = code.status().canonical_reason().expect("a known status");
        assert_eq!(example["title"], json!(title));
        assert!(example["detail"].is_string(), "{code:?}");
    }
}

/// The codes that an answer's schema lists.
fn listed_codes(schema: &Value) -> Vec<&str> {
    let code = &schema["properties"]["code"];
    let one = code["const"].as_str().into_iter();
    let several = code["enum"].as_array().into_iter().flatten();
    one.chain(several.filter_map(Value::as_str)).collect()
}

#[test]
fn an_answer_lists_codes_of_its_own_status_only_and_every_code_is_listed() {
    let contract = Contract::read();
    let codes: BTreeMap<&str, u16> = Code::ALL
        .iter()
        .map(|code| (code.as_str(), code.status().as_u16()))
        .collect();
    let mut seen = BTreeSet::new();
    walk(&contract.0, &mut |value| {
        let Some(problem) = value.get("application/problem+json") else {
            return;
        };
        let status = &problem["schema"]["properties"]["status"]["const"];
        let listed = listed_codes(&problem["schema"]);
        assert!(!listed.is_empty(), "an answer lists its codes: {problem}");
        for code in &listed {
            assert_eq!(*status, json!(codes[code]), "{code}");
        }
        let examples = problem["examples"].as_object().expect("examples");
        let examples: BTreeSet<&str> = examples.keys().map(String::as_str).collect();
        assert_eq!(examples, listed.iter().copied().collect());
        seen.extend(listed);
    });
    assert_eq!(seen, codes.into_keys().collect());
}

#[test]
fn every_operation_answers_a_status_with_what_has_that_status() {
    let contract = Contract::read();
    let paths = contract.0["paths"].as_object().expect("paths");
    let operations = paths.values().flat_map(|item| {
        let item = item.as_object().expect("a path");
        item.values()
            .filter(|operation| operation.get("responses").is_some())
    });
    let mut checked = 0;
    for operation in operations {
        let responses = operation["responses"].as_object().expect("responses");
        for (status, response) in responses {
            let response = contract.resolved(response);
            let problem = &response["content"]["application/problem+json"]["schema"];
            if let Some(stated) = problem["properties"]["status"]["const"].as_u64() {
                assert_eq!(&stated.to_string(), status, "{operation:?}");
                checked += 1;
            }
        }
    }
    assert!(checked > 100, "the walk finds answers");
}

#[test]
fn the_document_lists_every_reason_for_an_end_and_no_other() {
    let contract = Contract::read();
    let reasons: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let pointer = "/components/schemas/ClosedEvent/properties/reason/enum";
    assert_eq!(contract.strings(pointer), reasons);
    let closed = contract.schema("ClosedEvent");
    let table = closed["description"].as_str().expect("a description");
    for reason in reasons {
        assert!(table.contains(&format!("| `{reason}` |")), "{reason}");
    }
}

/// Checks that an event's data has every field that its schema requires and none that the schema
/// does not know.
fn check_data(contract: &Contract, name: &str, data: &Value) {
    let schema = contract.schema(name);
    let fields = data.as_object().expect("data is an object");
    let required = schema["required"].as_array().into_iter().flatten();
    for field in required {
        let field = field.as_str().expect("a name");
        assert!(fields.contains_key(field), "{name} without {field}: {data}");
    }
    for field in fields.keys() {
        let known = schema["properties"].get(field);
        assert!(known.is_some(), "{name} with {field}: {data}");
    }
}

#[test]
fn the_examples_of_events_have_the_documented_fields() {
    let contract = Contract::read();
    let schemas = contract.0["components"]["schemas"]
        .as_object()
        .expect("schemas");
    let events = schemas.keys().filter(|name| {
        name.ends_with("Event") && !["StreamEvent", "RoomEvent"].contains(&name.as_str())
    });
    let mut names = 0;
    for name in events {
        let examples = contract.schema(name);
        let examples = examples["examples"].as_array().expect("examples");
        assert!(!examples.is_empty(), "{name}");
        for example in examples {
            check_data(&contract, name, example);
        }
        names += 1;
    }
    // As many as `StreamEvent` tells apart.
    let kinds = contract.schema("StreamEvent");
    assert_eq!(kinds["oneOf"].as_array().map(Vec::len), Some(names));
}

/// The schema of an event's data.
fn schema_of(event: &Event) -> &'static str {
    match event.name.as_str() {
        "connected" => "ConnectedEvent",
        "count" => "CountEvent",
        "joined" => "JoinedEvent",
        "left" => "LeftEvent",
        "reset" => "ResetEvent",
        "expiring" => "ExpiringEvent",
        "ping" => "PingEvent",
        "closed" => "ClosedEvent",
        _ => "MessageEvent",
    }
}

#[tokio::test(start_paused = true)]
async fn the_events_of_a_stream_have_the_documented_fields() {
    let contract = Contract::read();
    let app = TestApp::of_one_node(&[]);
    let member = bearer(&token("7", "admin"));
    let headers = [("authorization", member.as_str())];
    // An id of another log, so that the stream begins with `reset`.
    let path = "/v1/stream?blog_id=42&last_event_id=1.1";
    let mut viewer = app.open(path, &headers).await;
    check_data(&contract, "ConnectedEvent", &viewer.connected);
    let connection = format!("/v1/connections/{}", viewer.connection());
    for (call, body) in [
        ("join", json!({"blog_id": 43})),
        ("leave", json!({"blog_id": 43})),
    ] {
        let path = format!("{connection}/{call}");
        let answer = app.post(&path, &headers, body).await;
        assert_eq!(answer.status.as_u16(), 200, "{call}");
    }
    let message = json!({"data": [1], "event": "goal"});
    let answer = app.post("/v1/users/7/messages", &headers, message).await;
    assert_eq!(answer.status.as_u16(), 202);
    let mut seen = BTreeSet::new();
    while !seen.contains("PingEvent") {
        let event = viewer.next().await;
        check_data(&contract, schema_of(&event), &event.data);
        seen.insert(schema_of(&event));
    }
    let answer = app.delete(&connection, &headers, None).await;
    assert_eq!(answer.status.as_u16(), 204);
    let closed = viewer.next_named("closed").await;
    check_data(&contract, "ClosedEvent", &closed.data);
    let expected = [
        "CountEvent",
        "JoinedEvent",
        "LeftEvent",
        "MessageEvent",
        "PingEvent",
        "ResetEvent",
    ];
    assert_eq!(seen, BTreeSet::from(expected));
}

#[tokio::test(start_paused = true)]
async fn no_message_may_have_a_name_that_the_document_reserves() {
    let contract = Contract::read();
    let app = TestApp::of_one_node(&[]);
    let admin = bearer(&token("tester", "admin"));
    let headers = [("authorization", admin.as_str())];
    for name in contract.strings("/components/schemas/EventName/not/enum") {
        let message = json!({"data": 1, "event": name});
        let answer = app.post("/v1/rooms/blog:42/messages", &headers, message);
        answer.await.expect_problem(400, "invalid_event").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_no_rooms_is_named_in_the_answer() {
    let app = TestApp::of_one_node(&[]);
    let answer = app.get("/v1/rooms/Blog:42", &[]).await;
    let problem = answer.expect_problem(400, "invalid_room").await;
    assert_eq!(problem["room"], json!("Blog:42"));
    let body = json!({"rooms": ["blog:1", "blog 2"]});
    let answer = app.post("/v1/counts", &[], body).await;
    let problem = answer.expect_problem(400, "invalid_room").await;
    assert_eq!(problem["room"], json!("blog 2"));
}

#[tokio::test(start_paused = true)]
async fn a_list_of_rooms_takes_the_beginning_of_a_rooms_name_and_nothing_else() {
    let app = TestApp::of_one_node(&[]);
    for prefix in ["", "b", "blog", "blog:", "blog:4", "user:"] {
        let answer = app.get(&format!("/v1/rooms?prefix={prefix}"), &[]).await;
        assert_eq!(answer.status.as_u16(), 200, "{prefix:?}");
    }
    let long = format!("blog:{}", "a".repeat(129));
    for prefix in ["Blog", ":", "1", "-", "blog:a%20b", "blog*", &long] {
        let answer = app.get(&format!("/v1/rooms?prefix={prefix}"), &[]).await;
        answer.expect_problem(400, "invalid_prefix").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_is_any_whole_number_of_seconds_however_it_is_written() {
    let app = TestApp::of_one_node(&[]);
    let admin = bearer(&token("tester", "admin"));
    let headers = [("authorization", admin.as_str())];
    for block in [json!(0), json!(60.0), json!(86_400)] {
        let body = Some(json!({ "block": block }));
        let answer = app.delete("/v1/users/7/connections", &headers, body).await;
        assert_eq!(answer.status.as_u16(), 204, "{block}");
    }
    for block in [
        json!(-1),
        json!(0.5),
        json!(86_401),
        json!("60"),
        json!(null),
    ] {
        let body = Some(json!({ "block": block }));
        let answer = app.delete("/v1/users/7/connections", &headers, body).await;
        answer.expect_problem(400, "invalid_block").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_kick_of_a_user_takes_no_ticket() {
    let app = TestApp::of_one_node(&[]);
    let admin = bearer(&token("tester", "admin"));
    let headers = [("authorization", admin.as_str())];
    let body = Some(json!({ "ticket": "lct1.none" }));
    let answer = app.delete("/v1/users/7/connections", &headers, body).await;
    answer.expect_problem(400, "unknown_field").await;
}
