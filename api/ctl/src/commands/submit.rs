//! `submit`: resolve the image once, send the job, and wait for its end when asked to.

use std::path::PathBuf;

use nimbus_api::proto::control::v1::jobs_client::JobsClient;
use nimbus_api::proto::control::v1::{
    Image, Job, JobSpec, JobState, Resources, ScratchMedium, SubmitJobRequest,
};
use nimbus_api::{Refusal, RefusalCode};

use super::{Session, jobs, progress};
use crate::cli::{Cli, SubmitArgs};
use crate::client::{ANSWER_BYTES_MAX, timely};
use crate::error::CtlError;
use crate::exit::Exit;
use crate::files;
use crate::image::Resolved;
use crate::output;
use crate::view::JobView;

/// Most bundles of a job, as control has it.
const BUNDLES_MAX: usize = 64;
/// Longest sum of a job's bundles, as control has it.
const BUNDLES_BYTES_MAX: usize = 3 << 20;

pub(super) async fn run(cli: &Cli, args: &SubmitArgs) -> Result<Exit, CtlError> {
    let bundles = read_bundles(&args.bundles)?;
    let image = args.image.resolve().await?;
    let session = Session::open(cli).await?;
    let request = SubmitJobRequest {
        parent: session.parent(args.org.as_deref())?,
        spec: Some(spec(args, image, bundles)),
        request_id: args.request_id.unwrap_or_else(uuid::Uuid::now_v7).to_string(),
    };
    let mut client =
        JobsClient::new(session.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let job = client.submit_job(timely(request)).await?.into_inner();
    if !args.wait {
        shown(&session, &job, &format!("{}\n", output::escaped(&job.name)))?;
        return Ok(Exit::Done);
    }
    let job = progress::until_over(&mut client, job).await?;
    if session.json {
        output::print_json(&JobView::from(&job))?;
    } else {
        output::print(&jobs::describe(&job))?;
    }
    Ok(exit_of(&job))
}

fn shown(session: &Session, job: &Job, text: &str) -> Result<(), CtlError> {
    if session.json { output::print_json(&JobView::from(job)) } else { output::print(text) }
}

/// Reads the bundles of a job or ticket, as many as control takes.
pub(super) fn read_bundles(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, CtlError> {
    let too_many =
        |found: String| CtlError::Refused(Refusal::with(RefusalCode::RequestTooLarge, found));
    if paths.len() > BUNDLES_MAX {
        let found = format!("{} bundles, at most {BUNDLES_MAX} are taken", paths.len());
        return Err(too_many(found));
    }
    let mut left = BUNDLES_BYTES_MAX;
    let mut bundles = Vec::new();
    for path in paths {
        let bundle = files::read(path, left)?;
        left -= bundle.len();
        bundles.push(bundle);
    }
    Ok(bundles)
}

fn spec(args: &SubmitArgs, image: Resolved, bundles: Vec<Vec<u8>>) -> JobSpec {
    JobSpec {
        image: Some(Image {
            name: image.name,
            digest: image.digest.to_string(),
            platform: args.platform.clone(),
        }),
        args: args.args.clone(),
        env: args.env.clone(),
        cwd: args.cwd.clone(),
        uid: args.user.map_or(0, |user| user.uid),
        gid: args.user.map_or(0, |user| user.gid),
        resources: Some(Resources {
            cpu_millis: args.cpu.unwrap_or(0),
            memory_bytes: args.memory.unwrap_or(0),
            pids: args.pids.unwrap_or(0),
            scratch_bytes: args.scratch.unwrap_or(0),
            log_bytes: args.log.unwrap_or(0),
            scratch: if args.scratch_in_memory {
                ScratchMedium::Memory.into()
            } else {
                ScratchMedium::Unspecified.into()
            },
        }),
        bundles,
        max_runtime_seconds: args.max_runtime.unwrap_or(0),
        max_attempts: args.max_attempts.unwrap_or(0),
        seccomp_profile: args.seccomp.clone().unwrap_or_default(),
        egress: args.allow.iter().map(ToString::to_string).collect(),
    }
}

/// How a job that was waited for makes us exit.
fn exit_of(job: &Job) -> Exit {
    match (job.state(), job.exit_code) {
        (JobState::Done, Some(0)) => Exit::Done,
        // Codes are 0 to 255; another one is not the job's.
        (JobState::Done, Some(code)) => u8::try_from(code).map_or(Exit::Failed, Exit::Job),
        (_, _) => Exit::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_exit_as_the_job_did() {
        let job =
            |state: JobState, exit_code| Job { state: state.into(), exit_code, ..Job::default() };
        assert_eq!(exit_of(&job(JobState::Done, Some(0))), Exit::Done);
        assert_eq!(exit_of(&job(JobState::Done, Some(137))), Exit::Job(137));
        assert_eq!(exit_of(&job(JobState::Done, Some(-1))), Exit::Failed);
        assert_eq!(exit_of(&job(JobState::Dead, None)), Exit::Refused);
        assert_eq!(exit_of(&job(JobState::Cancelled, None)), Exit::Refused);
        assert_eq!(exit_of(&job(JobState::Running, Some(0))), Exit::Refused);
    }
}
