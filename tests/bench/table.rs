//! The table that is printed, row by row as figures become known.

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

pub(crate) fn head() {
    line("figure", "goal", "measured", "beside it", "ratio", "");
    say(&"-".repeat(132));
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
