//! What a slot is due by the clock: `ping`, `expiring` and its end.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    EXPIRY_NOTICE,
    shard::Shard,
    slot::Sent,
    wheel::{TICKS_PER_SECOND, Tick},
};
use crate::{
    hub::{Reason, SlotId},
    sse::Text,
};

/// Most slots that are looked at before others have their turn: some 6 ms, where all are pinged.
const LOOKS: usize = 1_000;
/// Length of a tick.
pub(super) const TICK: Duration = Duration::from_millis(1_000 / TICKS_PER_SECOND as u64);

impl Shard {
    pub(super) fn expires(&mut self, id: SlotId, at: Instant) {
        let expires = tick_after(self.start, at);
        let Some(slot) = self.slot(id) else { return };
        slot.expires = expires;
        slot.warned = false;
        self.look_at(id);
    }

    /// Looks at the slots whose time it is, at no more than [`LOOKS`] of them.
    pub(super) fn turn(&mut self) {
        let now = self.tick();
        for _ in 0..LOOKS {
            while self.due.1.is_empty() {
                let Some(next) = self.wheel.turn(now) else {
                    return;
                };
                self.due = next;
            }
            let (tick, entries) = &mut self.due;
            let tick = *tick;
            let Some((index, generation)) = entries.pop() else {
                return;
            };
            let id = SlotId { index, generation };
            if self.slot(id).is_some_and(|slot| slot.check == tick) {
                self.look_at(id);
            }
        }
    }

    /// Ends, warns or pings a slot, as is due.
    pub(super) fn look_at(&mut self, id: SlotId) {
        let now = self.tick();
        let heartbeat = self.heartbeat();
        let ping = self.ping.clone();
        let Some(slot) = self.slot(id) else { return };
        if slot.is_closing() {
            return;
        }
        if now >= slot.expires {
            if let Some(holds) = &slot.holds {
                // Comes back as an order.
                holds.registration.end(Reason::Expired, Instant::now());
            }
            // Unless it was renewed just now, which comes as an order too.
            return self.set_check(id);
        }
        let left = slot.expires - now;
        if !slot.warned && left <= notice_ticks() {
            slot.warned = true;
            let mut text = Text::default();
            text.expiring(TICK * left);
            self.say(id, &text);
        } else if now.saturating_sub(slot.last_write) >= heartbeat && slot.trouble.is_none() {
            match slot.send(&ping, now) {
                Sent::Taken => {}
                Sent::Refused => self.fall_behind(id),
                Sent::Gone(error) => return self.lose(id, error),
            }
        }
        self.set_check(id);
    }

    pub(super) fn heartbeat(&self) -> Tick {
        let ticks = self.way.heartbeat.as_millis() / TICK.as_millis();
        Tick::try_from(ticks).unwrap_or(Tick::MAX).max(1)
    }

    /// Notes when a slot is to be looked at next.
    pub(super) fn set_check(&mut self, id: SlotId) {
        let (now, heartbeat) = (self.tick(), self.heartbeat());
        let Some(slot) = self.slot(id) else { return };
        let mut next = slot.last_write.saturating_add(heartbeat).min(slot.expires);
        if !slot.warned {
            next = next.min(slot.expires.saturating_sub(notice_ticks()));
        }
        if next <= now {
            // A slot in trouble, whose heartbeat can do nothing for it.
            next = now + TICKS_PER_SECOND;
        }
        let check = self.wheel.add((id.index, id.generation), next);
        if let Some(slot) = self.slot(id) {
            slot.check = check;
        }
    }
}

/// The first tick at which a moment is past.
pub(super) fn tick_after(start: Instant, at: Instant) -> Tick {
    tick_of(start, at).saturating_add(1)
}

/// The tick of a moment.
pub(super) fn tick_of(start: Instant, at: Instant) -> Tick {
    let ticks = at.duration_since(start).as_millis() / TICK.as_millis();
    Tick::try_from(ticks).unwrap_or(Tick::MAX)
}

fn notice_ticks() -> Tick {
    let ticks = EXPIRY_NOTICE.as_millis() / TICK.as_millis();
    Tick::try_from(ticks).unwrap_or(Tick::MAX)
}
