//! Streams of frames: a head of known length that tells the length of the body.

use std::fmt;

use super::Meter;

/// One direction of a protocol made of frames.
pub(super) trait Framing: Send + fmt::Debug {
    /// The length of the next head, in bytes.
    fn head(&self) -> usize;

    /// Takes a whole head; returns the length of the body, in bytes.
    fn begin(&mut self, head: &[u8], requests: &mut Vec<String>) -> usize;
}

/// Cuts a stream into frames.
#[derive(Debug)]
pub(super) struct Cutter<F> {
    framing: F,
    head: Vec<u8>,
    /// What is left of the body.
    body: usize,
}

impl<F: Framing> Cutter<F> {
    pub(super) fn new(framing: F) -> Self {
        Self { framing, head: Vec::new(), body: 0 }
    }

    pub(super) fn cut(&mut self, mut bytes: &[u8], requests: &mut Vec<String>) {
        while !bytes.is_empty() {
            let skipped = self.body.min(bytes.len());
            self.body -= skipped;
            bytes = &bytes[skipped..];
            let missing = self.framing.head() - self.head.len();
            let (more, rest) = bytes.split_at(missing.min(bytes.len()));
            self.head.extend_from_slice(more);
            bytes = rest;
            if more.len() == missing {
                self.body = self.framing.begin(&self.head, requests);
                self.head.clear();
            }
        }
    }
}

impl<F: Framing> Meter for Cutter<F> {
    fn to_server(&mut self, bytes: &[u8], requests: &mut Vec<String>) -> bool {
        self.cut(bytes, requests);
        true
    }
}

/// A number at this place, most significant byte first.
pub(super) fn number(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..at + 4].try_into().expect("the slice has four bytes");
    u32::from_be_bytes(bytes)
}
