//! ZooKeeper's client protocol.

use super::frames::{Framing, number};

/// A frame is its length, then the number of the request and its type; the first one of a connection opens the session.
#[derive(Debug, Default)]
pub(super) struct ZooKeeper {
    connected: bool,
}

impl Framing for ZooKeeper {
    fn head(&self) -> usize {
        12
    }

    fn begin(&mut self, head: &[u8], requests: &mut Vec<String>) -> usize {
        let name = if self.connected { name(number(head, 8).cast_signed()) } else { "connect" };
        self.connected = true;
        requests.push(name.to_owned());
        (number(head, 0) as usize).saturating_sub(8)
    }
}

/// As in `org.apache.zookeeper.ZooDefs.OpCode`.
fn name(code: i32) -> &'static str {
    match code {
        1 => "create",
        2 => "delete",
        3 => "exists",
        4 => "getData",
        5 => "setData",
        6 => "getACL",
        7 => "setACL",
        8 => "getChildren",
        9 => "sync",
        11 => "ping",
        12 => "getChildren2",
        13 => "check",
        14 => "multi",
        15 => "create2",
        18 => "removeWatches",
        19 => "createContainer",
        21 => "createTTL",
        22 => "multiRead",
        100 => "auth",
        101 => "setWatches",
        102 => "sasl",
        105 => "setWatches2",
        106 => "addWatch",
        107 => "whoAmI",
        -11 => "closeSession",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Cutter;
    use super::*;

    #[test]
    fn operations_are_named_however_they_are_cut() {
        let frame = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat();
        let request =
            |code: i32, rest: &[u8]| frame(&[&7_i32.to_be_bytes(), &code.to_be_bytes(), rest].concat());
        let stream =
            [frame(&[0; 44]), request(11, b""), request(14, b"a long body"), request(-11, b"")].concat();
        for size in 1..stream.len() {
            let mut cutter = Cutter::new(ZooKeeper::default());
            let mut requests = Vec::new();
            stream.chunks(size).for_each(|chunk| cutter.cut(chunk, &mut requests));
            assert_eq!(requests, ["connect", "ping", "multi", "closeSession"], "{size}");
        }
    }
}
