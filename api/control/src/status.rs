//! The one place where a refusal becomes a gRPC status.

use std::collections::HashMap;

use nimbus_api::{Refusal, RefusalCode};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::spec::FieldProblem;
use crate::store::StoreError;

/// Domain of every `google.rpc.ErrorInfo`.
pub(crate) const ERROR_DOMAIN: &str = "nimbus.io";

fn details(code: RefusalCode) -> ErrorDetails {
    ErrorDetails::with_error_info(code.as_str(), ERROR_DOMAIN, HashMap::new())
}

/// A refusal as a status: code by class, text, and the reason as `ErrorInfo`.
pub(crate) fn of(refusal: &Refusal) -> Status {
    let code = Code::from_i32(refusal.code.class().grpc_code());
    Status::with_error_details(code, refusal.to_string(), details(refusal.code))
}

/// A code without more to say, as a status.
pub(crate) fn code(code: RefusalCode) -> Status {
    of(&Refusal::new(code))
}

/// A bad field, as a status that names it.
pub(crate) fn field(found: &FieldProblem) -> Status {
    let code =
        if found.too_large { RefusalCode::RequestTooLarge } else { RefusalCode::RequestInvalid };
    let refusal = Refusal::with(code, format_args!("{}: {}", found.field, found.problem));
    let mut details = details(code);
    details.add_bad_request_violation(found.field, refusal.detail());
    let code = Code::from_i32(code.class().grpc_code());
    Status::with_error_details(code, refusal.to_string(), details)
}

/// A bad field.
pub(crate) fn invalid(name: &'static str, problem: impl std::fmt::Display) -> Status {
    field(&FieldProblem { field: name, problem: problem.to_string(), too_large: false })
}

/// What the store refused or could not do.
pub(crate) fn store(error: StoreError) -> Status {
    of(&error.into_refusal())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_status_and_reason() {
        for refused in RefusalCode::ALL {
            let status = code(*refused);
            assert_eq!(i32::from(status.code()), refused.class().grpc_code(), "{refused}");
            let info = status.get_error_details().error_info().cloned().unwrap();
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (refused.as_str(), "nimbus.io")
            );
            assert_eq!(Refusal::code_in(status.message()), Some(*refused));
        }
        let status = invalid("spec.args", "must name a program");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "spec.args");
    }
}
