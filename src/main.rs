//! livecount: tells every reader of a page how many others are reading it right now.

use std::{collections::BTreeMap, process::ExitCode};

use livecount::{
    cli::{self, Command},
    config::Config,
    run, telemetry,
};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // The only place where the environment is read. Text that is not UTF-8 is no setting's value.
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .map(|(name, value)| {
            let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
            (text(name), text(value))
        })
        .collect();
    match cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit()) {
        Command::CheckConfig(flags) => cli::check_config(&flags, &environment),
        Command::Healthcheck { url, flags } => {
            cli::healthcheck(url.as_deref(), &flags, &environment)
        }
        Command::Token(request, flags) => cli::token(&request, &flags, &environment),
        Command::Serve(flags) => match Config::load(&flags.0, &environment) {
            Err(error) => cli::unusable(&error),
            Ok((config, warnings)) => {
                if let Err(error) = telemetry::log::init(&config.log, config.log_format) {
                    return cli::unusable(&error);
                }
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                run::serve(config)
            }
        },
    }
}
