//! Reading the URLs of ZooKeeper.

use dlock_core::{BackendUrl, UrlError, parse_endpoint};
use percent_encoding::percent_decode_str;

use crate::settings::{Authentication, check_tick};
use crate::tls::Tls;
use crate::{DEFAULT_PREFIX, ZkBackend, ZkBackendBuilder};

pub(crate) const DEFAULT_PORT: u16 = 2181;

pub(crate) fn read(url: &mut BackendUrl) -> Result<ZkBackend, UrlError> {
    let with_tls = url.scheme() == "zks";
    let rest = url.rest().to_owned();
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, &*rest),
    };
    let (hosts, chroot) = rest.split_once('/').unwrap_or((rest, ""));
    let endpoints = hosts.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
    let mut builder = ZkBackend::builder(endpoints)
        .chroot(decode(chroot, "the chroot")?)
        .prefix(url.take("prefix").unwrap_or_else(|| DEFAULT_PREFIX.to_owned()));
    builder.0.layout.check().map_err(UrlError::new)?;
    builder = authenticated(url, builder, user)?;
    if let Some(tick) = url.take_duration("tick")? {
        check_tick(tick).map_err(|error| UrlError::new(format!("parameter tick: {error}")))?;
        builder = builder.tick(tick);
    }
    match url.take("world_readable").as_deref() {
        None | Some("false") => {}
        Some("true") => builder = builder.world_readable(true),
        Some(_) => return Err(UrlError::new("parameter world_readable: write true or false")),
    }
    if let Some(tls) = tls(url, with_tls)? {
        builder = builder.tls(tls);
    }
    Ok(builder.build())
}

fn authenticated(
    url: &mut BackendUrl,
    builder: ZkBackendBuilder,
    user: Option<&str>,
) -> Result<ZkBackendBuilder, UrlError> {
    let scheme = url.take("auth");
    let Some(user) = user else {
        return match scheme {
            None => Ok(builder),
            Some(_) => Err(UrlError::new("parameter auth needs a user: write zk://USER:PASSWORD@HOST:PORT")),
        };
    };
    let (name, password) = user.split_once(':').ok_or_else(|| {
        UrlError::new(
            "the user has no password: write zk://USER:PASSWORD@HOST:PORT, each percent-encoded; an @ of the chroot is %40",
        )
    })?;
    let name = decode(name, "the user or the password")?;
    if name.is_empty() {
        return Err(UrlError::new("the user has no name: write zk://USER:PASSWORD@HOST:PORT"));
    }
    let password = decode(password, "the user or the password")?;
    match scheme.as_deref() {
        None | Some("digest") => {
            if name.contains(':') {
                return Err(UrlError::new("a user of scheme digest has no colon in its name"));
            }
            Ok(builder.digest(name, password))
        }
        Some("sasl") => Ok(builder.sasl(name, password)),
        Some(_) => Err(UrlError::new(
            "parameter auth: write digest, or sasl for SASL's DIGEST-MD5; digest is meant unless it is set",
        )),
    }
}

fn tls(url: &mut BackendUrl, with_tls: bool) -> Result<Option<Tls>, UrlError> {
    let [ca, cert, key, name] = ["ca", "cert", "key", "server_name"].map(|parameter| url.take(parameter));
    if !with_tls {
        let given = [("ca", &ca), ("cert", &cert), ("key", &key), ("server_name", &name)];
        let given = given.iter().find(|(_, value)| value.is_some());
        return match given {
            Some((parameter, _)) => Err(UrlError::new(format!(
                "parameter {parameter} is for TLS: write zks:// in place of zk://"
            ))),
            None => Ok(None),
        };
    }
    let mut tls = Tls::new();
    if let Some(ca) = ca {
        tls = tls.ca_file(ca);
    }
    tls = match (cert, key) {
        (Some(cert), Some(key)) => tls.identity_files(cert, key),
        (None, None) => tls,
        _ => {
            return Err(UrlError::new("a client certificate is two files: give both cert=FILE and key=FILE"));
        }
    };
    if let Some(name) = name {
        tls = tls.server_name(name);
    }
    Ok(Some(tls))
}

/// One `host:port`, `[v6]:port`, or either without a port.
fn endpoint(text: &str) -> Result<String, UrlError> {
    // It is not repeated: a password with a comma or an @ may have ended here.
    let wrong = || {
        UrlError::new(
            "an address of ZooKeeper is HOST:PORT, or HOST for port 2181, and several have commas between them, as in \
             zk://h1:2181,h2:2181; a comma, @ or / of a password is written %2C, %40 or %2F",
        )
    };
    parse_endpoint(text, DEFAULT_PORT).ok_or_else(wrong)
}

