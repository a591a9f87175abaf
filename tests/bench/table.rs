//! The table that is printed, row by row as figures become known.

use std::process::Command;

use crate::say;

/// One line of the table.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) figure: String,
    pub(crate) goal: String,
    pub(crate) measured: String,
    /// What was measured beside it in the same run, and in the ratio that follows.
    pub(crate) reference: String,
    /// Measured by reference.
    pub(crate) ratio: Option<f64>,
    /// Whether the goal is reached; `None` for what has none.
    pub(crate) reached: Option<bool>,
}

/// Where and when this was measured, and what each column is.
pub(crate) fn head() {
    say(&format!("measured {}", circumstances()));
    line("figure", "goal", "measured", "beside it", "ratio", "");
    say(&"-".repeat(132));
}

/// Date, commit, processors, kernel and allocator; what cannot be found out is left out.
fn circumstances() -> String {
    let said = |command: &str, arguments: &[&str]| {
        let output = Command::new(command).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
    };
    let date = said("date", &["-u", "+%F %R UTC"]);
    let tree = env!("CARGO_MANIFEST_DIR");
    let commit = said("git", &["-C", tree, "describe", "--always", "--dirty"]);
    let kernel = said("uname", &["-sr"]);
    let processors = std::fs::read_to_string("/proc/cpuinfo").ok();
    let model = processors.as_deref().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim())
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let processors = model.map_or_else(
        || format!("{cores} processors"),
        |model| format!("{cores} x {model}"),
    );
    let allocator = if cfg!(feature = "jemalloc") {
        "jemalloc"
    } else {
        "the system's allocator"
    };
    let all = [date, commit, kernel, Some(processors)];
    let known = all.into_iter().flatten().chain([allocator.to_owned()]);
    known.collect::<Vec<_>>().join(", ")
}

impl Row {
    pub(crate) fn print(&self) {
        let ratio = self.ratio.map_or_else(String::new, |r| format!("{r:.3}"));
        let verdict = match self.reached {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "",
        };
        line(
            &self.figure,
            &self.goal,
            &self.measured,
            &self.reference,
            &ratio,
            verdict,
        );
    }
}

fn line(figure: &str, goal: &str, measured: &str, reference: &str, ratio: &str, verdict: &str) {
    say(&format!(
        "{figure:<44} {goal:<18} {measured:<24} {reference:<28} {ratio:>7} {verdict}"
    ));
}
