//! What nodes that share one Redis cost each other and it.

mod idle;
mod joins;
mod seen;

use super::{Findings, Size};
use crate::Result;

pub(crate) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    idle::run(size, findings)?;
    seen::run(size, findings)?;
    joins::run(size, findings)
}
