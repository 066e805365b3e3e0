//! `quota`: how much an org may have at one time.

use nimbus_api::proto::control::v1::quotas_client::QuotasClient;
use nimbus_api::proto::control::v1::{GetQuotaRequest, Quota, UpdateQuotaRequest};

use super::Session;
use crate::cli::QuotaCommand;
use crate::client::timely;
use crate::error::CtlError;
use crate::exit::Exit;
use crate::output::{self, Table};
use crate::view::QuotaView;

pub(super) async fn run(session: &Session, command: &QuotaCommand) -> Result<Exit, CtlError> {
    let mut client = QuotasClient::new(session.channel.clone());
    let (QuotaCommand::Get { org } | QuotaCommand::Set { org, .. }) = command;
    let name = format!("{}/quota", session.parent(org.as_deref())?);
    let mut quota = client.get_quota(timely(GetQuotaRequest { name })).await?.into_inner();
    if let QuotaCommand::Set { org: _, max_running, max_queued } = command {
        // The etag of what was read goes along: a change in between is refused, not overwritten.
        quota.max_running_jobs = max_running.unwrap_or(quota.max_running_jobs);
        quota.max_queued_jobs = max_queued.unwrap_or(quota.max_queued_jobs);
        let request = UpdateQuotaRequest { quota: Some(quota) };
        quota = client.update_quota(timely(request)).await?.into_inner();
    }
    show(session, &quota)
}

fn show(session: &Session, quota: &Quota) -> Result<Exit, CtlError> {
    if session.json {
        output::print_json(&QuotaView::from(quota))?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["QUOTA", "RUNNING", "QUEUED"]);
    table.row(vec![
        (&quota.name).into(),
        format!("{}/{}", quota.running_jobs, quota.max_running_jobs).into(),
        format!("{}/{}", quota.queued_jobs, quota.max_queued_jobs).into(),
    ]);
    output::print_table(&table)?;
    Ok(Exit::Done)
}
