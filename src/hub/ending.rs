//! How streams end: broken, by their own wish, thrown out, or because the node goes down.
//!
//! However it comes about, [`State::count_out`] is the one place where a stream stops to count.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Blocked, ConnectionId, Identity, Kick, KickError, Order, Outlet, Reason, RoomId, UserId,
    connection::Phase, pulse::Due, room::Viewer, state::State, wakes::Wakes,
};
impl State {
    /// Counts a connection out at once. Its record stays, without rooms, until its delivery lets
    /// go; a lingering one has none and goes too.
    pub(super) fn count_out(
        &mut self,
        index: u32,
        reason: Reason,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        while let Some(membership) = self.connections.get(index).memberships.last().copied() {
            self.part(index, membership, now, wakes);
        }
        let viewer = self.connections.get(index).viewer;
        let member = matches!(viewer, Viewer::Person { member: true, .. });
        let went = (member && self.people.is_alone(viewer)).then_some(false);
        if let Some(sharing) = &mut self.sharing {
            sharing.note_closed(self.connections.get(index).id);
        }
        self.connections.retire(index);
        self.note_share(None, index, went, now, wakes);
        let connection = self.connections.at(index);
        let phase = std::mem::replace(&mut connection.phase, Phase::Ended);
        self.people.depart(viewer, index);
        self.record_node(now);
        match phase {
            Phase::Open => {
                self.forget_end(index);
                self.turnover.ended[reason as usize] += 1;
                self.order(index, Order::End(reason, self.log.head), wakes);
            }
            Phase::Lingering(_) => {
                self.lingering -= 1;
                self.connections.remove(index);
            }
            Phase::Ended => {}
        }
    }

    /// Ends an open stream for a reason of its own.
    pub(super) fn end(
        &mut self,
        index: u32,
        serial: u64,
        reason: Reason,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let Some(connection) = self.connections.of(index, serial) else {
            return;
        };
        // Renewed in time, though the delivery did not know it yet.
        let renewed = reason == Reason::Expired && connection.expires > now;
        if connection.phase == Phase::Open && !renewed {
            self.count_out(index, reason, now, wakes);
        }
    }

    /// Takes the end of a stream with a task of its own out of the calendar.
    fn forget_end(&mut self, index: u32) {
        let connection = self.connections.get(index);
        if let Outlet::Inbox(_) = connection.outlet {
            let due = Due::Task(index, connection.serial);
            self.calendar.remove(connection.expires, due);
        }
    }

    /// Lets go of a record whose stream is gone. One that still counted broke, and lingers for
    /// the grace.
    pub(super) fn release(
        &mut self,
        index: u32,
        serial: u64,
        grace: Duration,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let Some(connection) = self.connections.of(index, serial) else {
            return;
        };
        let phase = connection.phase;
        if phase == Phase::Open {
            self.turnover.broken += 1;
            self.forget_end(index);
        }
        match phase {
            Phase::Open if !grace.is_zero() && !self.draining => {
                let until = now + grace;
                self.connections.at(index).phase = Phase::Lingering(until);
                self.lingering += 1;
                wakes.pulse |= self.calendar.add(until, Due::Linger(index, serial));
            }
            Phase::Open => {
                // As if it lingered for no time: told to nobody, and gone with its record.
                self.connections.at(index).phase = Phase::Lingering(now);
                self.lingering += 1;
                self.count_out(index, Reason::Left, now, wakes);
            }
            Phase::Ended => {
                self.connections.remove(index);
            }
            Phase::Lingering(_) => {}
        }
    }

    /// Ends a connection by its own wish.
    pub(super) fn goodbye(&mut self, id: ConnectionId, now: Instant, wakes: &mut Wakes) {
        if let Some(index) = self.connections.find(id) {
            self.count_out(index, Reason::Left, now, wakes);
        }
    }

