//! `dlock man`: the manual page, made from the command line's own definition so that the two cannot drift apart.

use std::io::Write;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Cli;
use crate::exit::{Failure, print as print_text};

/// Prints one page: the program, then each of its verbs.
pub(crate) fn print() -> Result<(), Failure> {
    let mut page = Vec::new();
    render(&mut page).expect("writing to memory does not fail");
    print_text(String::from_utf8_lossy(&page).trim_end())
}

fn render(page: &mut Vec<u8>) -> std::io::Result<()> {
    let mut program = Cli::command();
    program.build();
    let man = Man::new(program.clone()).manual("dlock manual");
    man.render_title(page)?;
    man.render_name_section(page)?;
    let verbs: Vec<_> = program
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
        .cloned()
        .collect();
    writeln!(page, ".SH SYNOPSIS")?;
    for verb in &verbs {
        writeln!(page, "{}\n.br", escape(&usage(verb)))?;
    }
    man.render_description_section(page)?;
    for verb in verbs {
        writeln!(page, ".SH {}", verb.get_name().to_uppercase())?;
        let man = Man::new(verb.clone());
        let mut text = Vec::new();
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        // A verb is a section of the page, so its own sections are subsections.
        write!(page, "{}", String::from_utf8_lossy(&text).replace(".SH ", ".SS "))?;
        verbatim(page, ".SS EXAMPLES AND EXIT CODES", &verb)?;
    }
    verbatim(page, ".SH STORES", &program)?;
    man.render_version_section(page)
}

/// What follows the options, with its lines as they are.
fn verbatim(page: &mut Vec<u8>, heading: &str, command: &Command) -> std::io::Result<()> {
    let after = command.get_after_long_help().or_else(|| command.get_after_help());
    let Some(text) = after.map(ToString::to_string) else { return Ok(()) };
    writeln!(page, "{heading}\n.nf\n{}\n.fi", escape(&text))
}

fn usage(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    usage.trim_start_matches("Usage: ").trim_end().to_owned()
}

/// Text as roff shows it unchanged.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = escaped
        .lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\n")
}
