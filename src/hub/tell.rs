//! What streams are told and when: the pulse of changed rooms, and what one stream is due.

use std::time::Duration;

use tokio::{sync::broadcast, time::Instant};

use super::{
    Counts, Cursor, Delivery, Encode, Inbox, Order, Reason, RoomKey, Seat, Told, Word,
    connection::Phase,
    cursor::Portion,
    pulse::{Due, LONGEST_GAP, gap, task_pass},
    room::{Beat, LEAVING, Pass},
    state::State,
    wakes::Wakes,
};
impl State {
    /// Does what is due by `now`, at most `most` things; true where more is due.
    pub(super) fn pulse(
        &mut self,
        encode: &dyn Encode,
        interval: Duration,
        most: usize,
        now: Instant,
        wakes: &mut Wakes,
    ) -> bool {
        for _ in 0..most {
            let Some(due) = self.calendar.take(now) else {
                return false;
            };
            match due {
                Due::Room(key) => self.speak(key, encode, interval, now, wakes),
                Due::Leaving(key) => {
                    let Some(room) = self.rooms.of(key) else {
                        continue;
                    };
                    let (changed, waiting) = room.forget_leaving(now);
                    if waiting {
                        self.calendar.add(now + LEAVING, Due::Leaving(key));
                    }
                    if changed {
                        self.touch(key.index, now, wakes);
                    }
                }
                Due::Partial(key) => {
                    let partial = self.rooms.partial;
                    if let Some(room) = self.rooms.of(key) {
                        room.set_partial(partial);
                        self.touch(key.index, now, wakes);
                    }
                }
                // Its reader may have shut the window for good, and then the task never runs to
                // see the end by itself.
                Due::Task(index, serial) => {
                    self.end(index, serial, Reason::Expired, now, wakes);
                }
                Due::Linger(index, serial) => {
                    let lingering = self
                        .connections
                        .of(index, serial)
                        .is_some_and(|c| matches!(c.phase, Phase::Lingering(_)));
                    if lingering {
                        self.count_out(index, Reason::Left, now, wakes);
                    }
                }
            }
        }
        true
    }

    pub(super) fn speak(
        &mut self,
        key: RoomKey,
        encode: &dyn Encode,
        interval: Duration,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let Some(room) = self.rooms.of(key) else {
            return;
        };
        if let Some(since) = room.pass.since
            && now.duration_since(since) < LONGEST_GAP
        {
            // The pass before is not at its end: what it will tell may be this change.
            self.calendar.add(now + interval, Due::Room(key));
            return;
        }
        if let Some(next) = room.pass.next
            && now < next
        {
            self.calendar.add(next, Due::Room(key));
            return;
        }
        let pass = room.pass.took.max(task_pass(room.tasks));
        room.beat = Beat::Quiet(Some(now + gap(interval, pass)));
        room.pass = Pass::default();
        let Some(occupancy) = room.pulse() else {
            return;
        };
        let frame = encode.count(&room.name, occupancy);
        for shard in room.shards() {
            room.pass.under_way += 1;
            room.pass.since = Some(now);
            let word = Word::Count(key, room.version, frame.clone());
            wakes.post(&self.posts[usize::from(shard)], word);
        }
        if room.tasks > 0 {
            room.newest = Some((room.version, frame));
            wakes.channels.extend(room.channel.clone());
        }
    }

    /// Notes that a shard told all its viewers of a room the newest pulse, which took it `took`.
    pub(super) fn passed(
        &mut self,
        key: RoomKey,
        took: Duration,
        interval: Duration,
        now: Instant,
    ) {
        let Some(room) = self.rooms.of(key) else {
            return;
        };
        room.pass.under_way = room.pass.under_way.saturating_sub(1);
        room.pass.took = room.pass.took.max(took);
        if room.pass.under_way > 0 {
            return;
        }
        room.pass.since = None;
        let next = now + gap(interval, room.pass.took);
        room.pass.next = Some(next);
        if let Beat::Quiet(_) = room.beat {
            room.beat = Beat::Quiet(Some(next));
        }
    }