    pub(super) fn kick(
        &mut self,
        id: ConnectionId,
        kick: Kick<'_>,
        now: Instant,
        wakes: &mut Wakes,
    ) -> Result<(), KickError> {
        // A block is news for the other nodes, whoever else it concerns here.
        wakes.share = true;
        let Some(index) = self.connections.find(id) else {
            if kick.everywhere {
                self.block_connection(id, now + kick.block, now);
            }
            return Err(KickError::Unknown);
        };
        self.may_kick(index, kick.permitted)?;
        let identity = self.identity(self.connections.get(index)).clone();
        self.blocks.expire(now);
        self.block_connection(id, now + kick.block, now);
        self.block_identity(&identity, now + kick.block, now);
        self.count_out(index, Reason::Kicked, now, wakes);
        Ok(())
    }

    pub(super) fn kick_user(
        &mut self,
        user: &UserId,
        kick: Kick<'_>,
        now: Instant,
        wakes: &mut Wakes,
    ) -> Result<(), KickError> {
        wakes.share = true;
        self.may_kick_user(user, kick.permitted)?;
        let connections: Vec<u32> = self
            .people
            .find_user(user)
            .map(|person| person.connections.to_vec())
            .unwrap_or_default();
        let identity = Identity::Member(user.clone());
        self.blocks.expire(now);
        self.block_identity(&identity, now + kick.block, now);
        for index in connections {
            let id = self.connections.get(index).id;
            self.block_connection(id, now + kick.block, now);
            self.count_out(index, Reason::Kicked, now, wakes);
        }
        Ok(())
    }

    fn block_connection(&mut self, id: ConnectionId, until: Instant, now: Instant) {
        self.block(Blocked::Connection(id), until, now);
    }

    /// Blocks a viewer; one without an identity is known by its connection alone.
    fn block_identity(&mut self, identity: &Identity, until: Instant, now: Instant) {
        if *identity != Identity::Connection {
            self.block(Blocked::Identity(identity.clone()), until, now);
        }
    }

    /// Keeps somebody out here, and has the other nodes do the same.
    fn block(&mut self, whom: Blocked, until: Instant, now: Instant) {
        if let Some(sharing) = &mut self.sharing
            && until > now
        {
            sharing.note_block(whom.clone(), until);
        }
        self.blocks.add(whom, until, now);
    }

    pub(super) fn may_kick_user(
        &self,
        user: &UserId,
        permitted: &dyn Fn(&RoomId) -> bool,
    ) -> Result<(), KickError> {
        let person = self.people.find_user(user);
        let mut connections = person.iter().flat_map(|person| &person.connections);
        connections.try_for_each(|&index| self.may_kick(index, permitted))
    }

    pub(super) fn may_kick(
        &self,
        index: u32,
        permitted: &dyn Fn(&RoomId) -> bool,
    ) -> Result<(), KickError> {
        let connection = self.connections.get(index);
        let refused = connection
            .memberships
            .iter()
            .map(|m| &self.rooms.get(m.room).name)
            .find(|name| !permitted(name));
        refused.map_or(Ok(()), |name| Err(KickError::Forbidden(name.clone())))
    }

    pub(super) fn blocked(
        &self,
        id: ConnectionId,
        identity: &Identity,
        now: Instant,
    ) -> Option<Duration> {
        self.blocks.remaining(id, identity, now)
    }

