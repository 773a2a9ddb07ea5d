//! Reads the URLs of this backend. No error repeats what may be a password.

use std::path::PathBuf;
use std::time::Duration;

use dlock_core::{BackendUrl, UrlError, check_prefix};

use crate::settings::{Credentials, Endpoint, Server, Settings, TlsFiles, Topology};

const NODE_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Reads a URL with all its parameters.
pub(crate) fn settings(url: &mut BackendUrl) -> Result<Settings, UrlError> {
    let scheme = url.scheme().to_owned();
    let (transport, kind) = scheme.split_once('+').unwrap_or((&scheme, ""));
    let rest = url.rest().to_owned();
    let (hosts, path) = rest.split_once('/').unwrap_or((&rest, ""));
    let mut settings = match kind {
        "" => single(hosts, path)?,
        "redlock" => redlock(hosts, path)?,
        "sentinel" => sentinel(hosts, path, url)?,
        _ => return Err(UrlError::new(SCHEMES)),
    };
    let files = TlsFiles {
        ca: url.take("ca").map(PathBuf::from),
        cert: url.take("cert").map(PathBuf::from),
        key: url.take("key").map(PathBuf::from),
    };
    settings.tls = match transport {
        "rediss" => Some(files),
        "redis" if files == TlsFiles::default() => None,
        "redis" => {
            return Err(UrlError::new(
                "the parameters ca, cert and key are for TLS: write rediss instead of redis, or leave them out",
            ));
        }
        _ => return Err(UrlError::new(SCHEMES)),
    };
    if let Some(prefix) = url.take("prefix") {
        check_prefix(&prefix)?;
        settings.prefix = prefix;
    }
    if let Some(delay) = duration(url, "restart_delay")? {
        settings.restart_delay = delay;
    }
    if let Some(skew) = duration(url, "clock_skew")? {
        settings.clock_skew = skew;
    }
    if kind == "redlock" {
        settings.node_timeout = duration(url, "node_timeout")?;
    }
    settings.client_name = url.take("client_name");
    settings.check().map_err(UrlError::new)?;
    Ok(settings)
}

const SCHEMES: &str = "Redis is redis://HOST, redis+redlock://HOST,HOST,HOST or redis+sentinel://HOST,HOST/SERVICE, and \
                       with TLS rediss://, rediss+redlock:// and rediss+sentinel://";

fn single(hosts: &str, path: &str) -> Result<Settings, UrlError> {
    let mut servers = servers(hosts, NODE_PORT)?;
    if servers.len() > 1 {
        return Err(UrlError::new(
            "redis:// takes one server: for several independent ones write redis+redlock://HOST,HOST,HOST, and for one \
             with Sentinels redis+sentinel://SENTINEL,SENTINEL/SERVICE",
        ));
    }
    let mut settings = Settings::new(Topology::Single(servers.remove(0)));
    settings.database = database(path)?;
    Ok(settings)
}

fn redlock(hosts: &str, path: &str) -> Result<Settings, UrlError> {
    let mut servers = servers(hosts, NODE_PORT)?;
    // What stands before the first host is for all, if it stands nowhere else.
    if servers.iter().skip(1).all(|server| server.credentials.is_none()) {
        let credentials = servers[0].credentials.clone();
        for server in &mut servers {
            server.credentials.clone_from(&credentials);
        }
    }
    let mut settings = Settings::new(Topology::Redlock(servers));
    settings.database = database(path)?;
    Ok(settings)
}

fn sentinel(hosts: &str, path: &str, url: &mut BackendUrl) -> Result<Settings, UrlError> {
    let mut sentinels = servers(hosts, SENTINEL_PORT)?;
    let (service, path) = path.split_once('/').unwrap_or((path, ""));
    let service = decoded(service)?;
    if service.is_empty() {
        return Err(UrlError::new(
            "the URL names no service: write redis+sentinel://SENTINEL,SENTINEL/SERVICE with the name that the Sentinels \
             give the master",
        ));
    }
    if sentinels.iter().skip(1).any(|server| server.credentials.is_some()) {
        return Err(UrlError::new(
            "user and password of the master stand before the first Sentinel only; those of the Sentinels are the \
             parameters sentinel_user and sentinel_password",
        ));
    }
    let credentials = sentinels[0].credentials.take();
    let own = match (url.take("sentinel_user"), url.take("sentinel_password")) {
        (user, Some(password)) => Some(Credentials { user, password }),
        (None, None) => None,
        (Some(_), None) => return Err(UrlError::new("sentinel_user needs sentinel_password as well")),
    };
    for sentinel in &mut sentinels {
        sentinel.credentials.clone_from(&own);
    }
    let mut settings = Settings::new(Topology::Sentinel { sentinels, service, credentials });
    settings.database = database(path)?;
    Ok(settings)
}

