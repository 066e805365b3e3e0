//! What a pod's author, or somebody with containerd's socket, must not get by the handler `nimbus`.
//!
//! The author's wishes come through the CRI plugin, as kubelet would hand them on; each is refused with
//! its code in the CRI's error, and the pod beside it is none the worse.

use std::fs;

use k8s_cri::v1::{
    Capability, ContainerConfig, Device, LinuxContainerResources, MountPropagation, NamespaceMode,
    NamespaceOption, PodSandboxConfig, SecurityProfile, UpdateContainerResourcesRequest,
    security_profile::ProfileType,
};
use nimbus_api::{Refusal, RefusalCode as Code};
use nimbus_tests::cri::ground::{CLOSED, MAPPED, UNMAPPED};
use nimbus_tests::cri::pod::Volume;
use nimbus_tests::cri::{Handler, Node, Pod, wish};
use nimbus_tests::ctr::RUNTIME;
use nimbus_tests::images::busybox_with;
use nimbus_tests::lane::Case;
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, Outcome, cases, ensure};

pub(crate) fn cases() -> Vec<Case> {
    cases![shared[
        a_privileged_pod_is_refused,
        a_pod_in_the_hosts_network_is_refused,
        a_pod_among_the_hosts_processes_is_refused,
        a_pod_with_the_hosts_ipc_is_refused,
        a_path_of_the_host_is_refused,
        a_volume_of_another_pod_is_refused,
        a_volume_of_another_kind_is_refused,
        a_part_of_a_volume_is_refused,
        a_volume_that_would_propagate_is_refused,
        an_added_capability_is_refused,
        a_device_is_refused,
        a_kernel_parameter_is_refused,
        an_unconfined_container_is_filtered_all_the_same,
        more_than_the_policy_gives_is_refused,
        more_than_the_lease_gives_is_refused_later_too,
        a_pod_of_an_unmapped_namespace_is_refused,
        a_pod_of_a_closed_namespace_has_a_loopback_and_nothing_else,
        an_image_that_the_policy_does_not_name_is_refused,
        an_image_without_an_attestation_is_refused,
        a_container_of_another_clients_namespace_is_no_pods,
        a_container_that_only_says_it_is_a_pods_is_refused,
        a_pod_is_refused_while_the_node_agent_is_down,
        a_pod_is_refused_while_control_is_away,
    ]]
    .into_iter()
    .collect()
}

/// Fails unless this was refused with one of these codes.
fn refused<T>(what: Result<T, Failure>, codes: &[Code]) -> Outcome {
    let Err(failure) = what else {
        return Err(Failure::new(format!("it was not refused; expected {codes:?}")));
    };
    let found = Refusal::code_in(failure.text());
    ensure!(
        found.is_some_and(|code| codes.contains(&code)),
        "expected {codes:?}, found {found:?}: {}",
        failure.text()
    );
    Ok(())
}

/// A sandbox with one thing changed must be refused.
fn sandbox_refused(
    lab: &Lab,
    code: Code,
    namespace: &str,
    spoil: impl FnOnce(&mut PodSandboxConfig),
) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let pod = node.pod_in(namespace, "attack", spoil);
    refused(pod, &[code])?;
    node.is_empty()
}

/// A container with one thing changed must be refused, in a pod where one without that runs before and
/// after.
fn container_refused(
    lab: &Lab,
    codes: &[Code],
    spoil: impl FnOnce(&Node, &Pod, &mut ContainerConfig) -> Outcome,
) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let pod = node.pod("attacked")?;
    let neighbour = pod.sh("neighbour", "exec sleep 600")?;
    let mut config = pod.wish("attack", "echo it ran; exec sleep 600")?;
    spoil(&node, &pod, &mut config)?;
    let container = pod.create(&config)?;
    refused(container.start(), codes)?;
    let output = container.output()?;
    ensure!(output.is_empty(), "it ran: {output:?}");
    let alive = neighbour.exec("echo alive")?;
    ensure!(alive.out == "alive\n", "the neighbour: {alive:?}");
    let after = pod.sh("after", "exit 3")?.ended()?;
    ensure!(after.exit_code == 3, "the next one: {after:?}");
    pod.end()
}

