//! PostgreSQL's frontend protocol.

use super::frames::{Framing, number};

/// Before the start-up message, which has no type, requests for encryption may come; after it all have one.
#[derive(Debug, Default)]
pub(super) struct Postgres {
    started: bool,
}

/// The codes of `SSLRequest` and `GSSENCRequest`, in place of a protocol version.
const ENCRYPTION: [u32; 2] = [80_877_103, 80_877_104];
const CANCEL: u32 = 80_877_102;

impl Framing for Postgres {
    fn head(&self) -> usize {
        if self.started { 5 } else { 8 }
    }

    fn begin(&mut self, head: &[u8], requests: &mut Vec<String>) -> usize {
        if self.started {
            requests.push(name(head[0]).to_owned());
            return (number(head, 1) as usize).saturating_sub(4);
        }
        let code = number(head, 4);
        self.started = !ENCRYPTION.contains(&code);
        requests.push(if code == CANCEL { "CancelRequest" } else { "Startup" }.to_owned());
        if !self.started {
            requests.pop();
        }
        (number(head, 0) as usize).saturating_sub(8)
    }
}

fn name(kind: u8) -> &'static str {
    match kind {
        b'B' => "Bind",
        b'C' => "Close",
        b'D' => "Describe",
        b'E' => "Execute",
        b'F' => "FunctionCall",
        b'H' => "Flush",
        b'P' => "Parse",
        b'Q' => "Query",
        b'S' => "Sync",
        b'X' => "Terminate",
        b'p' => "Password",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Cutter;
    use super::*;

    #[test]
    fn messages_are_named_however_they_are_cut() {
        let length = |body: &[u8]| u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        let first = |body: &[u8]| [&length(body), body].concat();
        let message = |kind: u8, body: &[u8]| [&[kind], &length(body)[..], body].concat();
        let stream = [
            first(&ENCRYPTION[0].to_be_bytes()),
            first(&[&196_608_u32.to_be_bytes()[..], b"user\0me\0\0"].concat()),
            message(b'Q', b"SELECT 1\0"),
            message(b'P', b"\0SELECT $1\0\0\0"),
            message(b'S', b""),
        ]
        .concat();
        for size in 1..stream.len() {
            let mut cutter = Cutter::new(Postgres::default());
            let mut requests = Vec::new();
            stream.chunks(size).for_each(|chunk| cutter.cut(chunk, &mut requests));
            assert_eq!(requests, ["Startup", "Query", "Parse", "Sync"], "{size}");
        }
    }
}