/// Reads `[USER:PASSWORD@]HOST[:PORT]` once or more, with commas between.
fn servers(hosts: &str, port: u16) -> Result<Vec<Server>, UrlError> {
    hosts
        .split(',')
        .map(|text| {
            let (user_info, address) = match text.rsplit_once('@') {
                Some((user_info, address)) => (Some(user_info), address),
                None => (None, text),
            };
            let credentials = user_info.map(credentials).transpose()?;
            Ok(Server { endpoint: endpoint(address, port)?, credentials })
        })
        .collect()
}

fn credentials(user_info: &str) -> Result<Credentials, UrlError> {
    let (user, password) = user_info.split_once(':').ok_or_else(|| {
        UrlError::new("before the @ stand USER:PASSWORD, or :PASSWORD without a user, each percent-encoded")
    })?;
    let user = decoded(user)?;
    Ok(Credentials { user: (!user.is_empty()).then_some(user), password: decoded(password)? })
}

/// Reads `HOST[:PORT]`, with IPv6 addresses in brackets.
pub(crate) fn endpoint(address: &str, default_port: u16) -> Result<Endpoint, UrlError> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest
                .split_once(']')
                .filter(|(_, port)| port.is_empty() || port.starts_with(':'))
                .ok_or_else(|| UrlError::new("an IPv6 address stands in brackets: [::1]:6379"))?;
            (host.to_owned(), port.strip_prefix(':'))
        }
        None if address.matches(':').count() > 1 => {
            return Err(UrlError::new("an IPv6 address stands in brackets: [::1]:6379"));
        }
        None => {
            let (host, port) = match address.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (address, None),
            };
            (decoded(host)?, port)
        }
    };
    if host.is_empty() {
        return Err(UrlError::new(
            "the URL names no server: write redis://HOST:PORT, as in redis://127.0.0.1:6379",
        ));
    }
    let port = match port {
        None => default_port,
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
            // The text may be a piece of a password with a special character.
            UrlError::new(
                "what follows the host's colon is no port number; special characters of a password are \
                 percent-encoded: / is %2F, @ is %40, comma is %2C, : is %3A",
            )
        })?,
    };
    Ok(Endpoint { host, port })
}

fn database(path: &str) -> Result<i64, UrlError> {
    match path {
        "" => Ok(0),
        number => number.parse::<u16>().map(i64::from).map_err(|_| {
            UrlError::new("after the last / stands the number of a database, as in redis://127.0.0.1:6379/0")
        }),
    }
}

/// As [`BackendUrl::take_duration`], and 0 needs no unit.
fn duration(url: &mut BackendUrl, key: &'static str) -> Result<Option<Duration>, UrlError> {
    match url.take(key) {
        Some(zero) if zero == "0" => Ok(Some(Duration::ZERO)),
        Some(text) => dlock_core::parse_duration(&text)
            .map(Some)
            .map_err(|error| UrlError::new(format!("parameter {key}: {error}"))),
        None => Ok(None),
    }
}