fn options(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    wish::sandbox_security(config).namespace_options.get_or_insert_default()
}

fn a_privileged_pod_is_refused(lab: &mut Lab) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    // kubelet says so of the sandbox when one of the containers is to be.
    let pod = node.pod_in(MAPPED, "privileged", |config| {
        wish::sandbox_security(config).privileged = true;
    });
    let codes =
        [Code::SpecPrivilegeForbidden, Code::SpecCapabilityForbidden, Code::SpecMountForbidden];
    let pod = match pod {
        Ok(pod) => pod,
        Err(failure) => return refused::<()>(Err(failure), &codes),
    };
    let mut config = pod.wish("main", "echo it ran")?;
    let security = wish::security(&mut config);
    security.privileged = true;
    security.masked_paths.clear();
    security.readonly_paths.clear();
    let container = pod.create(&config)?;
    refused(container.start(), &codes)?;
    pod.end()
}

fn a_pod_in_the_hosts_network_is_refused(lab: &mut Lab) -> Outcome {
    sandbox_refused(lab, Code::SpecHostNamespace, MAPPED, |config| {
        options(config).network = NamespaceMode::Node.into();
    })
}

fn a_pod_among_the_hosts_processes_is_refused(lab: &mut Lab) -> Outcome {
    sandbox_refused(lab, Code::SpecHostNamespace, MAPPED, |config| {
        options(config).pid = NamespaceMode::Node.into();
    })
}

fn a_pod_with_the_hosts_ipc_is_refused(lab: &mut Lab) -> Outcome {
    sandbox_refused(lab, Code::SpecHostNamespace, MAPPED, |config| {
        options(config).ipc = NamespaceMode::Node.into();
    })
}

fn a_path_of_the_host_is_refused(lab: &mut Lab) -> Outcome {
    for path in ["/etc", "/", "/var/run", "/proc"] {
        container_refused(lab, &[Code::SpecBindForbidden], |_node, _pod, config| {
            config.mounts.push(wish::mount(path.as_ref(), "/host", true));
            Ok(())
        })?;
    }
    Ok(())
}

fn a_volume_of_another_pod_is_refused(lab: &mut Lab) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let other = node.pod("other")?;
    let dir = other.volume(Volume::Secret, "token", &[("token", "s3cret")])?;
    container_refused(lab, &[Code::SpecBindForbidden], |_node, pod, config| {
        config.mounts.push(wish::mount(&dir, "/stolen", true));
        // Nor by a way through its own.
        let own = pod.volume(Volume::Empty, "own", &[])?;
        let link = own.join("link");
        std::os::unix::fs::symlink(&dir, &link)?;
        config.mounts.push(wish::mount(&link, "/stolen-too", true));
        Ok(())
    })?;
    other.end()
}

fn a_volume_of_another_kind_is_refused(lab: &mut Lab) -> Outcome {
    container_refused(lab, &[Code::SpecBindForbidden], |_node, pod, config| {
        let dir = pod.volume(Volume::Local, "disk", &[])?;
        config.mounts.push(wish::mount(&dir, "/disk", false));
        Ok(())
    })
}

/// kubelet binds what a `subPath` names below a directory of its own.
fn a_part_of_a_volume_is_refused(lab: &mut Lab) -> Outcome {
    container_refused(lab, &[Code::SpecBindForbidden], |_node, pod, config| {
        let dir = pod.dir().join("volume-subpaths/scratch/attack/0");
        fs::create_dir_all(&dir)?;
        config.mounts.push(wish::mount(&dir, "/part", false));
        Ok(())
    })
}

fn a_volume_that_would_propagate_is_refused(lab: &mut Lab) -> Outcome {
    use nix::mount::{MsFlags, mount};
    let codes = [Code::SpecPropagationForbidden, Code::SpecBindForbidden];
    container_refused(lab, &codes, |_node, pod, config| {
        let dir = pod.volume(Volume::Empty, "shared", &[])?;
        let none = None::<&str>;
        mount(Some(&dir), &dir, none, MsFlags::MS_BIND, none)?;
        pod.remember_mount(dir.clone());
        mount(none, &dir, none, MsFlags::MS_SHARED, none)?;
        let mut wanted = wish::mount(&dir, "/shared", false);
        wanted.propagation = MountPropagation::PropagationBidirectional.into();
        config.mounts.push(wanted);
        Ok(())
    })
}

