//! Where a lock lives, and the command that shows it.

use dlock_core::{Location, LockName};

use crate::settings::{Credentials, Endpoint, Settings, Topology};

/// The key, and a `redis-cli` command for it. For a Redlock at the first node; a password is asked for, not shown.
pub(crate) fn of(settings: &Settings, name: &LockName) -> Location {
    let key = settings.keys().lock(name);
    let command = match &settings.topology {
        Topology::Single(server) => {
            get(settings, &at(settings, &server.endpoint, server.credentials.as_ref()), &key)
        }
        Topology::Redlock(servers) => match servers.first() {
            Some(server) => get(settings, &at(settings, &server.endpoint, server.credentials.as_ref()), &key),
            None => return Location::new("redis", key),
        },
        Topology::Sentinel { sentinels, service, credentials } => match sentinels.first() {
            Some(sentinel) => {
                let ask = at(settings, &sentinel.endpoint, sentinel.credentials.as_ref());
                let master =
                    format!("redis-cli -h \"$host\" -p \"$port\"{}", options(settings, credentials.as_ref()));
                format!(
                    "{ask} SENTINEL GET-MASTER-ADDR-BY-NAME {} | {{ read -r host; read -r port; {}; }}",
                    shell_word(service),
                    get(settings, &master, &key)
                )
            }
            None => return Location::new("redis", key),
        },
    };
    Location::new("redis", key).inspect(command)
}

fn at(settings: &Settings, endpoint: &Endpoint, credentials: Option<&Credentials>) -> String {
    format!(
        "redis-cli -h {} -p {}{}",
        shell_word(&endpoint.host),
        endpoint.port,
        options(settings, credentials)
    )
}

fn options(settings: &Settings, credentials: Option<&Credentials>) -> String {
    let mut words = vec![String::new()];
    if let Some(tls) = &settings.tls {
        words.push("--tls".to_owned());
        for (option, file) in [("--cacert", &tls.ca), ("--cert", &tls.cert), ("--key", &tls.key)] {
            if let Some(file) = file {
                words.push(format!("{option} {}", shell_word(&file.to_string_lossy())));
            }
        }
    }
    if let Some(credentials) = credentials {
        if let Some(user) = &credentials.user {
            words.push(format!("--user {}", shell_word(user)));
        }
        words.push("--askpass".to_owned());
    }
    words.join(" ")
}

fn get(settings: &Settings, redis_cli: &str, key: &str) -> String {
    let database = if settings.database == 0 { String::new() } else { format!(" -n {}", settings.database) };
    format!("{redis_cli}{database} GET {}", shell_word(key))
}

/// Quotes a word for a POSIX shell where it needs it.
fn shell_word(text: &str) -> String {
    let plain = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '%' | '@' | '+' | ',')
    };
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use dlock_core::{Backend, BackendUrl, LockName};

    use crate::RedisBackend;

    fn inspect(url: &str, name: &str) -> String {
        let backend = RedisBackend::from_url(&mut BackendUrl::parse(url).unwrap()).unwrap();
        backend.locate(&LockName::new(name).unwrap()).inspect.unwrap()
    }

    #[test]
    fn commands_are_ready_to_paste_and_show_no_secret() {
        assert_eq!(
            inspect("redis://bob:s3cret@h/2", "a b"),
            "redis-cli -h h -p 6379 --user bob --askpass -n 2 GET dlock:lock:a%20b"
        );
        assert_eq!(
            inspect("rediss+redlock://[::1]:1,b,c?ca=/my%20ca.pem&prefix=it's:", "x"),
            r"redis-cli -h ::1 -p 1 --tls --cacert '/my ca.pem' GET 'it'\''s:lock:x'"
        );
        assert_eq!(
            inspect("redis+sentinel://:s3cret@s:1/mine", "x"),
            "redis-cli -h s -p 1 SENTINEL GET-MASTER-ADDR-BY-NAME mine | { read -r host; read -r port; \
             redis-cli -h \"$host\" -p \"$port\" --askpass GET dlock:lock:x; }"
        );
    }
}
