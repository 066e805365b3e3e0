//! Other limits for a container that runs, and what is told when memory has run out.

use containerd_shim_protos::api::UpdateTaskRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nimbus_api::RefusalCode;
use serde_json::{Value, json};

use crate::granted::Job;
use crate::lab::{call, status, wait_until};

const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
const SLEEPER: &str = "exec sleep 600";
const INVALID: i32 = 3;
const NOT_NOW: i32 = 9;

impl Job {
    fn update(&self, type_url: &str, resources: &Value) -> Result<(), (i32, String)> {
        let any = Any {
            type_url: type_url.to_owned(),
            value: resources.to_string().into_bytes(),
            ..Any::default()
        };
        let request = UpdateTaskRequest {
            id: self.id(),
            resources: MessageField::some(any),
            ..Default::default()
        };
        status(self.shim.task.update(call(), &request)).map(drop)
    }
}

#[test]
fn limits_within_the_lease_are_set_and_more_is_refused() {
    let job = Job::new(SLEEPER);
    job.start();
    let memory = |bytes: u64| json!({"memory": {"limit": bytes}});
    job.update(RESOURCES, &memory(32 << 20)).unwrap();
    assert_eq!(job.figures().0, 32 << 20);
    job.update(RESOURCES, &memory(64 << 20)).unwrap();
    assert_eq!(job.figures().0, 64 << 20);
    let (_, text) = job.update(RESOURCES, &memory((64 << 20) + 4096)).unwrap_err();
    assert!(text.contains(RefusalCode::SpecResourcesForbidden.as_str()), "{text}");
    assert_eq!(job.figures().0, 64 << 20);
    assert_eq!(job.update("types.containerd.io/else", &json!({})).unwrap_err().0, INVALID);
    job.kill(9, false).unwrap();
    job.shim.wait();
    assert_eq!(job.update(RESOURCES, &memory(32 << 20)).unwrap_err().0, NOT_NOW);
    job.end();
}

#[test]
fn a_process_killed_for_want_of_memory_is_told_while_the_first_goes_on() {
    let job = Job::new("sleep 600 & (tail /dev/zero); echo told; wait");
    job.start();
    assert_eq!(job.lab.events.until("/tasks/oom"), ["/tasks/create", "/tasks/start", "/tasks/oom"]);
    wait_until("the first goes on", || job.text("out") == "told\n");
    job.kill(9, false).unwrap();
    job.shim.wait();
    let told = job.lab.events.until("/tasks/exit");
    assert_eq!(told.iter().filter(|topic| *topic == "/tasks/oom").count(), 1, "{told:?}");
    job.end();
}
