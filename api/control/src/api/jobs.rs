//! `nimbus.control.v1.Jobs`.

use std::sync::Arc;

use nimbus_api::proto::control::v1::jobs_server::Jobs;
use nimbus_api::proto::control::v1::{
    CancelJobRequest, GetJobRequest, Job, JobState, ListJobsRequest, ListJobsResponse,
    SubmitJobRequest, WatchJobRequest,
};
use nimbus_api::{Digest, RefusalCode};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Filled, Person, job_name, org_name, page};
use crate::app::{App, stopped};
use crate::limits::{SLOW_READER_MAX, STREAM_QUEUE};
use crate::session::Command;
use crate::store::{Cancelled, JobPage, Listed, NewJob};
use crate::watchers::Watcher;
use crate::{spec, status};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct JobsService(pub(crate) Arc<App>);

/// Reads a job that the caller may see.
pub(super) async fn visible(
    app: &App,
    person: &Person,
    name: &str,
) -> Result<(String, Job), Status> {
    let absent = || status::code(RefusalCode::JobNotFound);
    let (org, job) = job_name(name)?;
    if !person.sees(&org) {
        return Err(absent());
    }
    let found =
        app.store.job(Some(org.to_string()), job.to_string()).await.map_err(status::store)?;
    Ok((job.to_string(), found.ok_or_else(absent)?))
}

/// Whether a job has ended.
pub(super) fn has_ended(job: &Job) -> bool {
    matches!(job.state(), JobState::Done | JobState::Dead | JobState::Cancelled)
}

impl JobsService {
    async fn read(&self, job: String) -> Result<Response<Job>, Status> {
        let found = self.0.store.job(None, job).await.map_err(status::store)?;
        found.map(Response::new).ok_or_else(|| status::code(RefusalCode::JobNotFound))
    }
}

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let person = Person::of(&request)?;
        let mut asked = request.into_inner();
        let org = org_name("parent", &asked.parent)?;
        if !person.sees(&org) {
            return Err(status::code(RefusalCode::RequestForbidden));
        }
        let request_id = uuid::Uuid::try_parse(&asked.request_id)
            .map_err(|_error| status::invalid("request_id", "expected a UUID"))?;
        asked.request_id.clear();
        let body = Digest::of(&asked.encode_to_vec());
        let wanted = asked.spec.ok_or_else(|| status::invalid("spec", "must be set"))?;
        let spec = spec::check(wanted).map_err(|problem| status::field(&problem))?;
        let new = NewJob {
            job: spec::new_id('j'),
            org: org.to_string(),
            spec,
            request_id: request_id.to_string(),
            body,
        };
        let now_ms = self.0.clock.unix_millis();
        let enqueued = self.0.store.enqueue(new, now_ms).await.map_err(status::store)?;
        self.0.dispatch.notify_one();
        self.read(enqueued.job().to_owned()).await
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let person = Person::of(&request)?;
        let (_job, found) = visible(&self.0, &person, &request.into_inner().name).await?;
        Ok(Response::new(found))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let person = Person::of(&request)?;
        let asked = request.into_inner();
        let org = match asked.parent.as_str() {
            "orgs/-" if person == Person::Admin => None,
            "orgs/-" => return Err(status::code(RefusalCode::RequestForbidden)),
            parent => Some(org_name("parent", parent)?),
        };
        if org.as_ref().is_some_and(|org| !person.sees(org)) {
            return Err(status::code(RefusalCode::JobNotFound));
        }
        let mut states = asked.states;
        states.sort_unstable();
        states.dedup();
        if states.iter().any(|state| JobState::try_from(*state).is_err()) {
            return Err(status::invalid("states", "expected states of a job"));
        }
        let size = page::size(asked.page_size)?;
        let query = format!("jobs {} {states:?}", asked.parent);
        let before = page::last(&query, &asked.page_token)?;
        let org = org.map(|org| org.to_string());
        // One more than asked for: whether there is a next page.
        let wanted = JobPage { org, states, before, size: size.saturating_add(1) };
        let Listed { mut jobs, cut } = self.0.store.jobs(wanted).await.map_err(status::store)?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let more = cut || jobs.len() > size;
        jobs.truncate(size);
        let last = jobs.last().and_then(|job| job.name.rsplit('/').next()).filter(|_name| more);
        let next_page_token = last.map(|last| page::token(&query, last)).unwrap_or_default();
        Ok(Response::new(ListJobsResponse { jobs, next_page_token }))
    }

    type WatchJobStream = Filled<Job>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let person = Person::of(&request)?;
        let (job, _found) = visible(&self.0, &person, &request.into_inner().name).await?;
        let watcher = self.0.watchers.join(&job);
        let watcher = watcher.ok_or_else(|| status::code(RefusalCode::ControlUnavailable))?;
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        tokio::spawn(watch(Arc::clone(&self.0), job, watcher, sender));
        Ok(Response::new(Filled::new(receiver)))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let person = Person::of(&request)?;
        let (job, _found) = visible(&self.0, &person, &request.into_inner().name).await?;
        let now_ms = self.0.clock.unix_millis();
        match self.0.store.cancel(job.clone(), now_ms).await.map_err(status::store)? {
            Cancelled::Already => {}
            Cancelled::Ended => self.0.changed(&job),
            Cancelled::Revoked { lease_id, node } => {
                let code = RefusalCode::JobCancelled;
                self.0.registry.tell(&node, Command::Revoke { lease_id, code });
                self.0.changed(&job);
            }
        }
        self.read(job).await
    }
}

async fn watch(
    app: Arc<App>,
    job: String,
    mut watcher: Watcher,
    sender: mpsc::Sender<Result<Job, Status>>,
) {
    let mut stop = app.stop.clone();
    let mut version = 0;
    loop {
        let read = app.store.job_brief(job.clone()).await.map_err(status::store);
        let found = match read {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(status) => return drop(sender.send(Err(status)).await),
        };
        let ended = has_ended(&found);
        if found.version != version {
            version = found.version;
            let sent = tokio::time::timeout(SLOW_READER_MAX, sender.send(Ok(found))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
        if ended {
            return;
        }
        tokio::select! {
            () = watcher.rung() => {}
            () = sender.closed() => return,
            () = stopped(&mut stop) => {
                return drop(sender.try_send(Err(status::code(RefusalCode::ControlUnavailable))));
            }
        }
    }
}
