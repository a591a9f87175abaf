//! Bounds of time, judged on a machine that may be busy with something else.
//!
//! Fault tests hold nodes to seconds, and nobody keeps those whose processes wait for a processor.
//! So a scene that fails while the machine was busy proves nothing, and is played again; at the
//! last try with all bounds three times as long, which still finds what never comes right. One
//! that fails on a quiet machine has failed.

use std::{
    cell::Cell,
    fs,
    io::{Write, stderr},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// How often a scene is played, at most.
const TRIES: u32 = 3;
/// What bounds are multiplied by at the last try.
const LAX: u32 = 3;
/// Of a scene's time, how much some process on the machine may wait for a processor, in percent,
/// before it is busy. Two scenes side by side on two processors and nothing else: up to 32 in any
/// ten seconds.
const CROWDED: u128 = 45;
/// A thread that is due and does not run for so long is on a machine that stood still.
const STALL: Duration = Duration::from_millis(250);

thread_local! {
    static FACTOR: Cell<u32> = const { Cell::new(1) };
}

/// A bound of time as it holds now.
pub(crate) fn allow(bound: Duration) -> Duration {
    bound * FACTOR.get()
}

/// Plays a scene until it succeeds, or fails on a machine that was not busy, three times at most.
pub(crate) fn judged(scene: impl AsyncFn()) {
    play(scene, || {
        let machine = Machine::watch();
        || machine.was_busy()
    });
}

/// The same on what says afterwards in what way the machine was busy, if it was.
fn play<W: FnOnce() -> Option<String>>(scene: impl AsyncFn(), watch: impl Fn() -> W) {
    for attempt in 1..=TRIES {
        FACTOR.set(if attempt == TRIES { LAX } else { 1 });
        let how_busy = watch();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be had");
        let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(scene())));
        // Readers end with it.
        drop(runtime);
        FACTOR.set(1);
        match (outcome, how_busy()) {
            (Ok(()), _) => return,
            (Err(_), Some(how)) if attempt < TRIES => {
                // Past the capture of a test's output, so that it is seen on what try it passed.
                let scene = thread::current();
                let scene = scene.name().unwrap_or("a scene");
                let _ = writeln!(
                    stderr(),
                    "{scene}: failed on a busy machine ({how}): once more"
                );
            }
            (Err(reason), _) => resume_unwind(reason),
        }
    }
}

/// What the machine does beside a test.
struct Machine {
    since: Instant,
    waited: Option<u128>,
    over: Arc<AtomicBool>,
    metronome: thread::JoinHandle<Duration>,
}

impl Machine {
    fn watch() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let metronome = thread::spawn(move || {
            const BEAT: Duration = Duration::from_millis(10);
            let mut latest = Duration::ZERO;
            while !told.load(Ordering::Relaxed) {
                let due = Instant::now() + BEAT;
                thread::sleep(BEAT);
                latest = latest.max(due.elapsed());
            }
            latest
        });
        Self {
            since: Instant::now(),
            waited: waited(),
            over,
            metronome,
        }
    }

    /// In what way it was busy, if it was.
    fn was_busy(self) -> Option<String> {
        self.over.store(true, Ordering::Relaxed);
        let latest = self.metronome.join().expect("it only sleeps");
        let time = self.since.elapsed().as_micros().max(1);
        let waited = waited().zip(self.waited);
        let share = waited.map(|(now, before)| now.saturating_sub(before) * 100 / time);
        // Where nobody says how long processes wait, how many there are must do.
        let crowded = share.map_or_else(is_loaded, |share| share > CROWDED);
        (crowded || latest > STALL)
            .then(|| format!("{share:?} % waiting, a thread {latest:?} late"))
    }
}

/// For how long some process waited for a processor since the machine's start, in microseconds.
///
/// Source: the kernel's Documentation/accounting/psi.rst.
fn waited() -> Option<u128> {
    let pressure = fs::read_to_string("/proc/pressure/cpu").ok()?;
    let some = pressure.lines().find(|line| line.starts_with("some"))?;
    let total = some.split_once("total=")?;
    total.1.trim().parse().ok()
}

/// True where more is running than there are processors.
fn is_loaded() -> bool {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().and_then(|load| load.parse().ok());
    let processors = thread::available_parallelism().map_or(1, usize::from);
    load.is_some_and(|load: f64| load > processors as f64)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// Plays a scene that fails so many times on a machine as given; answers how often it was
    /// played and what the bounds were.
    fn fails(times: usize, busy: bool) -> (bool, Vec<u64>) {
        let played = Mutex::new(Vec::new());
        let scene = async || {
            let number = {
                let mut played = played.lock();
                played.push(allow(Duration::from_secs(1)).as_secs());
                played.len()
            };
            if number <= times {
                // Without a report of it.
                resume_unwind(Box::new("as told"));
            }
        };
        let watch = || move || busy.then(|| "very".to_owned());
        let outcome = catch_unwind(AssertUnwindSafe(|| play(scene, watch)));
        (outcome.is_ok(), played.into_inner())
    }

    #[test]
    fn a_scene_is_played_again_where_the_machine_was_busy_and_only_there() {
        assert_eq!(fails(0, true), (true, vec![1]));
        assert_eq!(fails(1, false), (false, vec![1]));
        assert_eq!(fails(1, true), (true, vec![1, 1]));
        assert_eq!(fails(2, true), (true, vec![1, 1, 3]));
        assert_eq!(fails(3, true), (false, vec![1, 1, 3]));
        assert_eq!(allow(STALL), STALL);
    }

    #[test]
    fn a_thread_that_cannot_run_is_noticed() {
        let machine = Machine::watch();
        let spinning = Arc::new(AtomicBool::new(true));
        let spinners: Vec<_> = (0..thread::available_parallelism().map_or(2, usize::from) * 4)
            .map(|_| {
                let spinning = Arc::clone(&spinning);
                thread::spawn(move || while spinning.load(Ordering::Relaxed) {})
            })
            .collect();
        thread::sleep(Duration::from_millis(700));
        spinning.store(false, Ordering::Relaxed);
        for spinner in spinners {
            spinner.join().expect("it only spins");
        }
        assert!(machine.was_busy().is_some());
    }
}