    /// When the next thing is due: on the calendar, or the oldest message's end.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Instant> {
        let aged = self.log.expire(&mut self.rooms, now);
        [self.calendar.next(), aged].into_iter().flatten().min()
    }

    /// A receiver of the room's channel, unless the room is gone or nobody is left to listen.
    pub(super) fn listen(&mut self, key: RoomKey) -> Option<broadcast::Receiver<()>> {
        let room = self.rooms.of(key).filter(|room| room.tasks > 0)?;
        let channel = room
            .channel
            .get_or_insert_with(|| broadcast::Sender::new(2));
        Some(channel.subscribe())
    }

    /// What one stream is due: orders, newer counts, newer messages; of messages one portion, and
    /// then the cursor says whether that was all.
    pub(super) fn collect(
        &mut self,
        cursor: &mut Cursor,
        inbox: &Inbox,
        counts: Counts,
    ) -> Vec<Delivery> {
        let mut due = Vec::new();
        let mut portion = Portion::default();
        cursor.owed = false;
        while let Some(order) = inbox.pop() {
            // First what came before the order.
            let whole = match &order {
                Order::Joined(_, _, until) | Order::Left(_, _, until) | Order::End(_, until) => {
                    self.hear(cursor, *until, &mut portion, &mut due)
                }
                Order::Watching(..) | Order::Unwatched(_) | Order::Expires(_) => true,
            };
            if !whole {
                inbox.put_back(order);
                cursor.owed = true;
                return due;
            }
            match order {
                Order::Joined(key, room, from) => {
                    let told = self.sit(cursor, key, true, from);
                    due.push(Delivery::Joined(room, told));
                }
                Order::Watching(key, room) => {
                    let told = self.sit(cursor, key, false, 0);
                    due.push(Delivery::Watching(room, told));
                }
                Order::Left(key, room, _) => {
                    cursor.stand(key);
                    due.push(Delivery::Left(key, room));
                }
                Order::Unwatched(key) => {
                    cursor.stand(key);
                    due.push(Delivery::Unwatched(key));
                }
                Order::Expires(at) => due.push(Delivery::Expires(at)),
                Order::End(reason, _) => {
                    due.push(Delivery::End(reason));
                    return due;
                }
            }
        }
        for seat in cursor.seats_mut() {
            if let Counts::Now(_) = counts {
                let room = self.rooms.of(seat.key);
                let changed = room.filter(|room| low(room.version) != low(seat.version));
                if let Some(room) = changed {
                    let told = room.tell(seat.key.index);
                    seat.version = told.version;
                    due.push(Delivery::Told(told));
                }
                continue;
            }
            let newest = self
                .rooms
                .of(seat.key)
                .and_then(|room| room.newest.as_ref());
            if let Some((version, frame)) = newest
                && *version > seat.version
            {
                seat.version = *version;
                due.push(Delivery::Count(frame.clone()));
            }
        }
        let until = match counts {
            Counts::Pulsed => self.log.head,
            Counts::Now(until) => until,
        };
        cursor.owed = !self.hear(cursor, until, &mut portion, &mut due);
        due
    }

    pub(super) fn sit(
        &mut self,
        cursor: &mut Cursor,
        key: RoomKey,
        joined: bool,
        from: u64,
    ) -> Option<Told> {
        let told = self.tell(key)?;
        cursor.sit(Seat::new(&told, joined, from));
        if joined {
            // What came to this room since the order was given is still to be heard.
            cursor.heard = cursor.heard.min(from);
        }
        Some(told)
    }

    /// A room's numbers as given to one stream outside the pulse; `None` where it is gone.
    pub(super) fn tell(&mut self, key: RoomKey) -> Option<Told> {
        self.rooms.of(key).map(|room| room.tell(key.index))
    }
}

/// The low half of a version, which is all that a slot keeps of it.
fn low(version: u64) -> u64 {
    version & u64::from(u32::MAX)
}