fn an_added_capability_is_refused(lab: &mut Lab) -> Outcome {
    for name in ["SYS_ADMIN", "NET_ADMIN", "ALL"] {
        container_refused(lab, &[Code::SpecCapabilityForbidden], |_node, _pod, config| {
            wish::security(config).capabilities =
                Some(Capability { add_capabilities: vec![name.to_owned()], ..Default::default() });
            Ok(())
        })?;
    }
    Ok(())
}

fn a_device_is_refused(lab: &mut Lab) -> Outcome {
    container_refused(lab, &[Code::DeviceNotLeased], |_node, _pod, config| {
        config.devices.push(Device {
            host_path: "/dev/null".to_owned(),
            container_path: "/dev/innocent".to_owned(),
            permissions: "rw".to_owned(),
        });
        Ok(())
    })
}

fn a_kernel_parameter_is_refused(lab: &mut Lab) -> Outcome {
    sandbox_refused(lab, Code::SpecSysctlForbidden, MAPPED, |config| {
        let linux = config.linux.get_or_insert_default();
        linux.sysctls.insert("kernel.msgmax".to_owned(), "65536".to_owned());
    })
}

/// The CRI has a word for it, but the specification only lacks a filter then: it gets one.
fn an_unconfined_container_is_filtered_all_the_same(lab: &mut Lab) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let pod = node.pod("unconfined")?;
    let mut config = pod.wish("main", "exec sleep 600")?;
    let unconfined = ProfileType::Unconfined.into();
    wish::security(&mut config).seccomp =
        Some(SecurityProfile { profile_type: unconfined, ..Default::default() });
    let container = pod.start(&config)?;
    let found = container.exec("grep -E '^(Seccomp|NoNewPrivs):' /proc/1/status")?;
    ensure!(found.out == "NoNewPrivs:\t1\nSeccomp:\t2\n", "found {found:?}");
    let own = container.exec("grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status")?;
    ensure!(own.out == found.out, "a command has {own:?}");
    pod.end()
}

fn more_than_the_policy_gives_is_refused(lab: &mut Lab) -> Outcome {
    let codes = [Code::LeaseResources, Code::SpecResourcesForbidden];
    container_refused(lab, &codes, |_node, _pod, config| {
        wish::resources(config).memory_limit_in_bytes = 8 << 30;
        Ok(())
    })
}

fn more_than_the_lease_gives_is_refused_later_too(lab: &mut Lab) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let pod = node.pod("greedy")?;
    let container = pod.sh("main", "exec sleep 600")?;
    let request = UpdateContainerResourcesRequest {
        container_id: container.id().to_owned(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: wish::MEMORY * 2,
            ..Default::default()
        }),
        ..Default::default()
    };
    let answer = node.cri().update_container_resources(request).map_err(Failure::from);
    refused(answer, &[Code::SpecResourcesForbidden])?;
    pod.end()
}

fn a_pod_of_an_unmapped_namespace_is_refused(lab: &mut Lab) -> Outcome {
    sandbox_refused(lab, Code::ClaimNotMapped, UNMAPPED, |_config| {})
}

fn a_pod_of_a_closed_namespace_has_a_loopback_and_nothing_else(lab: &mut Lab) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let pod = node.pod_in(CLOSED, "closed", |_config| {})?;
    let server = pod.sh(
        "server",
        "mkdir /tmp/www; echo served > /tmp/www/index.html; \
         httpd -p 127.0.0.1:8080 -h /tmp/www; echo ready; exec sleep 600",
    )?;
    server.says("ready")?;
    let client = pod.sh("client", "exec sleep 600")?;
    let devices = client.exec("cut -d: -f1 -s /proc/net/dev | tr -d ' '")?;
    ensure!(devices.out == "lo\n", "found {devices:?}");
    let shared = client.exec("wget -q -O - http://127.0.0.1:8080/index.html")?;
    ensure!(shared.out == "served\n", "found {shared:?}");
    let open = node.pod("open")?;
    let address = open.status()?.network.map(|network| network.ip).unwrap_or_default();
    let out = client.exec(&format!("timeout 2 wget -q -O - http://{address}:8080/ 2>&1"))?;
    ensure!(out.code != 0, "found {out:?}");
    open.end()?;
    pod.end()
}