    /// From now on nobody is let in.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Ends up to `most` streams because the node goes down.
    pub(super) fn shut(&mut self, most: usize, now: Instant, wakes: &mut Wakes) {
        let some: Vec<u32> = self
            .connections
            .current()
            .map(|(index, _)| index)
            .take(most)
            .collect();
        for index in some {
            self.count_out(index, Reason::Shutdown, now, wakes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{Entry, Hub, Inbox, Nameless, Registration, Resume, Tempo},
        sse::Encoder,
    };

    const DAY: Duration = Duration::from_hours(24);

    fn hub(leave_grace: Duration) -> Hub {
        let tempo = Tempo {
            push_interval: Duration::from_millis(100),
            leave_grace,
        };
        Hub::new(Box::new(Encoder), tempo)
    }

    /// Opens a stream with a task of its own, which is in no room.
    fn open(hub: &Hub, now: Instant) -> (ConnectionId, Registration) {
        let connection = ConnectionId::random();
        let mut registration = hub.register(Entry {
            connection,
            identity: Identity::Connection,
            rooms: Vec::new(),
            watching: Vec::new(),
            grants: None,
            expires: now + DAY,
            since_ms: 0,
            resume: Resume::Fresh,
            by_ticket: false,
        });
        registration.open(&Inbox::new(), now).unwrap();
        (connection, registration)
    }

    fn due(hub: &Hub) -> usize {
        hub.0.state.lock().calendar.len()
    }

    #[test]
    fn nothing_is_due_of_streams_that_are_gone() {
        let now = Instant::now();
        let hub = hub(Duration::ZERO);
        for _ in 0..100 {
            let (left, open_until_then) = open(&hub, now);
            hub.goodbye(left, now);
            drop(open_until_then);
            let (_, broken) = open(&hub, now);
            assert_eq!(due(&hub), 1);
            drop(broken);
        }
        assert_eq!((due(&hub), hub.totals().held), (0, 0));
        assert_eq!(hub.0.state.lock().lingering, 0);
    }

    #[test]
    fn of_a_stream_that_broke_only_its_grace_is_due() {
        let now = Instant::now();
        let hub = hub(Duration::from_secs(60));
        let (_, broken) = open(&hub, now);
        drop(broken);
        assert_eq!((due(&hub), hub.0.state.lock().lingering), (1, 1));
        let _ = hub.pulse(Instant::now() + Duration::from_secs(61));
        assert_eq!((due(&hub), hub.totals().held), (0, 0));
        assert_eq!(hub.0.state.lock().lingering, 0);
    }

    #[test]
    fn a_stream_that_is_renewed_over_and_over_ends_once_and_when_it_was_last_told() {
        let now = Instant::now();
        let hub = hub(Duration::ZERO);
        let (connection, _registration) = open(&hub, now);
        for second in 1..=1_000 {
            let expires = now + DAY - Duration::from_secs(second);
            assert!(hub.renew(connection, expires, None).is_some());
        }
        assert_eq!(due(&hub), 1);
        let _ = hub.pulse(now + DAY - Duration::from_secs(1_001));
        assert_eq!(hub.totals().turnover.ended[Reason::Expired as usize], 0);
        let _ = hub.pulse(now + DAY - Duration::from_secs(1_000));
        assert_eq!(hub.totals().turnover.ended[Reason::Expired as usize], 1);
        assert_eq!(due(&hub), 0);
    }

    #[test]
    fn orders_of_new_ends_do_not_pile_up() {
        let (inbox, now) = (Inbox::new(), Instant::now());
        for second in 0..1_000 {
            inbox.push(Order::Expires(now + Duration::from_secs(second)));
        }
        assert_eq!(inbox.len(), 1);
        let last = now + Duration::from_secs(999);
        assert!(matches!(inbox.pop(), Some(Order::Expires(at)) if at == last));
    }

    #[test]
    fn blocks_that_nobody_takes_are_all_told_once_somebody_does() {
        let now = Instant::now();
        let hub = hub(Duration::ZERO);
        hub.share(Box::new(Nameless));
        let kick = Kick {
            block: DAY,
            permitted: &|_| true,
            everywhere: true,
        };
        let kick_many = |most: usize| {
            for _ in 0..most {
                // Nobody has it here, and it is kept out all the same.
                assert!(hub.kick(ConnectionId::random(), kick, now).is_err());
            }
        };
        kick_many(5_000);
        assert!(hub.has_parts());
        assert_eq!(hub.take_blocks().len(), 5_000);
        assert!(!hub.has_parts());
        kick_many(1);
        assert_eq!(hub.take_blocks().len(), 1);
    }

    #[test]
    fn a_stream_is_open_until_it_ends_or_breaks() {
        let now = Instant::now();
        let hub = hub(Duration::from_secs(60));
        let (left, stays) = open(&hub, now);
        let (broken, breaks) = open(&hub, now);
        let openings = [(left, 0), (left, 1), (broken, 0)];
        assert_eq!(hub.are_open(&openings), [true, false, true]);
        drop(breaks);
        hub.goodbye(left, now);
        assert_eq!(hub.are_open(&openings), [false, false, false]);
        drop(stays);
    }
}
