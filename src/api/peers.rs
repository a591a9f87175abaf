//! Connections wherever they are: this node's hub is asked first, and where it has none the other
//! nodes are.
//!
//! The same function answers this node's own handlers and the other nodes' questions.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    connections::next_ticket,
    error::{ApiError, Code},
};
use crate::{
    app::App,
    cluster::asks::{self, Ask, Reply, WireChange, WireConnection},
    hub::{
        Bounds, Change, ChangeError, ConnectionId, ConnectionInfo, Kick, KickError, Occupancy,
        Patterns, RoomId, UserId,
    },
};

/// Longer than any ticket or token of a stream is let last: what says more was not written by a node.
const LONGEST: Duration = Duration::from_hours(400 * 24);
/// Longest block, as the contract has it: a day.
const LONGEST_BLOCK: Duration = Duration::from_hours(24);
/// When to ask again after a node did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Answers a question about connections of this node.
#[must_use]
pub fn respond(app: &App, ask: Ask) -> Reply {
    answer(app, ask).unwrap_or(Reply::Unknown)
}

/// `None` where the question makes no sense or the connection is not here.
fn answer(app: &App, ask: Ask) -> Option<Reply> {
    let hub = app.hub();
    let now = Instant::now();
    let reply = match ask {
        Ask::Show { connection } => shown(app, &hub.connection(id(connection))?),
        Ask::InRoom { room, after, limit } => {
            let room = RoomId::parse(&room).ok()?;
            let limit = usize::try_from(limit).ok()?;
            let (infos, more) = hub.connections_in(&room, after.map(id), limit);
            Reply::Connections(infos.iter().map(|info| wire(app, info)).collect(), more)
        }
        Ask::Personal { prefix } => {
            let wanted = |room: &RoomId| room.as_str().starts_with(&prefix);
            let rooms = hub.occupied(true, &wanted).into_iter();
            Reply::Personal(
                rooms
                    .map(|(room, o)| (room.to_string(), o.connections))
                    .collect(),
            )
        }
        Ask::Users { rooms } => {
            let rooms = asks::rooms(&rooms)?.into_iter();
            let here = rooms.map(|room| (room.to_string(), hub.occupancy(&room).connections));
            Reply::Personal(here.filter(|(_, connections)| *connections > 0).collect())
        }
        Ask::Change {
            connection,
            change,
            rooms,
        } => {
            let bounds = Bounds {
                most_joined: app.config().max_rooms_per_connection,
                fits: &|info| app.tickets().fits(&next_ticket(app, info)),
            };
            let rooms = asks::rooms(&rooms)?;
            match hub.change(id(connection), change.into(), &rooms, bounds, now) {
                Ok(info) => shown(app, &info),
                Err(ChangeError::Unknown) => Reply::Unknown,
                Err(ChangeError::TooManyRooms) => Reply::TooManyRooms,
                Err(ChangeError::DoNotFit) => Reply::DoNotFit,
            }
        }
        Ask::Renew {
            connection,
            expires_unix,
            grants,
        } => {
            let grants = match grants {
                Some(texts) => Some(Arc::new(asks::patterns(&texts)?)),
                None => None,
            };
            let end = moment(app, expires_unix);
            shown(app, &hub.renew(id(connection), end, grants)?)
        }
        Ask::Goodbye { connection } => {
            hub.goodbye(id(connection), now);
            Reply::Done
        }
        Ask::Kick {
            connection,
            block_secs,
            within,
        } => {
            let within = within_patterns(within)?;
            let may = |room: &RoomId| permitted(within.as_ref(), room);
            kicked(hub.kick(
                id(connection),
                kick(block_secs, within.is_none(), &may),
                now,
            ))
        }
        Ask::KickUser {
            user,
            block_secs,
            within,
            only_ask,
        } => {
            let user = UserId::parse(&user).ok()?;
            let within = within_patterns(within)?;
            let may = |room: &RoomId| permitted(within.as_ref(), room);
            if only_ask {
                kicked(hub.may_kick_user(&user, &may))
            } else {
                kicked(hub.kick_user(&user, kick(block_secs, within.is_none(), &may), now))
            }
        }
    };
    Some(reply)
}

fn id(bits: u128) -> ConnectionId {
    ConnectionId::from_bits(bits)
}

/// The moment of a second of Unix time, no further away than any ticket lasts.
fn moment(app: &App, unix_secs: u64) -> Instant {
    Instant::now() + app.time_left(unix_secs).min(LONGEST)
}

fn wire(app: &App, info: &ConnectionInfo) -> WireConnection {
    let left = info.expires.duration_since(Instant::now());
    WireConnection::of(info, app.unix_after(left))
}

fn shown(app: &App, info: &ConnectionInfo) -> Reply {
    Reply::Connection(wire(app, info))
}