fn an_image_that_the_policy_does_not_name_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.publish("pods/other", &busybox_with("nobody vouches for this")?)?;
    container_refused(lab, &[Code::PolicyNoMatch], |node, _pod, config| {
        config.image.get_or_insert_default().image = node.pull(&image)?;
        Ok(())
    })
}

fn an_image_without_an_attestation_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("in-a-pod")?;
    container_refused(lab, &[Code::ImageUnattested], |node, _pod, config| {
        config.image.get_or_insert_default().image = node.pull(&image)?;
        Ok(())
    })
}

/// A specification that `ctr` makes, with the CRI plugin's words in it.
fn fake(lab: &mut Lab, namespace: &str, id: &str, sandbox: &str) -> Result<(), Failure> {
    let ctr = lab.ctr().within(namespace);
    let image = lab.pod_image()?.reference();
    // The name is there in the CRI plugin's namespace; elsewhere it is pulled again.
    ctr.ask(&["images", "pull", "--plain-http", &image])?.good()?;
    let words = [
        ("container-type", "container"),
        ("container-name", "main"),
        ("sandbox-id", sandbox),
        ("sandbox-name", "attacked"),
        ("sandbox-namespace", MAPPED),
        ("sandbox-uid", "0"),
    ]
    .map(|(key, value)| format!("io.kubernetes.cri.{key}={value}"));
    let mut args = vec!["run", "--rm", "--null-io", "--runtime", RUNTIME];
    for word in &words {
        args.extend(["--annotation", word]);
    }
    args.extend([image.as_str(), id, "/bin/true"]);
    lab.remember(id);
    let said = ctr.ask(&args)?;
    let removed = ctr.ask(&["containers", "rm", id])?;
    drop(removed);
    lab.nothing_left_of(id)?;
    said.good().map(drop)
}

fn a_container_of_another_clients_namespace_is_no_pods(lab: &mut Lab) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let pod = node.pod("attacked")?;
    let tried = fake(lab, "elsewhere", "fake-pods-container", pod.id());
    refused(tried, &[Code::LeaseMissing, Code::ClaimNotMapped])?;
    pod.end()
}

fn a_container_that_only_says_it_is_a_pods_is_refused(lab: &mut Lab) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let pod = node.pod("attacked")?;
    let neighbour = pod.sh("neighbour", "exec sleep 600")?;
    let tried = fake(lab, "k8s.io", "fake-pods-container", pod.id());
    refused(tried, &[Code::ClaimNotMapped, Code::ClaimMalformed, Code::PodMismatch])?;
    let alive = neighbour.exec("echo alive")?;
    ensure!(alive.out == "alive\n", "the neighbour: {alive:?}");
    pod.end()
}

fn a_pod_is_refused_while_the_node_agent_is_down(lab: &mut Lab) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let pod = node.pod("before")?;
    lab.kill_node()?;
    let tried = node.pod("meanwhile");
    let late = pod.sh("late", "exit 0").map(drop);
    lab.start_node()?;
    lab.wait_connected()?;
    refused(tried, &[Code::NodeAgentDown])?;
    refused(late, &[Code::NodeAgentDown])?;
    // kubelet tries again by itself.
    until("a pod after the restart", || Ok(node.pod("after").ok().map(Pod::end)))??;
    pod.end()
}

fn a_pod_is_refused_while_control_is_away(lab: &mut Lab) -> Outcome {
    let node = Node::of(lab, Handler::Nimbus)?;
    let pod = node.pod("before")?;
    let neighbour = pod.sh("neighbour", "exec sleep 600")?;
    lab.kill_control()?;
    let tried = node.pod("meanwhile");
    let alive = neighbour.exec("echo alive");
    lab.start_control()?;
    lab.wait_connected()?;
    refused(tried, &[Code::ClaimUnavailable])?;
    let alive = alive?;
    ensure!(alive.out == "alive\n", "the neighbour: {alive:?}");
    until("a pod after the restart", || Ok(node.pod("after").ok().map(Pod::end)))??;
    pod.end()
}
