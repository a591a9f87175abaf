//! What nodes share: with Redis, every node shows what all of them count.

pub mod store;
