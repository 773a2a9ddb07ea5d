//! Reading the URLs of etcd.

use dlock_core::{BackendUrl, UrlError, check_prefix, parse_endpoint};
use percent_encoding::percent_decode_str;

use crate::connect::Tls;
use crate::{DEFAULT_PREFIX, EtcdBackend};

pub(crate) const DEFAULT_PORT: u16 = 2379;

pub(crate) fn read(url: &mut BackendUrl) -> Result<EtcdBackend, UrlError> {
    let with_tls = url.scheme() == "etcds";
    let rest = url.rest().to_owned();
    let (user, hosts) = match rest.rsplit_once('@') {
        Some((user, hosts)) => (Some(user), hosts),
        None => (None, &*rest),
    };
    let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
    if hosts.contains('/') {
        return Err(UrlError::new(
            "a URL of etcd ends after the addresses: for other keys write prefix=..., as in etcd://h1:2379?prefix=shop/",
        ));
    }
    let endpoints = hosts.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
    let mut builder = EtcdBackend::builder(endpoints);
    if let Some(user) = user {
        let (name, password) = user.split_once(':').ok_or_else(|| {
            UrlError::new(
                "the user has no password: write etcd://USER:PASSWORD@HOST:PORT, each percent-encoded",
            )
        })?;
        let name = decode(name)?;
        if name.is_empty() {
            return Err(UrlError::new("the user has no name: write etcd://USER:PASSWORD@HOST:PORT"));
        }
        builder = builder.user(name, decode(password)?);
    }
    let prefix = url.take("prefix").unwrap_or_else(|| DEFAULT_PREFIX.to_owned());
    check_prefix(&prefix)?;
    builder = builder.prefix(prefix);
    if let Some(tls) = tls(url, with_tls)? {
        builder = builder.tls(tls);
    }
    Ok(builder.build())
}

fn tls(url: &mut BackendUrl, with_tls: bool) -> Result<Option<Tls>, UrlError> {
    let [ca, cert, key, name] = ["ca", "cert", "key", "server_name"].map(|parameter| url.take(parameter));
    if !with_tls {
        let given = [("ca", &ca), ("cert", &cert), ("key", &key), ("server_name", &name)];
        let given = given.iter().find(|(_, value)| value.is_some());
        return match given {
            Some((parameter, _)) => Err(UrlError::new(format!(
                "parameter {parameter} is for TLS: write etcds:// in place of etcd://"
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
            "an address of etcd is HOST:PORT, or HOST for port 2379, and several have commas between them, as in \
             etcd://h1:2379,h2:2379; a comma, @ or / of a password is written %2C, %40 or %2F",
        )
    };
    parse_endpoint(text, DEFAULT_PORT).ok_or_else(wrong)
}

fn decode(text: &str) -> Result<String, UrlError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| UrlError::new("the user or the password is not percent-encoded UTF-8"))
}

/// Quotes a word for a POSIX shell, where it needs it.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:%@+,[]".contains(c);
    // Brackets are a pattern to a shell, if only where a file matches it.
    if !text.is_empty() && text.chars().all(plain) && !text.contains('[') {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use dlock_core::{Backend, LockName};

    use super::*;

    fn parse(text: &str) -> Result<EtcdBackend, String> {
        let mut url = BackendUrl::parse(text).map_err(|error| error.to_string())?;
        let backend = read(&mut url).map_err(|error| error.to_string())?;
        url.finish().map_err(|error| error.to_string())?;
        Ok(backend)
    }

    #[test]
    fn addresses_users_and_parameters_are_read() {
        let backend = parse("etcd://h1,h2:23790,[::1],[fe80::1]:5").unwrap();
        assert_eq!(backend.endpoints, ["h1:2379", "h2:23790", "[::1]:2379", "[fe80::1]:5"]);
        assert_eq!(backend.prefix, "dlock/");
        let backend = parse("etcd:h1/?prefix=a%20b/").unwrap();
        assert_eq!((&*backend.endpoints[0], &*backend.prefix), ("h1:2379", "a b/"));
        let backend = parse("etcds://me:p%40ss%2C@h1?ca=/ca&cert=/c&key=/k&server_name=etcd").unwrap();
        let user = backend.user.unwrap();
        assert_eq!((&*user.name, &*user.password), ("me", "p@ss,"));
        assert!(backend.tls.unwrap().identity.is_some());
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_write() {
        for (url, says) in [
            ("etcd:", "HOST:PORT"),
            ("etcd://", "HOST:PORT"),
            ("etcd://h1:x", "HOST:PORT"),
            ("etcd://h1:99999", "HOST:PORT"),
            ("etcd://h1,,h2", "HOST:PORT"),
            ("etcd://[::g]:1", "HOST:PORT"),
            ("etcd://h1/shop", "prefix="),
            ("etcd://me@h1", "USER:PASSWORD"),
            ("etcd://:x@h1", "no name"),
            ("etcd://h1?ca=/ca", "etcds://"),
            ("etcds://h1?cert=/c", "both cert=FILE and key=FILE"),
            ("etcd://h1?prefx=x", "known are ca, cert, key, prefix, server_name"),
            ("etcd://h1?prefix=%00", "control"),
        ] {
            let error = parse(url).expect_err(url);
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        for url in
            ["etcd://me:secret@h1:x", "etcd://me:sec,ret@h1", "etcd://me:secret/@h1", "etcd://me:%FFsecret@h"]
        {
            let shown = match parse(url) {
                Ok(backend) => format!("{backend:?}"),
                Err(error) => error,
            };
            assert!(!shown.contains("sec") && !shown.contains("ret@"), "{url}: {shown}");
        }
    }

    #[test]
    fn where_a_lock_lives_can_be_pasted() {
        let backend = parse("etcds://[::1]:2379?prefix=it's").unwrap();
        let location = backend.locate(&LockName::new("x y").unwrap());
        assert_eq!(location.location, "it'sx%20y");
        let command = location.inspect.unwrap();
        assert_eq!(command, r"etcdctl --endpoints 'https://[::1]:2379' get --prefix 'it'\''sx%20y/'");
    }
}
