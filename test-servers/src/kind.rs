//! What a server kind says of itself.

use std::fmt;

use crate::site::Site;

/// A kind of server, as it is configured.
///
/// It is a description only: which software, and how to run it at a given [`Site`]. Starting, ending, freezing and
/// removing are the same for all kinds.
pub trait Kind: fmt::Debug + Send + Sync + 'static {
    /// Where the programs come from.
    fn software(&self) -> &'static Software;

    /// How many ports a server of this kind needs.
    fn ports(&self) -> usize {
        1
    }

    /// How to run it there.
    fn launch(&self, site: &Site) -> Launch;
}

/// Where the programs of a server kind come from.
///
/// With Docker: the official image, or else one made of the Debian packages. As processes: what this machine has
/// installed if its version fits, or else the Debian packages, unpacked into a cache folder.
#[derive(Debug)]
pub struct Software {
    /// Short name with the version, as in `redis-8`. Names servers, images and folders.
    pub name: &'static str,
    /// The official image, pinned, if there is one.
    pub image: Option<&'static str>,
    /// The Debian release whose packages are used.
    pub suite: &'static str,
    /// The packages with the programs.
    pub packages: &'static [&'static str],
    /// Packages that an image needs besides; processes take from this machine what these provide, as Java.
    pub runtime: &'static [&'static str],
    /// The programs that [`Launch`] names.
    pub programs: &'static [&'static str],
    /// Folders in which programs are looked for besides `PATH`.
    pub folders: &'static [&'static str],
    /// A command line that prints the version, and a text that the output has if the version is right.
    pub version: (&'static [&'static str], &'static str),
}

/// How to run a server.
///
/// In its commands `{root}` stands for the folder in which the packages are unpacked, or nothing where they are installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// The program, by its bare name, and its arguments. It works in the site's folder and stays in the foreground.
    pub command: Vec<String>,
    /// Commands that prepare an empty folder, run after [`files`](Self::files) are written.
    pub setup: Vec<Vec<String>>,
    /// Files written into an empty folder: name and content.
    pub files: Vec<(String, String)>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// How to find out that it serves.
    pub probe: Probe,
    /// The command-line client with the arguments that lead it to this server; what a test asks for is appended.
    pub client: Vec<String>,
    /// The server refuses to run as root.
    pub never_root: bool,
    /// What asks the server to end: SIGINT, not SIGTERM.
    pub ends_by_interrupt: bool,
}

impl Launch {
    /// The user and group to run as: our own, or nobody where the server must not be root.
    pub(crate) fn user(&self) -> (u32, u32) {
        let user = rustix::process::geteuid();
        if self.never_root && user.is_root() {
            (65534, 65534)
        } else {
            (user.as_raw(), rustix::process::getegid().as_raw())
        }
    }
}

/// A question that a server answers in a known way when it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Which of the site's ports to ask.
    pub port: usize,
    /// What to send.
    pub question: Vec<u8>,
    /// The server serves when the answer contains one of these.
    pub answers: Vec<Vec<u8>>,
}

impl Probe {
    /// Asks a port, and expects one of these texts.
    pub fn new(port: usize, question: impl Into<Vec<u8>>, answers: &[&str]) -> Self {
        Self {
            port,
            question: question.into(),
            answers: answers.iter().map(|text| text.as_bytes().to_vec()).collect(),
        }
    }

    pub(crate) fn is_answered_by(&self, answer: &[u8]) -> bool {
        self.answers.iter().any(|wanted| answer.windows(wanted.len()).any(|part| part == wanted))
    }
}

/// Turns arguments of mixed types into a command line.
pub(crate) fn argv<const N: usize>(args: [&dyn fmt::Display; N]) -> Vec<String> {
    args.iter().map(ToString::to_string).collect()
}
