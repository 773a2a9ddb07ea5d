//! The protocol of Redis and Valkey.

use super::Meter;

/// Finds commands: arrays of strings (`*2\r\n$3\r\nGET\r\n$1\r\na\r\n`), and plain lines as people type them.
#[derive(Debug, Default)]
pub(super) struct Resp {
    /// A line that has not ended yet.
    line: Vec<u8>,
    /// Strings of the command that are still to come.
    strings: usize,
    /// The name is still to come.
    nameless: bool,
    /// What is left of a string and its end of line.
    string: usize,
    name: Vec<u8>,
}

impl Meter for Resp {
    fn to_server(&mut self, mut bytes: &[u8], requests: &mut Vec<String>) -> bool {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.string > 0 {
                let (part, rest) = bytes.split_at(self.string.min(bytes.len()));
                self.string -= part.len();
                bytes = rest;
                if self.nameless {
                    self.name.extend_from_slice(part);
                    if self.string == 0 {
                        requests.push(name(&self.name));
                        self.name.clear();
                        self.nameless = false;
                    }
                }
            } else if first == b'\n' {
                bytes = rest;
                self.end_line(requests);
            } else {
                self.line.push(first);
                bytes = rest;
            }
        }
        true
    }
}

impl Resp {
    fn end_line(&mut self, requests: &mut Vec<String>) {
        let line = std::mem::take(&mut self.line);
        let number = |digits: &[u8]| str::from_utf8(digits).ok()?.trim_end().parse::<usize>().ok();
        match line.split_first() {
            Some((b'*', digits)) if self.strings == 0 => {
                self.strings = number(digits).unwrap_or(0);
                self.nameless = self.strings > 0;
            }
            Some((b'$', digits)) if self.strings > 0 => {
                self.strings -= 1;
                self.string = number(digits).unwrap_or(0) + 2;
            }
            _ => requests.extend(
                line.trim_ascii().split(u8::is_ascii_whitespace).next().filter(|w| !w.is_empty()).map(name),
            ),
        }
    }
}

fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.trim_ascii()).to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_named_however_they_are_cut() {
        let stream = b"*3\r\n$3\r\nset\r\n$1\r\na\r\n$9\r\n*1\r\n$4\r\nb\r\n*1\r\n$4\r\nPING\r\nping twice\r\n\r\n*2\r\n$7\r\nEVALSHA\r\n$0\r\n\r\n";
        for size in 1..stream.len() {
            let mut meter = Resp::default();
            let mut requests = Vec::new();
            for chunk in stream.chunks(size) {
                meter.to_server(chunk, &mut requests);
            }
            assert_eq!(requests, ["SET", "PING", "PING", "EVALSHA"], "{size}");
        }
    }
}
