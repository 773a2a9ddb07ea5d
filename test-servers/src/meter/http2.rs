//! HTTP/2, thus gRPC.

use super::Meter;
use super::frames::{Cutter, Framing, number};

const PREFACE: usize = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// Both directions: what is not a call nor a message (settings, pings, windows) neither asks nor answers.
#[derive(Debug)]
pub(super) struct Http2 {
    to_server: Cutter<Side>,
    to_client: Cutter<Side>,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            to_server: Cutter::new(Side { preface: true }),
            to_client: Cutter::new(Side { preface: false }),
        }
    }
}

impl Meter for Http2 {
    fn to_server(&mut self, bytes: &[u8], requests: &mut Vec<String>) -> bool {
        let before = requests.len();
        self.to_server.cut(bytes, requests);
        requests.len() > before
    }

    fn to_client(&mut self, bytes: &[u8]) -> bool {
        let mut answers = Vec::new();
        self.to_client.cut(bytes, &mut answers);
        !answers.is_empty()
    }
}

/// Three bytes of length, one of type, one of flags, four of the stream's number.
#[derive(Debug)]
struct Side {
    /// The client's preface is still to come.
    preface: bool,
}

impl Framing for Side {
    fn head(&self) -> usize {
        if self.preface { PREFACE } else { 9 }
    }

    fn begin(&mut self, head: &[u8], requests: &mut Vec<String>) -> usize {
        if std::mem::take(&mut self.preface) {
            return 0;
        }
        let length = (number(head, 0) >> 8) as usize;
        match head[3] {
            // The end of a stream may come as a frame of data without any.
            0 if length > 0 => requests.push("DATA".to_owned()),
            1 => requests.push("HEADERS".to_owned()),
            _ => {}
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_messages_are_found_however_they_are_cut() {
        let frame = |kind: u8, body: &[u8]| {
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            [&length[1..], &[kind, 0, 0, 0, 0, 1], body].concat()
        };
        let (settings, window) = (frame(4, &[0; 12]), frame(8, &[0; 4]));
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let stream =
            [preface, settings, frame(1, &[0; 70]), frame(0, b"message"), window, frame(0, b"")].concat();
        for size in 1..stream.len() {
            let mut meter = Http2::default();
            let mut requests = Vec::new();
            for chunk in stream.chunks(size) {
                meter.to_server(chunk, &mut requests);
            }
            assert_eq!(requests, ["HEADERS", "DATA"], "{size}");
        }
        assert!(!Http2::default().to_client(&frame(6, &[0; 8])));
        assert!(Http2::default().to_client(&frame(1, &[0; 8])));
    }
}
