//! What `--json` prints: a documented shape of our own, so that scripts do not depend on protobuf.

use nimbus_api::clock::UnixSeconds;
use nimbus_api::proto::control::v1::{Attempt, Claimed, Job, JobState, Node, Quota, Ticket};
use serde::Serialize;

use crate::output::Colour;

/// A job.
#[derive(Debug, Serialize)]
pub(crate) struct JobView {
    /// `orgs/ORG/jobs/JOB`.
    pub(crate) name: String,
    /// The last part of `name`.
    pub(crate) id: String,
    /// QUEUED, LEASED, RUNNING, DONE, DEAD, CANCELLED.
    pub(crate) state: &'static str,
    pub(crate) exit_code: Option<i32>,
    /// A refusal code; empty while there is none.
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) image: String,
    pub(crate) digest: String,
    pub(crate) args: Vec<String>,
    /// RFC 3339; null means not yet.
    pub(crate) created_at: Option<String>,
    pub(crate) ended_at: Option<String>,
    pub(crate) attempts: Vec<AttemptView>,
    /// The container that it was claimed for; null when somebody submitted it.
    pub(crate) claimed: Option<ClaimedView>,
}

/// The container that a job was claimed for.
#[derive(Debug, Serialize)]
pub(crate) struct ClaimedView {
    /// containerd namespace and container id.
    pub(crate) namespace: String,
    pub(crate) container: String,
    /// Null outside Kubernetes.
    pub(crate) pod: Option<PodView>,
    /// `orgs/ORG/tickets/TICKET`; empty when the pod showed none.
    pub(crate) ticket: String,
}

/// A container of a pod.
#[derive(Debug, Serialize)]
pub(crate) struct PodView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Id of the sandbox container.
    pub(crate) sandbox: String,
    /// Null for the sandbox itself.
    pub(crate) container: Option<String>,
    pub(crate) restart: u32,
}

impl ClaimedView {
    /// For people: `NAMESPACE/POD/CONTAINER` of Kubernetes, the last left out for the sandbox, or
    /// `NAMESPACE/CONTAINER` of containerd.
    pub(crate) fn place(&self) -> String {
        match &self.pod {
            Some(PodView { namespace, name, container: Some(container), .. }) => {
                format!("{namespace}/{name}/{container}")
            }
            Some(PodView { namespace, name, container: None, .. }) => format!("{namespace}/{name}"),
            None => format!("{}/{}", self.namespace, self.container),
        }
    }
}

/// One try of a job.
#[derive(Debug, Serialize)]
pub(crate) struct AttemptView {
    pub(crate) number: u32,
    pub(crate) lease_id: String,
    /// `nodes/NODE`.
    pub(crate) node: String,
    pub(crate) leased_at: Option<String>,
    pub(crate) started_at: Option<String>,
    pub(crate) ended_at: Option<String>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) oom_killed: bool,
    /// The signed receipt, byte for byte; null before the start.
    pub(crate) receipt: Option<String>,
}

/// A node.
#[derive(Debug, Serialize)]
pub(crate) struct NodeView {
    /// `nodes/NODE`.
    pub(crate) name: String,
    pub(crate) connected: bool,
    pub(crate) last_seen: Option<String>,
    pub(crate) version: String,
    pub(crate) thumbprint: String,
    pub(crate) policy_serial: u64,
    pub(crate) running_jobs: u32,
    pub(crate) max_jobs: u32,
    pub(crate) cpu_millis: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) pids: u32,
}

/// A ticket, without its secret.
#[derive(Debug, Serialize)]
pub(crate) struct TicketView {
    /// `orgs/ORG/tickets/TICKET`.
    pub(crate) name: String,
    pub(crate) max_uses: u32,
    pub(crate) uses: u32,
    /// `nodes/NODE`; empty is any.
    pub(crate) node: String,
    pub(crate) created_at: Option<String>,
    pub(crate) expires_at: Option<String>,
    pub(crate) revoked_at: Option<String>,
}

/// A quota.
#[derive(Debug, Serialize)]
pub(crate) struct QuotaView {
    /// `orgs/ORG/quota`.
    pub(crate) name: String,
    pub(crate) max_running_jobs: u32,
    pub(crate) max_queued_jobs: u32,
    pub(crate) running_jobs: u32,
    pub(crate) queued_jobs: u32,
}

/// RFC 3339, or nothing for 0.
pub(crate) fn time(millis: i64) -> Option<String> {
    (millis != 0).then(|| UnixSeconds(millis.div_euclid(1000)).to_string())
}

/// The state's short name.
pub(crate) const fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "UNSPECIFIED",
        JobState::Queued => "QUEUED",
        JobState::Leased => "LEASED",
        JobState::Running => "RUNNING",
        JobState::Done => "DONE",
        JobState::Dead => "DEAD",
        JobState::Cancelled => "CANCELLED",
    }
}

/// Whether nothing more will happen.
pub(crate) const fn is_over(state: JobState) -> bool {
    matches!(state, JobState::Done | JobState::Dead | JobState::Cancelled)
}

/// How a state looks.
pub(crate) fn colour(job: &Job) -> Colour {
    match job.state() {
        JobState::Done if job.exit_code.unwrap_or(0) == 0 => Colour::Green,
        JobState::Done | JobState::Dead => Colour::Red,
        JobState::Queued | JobState::Leased | JobState::Cancelled => Colour::Yellow,
        JobState::Running | JobState::Unspecified => Colour::Plain,
    }
}

