//! A first process with a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};

use containerd_shim_protos::api::{CreateTaskRequest, ResizePtyRequest};
use nimbus_api::plan::Plan;
use rustix::fs::{Mode, OFlags};
use serde_json::json;

use crate::exec::with_terminals;
use crate::granted::Job;
use crate::lab::{call, fifo};

fn terminal(plan: &mut Plan) {
    with_terminals(plan);
    plan.spec["process"]["terminal"] = json!(true);
    plan.spec["process"]["consoleSize"] = json!({"height": 25, "width": 70});
}

#[test]
fn the_first_process_has_a_console_that_is_typed_into_read_from_and_resized() {
    let script = "tty; stty size; read line; stty size; echo got $line > /dev/console; exit 6";
    let job = Job::with(script, terminal);
    for name in ["typed", "shown"] {
        fifo(&job.file(name));
    }
    let request = CreateTaskRequest {
        terminal: true,
        stdin: job.file("typed").display().to_string(),
        stdout: job.file("shown").display().to_string(),
        ..job.shim.create_request()
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let shown = rustix::fs::open(job.file("shown"), flags, Mode::empty()).unwrap();
    job.shim.create_with(&request).unwrap();
    job.shim.start().unwrap();
    rustix::fs::fcntl_setfl(&shown, OFlags::empty()).unwrap();
    let mut shown = File::from(shown);
    let mut read = String::new();
    while !read.contains("25 70\r\n") {
        let mut bytes = [0; 256];
        let count = shown.read(&mut bytes).unwrap();
        read.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    let resize = ResizePtyRequest { id: job.id(), height: 40, width: 120, ..Default::default() };
    job.shim.task.resize_pty(call(), &resize).unwrap();
    File::options().write(true).open(job.file("typed")).unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(job.shim.wait().exit_status, 6);
    job.end();
    let mut rest = Vec::new();
    std::io::copy(&mut shown, &mut rest).unwrap();
    read.push_str(std::str::from_utf8(&rest).unwrap());
    assert!(read.contains("40 120\r\ngot hello\r\n"), "{read}");
}

#[test]
fn a_terminal_that_the_plan_and_the_client_do_not_agree_about_is_not_made() {
    let job = Job::with("true", terminal);
    assert!(job.shim.create(&job.uri("out"), "").is_err());
    job.shim.shut_down();
    job.lab.assert_nothing_left();
    let job = Job::new("true");
    let request = CreateTaskRequest { terminal: true, ..job.shim.create_request() };
    assert!(job.shim.create_with(&request).is_err());
    job.shim.shut_down();
    job.lab.assert_nothing_left();
}
