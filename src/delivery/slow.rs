//! Slow readers: what did not fit waits, and who does not keep up is given what is newest when
//! there is room again.

use super::{
    shard::Shard,
    slot::{Behind, low, whole},
};
use crate::{
    hub::{Cursor, Delivery, Frame, Inbox, Reason, Seat, SlotId, Told},
    sse::Text,
};
use tokio::time::Instant;

impl Shard {
    /// Sends what waits for a slot; then, where it was behind, what it is due since.
    pub(super) fn go_on(&mut self, id: SlotId) {
        let tick = self.tick();
        loop {
            let Some(slot) = self.slot(id) else { return };
            match slot.flush(tick) {
                Err(error) => return self.lose(id, error.kind()),
                Ok(false) => return,
                Ok(true) => {}
            }
            let Some(trouble) = &mut slot.trouble else {
                return;
            };
            if trouble.closing {
                return self.shut(id);
            }
            let Some(behind) = trouble.behind.take() else {
                slot.trouble = None;
                return;
            };
            if !self.catch_up(id, behind) {
                return;
            }
        }
    }

    pub(super) fn queue_text(&mut self, id: SlotId, text: &Text) {
        if text.is_empty() {
            return;
        }
        if let Some(slot) = self.slot(id) {
            let bytes = slot.bytes(&Frame::of(text.as_bytes()));
            slot.queue(bytes);
        }
    }

    /// Notes that a slot which was just opened missed more, up to this sequence, than its first
    /// words tell.
    pub(super) fn owe(&mut self, id: SlotId, until: u64) {
        self.fall_behind(id);
        let trouble = self.slot(id).and_then(|slot| slot.trouble.as_mut());
        if let Some(behind) = trouble.and_then(|trouble| trouble.behind.as_mut()) {
            behind.owed = until;
        }
    }

    /// Notes where a slot stopped keeping up.
    pub(super) fn fall_behind(&mut self, id: SlotId) {
        let head = self.head;
        let keys = |room| self.rooms.get(room).key;
        let Some(slot) = self.slots.get(id.index as usize) else {
            return;
        };
        if slot
            .trouble
            .as_ref()
            .is_some_and(|t| t.closing || t.behind.is_some())
        {
            return;
        }
        let Some(holds) = &slot.holds else { return };
        let seats = slot.places.iter().map(|place| Seat {
            key: keys(place.room),
            joined: place.joined,
            version: u64::from(place.version),
            from: whole(place.from, head),
        });
        let personal = holds.registration.personal();
        let personal = personal.map(|name| (name, whole(slot.personal_from, head)));
        let behind = Behind {
            cursor: Cursor::new(seats, personal),
            inbox: Inbox::default(),
            owed: 0,
        };
        if let Some(slot) = self.slot(id) {
            slot.trouble.get_or_insert_default().behind = Some(behind);
            self.way.stats.fell_behind();
        }
    }

    /// Gives a slot a portion of what it is due since it fell behind; true where there is something
    /// to send.
    pub(super) fn catch_up(&mut self, id: SlotId, mut behind: Behind) -> bool {
        let until = self.told.max(behind.owed);
        let Some(slot) = self.slot(id) else {
            return false;
        };
        let Some(holds) = &slot.holds else {
            return false;
        };
        let due = holds
            .registration
            .catch_up(&mut behind.cursor, &behind.inbox, until);
        if due.is_empty() {
            self.keep_up(id, &behind);
            return false;
        }
        for delivery in due {
            let mut text = Text::default();
            match delivery {
                Delivery::Joined(room, told) => {
                    text.joined(&room);
                    self.sit_told(id, told, true, &mut text);
                }
                Delivery::Watching(_, told) => self.sit_told(id, told, false, &mut text),
                Delivery::Left(key, room) => {
                    self.stand(id, key);
                    text.left(&room);
                }
                Delivery::Unwatched(key) => self.stand(id, key),
                Delivery::Told(told) => text.count(&told.room, told.occupancy),
                Delivery::Count(frame) | Delivery::Message(frame) => {
                    if let Some(slot) = self.slot(id) {
                        let bytes = slot.bytes(&frame);
                        slot.queue(bytes);
                    }
                }
                Delivery::Reset(room) => text.reset(&room),
                // Neither goes through a slow slot's inbox.
                Delivery::Expires(_) | Delivery::End(_) => {}
            }
            self.queue_text(id, &text);
        }
        if let Some(slot) = self.slot(id) {
            slot.trouble.get_or_insert_default().behind = Some(behind);
        }
        true
    }

    pub(super) fn sit_told(
        &mut self,
        id: SlotId,
        told: Option<Told>,
        joined: bool,
        text: &mut Text,
    ) {
        let Some(told) = told else { return };
        self.stand(id, told.key);
        let seat = Seat {
            key: told.key,
            joined,
            version: told.version,
            // The cursor knows better and says so once the slot keeps up again.
            from: self.head,
        };
        self.sit(id, &seat);
        text.count(&told.room, told.occupancy);
    }

    /// Takes what a slot was told meanwhile over into its places.
    pub(super) fn keep_up(&mut self, id: SlotId, behind: &Behind) {
        for seat in behind.cursor.seats() {
            self.head = self.head.max(seat.from);
            let room = self.rooms.find(seat.key);
            let Some(slot) = self.slot(id) else { return };
            for place in &mut slot.places {
                if Some(place.room) == room {
                    place.version = low(seat.version);
                    place.from = low(seat.from);
                }
            }
        }
        let Some(slot) = self.slot(id) else { return };
        slot.personal_from = low(behind.cursor.personal_from());
        slot.trouble = None;
        self.way.stats.caught_up();
    }

    /// Ends a slot that lets its orders pile up. Comes back as an order.
    pub(super) fn give_up(&mut self, id: SlotId) {
        if let Some(holds) = self.slot(id).and_then(|slot| slot.holds.as_ref()) {
            holds.registration.end(Reason::Slow, Instant::now());
        }
    }
}
