//! `dlock`: runs commands under a distributed lock. `dlock --help` explains it.

mod alarm;
mod args;
mod check;
mod exit;
mod group;
mod guard;
mod init;
mod locate;
mod man;
mod run;
mod signals;
mod store;
mod supervise;
mod terminal;
mod wait_display;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Verb};
use crate::exit::{Failure, USAGE};
use crate::run::Exit;

fn main() -> ExitCode {
    if let Some(home) = guard::called() {
        guard::run(home);
        return ExitCode::FAILURE;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match perform(cli.verb) {
        Ok(Exit::Code(code)) => ExitCode::from(code),
        Ok(Exit::Interrupted(interrupt)) => exit::by_interrupt(interrupt),
        Err(failure) => failure.report(),
    }
}

fn perform(verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Run(args) => return run::run(args),
        Verb::Check(args) => return check::check(&args),
        Verb::Locate(args) => locate::locate(&args)?,
        Verb::Init(args) => init::init(&args)?,
        Verb::Man => man::print()?,
    }
    Ok(Exit::Code(0))
}
