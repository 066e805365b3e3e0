//! One module a command: arguments in, calls, output. What several need is here.

mod attest;
mod generate;
mod jobs;
mod logs;
mod node;
mod policy;
mod progress;
mod quota;
mod submit;
mod ticket;

use tonic::transport::Channel;

use crate::cli::{Cli, Command};
use crate::client;
use crate::credentials::{self, Credentials};
use crate::error::CtlError;
use crate::exit::Exit;

/// A connection and what goes with it.
pub(crate) struct Session {
    credentials: Credentials,
    channel: Channel,
    json: bool,
}

impl Session {
    async fn open(cli: &Cli) -> Result<Self, CtlError> {
        let credentials = credentials::load(cli.credentials.as_ref())?;
        let channel = client::connect(&credentials).await?;
        Ok(Self { credentials, channel, json: cli.json })
    }

    /// `orgs/ORG`.
    fn parent(&self, org: Option<&str>) -> Result<String, CtlError> {
        let org = org.unwrap_or(&self.credentials.org);
        if org != "-" && org.parse::<nimbus_api::id::OrgId>().is_err() {
            return Err(CtlError::Argument(format!("not an org: {org:?}")));
        }
        Ok(format!("orgs/{org}"))
    }

    /// `orgs/ORG/jobs/JOB` of what a person wrote.
    fn job_name(&self, given: &str) -> Result<String, CtlError> {
        resource_name("job", &self.credentials.org, given)
    }

    /// `orgs/ORG/tickets/TICKET` of what a person wrote.
    fn ticket_name(&self, given: &str) -> Result<String, CtlError> {
        resource_name("ticket", &self.credentials.org, given)
    }
}

/// `orgs/ORG/KINDs/ID`, given whole or as the id alone.
fn resource_name(kind: &str, org: &str, given: &str) -> Result<String, CtlError> {
    let wrong = || CtlError::Argument(format!("not a {kind}: {given:?}"));
    let kinds = format!("{kind}s");
    let (org, id) = match given.split('/').collect::<Vec<_>>().as_slice() {
        [id] => (org, *id),
        ["orgs", org, found, id] if **found == kinds => (*org, *id),
        _ => return Err(wrong()),
    };
    // Every id is of the same characters.
    let known =
        org.parse::<nimbus_api::id::OrgId>().is_ok() && id.parse::<nimbus_api::id::JobId>().is_ok();
    if known { Ok(format!("orgs/{org}/{kinds}/{id}")) } else { Err(wrong()) }
}

/// Runs what was asked for.
pub(crate) async fn run(cli: &Cli) -> Result<Exit, CtlError> {
    match &cli.command {
        Command::Submit(args) => submit::run(cli, args).await,
        Command::Get(args) => jobs::get(&Session::open(cli).await?, args).await,
        Command::List(args) => jobs::list(&Session::open(cli).await?, args).await,
        Command::Cancel(args) => jobs::cancel(&Session::open(cli).await?, args).await,
        Command::Logs(args) => logs::run(&Session::open(cli).await?, args).await,
        Command::Attest(args) => attest::run(cli, args).await,
        Command::Node(command) => node::run(&Session::open(cli).await?, command).await,
        Command::Policy(command) => policy::run(cli, command).await,
        Command::Ticket(command) => ticket::run(&Session::open(cli).await?, command).await,
        Command::Quota(command) => quota::run(&Session::open(cli).await?, command).await,
        Command::Completions { shell } => generate::completions(*shell),
        Command::Man { dir } => generate::man(dir.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use super::resource_name;

    #[test]
    fn a_job_or_ticket_is_named_whole_or_by_its_id() {
        let job_name = |org: &str, given: &str| resource_name("job", org, given);
        assert_eq!(job_name("acme", "j1").unwrap(), "orgs/acme/jobs/j1");
        assert_eq!(job_name("acme", "orgs/other/jobs/j1").unwrap(), "orgs/other/jobs/j1");
        for bad in ["", "a/b", "orgs/x/jobs/", "orgs/x/jobs/y/z", "J 1", "../x", "orgs/x/tickets/t"]
        {
            assert!(job_name("acme", bad).is_err(), "{bad}");
        }
        let ticket = resource_name("ticket", "acme", "t1").unwrap();
        assert_eq!(ticket, "orgs/acme/tickets/t1");
    }
}
