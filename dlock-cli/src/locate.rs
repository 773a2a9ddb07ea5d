//! `dlock locate`.

use dlock::LockName;
use serde::Serialize;

use crate::args;
use crate::exit::{Failure, USAGE, print, say};
use crate::store::Store;

/// The answer as JSON.
#[derive(Serialize)]
struct Found<'a> {
    backend: &'a str,
    name: &'a str,
    location: &'a str,
}

/// Says where a lock lives. No I/O at the store.
pub(crate) fn locate(args: &args::Locate) -> Result<(), Failure> {
    let store = Store::choose(&args.store)?;
    let name = LockName::new(&args.name).map_err(|error| Failure::from_error(USAGE, &error))?;
    let location = store.manager()?.locate(&name);
    if args.json {
        let found = Found { backend: location.backend, name: name.as_str(), location: &location.location };
        return print(&serde_json::to_string(&found).expect("strings always serialise"));
    }
    if let Some(command) = &location.inspect {
        say(format_args!("in {}; look with: {command}", store.shown()));
    } else {
        say(format_args!("in {}", store.shown()));
    }
    print(&location.location)
}
