//! `completions` and `man`: made from the same table as the arguments.

use std::io;
use std::path::Path;

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::error::CtlError;
use crate::exit::Exit;
use crate::output;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<Exit, CtlError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nimbusctl", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}

pub(super) fn man(dir: Option<&Path>) -> Result<Exit, CtlError> {
    if let Some(dir) = dir {
        let failed = |source: io::Error| CtlError::File {
            what: "write man pages to",
            path: dir.to_owned(),
            source,
        };
        clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
        return Ok(Exit::Done);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(CtlError::Output)?;
    output::print(&String::from_utf8_lossy(&page))?;
    Ok(Exit::Done)
}
