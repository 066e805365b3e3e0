//! The one place where an outcome becomes a ttrpc status.
//!
//! To containerd's clients only a numeric code and a text survive, so a refusal's text carries its
//! stable code in front: `[lease.missing] sentence; advice`.

use containerd_shim_protos::ttrpc::{self, Code};
use nimbus_api::proto::admit::v1::Refused;
use nimbus_api::refusal::{DETAIL_CHARS_MAX, RefusalClass};
use nimbus_api::{Refusal, RefusalCode};

use crate::exec_state::ExecPhase;
use crate::state::Phase;

/// Longest sentence or advice that is taken from an agent.
const AGENT_TEXT_CHARS_MAX: usize = 2 * DETAIL_CHARS_MAX;

/// Why an RPC was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// Refused, by us or by the node agent.
    #[error("{text}")]
    Refused {
        /// How it maps.
        class: RefusalClass,
        /// Which code, when it is one that this version knows.
        code: Option<RefusalCode>,
        /// `[code] sentence; advice`.
        text: String,
    },
    /// No such container, process or exec.
    #[error("{0} not found")]
    NotFound(String),
    /// A container is there already.
    #[error("container {0} already exists")]
    AlreadyExists(String),
    /// Not in this phase.
    #[error("cannot {verb} a container that is {phase}")]
    WrongPhase {
        /// What was asked.
        verb: &'static str,
        /// What the container is.
        phase: Phase,
    },
    /// Not in this phase of a process.
    #[error("cannot {verb} a process that is {phase}")]
    WrongExecPhase {
        /// What was asked.
        verb: &'static str,
        /// What the process is.
        phase: ExecPhase,
    },
    /// The request cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// The server is on its way out.
    #[error("this shim is ending, try again")]
    Ending,
    /// A limit has been reached.
    #[error("{0}")]
    Exhausted(String),
    /// Does not exist in this version.
    #[error("{0} is not implemented by this runtime")]
    Unimplemented(&'static str),
}

impl TaskError {
    /// What the agent answered. Its words are kept, escaped and cut.
    pub fn from_agent(refused: &Refused) -> Self {
        let code: Option<RefusalCode> = refused.code.parse().ok();
        // A code of a newer agent: the strictest reading, nothing to retry.
        let class = code.map_or(RefusalClass::Permission, RefusalCode::class);
        let text = format!(
            "[{}] {}; {}",
            clean(&refused.code),
            clean(&refused.sentence),
            clean(&refused.advice)
        );
        Self::Refused { class, code, text }
    }

    /// The code of a refusal, for `Released`.
    pub fn code(&self) -> Option<RefusalCode> {
        match self {
            Self::Refused { code, .. } => *code,
            Self::NotFound(_)
            | Self::AlreadyExists(_)
            | Self::WrongPhase { .. }
            | Self::WrongExecPhase { .. }
            | Self::Invalid(_)
            | Self::Ending
            | Self::Exhausted(_)
            | Self::Unimplemented(_) => None,
        }
    }

    fn ttrpc_code(&self) -> Code {
        match self {
            Self::Refused { class, .. } => match class {
                RefusalClass::Permission => Code::PERMISSION_DENIED,
                RefusalClass::Precondition => Code::FAILED_PRECONDITION,
                RefusalClass::Unavailable => Code::UNAVAILABLE,
                RefusalClass::Invalid => Code::INVALID_ARGUMENT,
                RefusalClass::NotFound => Code::NOT_FOUND,
                RefusalClass::Conflict => Code::ALREADY_EXISTS,
                RefusalClass::Exhausted => Code::RESOURCE_EXHAUSTED,
                RefusalClass::Unauthenticated => Code::UNAUTHENTICATED,
            },
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::Ending => Code::UNAVAILABLE,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::WrongPhase { .. } | Self::WrongExecPhase { .. } => Code::FAILED_PRECONDITION,
            Self::Exhausted(_) => Code::RESOURCE_EXHAUSTED,
            Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
        }
    }
}

fn clean(text: &str) -> String {
    let mut clean = String::new();
    for c in text.chars().take(AGENT_TEXT_CHARS_MAX) {
        if c.is_control() {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

impl From<Refusal> for TaskError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            class: refusal.code.class(),
            code: Some(refusal.code),
            text: refusal.to_string(),
        }
    }
}

impl From<RefusalCode> for TaskError {
    fn from(code: RefusalCode) -> Self {
        Refusal::new(code).into()
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.ttrpc_code(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::Enum as _;

    fn status(error: TaskError) -> (i32, String) {
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else {
            panic!("not a status");
        };
        (status.code().value(), status.message)
    }

    #[test]
    fn every_outcome_has_its_status() {
        let stopped = TaskError::WrongPhase { verb: "start", phase: Phase::Stopped };
        let table = [
            (TaskError::NotFound("process x".to_owned()), 5, "process x not found"),
            (TaskError::AlreadyExists("x".to_owned()), 6, "container x already exists"),
            (stopped, 9, "cannot start a container that is stopped"),
            (TaskError::Invalid("no".to_owned()), 3, "no"),
            (TaskError::Unimplemented("Pause"), 12, "Pause is not implemented by this runtime"),
        ];
        for (error, code, text) in table {
            assert_eq!(status(error), (code, text.to_owned()));
        }
    }

    #[test]
    fn every_refusal_keeps_its_code_and_class() {
        for code in RefusalCode::ALL {
            let refusal = Refusal::with(*code, "detail");
            let (number, text) = status(refusal.clone().into());
            assert_eq!(number, code.class().grpc_code(), "{code}");
            assert_eq!(text, refusal.to_string());
        }
    }

    #[test]
    fn an_agents_refusal_is_put_together_from_its_fields() {
        let refusal = Refusal::with(RefusalCode::LeaseMissing, "found none");
        let sent = Refused {
            code: refusal.code.to_string(),
            sentence: refusal.sentence(),
            advice: refusal.code.advice().to_owned(),
        };
        assert_eq!(status(TaskError::from_agent(&sent)), (7, refusal.to_string()));
    }

    #[test]
    fn a_code_of_a_newer_agent_is_a_denial_and_cannot_forge_lines() {
        let sent = Refused {
            code: "lease.not_invented_yet".to_owned(),
            sentence: "a\nb".to_owned(),
            advice: "x".repeat(10_000),
        };
        let error = TaskError::from_agent(&sent);
        assert_eq!(error.code(), None);
        let (code, text) = status(error);
        assert_eq!(code, 7);
        assert!(text.starts_with("[lease.not_invented_yet] a\\nb; xxx"));
        assert!(text.len() < 2000 && !text.contains('\n'));
    }
}