#[expect(
    clippy::option_option,
    reason = "no patterns are everywhere, patterns that make no sense are nothing"
)]
fn within_patterns(within: Option<Vec<String>>) -> Option<Option<Patterns>> {
    match within {
        None => Some(None),
        Some(texts) => asks::patterns(&texts).map(Some),
    }
}

fn permitted(within: Option<&Patterns>, room: &RoomId) -> bool {
    within.is_none_or(|patterns| patterns.cover(room))
}

fn kick(block_secs: u64, everywhere: bool, permitted: &dyn Fn(&RoomId) -> bool) -> Kick<'_> {
    Kick {
        // Whoever asks has checked it; what comes from elsewhere may be anything.
        block: Duration::from_secs(block_secs).min(LONGEST_BLOCK),
        everywhere,
        permitted,
    }
}

fn kicked(result: Result<(), KickError>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(KickError::Unknown) => Reply::Unknown,
        Err(KickError::Forbidden(room)) => Reply::Forbidden(room.to_string()),
    }
}

impl From<WireChange> for Change {
    fn from(change: WireChange) -> Self {
        match change {
            WireChange::Join => Self::Join,
            WireChange::Leave => Self::Leave,
            WireChange::Watch => Self::Watch,
            WireChange::Unwatch => Self::Unwatch,
        }
    }
}

impl From<Change> for WireChange {
    fn from(change: Change) -> Self {
        match change {
            Change::Join => Self::Join,
            Change::Leave => Self::Leave,
            Change::Watch => Self::Watch,
            Change::Unwatch => Self::Unwatch,
        }
    }
}

/// Asks whoever holds a connection: this node, else the others.
///
/// # Errors
///
/// When nobody has it: 404 where every node said so, 503 where one did not answer.
pub(super) async fn holder(app: &App, ask: Ask) -> Result<Reply, ApiError> {
    let here = respond(app, ask.clone());
    let Some(cluster) = app.cluster().filter(|_| here == Reply::Unknown) else {
        return known(here);
    };
    let (replies, complete) = cluster.ask(ask, |reply| *reply != Reply::Unknown).await;
    match replies.into_iter().find(|reply| *reply != Reply::Unknown) {
        Some(reply) => Ok(reply),
        None if complete => known(Reply::Unknown),
        None => Err(silent()),
    }
}

fn known(reply: Reply) -> Result<Reply, ApiError> {
    match reply {
        Reply::Unknown => Err(ApiError::new(
            Code::UnknownConnection,
            "No open stream has this connection.",
        )),
        reply => Ok(reply),
    }
}

fn silent() -> ApiError {
    ApiError::new(
        Code::NodesUnavailable,
        "Not every node answered, and none of those that did has this connection.",
    )
    .retry_after(ASK_AGAIN)
}

/// Asks whoever holds a connection for it, as it is after the question.
///
/// # Errors
///
/// As [`holder`]'s, and as the holder says.
pub(super) async fn connection(app: &App, ask: Ask) -> Result<ConnectionInfo, ApiError> {
    match holder(app, ask).await? {
        Reply::Connection(wire) => wire.read(|unix| moment(app, unix)).ok_or_else(silent),
        Reply::TooManyRooms => Err(super::request::too_many_rooms(
            app.config().max_rooms_per_connection,
        )),
        Reply::DoNotFit => Err(super::join::ticket_too_large()),
        Reply::Unknown
        | Reply::Done
        | Reply::Connections(..)
        | Reply::Personal(_)
        | Reply::Forbidden(_) => Err(silent()),
    }
}

/// Kicks wherever it is; done where it was.
///
/// # Errors
///
/// As [`holder`]'s, and where it is in a room that is not permitted.
pub(super) async fn kick_connection(app: &App, ask: Ask) -> Result<(), ApiError> {
    let is_here = matches!(&ask, Ask::Kick { connection, .. }
        if app.hub().connection(id(*connection)).is_some());
    refused(&holder(app, ask.clone()).await?)?;
    if is_here && let Some(cluster) = app.cluster() {
        // Meanwhile it may have come back elsewhere, where its block is not known yet.
        cluster.tell(ask);
    }
    Ok(())
}

/// Has every node do something, or say whether it may be done: this one first.
///
/// # Errors
///
/// Where one of them finds a room that is not permitted, or did not answer: 503.
pub(super) async fn everywhere(app: &App, ask: Ask) -> Result<(), ApiError> {
    let only_asks = matches!(ask, Ask::KickUser { only_ask: true, .. });
    refused(&respond(app, ask.clone()))?;
    if let Some(cluster) = app.cluster() {
        let (replies, complete) = cluster
            .ask(ask, |reply| matches!(reply, Reply::Forbidden(_)))
            .await;
        replies.iter().try_for_each(refused)?;
        if !complete {
            let detail = if only_asks {
                "Not every node answered, and nothing was done."
            } else {
                "Not every node answered; those that did have done it."
            };
            return Err(ApiError::new(Code::NodesUnavailable, detail).retry_after(ASK_AGAIN));
        }
    }
    Ok(())
}

