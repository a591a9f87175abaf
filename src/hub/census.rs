//! What the outside asks: numbers, rooms, and who is in them.

use super::{
    ConnectionId, ConnectionInfo, Identity, Occupancy, RoomId, RoomList, Totals,
    connection::Connection, room::Viewer, state::State,
};
impl State {
    pub(super) fn occupancy(&self, name: &RoomId) -> Occupancy {
        if let Some(user) = name.user() {
            return self
                .people
                .find_user(&user)
                .map_or_else(Occupancy::default, |person| {
                    personal_occupancy(person.connections.len())
                });
        }
        self.rooms.find(name).map_or_else(
            || self.rooms.elsewhere(name),
            |index| Occupancy {
                // A room tells its viewers in its own time; whoever asks is told at once.
                partial: self.rooms.partial,
                ..self.rooms.get(index).occupancy()
            },
        )
    }

    pub(super) fn occupied(
        &self,
        personal: bool,
        wanted: &dyn Fn(&RoomId) -> bool,
    ) -> Vec<(RoomId, Occupancy)> {
        if personal {
            return self
                .people
                .iter()
                .filter_map(|person| {
                    let name = RoomId::personal(person.identity.user()?);
                    wanted(&name).then(|| (name, personal_occupancy(person.connections.len())))
                })
                .collect();
        }
        let here = self
            .rooms
            .iter()
            .filter(|room| !room.joined.is_empty() && wanted(&room.name))
            .map(|room| (room.name.clone(), room.occupancy()));
        // A room may be kept here though nobody is in it: watched, or for its messages.
        let only_elsewhere = self
            .rooms
            .all_elsewhere()
            .filter(|(name, _)| wanted(name) && !self.is_occupied(name))
            .map(|(name, others)| (name.clone(), others));
        here.chain(only_elsewhere).collect()
    }

    /// The numbers of this node alone.
    pub(super) fn own_total(&self) -> Occupancy {
        let connections = u32::try_from(self.connections.count()).unwrap_or(u32::MAX);
        Occupancy {
            viewers: self.people.in_rooms + self.unidentified,
            connections,
            members: self.people.members,
            partial: self.rooms.partial,
        }
    }

    /// The numbers of all nodes.
    pub(super) fn total(&self) -> Occupancy {
        let others = self.sharing.as_ref().map(|sharing| sharing.service);
        self.own_total().plus(others.unwrap_or_default())
    }

    pub(super) fn totals(&self) -> Totals {
        let elsewhere = self.rooms.all_elsewhere();
        let only_elsewhere = elsewhere
            .filter(|(name, _)| !self.is_occupied(name))
            .count();
        let only_elsewhere = u32::try_from(only_elsewhere).unwrap_or(u32::MAX);
        Totals {
            occupancy: self.total(),
            own: self.own_total(),
            rooms: self.rooms.occupied.saturating_add(only_elsewhere),
            held: self.connections.held(),
            kept_rooms: self.rooms.len(),
            turnover: self.turnover,
            conflated: self.conflated,
        }
    }

    fn is_occupied(&self, name: &RoomId) -> bool {
        let room = self.rooms.find(name).map(|index| self.rooms.get(index));
        room.is_some_and(|room| !room.joined.is_empty())
    }

    pub(super) fn is_open(&self, id: ConnectionId) -> bool {
        self.open_connection(id).is_some()
    }

    pub(super) fn connection(&self, id: ConnectionId) -> Option<ConnectionInfo> {
        self.connections.find(id).map(|index| self.info(index))
    }

    /// Connections in a room after `after`, by id, at most `limit`; true where more follow.
    pub(super) fn connections_in(
        &self,
        name: &RoomId,
        after: Option<ConnectionId>,
        limit: usize,
    ) -> (Vec<ConnectionInfo>, bool) {
        let indexes: &[u32] = match name.user() {
            Some(user) => self
                .people
                .find_user(&user)
                .map_or(&[], |person| &person.connections),
            None => self
                .rooms
                .find(name)
                .map_or(&[], |index| &self.rooms.get(index).joined),
        };
        let mut found: Vec<(ConnectionId, u32)> = indexes
            .iter()
            .map(|&index| (self.connections.get(index).id, index))
            .filter(|(id, _)| after.is_none_or(|after| *id > after))
            .collect();
        let more = found.len() > limit;
        if more {
            found.select_nth_unstable(limit);
            found.truncate(limit);
        }
        found.sort_unstable();
        let page = found.into_iter().map(|(_, index)| self.info(index));
        (page.collect(), more)
    }

    pub(super) fn info(&self, index: u32) -> ConnectionInfo {
        let connection = self.connections.get(index);
        let names = |joined: bool| {
            connection
                .memberships
                .iter()
                .filter(|m| m.is_joined() == joined)
                .map(|m| self.rooms.get(m.room).name.clone())
                .collect()
        };
        ConnectionInfo {
            id: connection.id,
            identity: self.identity(connection).clone(),
            since_ms: connection.since_ms,
            expires: connection.expires,
            grants: connection.grants.clone(),
            rooms: RoomList {
                joined: names(true),
                watching: names(false),
            },
        }
    }

    pub(super) fn personal(&self, index: u32, serial: u64) -> Option<RoomId> {
        let connection = self.connections.of(index, serial)?;
        let current = connection.is_current().then_some(connection)?;
        self.identity(current).user().map(RoomId::personal)
    }

    pub(super) fn identity(&self, connection: &Connection) -> &Identity {
        match connection.viewer {
            Viewer::Connection | Viewer::Ticketed => &Identity::Connection,
            Viewer::Person { place, .. } => &self.people.get(place).identity,
        }
    }
}

fn personal_occupancy(connections: usize) -> Occupancy {
    let connections = u32::try_from(connections).unwrap_or(u32::MAX);
    Occupancy {
        viewers: u32::from(connections > 0),
        connections,
        members: u32::from(connections > 0),
        partial: false,
    }
}
