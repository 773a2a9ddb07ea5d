//! SASL's mechanism DIGEST-MD5 (RFC 2831), as ZooKeeper's servers speak it.

use md5::{Digest, Md5};

use crate::settings::Secret;

/// What every ZooKeeper calls itself, whatever its host.
const SERVICE: &str = "zookeeper/zk-sasl-md5";

/// One authentication: the answer to a server's challenge, and what the server must then say to show that it knows the
/// password too.
pub(crate) struct Exchange {
    pub(crate) response: String,
    pub(crate) expected: String,
}

/// Answers a challenge; none if it is not one of this mechanism.
pub(crate) fn answer(secret: &Secret, challenge: &[u8]) -> Option<Exchange> {
    let fresh: [u8; 16] = rand::random();
    exchange(secret, challenge, &hex(&fresh), SERVICE)
}

fn exchange(secret: &Secret, challenge: &[u8], client_nonce: &str, service: &str) -> Option<Exchange> {
    let challenge = std::str::from_utf8(challenge).ok()?;
    let fields = fields(challenge)?;
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let nonce = field("nonce")?;
    if field("algorithm")? != "md5-sess"
        || !field("qop").unwrap_or("auth").split(',').any(|qop| qop.trim() == "auth")
    {
        return None;
    }
    let realm = field("realm");
    let mut start = Md5::new();
    for part in [&secret.user, realm.unwrap_or_default()].map(encoded) {
        start.update(part);
        start.update(":");
    }
    start.update(encoded(&secret.password));
    let start = Md5::digest([&start.finalize()[..], format!(":{nonce}:{client_nonce}").as_bytes()].concat());
    let proof = |method: &str| {
        let what = hex(&Md5::digest(format!("{method}:{service}")));
        hex(&Md5::digest(format!("{}:{nonce}:00000001:{client_nonce}:auth:{what}", hex(&start))))
    };
    let realm = realm.map(|realm| format!("realm=\"{}\",", quoted(realm))).unwrap_or_default();
    let response = format!(
        "charset=utf-8,username=\"{}\",{realm}nonce=\"{}\",nc=00000001,cnonce=\"{client_nonce}\",digest-uri=\"{service}\",\
         response={},qop=auth",
        quoted(&secret.user),
        quoted(nonce),
        proof("AUTHENTICATE"),
    );
    Some(Exchange { response, expected: format!("rspauth={}", proof("")) })
}

/// The `name=value` pairs of a challenge; a value may be quoted.
fn fields(text: &str) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    let mut rest = text.trim_start_matches([',', ' ']);
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let mut end = after.len();
        if after.starts_with('"') {
            chars.next();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => value.push(chars.next()?.1),
                    c => value.push(c),
                }
            }
        } else {
            end = after.find(',').unwrap_or(after.len());
            value.push_str(after[..end].trim());
        }
        fields.push((name.trim().to_owned(), value));
        rest = after[end..].trim_start_matches([',', ' ']);
    }
    Some(fields)
}

fn quoted(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"")
}

/// In ISO 8859-1 where it can be: the RFC wants it, for the sake of servers older than UTF-8.
fn encoded(text: &str) -> Vec<u8> {
    let latin: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    latin.unwrap_or_else(|| text.as_bytes().to_vec())
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let challenge = br#"realm="elwood.innosoft.com",nonce="OA6MG9tEQGm2hh",qop="auth",algorithm=md5-sess,charset=utf-8"#;
        let secret = Secret::new("chris", "secret");
        let done = exchange(&secret, challenge, "OA6MHXh6VqTrRk", "imap/elwood.innosoft.com").unwrap();
        assert!(done.response.contains("response=d388dad90d4bbd760a152321f2143af7"), "{}", done.response);
        assert_eq!(done.expected, "rspauth=ea40f60335c427b5527b84dbabcdfffd");
    }

    #[test]
    fn what_is_no_challenge_is_turned_away() {
        let secret = Secret::new("me", "x");
        for challenge in [
            "",
            "nonce",
            "realm=\"a",
            r#"nonce="a",algorithm=md5"#,
            r#"nonce="a",qop="auth-conf",algorithm=md5-sess"#,
        ] {
            assert!(answer(&secret, challenge.as_bytes()).is_none(), "{challenge}");
        }
        assert!(answer(&secret, &[0xff]).is_none());
    }

    #[test]
    fn quotes_are_escaped_both_ways() {
        let found = fields(r#"realm="a\"b\\c", nonce="x,y" ,qop=auth"#).unwrap();
        assert_eq!(found[0].1, r#"a"b\c"#);
        assert_eq!((found[1].1.as_str(), found[2].1.as_str()), ("x,y", "auth"));
        assert_eq!(quoted(r#"a"b\c"#), r#"a\"b\\c"#);
    }
}
