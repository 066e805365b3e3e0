//! `get`, `list`, `cancel`.

use nimbus_api::proto::control::v1::jobs_client::JobsClient;
use nimbus_api::proto::control::v1::{
    CancelJobRequest, GetJobRequest, Job, JobState, ListJobsRequest,
};
use serde_json::json;
use tonic::transport::Channel;

use super::Session;
use crate::cli::{JobArgs, ListArgs, State};
use crate::client::{ANSWER_BYTES_MAX, timely};
use crate::error::CtlError;
use crate::exit::Exit;
use crate::output::{self, Cell, Table, escaped};
use crate::view::{self, JobView, last_part};

/// Jobs of one page.
const PAGE_SIZE: u32 = 100;

fn client(session: &Session) -> JobsClient<Channel> {
    JobsClient::new(session.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
}

pub(super) async fn get(session: &Session, args: &JobArgs) -> Result<Exit, CtlError> {
    let name = session.job_name(&args.job)?;
    let job = client(session).get_job(timely(GetJobRequest { name })).await?.into_inner();
    show(session, &job)
}

pub(super) async fn cancel(session: &Session, args: &JobArgs) -> Result<Exit, CtlError> {
    let name = session.job_name(&args.job)?;
    let job = client(session).cancel_job(timely(CancelJobRequest { name })).await?.into_inner();
    show(session, &job)
}

fn show(session: &Session, job: &Job) -> Result<Exit, CtlError> {
    if session.json {
        output::print_json(&JobView::from(job))?;
    } else {
        output::print(&describe(job))?;
    }
    Ok(Exit::Done)
}

/// A job for people: a line a fact, then its attempts.
pub(super) fn describe(job: &Job) -> String {
    let shown = JobView::from(job);
    let mut facts = Table::new(&["job", ""]);
    let mut fact = |name: &str, value: Cell| facts.row(vec![name.into(), value]);
    fact("name", (&shown.name).into());
    fact("state", Cell::coloured(shown.state, view::colour(job)));
    if let Some(code) = shown.exit_code {
        fact("exit code", code.to_string().into());
    }
    fact("image", (&shown.image).into());
    fact("digest", (&shown.digest).into());
    fact("command", shown.args.join(" ").into());
    if let Some(claimed) = &shown.claimed {
        fact("claimed for", claimed.place().into());
        fact("container", format!("{}/{}", claimed.namespace, claimed.container).into());
        if !claimed.ticket.is_empty() {
            fact("ticket", (&claimed.ticket).into());
        }
    }
    fact("created", shown.created_at.unwrap_or_default().into());
    fact("ended", shown.ended_at.unwrap_or_default().into());
    let mut text = facts.render(output::colours());
    // Whole, not in a cell: the advice is at the end of it.
    if !shown.reason.is_empty() {
        text.extend(["\n", &reason(&shown.reason, &shown.message), "\n"]);
    }
    if !shown.attempts.is_empty() {
        let mut table = Table::new(&["ATTEMPT", "NODE", "STARTED", "ENDED", "EXIT", "REASON"]);
        for attempt in &shown.attempts {
            table.row(vec![
                attempt.number.to_string().into(),
                last_part(&attempt.node).into(),
                attempt.started_at.clone().unwrap_or_default().into(),
                attempt.ended_at.clone().unwrap_or_default().into(),
                attempt.exit_code.map(|code| code.to_string()).unwrap_or_default().into(),
                (&attempt.reason).into(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(output::colours()));
    }
    text
}

/// Code, sentence and advice; control may have put the code in front already.
fn reason(code: &str, message: &str) -> String {
    let bracket = format!("[{code}]");
    if message.starts_with(&bracket) {
        return escaped(message);
    }
    escaped(&format!("{bracket} {message}"))
}

pub(super) async fn list(session: &Session, args: &ListArgs) -> Result<Exit, CtlError> {
    let mut client = client(session);
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut jobs: Vec<Job> = Vec::new();
    let mut page_token = String::new();
    while jobs.len() < limit {
        let left = u32::try_from(limit - jobs.len()).unwrap_or(u32::MAX);
        let request = ListJobsRequest {
            parent: session.parent(args.org.as_deref())?,
            page_size: left.min(PAGE_SIZE),
            page_token,
            states: args.state.iter().map(|state| JobState::from(*state).into()).collect(),
        };
        let page = client.list_jobs(timely(request)).await?.into_inner();
        page_token = page.next_page_token;
        let empty = page.jobs.is_empty();
        jobs.extend(page.jobs);
        if page_token.is_empty() || empty {
            break;
        }
    }
    jobs.truncate(limit);
    if session.json {
        let jobs: Vec<JobView> = jobs.iter().map(JobView::from).collect();
        output::print_json(&json!({"jobs": jobs}))?;
    } else {
        output::print_table(&table(&jobs))?;
    }
    Ok(Exit::Done)
}

fn table(jobs: &[Job]) -> Table {
    let mut table =
        Table::new(&["JOB", "STATE", "EXIT", "CREATED", "IMAGE", "CLAIMED FOR", "REASON"]);
    for job in jobs {
        let shown = JobView::from(job);
        table.row(vec![
            (&shown.id).into(),
            Cell::coloured(shown.state, view::colour(job)),
            shown.exit_code.map(|code| code.to_string()).unwrap_or_default().into(),
            shown.created_at.unwrap_or_default().into(),
            (&shown.image).into(),
            shown.claimed.map(|claimed| claimed.place()).unwrap_or_default().into(),
            (&shown.reason).into(),
        ]);
    }
    table
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Leased => Self::Leased,
            State::Running => Self::Running,
            State::Done => Self::Done,
            State::Dead => Self::Dead,
            State::Cancelled => Self::Cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::proto::control::v1::{Claimed, JobSpec};

    #[test]
    fn a_tenants_command_and_reason_stay_in_their_lines() {
        let job = Job {
            name: "orgs/a/jobs/j1".to_owned(),
            spec: Some(JobSpec { args: vec!["x\n\u{1b}[31m".to_owned()], ..JobSpec::default() }),
            state: JobState::Dead.into(),
            reason: "image.unattested".to_owned(),
            message: "[image.unattested] a\u{7}".to_owned(),
            ..Job::default()
        };
        let text = describe(&job);
        assert!(!text.chars().any(|c| c != '\n' && c.is_control()), "{text}");
        assert!(text.contains("\n[image.unattested] a\\u{7}\n"), "{text}");
        let list = table(&[job]).render(false);
        assert_eq!(list.lines().count(), 2, "{list}");
    }

    #[test]
    fn a_claimed_job_is_shown_with_its_container() {
        let claimed = Claimed {
            namespace: "k8s.io".to_owned(),
            container: "c1".to_owned(),
            pod_namespace: "ci".to_owned(),
            pod_name: "build".to_owned(),
            sandbox: "s1".to_owned(),
            pod_container: "app".to_owned(),
            ticket: "orgs/a/tickets/t1".to_owned(),
            ..Claimed::default()
        };
        let name = "orgs/a/jobs/j1".to_owned();
        let job = Job { name, claimed: Some(claimed), ..Job::default() };
        let text = describe(&job);
        for wanted in ["ci/build/app", "k8s.io/c1", "orgs/a/tickets/t1"] {
            assert!(text.contains(wanted), "{text}");
        }
        assert!(table(&[job]).render(false).contains("ci/build/app"));
    }
}
