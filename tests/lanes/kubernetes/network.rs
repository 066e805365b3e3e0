//! The pod's network: one loopback and one address for all of its containers.
//!
//! Whether a pod reaches a cloud's metadata address is not promised yet, and not looked at.

use std::time::Duration;

use nimbus_tests::cri::{Handler, Node, Seen};
use nimbus_tests::wait::until_within;
use nimbus_tests::{Failure, Lab, ensure};

use crate::{Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![containers_meet_on_the_pods_loopback, pods_reach_each_other]
}

/// Serves one line.
fn server(address: &str) -> String {
    format!(
        "mkdir /tmp/www; echo served > /tmp/www/index.html; httpd -p {address}:8080 -h /tmp/www; \
         echo ready; exec sleep 600"
    )
}

fn containers_meet_on_the_pods_loopback(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("loopback")?;
    let container = pod.sh("server", &server("127.0.0.1"))?;
    container.says("ready")?;
    let client = pod.sh("client", "exec sleep 600")?;
    let ran = client.exec("wget -q -O - http://127.0.0.1:8080/index.html")?;
    ensure!(ran.out == "served\n", "found {ran:?}");
    seen.note("from the other container", ran);
    seen.note("devices", client.exec("ls /sys/class/net | sort")?);
    // Another pod has a loopback of its own.
    let other = node.pod("elsewhere")?;
    let client = other.sh("client", "exec sleep 600")?;
    let ran = client.exec("timeout 2 wget -q -O - http://127.0.0.1:8080/index.html")?;
    ensure!(ran.code != 0, "another pod reached it: {ran:?}");
    other.end()?;
    pod.end()?;
    Ok(seen)
}

fn pods_reach_each_other(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("server")?;
    let container = pod.sh("server", &server("0.0.0.0"))?;
    container.says("ready")?;
    let address = pod.status()?.network.map(|network| network.ip).unwrap_or_default();
    let other = node.pod("client")?;
    let client = other.sh("client", "exec sleep 600")?;
    let script = format!("timeout 5 wget -q -O - http://{address}:8080/index.html");
    let mut last = None;
    let reached = until_within("the pod to be reached", Duration::from_secs(10), || {
        let ran = client.exec(&script)?;
        let fine = ran.code == 0;
        last = Some(ran.clone());
        Ok(fine.then_some(ran))
    });
    let ran = reached.map_err(|failure| Failure::new(format!("{}: {last:?}", failure.text())))?;
    seen.note("from another pod", ran);
    other.end()?;
    pod.end()?;
    Ok(seen)
}
