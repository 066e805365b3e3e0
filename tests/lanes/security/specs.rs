//! Specifications that ask for more than the lease gives, each under a good lease for a good image.

use std::fs;

use nimbus_api::RefusalCode;
use nimbus_tests::lane::Case;
use nimbus_tests::raw::Wish;
use nimbus_tests::specimen::Attack;
use nimbus_tests::{Failure, Lab, Outcome, cases, ensure};
use serde_json::json;

use crate::{refused, sealed};

pub(crate) fn cases() -> Vec<Case> {
    cases![
        shared[
            a_specification_with_hooks_is_refused,
            host_namespaces_are_refused,
            a_joined_namespace_is_refused,
            devices_of_the_specification_are_refused,
            a_device_by_cdi_annotation_is_refused,
            a_device_rule_is_refused,
            a_bind_of_a_host_path_is_refused,
            a_propagating_mount_is_refused,
            a_mount_over_an_images_path_is_refused,
            more_capabilities_are_refused,
            an_unconfined_filter_is_refused,
            a_filter_with_a_listener_is_refused,
            a_sysctl_outside_the_list_is_refused,
            a_lowered_oom_score_is_refused,
            a_user_beyond_the_limit_is_refused,
            a_rootfs_of_the_clients_is_refused,
            a_working_directory_in_proc_is_refused,
            more_memory_than_leased_is_refused,
            a_terminal_that_only_the_client_asks_for_is_refused,
            a_checkpoint_is_refused,
            strange_runtime_options_are_refused,
            binary_output_is_refused,
            output_outside_the_log_root_is_refused,
            a_specification_with_a_key_twice_is_refused,
            a_specification_with_an_unknown_field_is_refused,
            a_specification_beyond_the_limit_is_refused,
            a_specification_that_is_no_json_is_refused,
        ]
    ]
}

/// Starts a good attack in a bad way.
fn wished(lab: &mut Lab, code: RefusalCode, spoil: impl FnOnce(&mut Wish)) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let mut wish = sealed(lab, &attack)?;
    spoil(&mut wish);
    lab.try_start(&wish)?.expect_refused(code)
}

/// Starts a good attack whose specification's text is changed after the lease was put in.
fn rewritten(lab: &mut Lab, code: RefusalCode, change: impl FnOnce(String) -> String) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let mut wish = sealed(lab, &attack)?;
    wish.spec = change(String::from_utf8(wish.spec)?).into_bytes();
    lab.try_start(&wish)?.expect_refused(code)
}

fn mount(attack: &mut Attack, destination: &str, kind: &str, options: &[&str]) -> Outcome {
    attack.push(
        "/mounts",
        json!({"destination": destination, "type": kind, "source": "/", "options": options}),
    )
}

fn a_specification_with_hooks_is_refused(lab: &mut Lab) -> Outcome {
    let witness = lab.path("files/hook-ran");
    let hook = json!({"path": "/bin/busybox", "args": ["touch", witness.display().to_string()]});
    for stage in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"] {
        let hook = hook.clone();
        refused(lab, RefusalCode::SpecHooksPresent, |attack| {
            attack.set("/hooks", json!({stage: [hook]}))
        })?;
    }
    ensure!(!witness.exists(), "the hook ran");
    Ok(())
}

fn host_namespaces_are_refused(lab: &mut Lab) -> Outcome {
    for kind in ["pid", "network", "mount", "ipc", "uts"] {
        refused(lab, RefusalCode::SpecHostNamespace, |attack| {
            let list = attack.spec.pointer_mut("/linux/namespaces").and_then(|v| v.as_array_mut());
            let list = list.ok_or_else(|| Failure::new("no namespaces in the specimen"))?;
            list.retain(|namespace| namespace.get("type") != Some(&json!(kind)));
            Ok(())
        })?;
    }
    Ok(())
}

fn a_joined_namespace_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecHostNamespace, |attack| {
        let list = attack.spec.pointer_mut("/linux/namespaces").and_then(|v| v.as_array_mut());
        let list = list.ok_or_else(|| Failure::new("no namespaces in the specimen"))?;
        list.retain(|namespace| namespace.get("type") != Some(&json!("network")));
        list.push(json!({"type": "network", "path": "/proc/1/ns/net"}));
        Ok(())
    })
}

fn devices_of_the_specification_are_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::DeviceNotLeased, |attack| {
        attack.push(
            "/linux/devices",
            json!({"path": "/dev/mem", "type": "c", "major": 1, "minor": 1, "fileMode": 438}),
        )
    })
}

fn a_device_by_cdi_annotation_is_refused(lab: &mut Lab) -> Outcome {
    let mut attack = lab.specimen()?.attack()?;
    attack.set("/annotations", json!({"cdi.k8s.io/gpu": "nvidia.com/gpu=all"}))?;
    let wish = sealed(lab, &attack)?;
    lab.try_start(&wish)?.expect_refused(RefusalCode::DeviceNotLeased)
}

fn a_device_rule_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::DeviceNotLeased, |attack| {
        attack.push("/linux/resources/devices", json!({"allow": true, "access": "rwm"}))
    })
}

fn a_bind_of_a_host_path_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecBindForbidden, |attack| {
        mount(attack, "/host", "bind", &["rbind", "rw"])
    })?;
    refused(lab, RefusalCode::SpecBindForbidden, |attack| {
        mount(attack, "/host", "none", &["bind", "ro"])
    })
}

