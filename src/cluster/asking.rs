//! Questions to the other nodes, and what becomes of the answers.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use super::{
    Cluster, Respond, Shared,
    asks::{Ask, Envelope, Reply},
    store::{Channel, Incarnation, Node},
};

/// How long the others have to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// A question or an answer on its way.
#[derive(Debug)]
pub(super) struct Mail {
    channel: Channel,
    bytes: Vec<u8>,
    at: Instant,
}

impl Mail {
    pub(super) fn new(channel: Channel, envelope: &Envelope) -> Self {
        Self {
            channel,
            bytes: envelope.write(),
            at: Instant::now(),
        }
    }
}

impl Cluster {
    /// Has all other nodes do something, without waiting for what they say.
    pub fn tell(&self, ask: Ask) {
        let shared = &self.0;
        let envelope = Envelope::Ask {
            from: shared.process.bits(),
            // Nobody waits for an answer of this number.
            id: shared.questions.fetch_add(1, Ordering::Relaxed),
            ask,
        };
        // The error says that the process ends.
        let _ = shared.mail.send(Mail::new(Channel::Everybody, &envelope));
    }

    /// Asks all other nodes; answers what they said, and whether all of them said something. Ends
    /// at the first answer that `enough` is content with.
    pub async fn ask(&self, ask: Ask, enough: fn(&Reply) -> bool) -> (Vec<Reply>, bool) {
        let shared = &self.0;
        let mut awaited = Awaited::of(&shared.nodes.lock().0, shared.process);
        let complete = !self.is_partial();
        // With Redis away nobody would hear it.
        let near = shared.view.lock().is_near(Instant::now());
        if awaited.is_over() || !near {
            return (Vec::new(), complete && near);
        }
        let id = shared.questions.fetch_add(1, Ordering::Relaxed);
        let (answered, mut answers) = mpsc::unbounded_channel();
        shared.asked.lock().insert(id, answered);
        let _forget = Forget(shared, id);
        let envelope = Envelope::Ask {
            from: shared.process.bits(),
            id,
            ask,
        };
        if shared
            .mail
            .send(Mail::new(Channel::Everybody, &envelope))
            .is_err()
        {
            return (Vec::new(), false);
        }
        let deadline = Instant::now() + PATIENCE;
        let (mut replies, mut heard) = (Vec::new(), HashSet::new());
        while !awaited.is_over() {
            let next = tokio::time::timeout_at(deadline, answers.recv()).await;
            let Ok(Some((from, reply))) = next else {
                return (replies, false);
            };
            // One that answers twice was asked twice on the way.
            if heard.insert(from) {
                awaited.heard(from);
                let content = enough(&reply);
                replies.push(reply);
                if content {
                    return (replies, true);
                }
            }
        }
        (replies, complete)
    }
}

/// Who has not answered yet of those that hold a lease. Others may answer too: one that has just
/// started hears questions before it is leased.
#[derive(Debug)]
struct Awaited {
    processes: HashSet<Incarnation>,
    /// Nodes that do not tell their process: anybody's answer may be theirs.
    unnamed: usize,
}

impl Awaited {
    /// All of these but the process that asks.
    fn of(nodes: &[Node], me: Incarnation) -> Self {
        let processes = nodes.iter().map(|node| node.card.process);
        let unnamed = processes.clone().filter(Option::is_none).count();
        let processes = processes.flatten().filter(|process| *process != me);
        Self {
            processes: processes.collect(),
            unnamed,
        }
    }

    fn heard(&mut self, from: Incarnation) {
        if !self.processes.remove(&from) {
            self.unnamed = self.unnamed.saturating_sub(1);
        }
    }

    fn is_over(&self) -> bool {
        self.processes.is_empty() && self.unnamed == 0
    }
}

/// Takes a question off the list when nobody waits any more.
struct Forget<'a>(&'a Shared, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.asked.lock().remove(&self.1);
    }
}

impl Shared {
    /// Answers a question, or hands an answer to whoever asked.
    pub(super) fn received(&self, envelope: Envelope, respond: &Respond) {
        match envelope {
            Envelope::Ask { from, id, ask } => {
                let Some(from) = Incarnation::from_bits(from) else {
                    return;
                };
                if from == self.process {
                    return;
                }
                let answer = Envelope::Answer {
                    from: self.process.bits(),
                    id,
                    reply: respond(ask),
                };
                // The error says that the process ends.
                let _ = self.mail.send(Mail::new(Channel::Node(from), &answer));
            }
            Envelope::Answer { from, id, reply } => {
                let asked = self.asked.lock();
                if let (Some(answered), Some(from)) = (asked.get(&id), Incarnation::from_bits(from))
                {
                    // The error says that nobody waits any more.
                    let _ = answered.send((from, reply));
                }
            }
            Envelope::Minute { from, at, steps } => {
                let other = from != self.process.bits();
                if let Some(minutes) = self.minutes.as_ref().filter(|_| other) {
                    minutes.hear(at, &steps, Instant::now());
                }
            }
        }
    }

    /// Sends questions and answers on their way; one that fails is for nobody by the time that
    /// Redis is back.
    pub(super) async fn post(self: Arc<Self>, mut mail: mpsc::UnboundedReceiver<Mail>) {
        let mut lane = self.redis.lane();
        while let Some(letter) = mail.recv().await {
            // Whoever asked has given up by now, and would be surprised by what is done still.
            if letter.at.elapsed() > PATIENCE {
                continue;
            }
            let send = lane.send(letter.channel, &letter.bytes);
            let sent = tokio::time::timeout(PATIENCE, send).await;
            if let Ok(sent) = sent {
                let _ = self.called("send", sent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::store::Card;

    const ME: u64 = 1;

    fn id(number: u64) -> Incarnation {
        Incarnation::from_bits(number).unwrap()
    }

    /// Waits for leased nodes of these processes; 0 is one that does not tell its own.
    fn awaited(processes: &[u64]) -> Awaited {
        let node = |process: &u64| Node {
            incarnation: Incarnation::random(),
            card: Card {
                name: String::new(),
                process: Incarnation::from_bits(*process),
                since_ms: 0,
                connections: 0,
                synced: true,
                unheard: false,
            },
            lag_ms: 0,
        };
        let nodes: Vec<Node> = processes.iter().map(node).collect();
        Awaited::of(&nodes, id(ME))
    }

    #[test]
    fn whoever_is_leased_is_waited_for_and_nobody_else() {
        assert!(awaited(&[]).is_over());
        assert!(awaited(&[ME]).is_over());
        let mut two = awaited(&[ME, 2, 3]);
        for (from, over) in [(8, false), (2, false), (9, false), (3, true)] {
            two.heard(id(from));
            assert_eq!(two.is_over(), over, "after {from}: {two:?}");
        }
        // Whoever asks may have lost its lease itself.
        let mut one = awaited(&[2]);
        assert!(!one.is_over());
        one.heard(id(2));
        assert!(one.is_over());
    }

    #[test]
    fn a_node_that_does_not_tell_its_process_is_waited_for_too() {
        let mut mixed = awaited(&[ME, 2, 0]);
        mixed.heard(id(2));
        assert!(!mixed.is_over());
        mixed.heard(id(7));
        assert!(mixed.is_over());
    }
}
