//! One event of a stream, as its reader has it.

use serde_json::Value;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// Its name; empty for a bare `retry:`.
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    /// Its data, parsed; null where it has none.
    pub(crate) data: Value,
}

impl Event {
    pub(crate) fn parse(text: &str) -> Self {
        let mut event = Self {
            name: String::new(),
            id: None,
            data: Value::Null,
        };
        for line in text.lines() {
            match line.split_once(": ") {
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("data", data)) => event.data = serde_json::from_str(data).expect("JSON"),
                Some(("retry", wait)) => assert!(wait.parse::<u64>().is_ok(), "{line}"),
                _ => panic!("{line:?} is no field of an event"),
            }
        }
        event
    }

    pub(crate) fn room(&self) -> &str {
        self.data["room"].as_str().unwrap_or_default()
    }
}
