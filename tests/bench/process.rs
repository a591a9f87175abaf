//! Processes that the benchmark starts, and what the kernel says of them.
//!
//! Whatever is started here is killed by its number when its handle is dropped, also where a
//! panic unwinds.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Serialize, de::DeserializeOwned};

use crate::Result;

/// How long a process gets to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(2);

/// A process of ours, killed when dropped.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn();
        Ok(Self(child.map_err(|error| {
            format!("{program} cannot be started: {error}")
        })?))
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Stops it in its tracks, as `kill -STOP` does.
    pub(crate) fn halt(&self) {
        signal(self.0.id(), Signal::STOP);
    }

    /// Ends it without a word, as `kill -9` does.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Memory that is its own: `Pss_Anon`, in bytes; its children's with it.
    pub(crate) fn memory(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in family(self.0.id()) {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            sum += field(&rollup, "Pss_Anon:").ok_or("no Pss_Anon in smaps_rollup")? << 10;
        }
        Ok(sum)
    }

    /// Time that its threads have spent on a processor, in user and in kernel mode, in
    /// nanoseconds: the first number of each thread's `schedstat`.
    pub(crate) fn cpu(&self) -> Result<u64> {
        let mut sum = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            // A thread may end between the two looks.
            let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            let time = text.split(' ').next().and_then(|time| time.parse().ok());
            sum += time.unwrap_or(0);
        }
        Ok(sum)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its number may be another's by now.
        if let Ok(Some(_)) = self.0.try_wait() {
            return;
        }
        let pids = family(self.0.id());
        // nginx ends its workers when asked, and would leave them when killed.
        if pids.len() > 1 {
            signal(self.0.id(), Signal::TERM);
            for _ in 0..PATIENCE.as_millis() / 10 {
                if !matches!(self.0.try_wait(), Ok(None)) {
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        for pid in pids {
            signal(pid, Signal::KILL);
        }
        // Reaps it; an error says that somebody did.
        let _ = self.0.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

/// A process and its children; theirs are of no concern here.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Times that the kernel turned a connection away from a full queue of a listener, since boot and
/// on the whole machine.
pub(crate) fn listen_overflows() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next().ok_or("no TcpExt")?, lines.next());
    let mut pairs = names.split(' ').zip(numbers.ok_or("no TcpExt")?.split(' '));
    let number = pairs.find(|(name, _)| *name == "ListenOverflows");
    Ok(number.ok_or("no ListenOverflows")?.1.parse()?)
}

/// Memory of the kernel's objects on the whole machine, in bytes.
pub(crate) fn kernel_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    Ok(field(&text, "Slab:").ok_or("no Slab in meminfo")? << 10)
}

/// Connections that a firewall of the kernel tracks, and how many it tracks at the most, where it
/// does: what is beyond is dropped without a word.
pub(crate) fn tracked_connections() -> Option<(u64, u64)> {
    let read = |name: &str| {
        let text =
            fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
        text.trim().parse().ok()
    };
    Some((read("count")?, read("max")?))
}

/// This executable again in one of its other roles, which does what it is told line by line: an
/// order goes in as JSON, a report comes out.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) process: Process,
    pub(crate) orders: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Role {
    pub(crate) fn start(name: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["role", name]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let orders = process.child().stdin.take();
        let reports = process.child().stdout.take();
        Ok(Self {
            process,
            orders: orders.ok_or("no pipe to a role")?,
            reports: BufReader::new(reports.ok_or("no pipe from a role")?),
        })
    }

    /// Gives an order, without waiting for its report.
    pub(crate) fn tell(&mut self, order: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(order)?;
        Ok(writeln!(self.orders, "{line}")?)
    }

    /// Waits for a report.
    pub(crate) fn hear<R: DeserializeOwned>(&mut self) -> Result<R> {
        let mut line = String::new();
        if self.reports.read_line(&mut line)? == 0 {
            return Err("a role ended without a report; it said why above".into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    pub(crate) fn ask<R: DeserializeOwned>(&mut self, order: &impl Serialize) -> Result<R> {
        self.tell(order)?;
        self.hear()
    }
}

/// True where the file is there.
pub(crate) fn exists(path: &str) -> bool {
    Path::new(path).exists()
}
