//! A store on a server of its own, nodes on it, and words for what they do.

use std::time::Duration;

use livecount::cluster::store::{
    Announcement, Answer, Batch, Card, Channel, Clock, Epoch, Flushed, Incarnation, Lane, Leased,
    Listener, Redis, RoomChange, Stamp, StoreError, Total, TotalsPage,
};
use livecount::hub::Fingerprint;

use crate::redis_server::RedisServer;

/// The key by which a test steps the scripts' clock.
const CLOCK: &str = "test:clock";

pub(crate) struct TestStore {
    pub(crate) server: RedisServer,
    pub(crate) redis: Redis,
    pub(crate) raw: redis::aio::MultiplexedConnection,
}

impl TestStore {
    pub(crate) async fn start() -> Self {
        let server = RedisServer::start().await;
        let clock = Clock::Shifted(CLOCK.to_owned());
        let redis = Redis::with_clock(&server.url(), "t:", &clock).unwrap();
        let raw = server.connection().await;
        Self { server, redis, raw }
    }

    /// Steps the scripts' clock to so many ms from the server's own.
    pub(crate) async fn shift_clock(&mut self, ms: i64) {
        let () = self.raw(redis::cmd("SET").arg(CLOCK).arg(ms)).await;
    }

    /// Lets time pass from that shift of the clock to this one, in which somebody calls often.
    pub(crate) async fn pass(&mut self, from: i64, to: i64) {
        let mut caller = self.stranger().await;
        for shift in (from..to).step_by(1_000).skip(1).chain([to]) {
            self.shift_clock(shift).await;
            done(caller.lane.announce(caller.stamp).await);
        }
    }

    pub(crate) async fn raw<T: redis::FromRedisValue>(&mut self, command: &redis::Cmd) -> T {
        command
            .query_async(&mut self.raw)
            .await
            .expect("the server does as asked")
    }

    /// A node with a lease and no numbers.
    pub(crate) async fn node(&self) -> TestNode {
        let mut node = self.stranger().await;
        let leased = node.lease(true).await;
        assert!(leased.held);
        node
    }

    /// A node without a lease.
    pub(crate) async fn stranger(&self) -> TestNode {
        TestNode::on(&self.redis).await
    }

    pub(crate) async fn listen(&self) -> Listener {
        let mut listener = self.redis.listener();
        listener
            .subscribe(&[Channel::Announcements, Channel::Blocks, Channel::Everybody])
            .await
            .expect("the store answers");
        listener
    }
}

pub(crate) struct TestNode {
    pub(crate) lane: Lane,
    pub(crate) stamp: Stamp,
    pub(crate) me: Incarnation,
    pub(crate) number: u64,
}

impl TestNode {
    /// A node without a lease.
    pub(crate) async fn on(redis: &Redis) -> Self {
        let mut lane = redis.lane();
        let (epoch, version) = lane.connect().await.expect("the store answers");
        Self {
            lane,
            stamp: Stamp {
                epoch: Some(epoch),
                version,
            },
            me: Incarnation::random(),
            number: 0,
        }
    }

    pub(crate) fn card() -> Card {
        Card {
            name: "node a".to_owned(),
            process: Incarnation::from_bits(7),
            since_ms: 1,
            connections: 2,
            synced: false,
            unheard: false,
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.stamp.epoch.unwrap()
    }

    pub(crate) async fn lease(&mut self, new: bool) -> Leased {
        done(
            self.lane
                .lease(self.stamp, self.me, None, &Self::card(), new)
                .await,
        )
    }

    /// Meets the epoch in force and makes a lease in it.
    pub(crate) async fn begin_again(&mut self) {
        let (epoch, version) = self.lane.connect().await.expect("the store answers");
        self.stamp = Stamp {
            epoch: Some(epoch),
            version,
        };
        self.me = Incarnation::random();
        self.number = 0;
        assert!(self.lease(true).await.held);
    }

    /// Sends the next batch.
    pub(crate) async fn flush(&mut self, rooms: &[RoomChange]) -> Flushed {
        self.number += 1;
        self.flush_as(self.number, rooms).await
    }

    pub(crate) async fn flush_as(&mut self, number: u64, rooms: &[RoomChange]) -> Flushed {
        done(self.try_flush(number, rooms).await)
    }

    pub(crate) async fn try_flush(
        &mut self,
        number: u64,
        rooms: &[RoomChange],
    ) -> Result<Answer<Flushed>, StoreError> {
        let batch = Batch {
            number,
            rooms,
            ..self.batch()
        };
        self.lane.flush(self.stamp, &batch).await
    }

    pub(crate) fn batch(&self) -> Batch<'static> {
        Batch {
            incarnation: self.me,
            older: None,
            number: self.number,
            rooms: &[],
            claims: &[],
            done: false,
        }
    }

