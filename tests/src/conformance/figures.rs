//! Figures and processes of a container, as far as two runtimes can be compared by them: which figures
//! there are, and whether they can be true.

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{ListPidsRequest, MetricsRequest};
use containerd_client::tonic::Request;
use containerd_client::with_namespace;
use containerd_shim_protos::cgroups::metrics::Metrics as V1;
use containerd_shim_protos::cgroups_v2::metrics::Metrics as V2;
use containerd_shim_protos::protobuf::reflect::{
    MessageDescriptor, ReflectFieldRef, ReflectValueRef,
};
use containerd_shim_protos::protobuf::{Message as _, MessageDyn};
use containerd_shim_protos::shim::oci::ProcessDetails;

use super::ground::NAMESPACE;
use super::run::{Run, code};
use super::spec::MEMORY_BYTES;
use crate::Failure;

/// Figures that must be there for a container that runs.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Names of those that are not zero or empty.
    pub(super) present: Vec<String>,
    /// Names of the numbers that are not zero.
    pub(super) numbers: Vec<String>,
    /// Whether the values can be those of a small container that runs.
    pub(super) sane: String,
}

impl Run<'_> {
    /// Figures, if there are any.
    pub(super) fn figures(&self) -> Result<Option<Figures>, Failure> {
        let request = MetricsRequest { filters: vec![format!("id=={}", self.id())] };
        let mut tasks = TasksClient::new(self.ground().channel());
        let answer = self.ground().ask(tasks.metrics(with_namespace!(request, NAMESPACE)));
        let Ok(answer) = answer else { return Ok(None) };
        let data = answer.metrics.into_iter().find_map(|metric| metric.data);
        data.map(|data| figures(&data.type_url, &data.value)).transpose()
    }

    /// Names of its processes as they are told: `exec NAME`, or `process` for whoever has none.
    pub(super) fn processes(&self) -> String {
        let request = ListPidsRequest { container_id: self.id().to_owned() };
        let mut tasks = TasksClient::new(self.ground().channel());
        let answer = self.ground().ask(tasks.list_pids(with_namespace!(request, NAMESPACE)));
        let processes = match answer {
            Ok(answer) => answer.processes,
            Err(status) => return code(&status),
        };
        let mut names: Vec<_> = processes
            .iter()
            .map(|process| {
                let info = process.info.as_ref().map(|info| info.value.as_slice());
                let details = ProcessDetails::parse_from_bytes(info.unwrap_or_default());
                let exec = details.unwrap_or_default().exec_id;
                if exec.is_empty() { "process".to_owned() } else { format!("exec {exec}") }
            })
            .collect();
        names.sort();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

fn figures(type_url: &str, bytes: &[u8]) -> Result<Figures, Failure> {
    let mut figures = Figures::default();
    if type_url.ends_with("v1.Metrics") {
        let metrics = V1::parse_from_bytes(bytes)?;
        collect(&metrics, "", &mut figures);
        let memory = metrics.memory.usage.clone().unwrap_or_default();
        figures.sane =
            sane((memory.usage, memory.limit), metrics.pids.current, metrics.cpu.usage.total);
    } else {
        let metrics = V2::parse_from_bytes(bytes)?;
        collect(&metrics, "", &mut figures);
        figures.sane = sane(
            (metrics.memory.usage, metrics.memory.usage_limit),
            metrics.pids.current,
            metrics.cpu.usage_usec,
        );
    }
    Ok(figures)
}

fn sane((used, limit): (u64, u64), pids: u64, cpu: u64) -> String {
    let memory = if (1..=MEMORY_BYTES).contains(&used) { "memory used" } else { "no memory used" };
    let limit = if limit == MEMORY_BYTES { "its limit" } else { "another limit" };
    let cpu = if cpu > 0 { "cpu time" } else { "no cpu time" };
    format!("{memory}, {limit}, {pids} pids, {cpu}")
}

/// Names of all fields of a message that are there.
fn collect(message: &dyn MessageDyn, prefix: &str, figures: &mut Figures) {
    let descriptor: MessageDescriptor = message.descriptor_dyn();
    for field in descriptor.fields() {
        let name = format!("{prefix}{}", field.name());
        match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => match value.value() {
                Some(ReflectValueRef::Message(inner)) => {
                    figures.present.push(name.clone());
                    collect(&*inner, &format!("{name}."), figures);
                }
                Some(ReflectValueRef::U64(1..)) => figures.numbers.push(name),
                Some(_) | None => {}
            },
            ReflectFieldRef::Repeated(list) if !list.is_empty() => {
                figures.present.push(format!("{name}[]"));
            }
            ReflectFieldRef::Repeated(_) | ReflectFieldRef::Map(_) => {}
        }
    }
}