fn refused(reply: &Reply) -> Result<(), ApiError> {
    match reply {
        // A name that is none comes from a node that is none.
        Reply::Forbidden(room) => match RoomId::parse(room) {
            Ok(room) => Err(ApiError::forbidden_room(&room)),
            Err(_) => Err(silent()),
        },
        _ => Ok(()),
    }
}

/// Says goodbye for a connection, wherever it is; whether it is there is nobody's business.
pub(super) async fn goodbye(app: &App, connection: ConnectionId) {
    let here = app.hub().connection(connection).is_some();
    let ask = Ask::Goodbye {
        connection: connection.to_bits(),
    };
    app.hub().goodbye(connection, Instant::now());
    if let Some(cluster) = app.cluster().filter(|_| !here) {
        cluster.ask(ask, |_| false).await;
    }
}

/// Connections in a room on all nodes, by id, those after one, at most `limit`; whether more
/// follow, and whether a node did not answer.
pub(super) async fn in_room(
    app: &App,
    room: &RoomId,
    after: Option<ConnectionId>,
    limit: usize,
) -> (Vec<ConnectionInfo>, bool, bool) {
    let (mut infos, mut more) = app.hub().connections_in(room, after, limit);
    let Some(cluster) = app.cluster() else {
        return (infos, more, false);
    };
    let ask = Ask::InRoom {
        room: room.to_string(),
        after: after.map(ConnectionId::to_bits),
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
    };
    let (replies, complete) = cluster.ask(ask, |_| false).await;
    for reply in replies {
        if let Reply::Connections(list, others) = reply {
            more |= others;
            let end = |unix| moment(app, unix);
            infos.extend(list.iter().filter_map(|wire| wire.read(end)));
        }
    }
    infos.sort_unstable_by_key(|info| info.id);
    // One that is just moving from node to node is on both.
    infos.dedup_by_key(|info| info.id);
    more |= infos.len() > limit;
    infos.truncate(limit);
    (infos, more, !complete)
}

/// Personal rooms whose name begins so, with their numbers over all nodes.
pub(super) async fn personal(app: &App, prefix: &str) -> Vec<(RoomId, Occupancy)> {
    let prefix = prefix.to_owned();
    let (rooms, partial) = users(app, Ask::Personal { prefix }).await;
    let rooms = rooms.into_iter();
    rooms
        .map(|(room, connections)| (room, user_occupancy(connections, partial)))
        .collect()
}

/// The numbers of these rooms, in their order: the hub knows them, but for personal rooms of
/// several nodes, whose hubs are asked. Nobody is shown those numbers unasked, so they need no
/// place among the totals in Redis, which a join with a token would change twice; and asked of who
/// holds the streams they are right at once.
pub(super) async fn occupancies(app: &App, rooms: &[RoomId]) -> Vec<Occupancy> {
    let personal: Vec<String> = rooms
        .iter()
        .filter(|room| room.is_personal())
        .map(ToString::to_string)
        .collect();
    if app.cluster().is_none() || personal.is_empty() {
        return rooms.iter().map(|room| app.hub().occupancy(room)).collect();
    }
    let (found, partial) = users(app, Ask::Users { rooms: personal }).await;
    let of = |room: &RoomId| {
        if room.is_personal() {
            user_occupancy(found.get(room).copied().unwrap_or_default(), partial)
        } else {
            app.hub().occupancy(room)
        }
    };
    rooms.iter().map(of).collect()
}

/// One room's numbers, as [`occupancies`] has them.
pub(super) async fn occupancy(app: &App, room: &RoomId) -> Occupancy {
    if app.cluster().is_none() || !room.is_personal() {
        return app.hub().occupancy(room);
    }
    let numbers = occupancies(app, std::slice::from_ref(room)).await;
    numbers.first().copied().unwrap_or_default()
}

/// Asks all nodes for connections by personal room; whether a node did not answer.
async fn users(app: &App, ask: Ask) -> (HashMap<RoomId, u32>, bool) {
    let mut replies = vec![respond(app, ask.clone())];
    let mut partial = false;
    if let Some(cluster) = app.cluster() {
        let (others, complete) = cluster.ask(ask, |_| false).await;
        replies.extend(others);
        partial = !complete;
    }
    let mut rooms: HashMap<RoomId, u32> = HashMap::new();
    for reply in replies {
        let Reply::Personal(list) = reply else {
            continue;
        };
        for (name, connections) in list {
            if let Ok(room) = RoomId::parse(&name) {
                let all = rooms.entry(room).or_default();
                *all = all.saturating_add(connections);
            }
        }
    }
    (rooms, partial)
}

fn user_occupancy(connections: u32, partial: bool) -> Occupancy {
    let one = u32::from(connections > 0);
    Occupancy {
        viewers: one,
        connections,
        members: one,
        partial,
    }
}
