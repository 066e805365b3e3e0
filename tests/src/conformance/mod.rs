//! The same scenarios through one containerd each, with runc and with us, compared.
//!
//! Intent: "a user of containerd notices no difference from runc but refusals and speed" is checked, not
//! claimed. A scenario drives containerd's own API and notes what it sees as text: answers, states, exit
//! statuses, events in their order, output. Both runtimes get the same specification. Whatever differs
//! must be explained in [`differences`]; what is explained and does not differ any more is an error too,
//! and `docs/compatibility.md` is made from both, so that neither code, explanation nor document can
//! move alone.
//!
//! Inputs: Debian's containerd and runc, the programs in `NIMBUS_BIN_DIR`. With [`WRITE`] set, the
//! document is written instead of compared.
//!
//! Deliberately absent: sentences of errors, process ids, times, and who may start what: the node agent
//! is a stand-in that grants everything as it was asked for.

mod agent;
mod differences;
mod document;
mod events;
mod figures;
mod ground;
mod plan;
mod run;
mod scenarios;
mod spec;
mod streams;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use self::differences::EXPLAINED;
use self::document::Versions;
use self::ground::{Ground, Side};
use self::run::Run;
use self::scenarios::Scenario;
use crate::lane::Case;
use crate::{Failure, Outcome, ensure};

/// Environment variable that has the document written.
pub const WRITE: &str = "NIMBUS_WRITE_COMPATIBILITY";
/// What one side has not seen because it did not get there.
const NOTHING: &str = "–";

/// One thing that was seen on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    what: String,
    runc: String,
    nimbus: String,
}

/// Both sides, and what was seen so far, by scenario.
#[derive(Debug, Default)]
struct Stage {
    grounds: Option<[Ground; 2]>,
    seen: BTreeMap<&'static str, Vec<Row>>,
}

/// The cases of the lane.
pub fn cases() -> Vec<Case> {
    let stage = Rc::new(RefCell::new(Stage::default()));
    let mut cases: Vec<_> = scenarios::all()
        .into_iter()
        .map(|scenario| {
            let stage = Rc::clone(&stage);
            Case::alone(&format!("differential/{}", scenario.name), move || {
                stage.borrow_mut().compare(scenario)
            })
        })
        .collect();
    let last = Rc::clone(&stage);
    cases.push(Case::alone("differential/the_document_says_what_was_seen", move || {
        last.borrow().document()
    }));
    cases.push(Case::alone("differential/nothing_is_left", move || stage.borrow_mut().close()));
    cases
}

impl Stage {
    /// Runs a scenario on both sides at the same time and judges what differs.
    fn compare(&mut self, scenario: Scenario) -> Outcome {
        if !nix::unistd::Uid::effective().is_root() {
            return Err(Failure::skip("needs root"));
        }
        let grounds = match &mut self.grounds {
            Some(grounds) => grounds,
            none => none.insert([Ground::start(Side::Runc)?, Ground::start(Side::Nimbus)?]),
        };
        let [runc, nimbus] = grounds;
        let (theirs, ours) = std::thread::scope(|scope| {
            let theirs = scope.spawn(|| observe(runc, scenario));
            let ours = observe(nimbus, scenario);
            (theirs.join(), ours)
        });
        let theirs = theirs.map_err(|_panic| Failure::new("runc's side panicked"))?;
        let rows = rows(theirs?, ours?);
        let problems = judge(scenario.name, &rows, EXPLAINED);
        self.seen.insert(scenario.name, rows);
        ensure!(problems.is_empty(), "{}", problems.join("\n"));
        Ok(())
    }

    fn document(&self) -> Outcome {
        let all = scenarios::all();
        for one in EXPLAINED {
            let known = all.iter().any(|scenario| scenario.name == one.scenario);
            ensure!(known, "explained, but there is no scenario {}", one.scenario);
        }
        if all.iter().any(|scenario| !self.seen.contains_key(scenario.name)) {
            return Err(Failure::skip("not every scenario was run"));
        }
        for (name, rows) in &self.seen {
            ensure!(judge(name, rows, EXPLAINED).is_empty(), "{name} is not explained");
        }
        document::check(&Versions::installed()?, &all, &self.seen)
    }

