//! Admission: how many streams a node, an address and a member may hold at once.
//!
//! A place is taken before the stream is opened and given back when it is dropped. A stream that
//! takes the place of an older one of its own connection is let in beyond the limits of address
//! and member, or a reader at the limit could not come back from a broken network.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use crate::hub::UserId;

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The node's.
    #[error("the node has as many streams as it can hold")]
    Node,
    /// The address's.
    #[error("the address has as many streams as it may hold")]
    Address,
    /// The member's.
    #[error("the member has as many streams as it may hold")]
    Member,
}

/// What a limit per address counts: one IPv4 address, or the /64 that one IPv6 customer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(u64);

impl Address {
    /// The address that `ip` counts as.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(u32::from(v4))),
            // 2^32 networks begin with 32 zero bits and none of them is in use.
            IpAddr::V6(v6) => Self(u64::try_from(u128::from(v6) >> 64).unwrap_or_default()),
        }
    }
}

/// Most streams at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// On this node.
    pub node: usize,
    /// From one address.
    pub address: usize,
    /// By tokens of one user.
    pub member: usize,
}

/// The doorkeeper of a node.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: Limits,
    node: AtomicUsize,
    addresses: Tally<Address>,
    members: Tally<UserId>,
    refused: [AtomicU64; 3],
}

/// How many places each key holds; a key without one costs nothing. Locked for a look-up.
#[derive(Debug)]
struct Tally<K>(Mutex<HashMap<K, usize>>);

impl<K: Hash + Eq + Clone> Tally<K> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn take(&self, key: &K, most: usize) -> bool {
        let mut tally = self.0.lock();
        match tally.get_mut(key) {
            Some(held) if *held >= most => false,
            Some(held) => {
                *held += 1;
                true
            }
            None => {
                tally.insert(key.clone(), 1);
                true
            }
        }
    }

    fn give_back(&self, key: &K) {
        let mut tally = self.0.lock();
        if let Some(held) = tally.get_mut(key) {
            *held -= 1;
            if *held == 0 {
                tally.remove(key);
            }
        }
    }
}

impl Admission {
    /// A doorkeeper with nobody inside.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared {
            limits,
            node: AtomicUsize::new(0),
            addresses: Tally::new(),
            members: Tally::new(),
            refused: Default::default(),
        }))
    }

    /// Takes a place under each limit: of the node always, of `address` and `member` where
    /// given. With `returning`, those two are counted but do not refuse.
    ///
    /// # Errors
    ///
    /// The first limit that is met; then no place is held.
    pub fn admit(
        &self,
        address: Option<Address>,
        member: Option<&UserId>,
        returning: bool,
    ) -> Result<Places, Full> {
        let shared = &self.0;
        let most = |limit| if returning { usize::MAX } else { limit };
        let mut places = Places {
            shared: Arc::clone(shared),
            address: None,
            member: None,
        };
        // From here on `places` gives back what was taken, also on the way out of an error.
        let before = shared.node.fetch_add(1, Ordering::Relaxed);
        if before >= shared.limits.node {
            return Err(self.refuse(Full::Node));
        }
        if let Some(address) = address {
            if !shared.addresses.take(&address, most(shared.limits.address)) {
                return Err(self.refuse(Full::Address));
            }
            places.address = Some(address);
        }
        if let Some(member) = member {
            if !shared.members.take(member, most(shared.limits.member)) {
                return Err(self.refuse(Full::Member));
            }
            places.member = Some(member.clone());
        }
        Ok(places)
    }

    fn refuse(&self, full: Full) -> Full {
        self.0.refused[full as usize].fetch_add(1, Ordering::Relaxed);
        full
    }

    /// How often each limit refused: node, address, member.
    #[must_use]
    pub fn refused(&self) -> [u64; 3] {
        [0, 1, 2].map(|limit: usize| self.0.refused[limit].load(Ordering::Relaxed))
    }
}

/// The places of one stream, given back when dropped. 32 bytes.
#[derive(Debug)]
pub struct Places {
    shared: Arc<Shared>,
    address: Option<Address>,
    member: Option<UserId>,
}

impl Drop for Places {
    fn drop(&mut self) {
        self.shared.node.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = &self.address {
            self.shared.addresses.give_back(address);
        }
        if let Some(member) = &self.member {
            self.shared.members.give_back(member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission::new(Limits {
            node: 3,
            address: 2,
            member: 1,
        })
    }

    #[test]
    fn a_place_given_back_can_be_taken_again() {
        let admission = admission();
        let address = Some(Address::of("192.0.2.1".parse().unwrap()));
        let first = admission.admit(address, None, false).unwrap();
        let _second = admission.admit(address, None, false).unwrap();
        assert_eq!(
            admission.admit(address, None, false).unwrap_err(),
            Full::Address
        );
        drop(first);
        assert!(admission.admit(address, None, false).is_ok());
        assert_eq!(admission.refused(), [0, 1, 0]);
    }

    #[test]
    fn a_refusal_holds_no_place() {
        let admission = admission();
        let user = UserId::parse("7").unwrap();
        let address = Some(Address::of("192.0.2.1".parse().unwrap()));
        let _held = admission.admit(None, Some(&user), false).unwrap();
        for _ in 0..10 {
            let refused = admission.admit(address, Some(&user), false);
            assert_eq!(refused.unwrap_err(), Full::Member);
        }
        let _second = admission.admit(address, None, false).unwrap();
        let _third = admission.admit(address, None, false).unwrap();
        assert_eq!(admission.admit(None, None, false).unwrap_err(), Full::Node);
    }

    #[test]
    fn whoever_returns_to_an_open_connection_passes_the_limits_of_address_and_member() {
        let admission = admission();
        let user = UserId::parse("7").unwrap();
        let _held = admission.admit(None, Some(&user), false).unwrap();
        assert!(admission.admit(None, Some(&user), true).is_ok());
    }

    #[test]
    fn an_ipv6_customer_is_one_address_and_a_mapped_ipv4_is_that_ipv4() {
        let of = |text: &str| Address::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
