//! The load benchmark: what an idle viewer, a delivered count, a join and a request cost, each
//! beside a reference in the same run, with its goal.
//!
//! `cargo bench --bench load` takes about two minutes and measures everything;
//! `cargo bench --bench load -- idle cpu` measures what is named (of `idle`, `cpu`, `joins`,
//! `burst`, `churn`), and `-- --quick` is a small run that judges no cost, for CI: it shows that
//! every count comes, once, and is right. Loopback only. The load comes from processes of its
//! own: this executable again, in the roles of `roles/`.
//!
//! Only where they are named, since they need a `redis-server` and both cores for minutes:
//! `-- cluster` measures what many nodes cost each other and Redis, and `-- many 200000` puts so
//! many readers on as many nodes as they take and kills one of these.
//!
//! Memory is `Pss_Anon`, which is the process's own; time is that of all threads of the server's
//! process, user and kernel, from `schedstat`. The machine's other work changes either little and
//! the time's worth a lot, so that only ratios within one run mean anything.

mod crowd;
mod figures;
mod orders;
mod process;
mod redis;
mod roles;
mod server;
mod table;

use std::{
    error::Error,
    io::{Write, stdout},
    process::ExitCode,
};

use figures::{Findings, Size};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Figure = fn(Size, &mut Findings) -> Result<()>;

const FIGURES: [(&str, Figure); 7] = [
    ("idle", figures::idle::run),
    ("cpu", figures::counts::run),
    ("joins", figures::joins::run),
    ("burst", figures::burst::run),
    ("churn", figures::churn::run),
    ("cluster", figures::cluster::run),
    ("many", figures::many::run),
];
/// Figures that are measured only where they are named.
const ON_DEMAND: [&str; 2] = ["cluster", "many"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [role, name] if role == "role" => roles::play(name).map(|()| ExitCode::SUCCESS),
        _ => measure(&arguments),
    };
    result.unwrap_or_else(|error| {
        // A role's own output is for whoever gave it orders.
        let _ = writeln!(std::io::stderr(), "load: {error}");
        ExitCode::FAILURE
    })
}

fn measure(arguments: &[String]) -> Result<ExitCode> {
    // Cargo adds `--bench`; without it this is `cargo test --benches`, which is in a hurry.
    let asked = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let quick = asked("--quick") || !asked("--bench");
    let words = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"));
    let (numbers, named): (Vec<&String>, Vec<&String>) =
        words.partition(|word| word.parse::<u32>().is_ok());
    if let Some(unknown) = named.iter().find(|name| !is_figure(name)) {
        let known = FIGURES.map(|(name, _)| name).join(", ");
        return Err(format!("there is no figure {unknown}, but {known}").into());
    }
    let mut size = if quick { Size::QUICK } else { Size::FULL };
    if let Some(number) = numbers.first() {
        size.crowd = number.parse()?;
    }
    let mut findings = Findings::new(size);
    table::head();
    for (name, figure) in FIGURES {
        let unasked = named.is_empty() && !ON_DEMAND.contains(&name);
        if unasked || named.iter().any(|asked| *asked == name) {
            figure(size, &mut findings).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(match findings.missed() {
        0 => ExitCode::SUCCESS,
        missed => {
            say(&format!("{missed} goals missed"));
            ExitCode::FAILURE
        }
    })
}

fn is_figure(name: &str) -> bool {
    FIGURES.iter().any(|(figure, _)| *figure == name)
}

/// Prints a line of the benchmark's own output.
fn say(line: &str) {
    // Nobody reads it any more where this fails.
    let _ = writeln!(stdout(), "{line}");
}
