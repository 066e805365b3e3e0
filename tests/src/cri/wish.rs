//! What kubelet asks for when a pod's author asks for nothing special, to be changed by a scenario.

use std::path::Path;

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, SecurityProfile, security_profile::ProfileType,
};

/// A container's memory, bytes.
pub const MEMORY: i64 = 96 << 20;
/// Half a core.
const CPU_PERIOD: i64 = 100_000;
const CPU_QUOTA: i64 = 50_000;
const CPU_SHARES: i64 = 512;
/// What kubelet gives pods that may burst.
const OOM_SCORE_ADJ: i64 = 990;
/// kubelet's default masks.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// The same, read-only.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Which pod.
#[derive(Debug, Clone)]
pub struct PodNames<'a> {
    /// Name, and hostname.
    pub name: &'a str,
    /// Kubernetes namespace.
    pub namespace: &'a str,
    /// UID.
    pub uid: &'a str,
}

impl PodNames<'_> {
    fn labels(&self) -> Vec<(String, String)> {
        [
            ("io.kubernetes.pod.name", self.name),
            ("io.kubernetes.pod.namespace", self.namespace),
            ("io.kubernetes.pod.uid", self.uid),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec()
    }
}

/// Namespaces of a pod that shares none with the host.
fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..NamespaceOption::default()
    }
}

/// The runtime's own seccomp profile.
fn runtime_default() -> SecurityProfile {
    SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() }
}

/// A pod's sandbox.
pub fn sandbox(names: &PodNames<'_>, logs: &Path, cgroup: &str) -> PodSandboxConfig {
    let metadata = PodSandboxMetadata {
        name: names.name.to_owned(),
        uid: names.uid.to_owned(),
        namespace: names.namespace.to_owned(),
        attempt: 0,
    };
    let domain = |start: &str| format!("{start}svc.cluster.local");
    PodSandboxConfig {
        metadata: Some(metadata),
        hostname: names.name.to_owned(),
        log_directory: logs.display().to_string(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.96.0.10".to_owned()],
            searches: vec![domain(&format!("{}.", names.namespace)), domain("")],
            options: vec!["ndots:5".to_owned()],
        }),
        labels: names.labels().into_iter().collect(),
        annotations: [("kubernetes.io/config.source".to_owned(), "api".to_owned())].into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup.to_owned(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(runtime_default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container of it that runs a shell script.
pub fn container(names: &PodNames<'_>, name: &str, image: &str, script: &str) -> ContainerConfig {
    let mut labels = names.labels();
    labels.push(("io.kubernetes.container.name".to_owned(), name.to_owned()));
    let annotations = [
        ("io.kubernetes.container.restartCount", "0"),
        ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
        ("io.kubernetes.container.terminationMessagePolicy", "File"),
        ("io.kubernetes.pod.terminationGracePeriod", "30"),
    ];
    let owned = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect();
    let env = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: value.to_owned() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
        envs: vec![
            env("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            env("KUBERNETES_SERVICE_PORT", "443"),
        ],
        labels: labels.into_iter().collect(),
        annotations: annotations.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        log_path: format!("{name}/0.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_period: CPU_PERIOD,
                cpu_quota: CPU_QUOTA,
                cpu_shares: CPU_SHARES,
                memory_limit_in_bytes: MEMORY,
                oom_score_adj: OOM_SCORE_ADJ,
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(runtime_default()),
                masked_paths: owned(&MASKED),
                readonly_paths: owned(&READ_ONLY),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// A bind of a path on the node.
pub fn mount(from: &Path, to: &str, read_only: bool) -> Mount {
    Mount {
        host_path: from.display().to_string(),
        container_path: to.to_owned(),
        readonly: read_only,
        ..Default::default()
    }
}

/// The security context of a container.
pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

/// The resources of a container.
pub fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// The security context of a sandbox.
pub fn sandbox_security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}