fn a_propagating_mount_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecPropagationForbidden, |attack| {
        attack.set("/linux/rootfsPropagation", json!("rshared"))
    })?;
    refused(lab, RefusalCode::SpecPropagationForbidden, |attack| {
        mount(attack, "/host", "bind", &["rbind", "rshared"])
    })
}

fn a_mount_over_an_images_path_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecMountForbidden, |attack| {
        mount(attack, "/bin", "tmpfs", &["rw"])
    })?;
    refused(lab, RefusalCode::SpecMountForbidden, |attack| {
        mount(attack, "/host", "overlay", &["lowerdir=/,upperdir=/tmp,workdir=/tmp"])
    })
}

fn more_capabilities_are_refused(lab: &mut Lab) -> Outcome {
    for set in ["bounding", "effective", "permitted"] {
        refused(lab, RefusalCode::SpecCapabilityForbidden, |attack| {
            attack.push(&format!("/process/capabilities/{set}"), json!("CAP_SYS_ADMIN"))
        })?;
    }
    Ok(())
}

fn an_unconfined_filter_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecSeccompForbidden, |attack| {
        attack.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"}))
    })
}

fn a_filter_with_a_listener_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecSeccompForbidden, |attack| {
        attack.set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/run/mine.sock"}),
        )
    })
}

fn a_sysctl_outside_the_list_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecSysctlForbidden, |attack| {
        attack.set("/linux/sysctl", json!({"kernel.core_pattern": "|/bin/sh"}))
    })
}

fn a_lowered_oom_score_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecPrivilegeForbidden, |attack| {
        attack.set("/process/oomScoreAdj", json!(-1000))
    })
}

fn a_user_beyond_the_limit_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecUserForbidden, |attack| {
        attack.set("/process/user/uid", json!(2_147_483_648_u32))
    })
}

fn a_rootfs_of_the_clients_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecRootfsForbidden, |attack| attack.set("/root/path", json!("/")))
}

fn a_working_directory_in_proc_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecPrivilegeForbidden, |attack| {
        attack.set("/process/cwd", json!("/proc/self/fd/7"))
    })
}

fn more_memory_than_leased_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::SpecResourcesForbidden, |attack| {
        attack.set("/linux/resources/memory", json!({"limit": 1_u64 << 40}))
    })
}

fn a_terminal_that_only_the_client_asks_for_is_refused(lab: &mut Lab) -> Outcome {
    wished(lab, RefusalCode::SpecTerminalMismatch, |wish| wish.terminal = true)
}

fn a_checkpoint_is_refused(lab: &mut Lab) -> Outcome {
    // containerd itself refuses a checkpoint whose content it does not have, before the shim is
    // asked: what counts here is that nothing runs.
    let attack = lab.specimen()?.attack()?;
    let mut wish = sealed(lab, &attack)?;
    wish.checkpoint = true;
    let tried = lab.try_start(&wish)?;
    ensure!(matches!(tried, nimbus_tests::raw::Tried::Refused { .. }), "found {tried:?}");
    Ok(())
}

fn strange_runtime_options_are_refused(lab: &mut Lab) -> Outcome {
    wished(lab, RefusalCode::SpecOptionsForbidden, |wish| {
        wish.options = Some("example.com/Options".to_owned());
    })
}

fn binary_output_is_refused(lab: &mut Lab) -> Outcome {
    let witness = lab.path("files/logger-ran");
    let uri = format!("binary:///bin/busybox?touch={}", witness.display());
    wished(lab, RefusalCode::SpecStdioForbidden, |wish| wish.stdout = uri)?;
    ensure!(!witness.exists(), "the logger ran");
    Ok(())
}

fn output_outside_the_log_root_is_refused(lab: &mut Lab) -> Outcome {
    let victim = lab.path("files/victim");
    fs::write(&victim, "untouched")?;
    let uri = format!("file://{}", victim.display());
    wished(lab, RefusalCode::SpecStdioForbidden, |wish| wish.stdout = uri)?;
    ensure!(fs::read_to_string(&victim)? == "untouched", "the file was written to");
    Ok(())
}

fn a_specification_with_a_key_twice_is_refused(lab: &mut Lab) -> Outcome {
    rewritten(lab, RefusalCode::SpecDuplicateKey, |text| {
        text.replacen("{\"", "{\"hostname\":\"a\",\"hostname\":\"b\",\"", 1)
    })
}

fn a_specification_with_an_unknown_field_is_refused(lab: &mut Lab) -> Outcome {
    rewritten(lab, RefusalCode::SpecUnknownField, |text| {
        text.replacen("{\"", "{\"surprise\":true,\"", 1)
    })
}

fn a_specification_beyond_the_limit_is_refused(lab: &mut Lab) -> Outcome {
    // 1.5 MiB: below containerd's limit of a message, above ours of a specification.
    rewritten(lab, RefusalCode::SpecTooLarge, |text| format!("{text}{}", " ".repeat(3 << 19)))
}

fn a_specification_that_is_no_json_is_refused(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let wish = Wish { id: attack.id, spec: b"{\"annotations\":".to_vec(), ..Wish::default() };
    let tried = lab.try_start(&wish)?;
    ensure!(matches!(tried, nimbus_tests::raw::Tried::Refused { .. }), "found {tried:?}");
    Ok(())
}