/// The last part of a resource name.
pub(crate) fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

impl From<&Job> for JobView {
    fn from(job: &Job) -> Self {
        let spec = job.spec.as_ref();
        let image = spec.and_then(|spec| spec.image.as_ref());
        Self {
            name: job.name.clone(),
            id: last_part(&job.name).to_owned(),
            state: state_name(job.state()),
            exit_code: job.exit_code,
            reason: job.reason.clone(),
            message: job.message.clone(),
            image: image.map(|image| image.name.clone()).unwrap_or_default(),
            digest: image.map(|image| image.digest.clone()).unwrap_or_default(),
            args: spec.map(|spec| spec.args.clone()).unwrap_or_default(),
            created_at: time(job.created_at_ms),
            ended_at: time(job.ended_at_ms),
            attempts: job.attempts.iter().map(AttemptView::from).collect(),
            claimed: job.claimed.as_ref().map(ClaimedView::from),
        }
    }
}

impl From<&Claimed> for ClaimedView {
    fn from(claimed: &Claimed) -> Self {
        let pod = PodView {
            namespace: claimed.pod_namespace.clone(),
            name: claimed.pod_name.clone(),
            uid: claimed.pod_uid.clone(),
            sandbox: claimed.sandbox.clone(),
            container: Some(claimed.pod_container.clone()).filter(|name| !name.is_empty()),
            restart: claimed.restart,
        };
        Self {
            namespace: claimed.namespace.clone(),
            container: claimed.container.clone(),
            pod: (!claimed.sandbox.is_empty()).then_some(pod),
            ticket: claimed.ticket.clone(),
        }
    }
}

impl From<&Ticket> for TicketView {
    fn from(ticket: &Ticket) -> Self {
        Self {
            name: ticket.name.clone(),
            max_uses: ticket.max_uses,
            uses: ticket.uses,
            node: ticket.node.clone(),
            created_at: time(ticket.created_at_ms),
            expires_at: time(ticket.expires_at_ms),
            revoked_at: time(ticket.revoked_at_ms),
        }
    }
}

impl From<&Attempt> for AttemptView {
    fn from(attempt: &Attempt) -> Self {
        let receipt = &attempt.receipt;
        Self {
            number: attempt.number,
            lease_id: attempt.lease_id.clone(),
            node: attempt.node.clone(),
            leased_at: time(attempt.leased_at_ms),
            started_at: time(attempt.started_at_ms),
            ended_at: time(attempt.ended_at_ms),
            exit_code: attempt.exit_code,
            reason: attempt.reason.clone(),
            message: attempt.message.clone(),
            oom_killed: attempt.oom_killed,
            receipt: (!receipt.is_empty()).then(|| String::from_utf8_lossy(receipt).into_owned()),
        }
    }
}

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        let capacity = node.capacity.unwrap_or_default();
        Self {
            name: node.name.clone(),
            connected: node.connected,
            last_seen: time(node.last_seen_ms),
            version: node.version.clone(),
            thumbprint: node.thumbprint.clone(),
            policy_serial: node.policy_serial,
            running_jobs: node.running_jobs,
            max_jobs: node.max_jobs,
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            pids: capacity.pids,
        }
    }
}

impl From<&Quota> for QuotaView {
    fn from(quota: &Quota) -> Self {
        Self {
            name: quota.name.clone(),
            max_running_jobs: quota.max_running_jobs,
            max_queued_jobs: quota.max_queued_jobs,
            running_jobs: quota.running_jobs,
            queued_jobs: quota.queued_jobs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_shown_with_its_short_state_and_its_receipt_byte_for_byte() {
        let job = Job {
            name: "orgs/acme/jobs/j1".to_owned(),
            state: JobState::Done.into(),
            exit_code: Some(7),
            created_at_ms: 1_700_000_000_999,
            attempts: vec![Attempt {
                number: 1,
                receipt: b"{\"a\": 1}".to_vec(),
                ..Attempt::default()
            }],
            ..Job::default()
        };
        let shown = serde_json::to_value(JobView::from(&job)).unwrap();
        assert_eq!(shown["state"], "DONE");
        assert_eq!(shown["id"], "j1");
        assert_eq!(shown["exit_code"], 7);
        assert_eq!(shown["created_at"], "2023-11-14T22:13:20Z");
        assert_eq!(shown["ended_at"], serde_json::Value::Null);
        assert_eq!(shown["attempts"][0]["receipt"], "{\"a\": 1}");
        assert_eq!(colour(&job), Colour::Red);
        assert_eq!(shown["claimed"], serde_json::Value::Null);
    }

    #[test]
    fn a_claimed_job_says_for_which_container() {
        let mut claimed = Claimed {
            namespace: "k8s.io".to_owned(),
            container: "c1".to_owned(),
            pod_namespace: "ci".to_owned(),
            pod_name: "build".to_owned(),
            sandbox: "s1".to_owned(),
            pod_container: "app".to_owned(),
            ..Claimed::default()
        };
        assert_eq!(ClaimedView::from(&claimed).place(), "ci/build/app");
        claimed.pod_container.clear();
        assert_eq!(ClaimedView::from(&claimed).place(), "ci/build");
        let outside = Claimed {
            namespace: "testing".to_owned(),
            container: "c1".to_owned(),
            ..Claimed::default()
        };
        let shown = ClaimedView::from(&outside);
        assert_eq!((shown.place().as_str(), shown.pod.is_none()), ("testing/c1", true));
    }
}
