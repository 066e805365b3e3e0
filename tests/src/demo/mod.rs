//! The demo: the promise of the project, shown live with the real programs.
//!
//! Intent: one good case, then everything that must be refused, each with its reason; then proof that
//! nothing is left. A case is green only with exactly the outcome and code it must have.

mod cases;
mod show;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nimbus_api::RefusalCode;

pub use show::{Style, complain};

use crate::{Failure, Lab, Setting, lab};
use cases::CASES;

/// How to show it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// One JSON object a case and nothing else.
    pub json: bool,
    /// Leave everything running.
    pub keep: bool,
}

/// What must happen in a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The job runs.
    Ran,
    /// It is refused with this code.
    Refused(RefusalCode),
    /// Nothing of the lab is left.
    Clean,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Happened {
    /// It ran, and this was its output.
    Ran(String),
    /// It was refused.
    Refused {
        /// The code.
        code: RefusalCode,
        /// Sentence and advice.
        text: String,
    },
    /// Nothing is left.
    Clean,
    /// Something else.
    Failed(String),
}

impl Happened {
    fn is(&self, expected: Expected) -> bool {
        match (self, expected) {
            (Self::Ran(_), Expected::Ran) | (Self::Clean, Expected::Clean) => true,
            (Self::Refused { code, .. }, Expected::Refused(wanted)) => *code == wanted,
            (_, _) => false,
        }
    }
}

/// One line of the summary.
#[derive(Debug, Clone)]
pub struct Row {
    /// Stable name.
    pub case: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// What happened.
    pub happened: Happened,
    /// Whether that is what must happen.
    pub good: bool,
    /// How long it took.
    pub ms: u128,
}

/// Runs every case; whether all were as they must be.
pub fn run(
    options: Options,
    style: Style,
    bin_dir: Option<&Path>,
    out: &mut dyn Write,
) -> Result<bool, Failure> {
    let setting = Setting { bin_dir: bin_dir.map(Path::to_owned), ..Setting::default() };
    let mut show = show::Show::new(options.json, style, out);
    let begun = Instant::now();
    show.line(
        "starting a private containerd, a loopback registry, nimbus-control and nimbus-node",
    )?;
    let mut lab = Lab::start(setting)?;
    show.line(&format!(
        "ready after {} ms, in {}",
        begun.elapsed().as_millis(),
        lab.dir().display()
    ))?;
    let mut rows = Vec::new();
    for case in CASES {
        show.begin(case.title)?;
        let begun = Instant::now();
        let happened = (case.run)(&mut lab)
            .unwrap_or_else(|failure| Happened::Failed(failure.text().to_owned()));
        let row = Row {
            case: case.name,
            title: case.title,
            good: happened.is(case.expected),
            happened,
            ms: begun.elapsed().as_millis(),
        };
        if !row.good {
            complain(&lab.logs());
        }
        show.row(&row)?;
        rows.push(row);
    }
    if options.keep {
        keep(lab, &mut show)?;
    } else {
        rows.push(close(lab, &mut show)?);
    }
    show.summary(&rows)?;
    Ok(rows.iter().all(|row| row.good))
}

fn close(lab: Lab, show: &mut show::Show<'_>) -> Result<Row, Failure> {
    let title = "afterwards no process, mount, cgroup or socket is left";
    show.begin(title)?;
    let begun = Instant::now();
    let happened = match lab.close() {
        Ok(()) => Happened::Clean,
        Err(failure) => Happened::Failed(failure.text().to_owned()),
    };
    let good = happened.is(Expected::Clean);
    let row = Row { case: "nothing_left", title, happened, good, ms: begun.elapsed().as_millis() };
    show.row(&row)?;
    Ok(row)
}

fn keep(lab: Lab, show: &mut show::Show<'_>) -> io::Result<()> {
    let (ctl, registry) = (lab.program("nimbusctl"), lab.registry().to_owned());
    let own = lab.program("nimbus-demo");
    let dir: PathBuf = lab.keep();
    let ctl = ctl.display();
    show.line("everything is left running; talk to it like this:")?;
    show.line(&format!("  export NIMBUS_CREDENTIALS={}/control/admin.json", dir.display()))?;
    show.line(&format!("  {ctl} node list"))?;
    show.line(&format!("  {ctl} list"))?;
    show.line(&format!("  registry: {registry}, for example {registry}/apps/hello:latest"))?;
    show.line(&format!(
        "  ctr --address {}/containerd.sock -n nimbus containers ls",
        dir.display()
    ))?;
    show.line(&format!("and end it like this:\n  {} --end {}", own.display(), dir.display()))
}

/// Ends what was left running.
pub fn end(dir: &Path) -> Result<(), Failure> {
    lab::end(dir)
}
