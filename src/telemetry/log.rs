//! What the process says about itself: one line an event, on standard error.
//!
//! Knows filters and formats, not settings; which events there are is their writers' business.
//! Standard output stays free for what a subcommand was asked to print.

use std::io::{self, IsTerminal};

use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt};

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people; coloured where standard error is a terminal.
    #[default]
    Text,
    /// One JSON object a line, the event's fields beside `timestamp`, `level` and `target`.
    Json,
}

/// Says why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Nothing was given.
    #[error("a log filter is not empty")]
    Empty,
    /// A word alone that is no level.
    #[error("{0:?} is no level; a module's level is written module=level")]
    Level(String),
    /// Not in the syntax of filters.
    #[error("it is not in the syntax of log filters")]
    Syntax(#[source] tracing_subscriber::filter::ParseError),
    /// The process has a log already.
    #[error("the log is set up already")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Starts the process's log: whatever passes `filter`, in `format`.
///
/// # Errors
///
/// [`LogError::Twice`] on a second call, the others for a filter that [`check_filter`] refuses.
pub fn init(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let filter = parse_filter(filter)?;
    let ansi = io::stderr().is_terminal();
    subscriber(filter, format, ansi, io::stderr)
        .try_init()
        .map_err(LogError::Twice)
}

/// Checks a filter such as `info` or `warn,livecount=debug` without starting a log.
///
/// # Errors
///
/// When it is empty, malformed, or names something that is no level.
pub fn check_filter(filter: &str) -> Result<(), LogError> {
    parse_filter(filter).map(drop)
}

/// `EnvFilter` takes a word that is no level for a module's name, so that `warning` would
/// silence the service for good; hence the check before it.
fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    if filter.trim().is_empty() {
        return Err(LogError::Empty);
    }
    for directive in filter.split(',') {
        let is_word = !directive.contains(['=', '[']);
        if is_word && !LEVELS.contains(&directive.to_ascii_lowercase().as_str()) {
            return Err(LogError::Level(directive.chars().take(64).collect()));
        }
    }
    EnvFilter::builder().parse(filter).map_err(LogError::Syntax)
}

fn subscriber<W>(
    filter: EnvFilter,
    format: LogFormat,
    ansi: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(writer);
    match format {
        LogFormat::Text => Box::new(builder.compact().finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What a log of this filter and format holds after one debug and one info event.
    fn logged(filter: &str, format: LogFormat) -> String {
        #[derive(Clone, Default)]
        struct Sink(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::default();
        let writer = sink.clone();
        let filter = parse_filter(filter).unwrap();
        let subscriber = subscriber(filter, format, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("quiet");
            tracing::info!(port = 8080, "listening");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_filter_decides_what_is_written() {
        assert!(!logged("info", LogFormat::Text).contains("quiet"));
        assert!(logged("debug", LogFormat::Text).contains("quiet"));
        assert_eq!(logged("off", LogFormat::Text), "");
    }

    #[test]
    fn text_holds_no_escapes_where_there_is_no_terminal() {
        let text = logged("info", LogFormat::Text);
        assert!(text.contains("listening"), "{text}");
        assert!(text.contains("port=8080"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn json_is_one_object_a_line_with_the_fields_on_top() {
        let line = logged("info", LogFormat::Json);
        assert_eq!(line.lines().count(), 1);
        assert!(line.starts_with('{') && line.ends_with("}\n"), "{line}");
        assert!(
            line.contains(r#""message":"listening","port":8080"#),
            "{line}"
        );
    }

    #[test]
    fn a_filter_that_would_silence_the_service_by_a_typing_error_is_refused() {
        for bad in [
            "",
            " ",
            "warning",
            "inof",
            "info,hyper",
            "info,",
            "hyper=loud",
            "[=",
        ] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
        for good in [
            "info",
            "WARN",
            "warn,livecount=debug",
            "info,hyper=off",
            "info,livecount[join{room=\"a\"}]=trace",
        ] {
            assert!(check_filter(good).is_ok(), "{good}");
        }
    }
}
