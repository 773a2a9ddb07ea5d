//! `dlock man`: the manual page, made from the command line's own definition so that the two cannot drift apart.

use clap::CommandFactory;

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
    let man = clap_mangen::Man::new(program.clone()).manual("dlock manual");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    for verb in program.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        let mut text = Vec::new();
        let man = clap_mangen::Man::new(verb.clone());
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        man.render_extra_section(&mut text)?;
        // A verb is a section of the page, and its sections are subsections.
        let text = String::from_utf8_lossy(&text).replace(".SH ", ".SS ");
        page.extend(format!(".SH {}\n{text}", verb.get_name().to_uppercase()).bytes());
    }
    man.render_extra_section(page)?;
    man.render_version_section(page)
}
