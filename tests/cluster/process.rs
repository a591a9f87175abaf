//! Signals to the processes of a test, by their ids.

use std::process::Child;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Stops a process in the midst of whatever it does; its sockets stay. All of its threads stand
/// still when this returns.
pub(crate) fn freeze(child: &Child) {
    send(child, Signal::STOP);
    let stopped = waitpid(Some(Pid::from_child(child)), WaitOptions::UNTRACED);
    let stopped = stopped.expect("it is ours").expect("it was waited for");
    assert!(stopped.1.stopped(), "it ended instead: {stopped:?}");
}

/// Lets it go on.
pub(crate) fn thaw(child: &Child) {
    send(child, Signal::CONT);
}

/// Asks it to end in order.
pub(crate) fn terminate(child: &Child) {
    send(child, Signal::TERM);
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it runs");
}