fn decode(text: &str, what: &str) -> Result<String, UrlError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| UrlError::new(format!("{what} is not percent-encoded UTF-8")))
}

/// Quotes a word for a POSIX shell, where it needs it.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:%@+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

impl Authentication {
    /// For messages.
    pub(crate) fn user(&self) -> &str {
        let (Self::Digest(secret) | Self::Sasl(secret)) = self;
        &secret.user
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dlock_core::{Backend, LockName};

    use super::*;

    fn parse(text: &str) -> Result<ZkBackend, String> {
        let mut url = BackendUrl::parse(text).map_err(|error| error.to_string())?;
        let backend = read(&mut url).map_err(|error| error.to_string())?;
        url.finish().map_err(|error| error.to_string())?;
        Ok(backend)
    }

    fn path(backend: &ZkBackend) -> String {
        backend.locate(&LockName::new("x").unwrap()).location
    }

    #[test]
    fn addresses_users_and_parameters_are_read() {
        let backend = parse("zk://h1,h2:21810,[::1],[fe80::1]:5").unwrap();
        assert_eq!(backend.0.endpoints, ["h1:2181", "h2:21810", "[::1]:2181", "[fe80::1]:5"]);
        assert_eq!((path(&backend), backend.0.tick), ("/dlock/x".into(), Duration::from_secs(2)));
        let backend = parse("zk:h1/apps/a%20b?prefix=locks/here&tick=500ms").unwrap();
        assert_eq!(path(&backend), "/apps/a b/locks/here/x");
        assert_eq!(backend.0.tick, Duration::from_millis(500));
        assert_eq!(path(&parse("zk://h1/").unwrap()), "/dlock/x");
        let backend = parse("zks://me:p%40ss%2C@h1?ca=/ca&cert=/c&key=/k&server_name=zk").unwrap();
        let Some(Authentication::Digest(secret)) = backend.0.authentication else { panic!("digest") };
        assert_eq!((&*secret.user, &*secret.password), ("me", "p@ss,"));
        assert!(backend.0.tls.is_some());
        let backend = parse("zk://me:x@h1?auth=sasl&world_readable=true").unwrap();
        assert!(matches!(backend.0.authentication, Some(Authentication::Sasl(_))));
        assert!(backend.0.world_readable);
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_write() {
        for (url, says) in [
            ("zk:", "HOST:PORT"),
            ("zk://", "HOST:PORT"),
            ("zk://h1:x", "HOST:PORT"),
            ("zk://h1:99999", "HOST:PORT"),
            ("zk://h1,,h2", "HOST:PORT"),
            ("zk://[::g]:1", "HOST:PORT"),
            ("zk://h1/a//b", "empty"),
            ("zk://h1/../b", ".."),
            ("zk://h1?prefix=/", "prefix"),
            ("zk://h1?prefix=zookeeper/a", "zookeeper"),
            ("zk://h1?prefix=%00", "character"),
            ("zk://me@h1", "USER:PASSWORD"),
            ("zk://:x@h1", "no name"),
            ("zk://me:x@h1?auth=md5", "digest"),
            ("zk://h1?auth=sasl", "USER:PASSWORD"),
            ("zk://h1?tick=2", "500ms"),
            ("zk://h1?tick=0s", "tick=2s"),
            ("zk://h1?tick=7ns", "1 ms to an hour"),
            ("zk://h1?tick=500000000000y", "1 ms to an hour"),
            ("zk://h1?world_readable=yes", "true or false"),
            ("zk://h1?ca=/ca", "zks://"),
            ("zks://h1?cert=/c", "both cert=FILE and key=FILE"),
            ("zk://h1?prefx=x", "known are auth, ca, cert, key, prefix, server_name, tick, world_readable"),
        ] {
            let error = parse(url).expect_err(url);
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        for url in [
            "zk://me:secret@h1:x",
            "zk://me:sec,ret@h1",
            "zk://me:secret/@h1",
            "zk://me:%FFsecret@h",
            "zk://me:secret@h1?auth=sasl",
        ] {
            let shown = match parse(url) {
                Ok(backend) => format!("{backend:?}"),
                Err(error) => error,
            };
            assert!(!shown.contains("sec") && !shown.contains("ret@"), "{url}: {shown}");
        }
    }

    #[test]
    fn where_a_lock_lives_can_be_pasted() {
        let backend = parse("zk://h1,h2/it's?prefix=a b").unwrap();
        let location = backend.locate(&LockName::new("x y").unwrap());
        assert_eq!(location.location, "/it's/a b/x%20y");
        assert_eq!(location.inspect.unwrap(), r"zkCli.sh -server h1:2181,h2:2181 ls '/it'\''s/a b/x%20y'");
    }
}