fn decoded(text: &str) -> Result<String, UrlError> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| UrlError::new("user, password and host are percent-encoded UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Settings, UrlError> {
        let mut url = BackendUrl::parse(url)?;
        let settings = settings(&mut url)?;
        url.finish()?;
        Ok(settings)
    }

    fn error(url: &str) -> String {
        let error = read(url).unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
        error
    }

    #[test]
    fn one_server() {
        let settings = read("redis://h").unwrap();
        let Topology::Single(server) = &settings.topology else { panic!("{settings:?}") };
        assert_eq!((server.endpoint.to_string(), settings.database), ("h:6379".to_owned(), 0));
        assert!(server.credentials.is_none() && settings.tls.is_none());
        let settings = read("rediss://bob:p%40ss%2Fs3cret@[::1]:7000/3?prefix=shop:&ca=/ca.pem").unwrap();
        let Topology::Single(server) = &settings.topology else { panic!("{settings:?}") };
        assert_eq!((server.endpoint.to_string(), settings.database), ("[::1]:7000".to_owned(), 3));
        let credentials = server.credentials.as_ref().unwrap();
        assert_eq!((credentials.user.as_deref(), &*credentials.password), (Some("bob"), "p@ss/s3cret"));
        assert_eq!(settings.prefix, "shop:");
        assert!(!format!("{settings:?}").contains("s3cret"));
        let settings = read("redis://:s3cret@h").unwrap();
        let Topology::Single(server) = &settings.topology else { panic!("{settings:?}") };
        assert_eq!(server.credentials.as_ref().unwrap().user, None);
    }

    #[test]
    fn several_servers() {
        let settings = read("redis+redlock://bob:s3cret@a,b:1,c/2?node_timeout=200ms").unwrap();
        let Topology::Redlock(servers) = &settings.topology else { panic!("{settings:?}") };
        assert!(servers.iter().all(|server| server.credentials == servers[0].credentials));
        assert_eq!(servers[1].endpoint.to_string(), "b:1");
        assert_eq!(settings.node_timeout, Some(Duration::from_millis(200)));
        let settings = read("redis+redlock://a,:s3cret@b,c").unwrap();
        let Topology::Redlock(servers) = &settings.topology else { panic!("{settings:?}") };
        assert!(servers[0].credentials.is_none() && servers[1].credentials.is_some());
    }

    #[test]
    fn sentinels() {
        let settings =
            read("redis+sentinel://bob:s3cret@a,b:1/mine/4?sentinel_user=eve&sentinel_password=s3cret")
                .unwrap();
        let Topology::Sentinel { sentinels, service, credentials } = &settings.topology else {
            panic!("{settings:?}")
        };
        assert_eq!((service.as_str(), settings.database), ("mine", 4));
        assert_eq!(sentinels[0].endpoint.to_string(), "a:26379");
        assert_eq!(sentinels[1].credentials.as_ref().unwrap().user.as_deref(), Some("eve"));
        assert_eq!(credentials.as_ref().unwrap().user.as_deref(), Some("bob"));
        assert!(!format!("{settings:?}").contains("s3cret"));
    }

    #[test]
    fn errors_say_what_to_write_and_show_no_secret() {
        for (url, says) in [
            ("redis://", "redis://HOST:PORT"),
            ("redis://a,b", "redis+redlock://"),
            ("redis+redlock://a,b", "odd number"),
            ("redis+redlock://a", "odd number"),
            ("redis+redlock://a,b,a", "a:6379 is there twice"),
            ("redis+redlock://a,b,c,d", "there are 4"),
            ("redis+sentinel://a", "SERVICE"),
            ("redis://h/x", "number of a database"),
            ("redis://h?ca=/x", "rediss"),
            ("rediss://h?cert=/x", "both parameters"),
            ("redis://s3cret@h", "USER:PASSWORD"),
            ("redis://bob:s3cret/s3cret@h", "percent-encoded"),
            ("redis://::1", "[::1]:6379"),
            ("redis://h:0", "port number"),
            ("redis://h?restart_delay=2s", "no room for a lease"),
            ("redis://h?restart_delay=x", "parameter restart_delay"),
            ("redis://h?node_timeout=1s", "unknown parameter \"node_timeout\""),
            ("redis://h?client_name=a%20b", "client_name"),
            ("redis+cluster://h", "redis+sentinel://"),
            ("redis+sentinel://a/x?sentinel_user=s3cret", "sentinel_password"),
        ] {
            assert!(error(url).contains(says), "{url}: {}", error(url));
        }
        assert!(read("redis://h?restart_delay=0").unwrap().restart_delay.is_zero());
        assert!(read("redis://h?restart_delay=0s").unwrap().restart_delay.is_zero());
    }
}
