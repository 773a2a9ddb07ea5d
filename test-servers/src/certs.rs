//! Certificates for servers and clients in tests.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::error::{Context, Result};
use crate::provider::Provider;

/// A certificate authority of its own with one server certificate and one client certificate.
///
/// The files are removed at the end of the test program. They are:
///
/// | file | what |
/// |---|---|
/// | `ca.pem` | the authority's certificate |
/// | `server.pem`, `server-key.pem` | for the addresses asked for, `localhost`, and all servers of this test program |
/// | `client.pem`, `client-key.pem` | with the common name `client` |
#[derive(Clone, Debug)]
pub struct Certs {
    folder: PathBuf,
}

impl Certs {
    /// Makes new ones. The server's is also good for `ips`.
    ///
    /// # Errors
    ///
    /// When no provider is available, or the files cannot be written.
    pub async fn new(ips: &[IpAddr]) -> Result<Self> {
        let run = Provider::this().await?.run();
        let folder = run.folder().join(run.name("certs"));
        fs::create_dir(&folder).context(|| folder.display().to_string())?;
        let mut names = vec!["localhost".to_owned(), run.ip().to_string()];
        names.extend(ips.iter().map(ToString::to_string));
        let certs = Self { folder };
        certs.make(names).context(|| "making certificates".into())?;
        Ok(certs)
    }

    /// The folder with the files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of one of the files.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// The content of one of the files, PEM.
    ///
    /// # Panics
    ///
    /// When there is no such file.
    pub fn pem(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).expect("the name is one of those in the table")
    }

    fn make(&self, names: Vec<String>) -> Result<(), Box<dyn std::error::Error>> {
        let authority_key = KeyPair::generate()?;
        let mut params = named("dlock test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        fs::write(self.path("ca.pem"), params.self_signed(&authority_key)?.pem())?;
        let authority = Issuer::new(params, authority_key);

        let mut server = CertificateParams::new(names)?;
        server.distinguished_name = named("server").distinguished_name;
        // Members of a cluster are each other's clients.
        server.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&server, &authority, "server")?;

        let mut client = named("client");
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&client, &authority, "client")
    }

    fn sign(
        &self,
        params: &CertificateParams,
        authority: &Issuer<'_, KeyPair>,
        file: &str,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let key = KeyPair::generate()?;
        fs::write(self.path(&format!("{file}.pem")), params.signed_by(&key, authority)?.pem())?;
        let path = self.path(&format!("{file}-key.pem"));
        fs::write(&path, key.serialize_pem())?;
        // PostgreSQL's client library refuses keys that others may read.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}
