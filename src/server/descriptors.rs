//! File descriptors: as many as the system grants, and what that means for streams.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for everything that is no stream: listeners, logs, REST, refusals. Whoever sends
/// no request does not keep the last quarter of them from those who do.
const RESERVE: usize = 64;

/// Raises the soft limit to the hard one; answers how many streams that leaves room for.
///
/// One stream takes one descriptor. A small share beside the reserve is left for REST calls and
/// for telling the reader who is one too many so.
#[must_use]
pub fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the descriptor limit cannot be raised");
    }
    let granted = getrlimit(Resource::Nofile).current;
    let granted = granted.map_or(usize::MAX, |granted| {
        usize::try_from(granted).unwrap_or(usize::MAX)
    });
    streams(granted)
}

/// The descriptor from which on nearly all are taken: the system gives the lowest that is free.
pub(super) fn crowded_from() -> usize {
    let granted = getrlimit(Resource::Nofile).current;
    granted.map_or(usize::MAX, |granted| {
        let granted = usize::try_from(granted).unwrap_or(usize::MAX);
        granted - reserve(granted) / 4
    })
}

fn streams(descriptors: usize) -> usize {
    (descriptors - reserve(descriptors)).max(1)
}

fn reserve(descriptors: usize) -> usize {
    RESERVE.min(descriptors / 2) + descriptors / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_always_left_for_what_is_no_stream() {
        assert_eq!(streams(20_000), 19_736);
        assert_eq!(streams(64), 32);
        assert_eq!(streams(1), 1);
    }
}