    pub(crate) async fn totals(&mut self) -> Vec<(String, Total)> {
        let mut all = std::collections::BTreeMap::new();
        let mut cursor = 0;
        loop {
            let page = done(self.lane.totals(self.stamp, self.me, cursor, 100).await);
            all.extend(page.rooms);
            cursor = page.cursor;
            if cursor == 0 {
                return all.into_iter().collect();
            }
        }
    }

    pub(crate) async fn page_of(&mut self, room: &str) -> TotalsPage {
        let mut page = done(self.lane.totals(self.stamp, self.me, 0, 100).await);
        while page.cursor != 0 && page.rooms.iter().all(|(found, _)| found != room) {
            page = done(
                self.lane
                    .totals(self.stamp, self.me, page.cursor, 100)
                    .await,
            );
        }
        page.rooms.retain(|(found, _)| found == room);
        page
    }

    pub(crate) async fn total(&mut self, room: &str) -> Total {
        let page = self.page_of(room).await;
        page.rooms
            .first()
            .map(|(_, total)| *total)
            .unwrap_or_default()
    }

    /// Reaps all that is lapsed as far as the store names it, in small steps.
    pub(crate) async fn reap_all(&mut self) {
        loop {
            let lapsed = self.lease(false).await.lapsed;
            if lapsed.is_empty() {
                return;
            }
            for incarnation in lapsed {
                while done(self.lane.reap(self.stamp, incarnation, 50).await) {}
            }
        }
    }

    /// Calls until nothing is left to announce.
    pub(crate) async fn announce_all(&mut self) {
        while let Some(wait) = done(self.lane.announce(self.stamp).await) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Waits for the next announcement.
pub(crate) async fn announcement(listener: &mut Listener) -> Announcement {
    loop {
        let heard = tokio::time::timeout(Duration::from_secs(5), listener.next())
            .await
            .expect("something is published in time")
            .expect("the subscription holds");
        if heard.channel == Channel::Announcements {
            return Announcement::parse(&heard.bytes).expect("announcements are well formed");
        }
    }
}

pub(crate) fn done<T: std::fmt::Debug>(answer: Result<Answer<T>, StoreError>) -> T {
    match answer {
        Ok(Answer::Done(answer)) => answer,
        other => panic!("not done: {other:?}"),
    }
}

/// The epoch that an answer tells the caller to begin again in.
pub(crate) fn told_epoch<T: std::fmt::Debug>(answer: Result<Answer<T>, StoreError>) -> Epoch {
    match answer {
        Ok(Answer::Epoch { epoch, .. }) => epoch,
        other => panic!("no other epoch: {other:?}"),
    }
}

pub(crate) fn room(name: &str, connections: u32, unidentified: u32) -> RoomChange {
    RoomChange {
        room: name.to_owned(),
        connections,
        unidentified,
        add: Vec::new(),
        remove: Vec::new(),
    }
}

pub(crate) fn with(
    mut change: RoomChange,
    add: &[Fingerprint],
    remove: &[Fingerprint],
) -> RoomChange {
    change.add = add.to_vec();
    change.remove = remove.to_vec();
    change
}

pub(crate) fn total(connections: u32, viewers: u32, members: u32) -> Total {
    Total {
        connections,
        viewers,
        members,
    }
}

pub(crate) fn member(number: u32) -> Fingerprint {
    fingerprint(b'm', number)
}

pub(crate) fn viewer(number: u32) -> Fingerprint {
    fingerprint(b'v', number)
}

/// Line breaks, zeros and bytes that are no UTF-8 among them.
fn fingerprint(kind: u8, number: u32) -> Fingerprint {
    let mut bytes = [b'\n', 0, 0xff, 9, 10, 13, 32, 0x80, 0, 0, 0, 0, 0];
    bytes[9..].copy_from_slice(&number.to_be_bytes());
    bytes[0] = kind;
    bytes
}
