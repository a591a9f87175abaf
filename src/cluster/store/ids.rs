//! Random names of a node's life and of the store's.

use std::{fmt, num::NonZeroU64, str::FromStr};

/// Says that a text is no incarnation or epoch: 16 lowercase hexadecimal digits, not all 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not 16 lowercase hexadecimal digits")]
pub struct InvalidId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(NonZeroU64);

        impl $name {
            /// Draws a new one, which nobody ever had.
            #[must_use]
            pub fn random() -> Self {
                Self(NonZeroU64::new(rand::random()).unwrap_or(NonZeroU64::MAX))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let hexadecimal = text
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
                if text.len() != 16 || !hexadecimal {
                    return Err(InvalidId);
                }
                let number = u64::from_str_radix(text, 16).map_err(|_| InvalidId)?;
                NonZeroU64::new(number).map(Self).ok_or(InvalidId)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
    };
}

id! {
    /// One life of a node in the store: a lease, and numbers under it. New with every start and
    /// every resync, never used again.
    Incarnation
}

id! {
    /// One life of the store: from the first script that found it empty, damaged or set back, to
    /// the next such. What belongs to another epoch says nothing about this one.
    Epoch
}

#[cfg(test)]
mod tests {
    use super::{Epoch, Incarnation};

    #[test]
    fn an_id_reads_back_what_it_writes_and_nothing_else() {
        let id = Incarnation::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [
            "",
            "0000000000000000",
            "00000000000000A1",
            "+000000000000001",
            "1",
            "00000000000000001",
        ] {
            assert!(text.parse::<Epoch>().is_err(), "{text}");
        }
    }
}
