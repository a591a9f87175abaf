//! Bytes that are ready to be sent, encoded once and shared by everybody who is sent them.
//!
//! The hub passes frames on without knowing what they say.

use bytes::{BufMut, Bytes, BytesMut};

/// One HTTP/1.1 chunk, framing included, whose payload can also be had without it: for
/// HTTP/1.0, which knows no chunks, and for bodies that are framed further down.
#[derive(Clone)]
pub struct Frame {
    chunk: Bytes,
    /// Bytes of `size CRLF` before the payload: at most 18.
    head: u8,
}

impl Frame {
    /// Frames `payload` as one chunk (RFC 9112, section 7.1). An empty payload gives an empty
    /// frame and not the chunk of size 0, which would end the body.
    ///
    /// # Panics
    ///
    /// Never: sixteen hexadecimal digits and CRLF fit the head's length.
    #[must_use]
    pub fn of(payload: &[u8]) -> Self {
        if payload.is_empty() {
            return Self {
                chunk: Bytes::new(),
                head: 0,
            };
        }
        let size = format!("{:x}\r\n", payload.len());
        let mut chunk = BytesMut::with_capacity(size.len() + payload.len() + 2);
        chunk.put_slice(size.as_bytes());
        chunk.put_slice(payload);
        chunk.put_slice(b"\r\n");
        Self {
            chunk: chunk.freeze(),
            head: u8::try_from(size.len()).expect("a usize has at most 16 hexadecimal digits"),
        }
    }

    /// The chunk with its framing.
    #[must_use]
    pub fn chunk(&self) -> &Bytes {
        &self.chunk
    }

    /// What is inside the chunk, without a copy.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        if self.chunk.is_empty() {
            return Bytes::new();
        }
        self.chunk
            .slice(usize::from(self.head)..self.chunk.len() - 2)
    }

    /// Bytes that this frame keeps in memory.
    #[must_use]
    pub fn size(&self) -> usize {
        self.chunk.len()
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({} bytes)", self.chunk.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_payload_comes_back_and_the_chunk_states_its_size(payload in proptest::collection::vec(any::<u8>(), 1..5000)) {
            let frame = Frame::of(&payload);
            prop_assert_eq!(&frame.payload()[..], &payload[..]);
            let text = format!("{:x}\r\n", payload.len());
            prop_assert!(frame.chunk().starts_with(text.as_bytes()));
            prop_assert!(frame.chunk().ends_with(b"\r\n"));
            prop_assert_eq!(frame.size(), text.len() + payload.len() + 2);
        }
    }

    #[test]
    fn nothing_is_framed_as_nothing_and_never_as_the_last_chunk() {
        assert_eq!(Frame::of(b"").size(), 0);
        assert!(Frame::of(b"").payload().is_empty());
    }
}