    fn close(&mut self) -> Outcome {
        let closed = self.grounds.take().into_iter().flatten().map(Ground::close);
        closed.collect::<Vec<_>>().into_iter().collect()
    }
}

type Seen = Vec<(String, String)>;

/// One side of a scenario.
fn observe(ground: &mut Ground, scenario: Scenario) -> Result<Seen, Failure> {
    let side = ground.side();
    let id = format!("c{}-{}", std::process::id(), scenario.name.replace('_', "-"));
    let id = format!("{id}-{}", side.name());
    ground.remember(&id);
    let mut run = Run::new(ground, id);
    let done = (scenario.run)(&mut run);
    let cleaned = run.clean_up();
    let log = run.ground().log();
    let seen = run.into_seen();
    done.and(cleaned)
        .map_err(|failure| failure.during(&format!("{} after {seen:?}\n{log}\n", side.name())))?;
    Ok(seen)
}

/// What was seen on both sides, in runc's order; what only one saw is a difference.
fn rows(runc: Seen, mut nimbus: Seen) -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, found) in runc {
        let at = nimbus.iter().position(|(other, _)| *other == what);
        let ours = at.map_or_else(|| NOTHING.to_owned(), |at| nimbus.remove(at).1);
        rows.push(Row { what, runc: found, nimbus: ours });
    }
    let only_ours = nimbus.into_iter();
    rows.extend(only_ours.map(|(what, nimbus)| Row { what, runc: NOTHING.to_owned(), nimbus }));
    rows
}

/// What is wrong: a difference without an explanation, or an explanation without its difference.
fn judge(scenario: &str, rows: &[Row], explained: &[differences::Explained]) -> Vec<String> {
    let mut problems = Vec::new();
    for row in rows {
        let Row { what, runc, nimbus } = row;
        let why = differences::of(explained, scenario, what);
        match why {
            None if runc != nimbus => {
                problems.push(format!("not explained: {what}: runc {runc:?}, nimbus {nimbus:?}"));
            }
            Some(one) if runc == nimbus => {
                problems
                    .push(format!("explained by {:?}, but the same: {what}: {runc:?}", one.why));
            }
            Some(one) if (one.runc, one.nimbus) != (runc.as_str(), nimbus.as_str()) => {
                problems
                    .push(format!("not as explained: {what}: runc {runc:?}, nimbus {nimbus:?}"));
            }
            None | Some(_) => {}
        }
    }
    for one in explained.iter().filter(|one| one.scenario == scenario) {
        if !rows.iter().any(|row| row.what == one.what) {
            problems.push(format!("explained, but was not seen: {}", one.what));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::differences::Explained;
    use super::*;

    fn seen(pairs: &[(&str, &str)]) -> Seen {
        pairs.iter().map(|(what, found)| ((*what).to_owned(), (*found).to_owned())).collect()
    }

    fn problems(runc: &[(&str, &str)], nimbus: &[(&str, &str)]) -> usize {
        let explained = [Explained::new("s", "start", "ok", "refused", "because")];
        judge("s", &rows(seen(runc), seen(nimbus)), &explained).len()
    }

    #[test]
    fn only_a_difference_that_is_explained_as_it_is_passes() {
        assert_eq!(problems(&[("start", "ok")], &[("start", "refused")]), 0);
        assert_eq!(problems(&[("start", "ok")], &[("start", "ok")]), 1, "no longer one");
        assert_eq!(problems(&[("start", "ok")], &[("start", "else")]), 1, "another one");
        let more = [("start", "ok"), ("wait", "7")];
        assert_eq!(problems(&more, &[("start", "refused"), ("wait", "7")]), 0);
        assert_eq!(problems(&more, &[("start", "refused"), ("wait", "8")]), 1);
        assert_eq!(problems(&more, &[("start", "refused")]), 1, "one side did not get there");
        assert_eq!(problems(&[], &[("wait", "7")]), 2, "one more, and the explained one unseen");
    }
}
