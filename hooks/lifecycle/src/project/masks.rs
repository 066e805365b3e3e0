//! Paths of procfs and sysfs that no job sees, or sees read-only.
//!
//! containerd's defaults, and what tells of the host's devices (GPUs above all). Paths that a kernel
//! does not have are skipped by whoever mounts. Not here: `/sys/devices/pci*`, whose names only the
//! host knows.

/// Covered by an empty file or directory.
pub(crate) const MASKED: [&str; 38] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus/pci",
    "/proc/cmdline",
    "/proc/devices",
    // All of it: nvidia, nvidia-caps, nvidia-uvm, nvidia-nvlink, nvidia-fs, rtc. With this over-mount
    // the kernel also refuses a fresh procfs in a nested user namespace.
    "/proc/driver",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kpagecount",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/bus/pci",
    "/sys/class/drm",
    "/sys/class/infiniband",
    "/sys/class/infiniband_mad",
    "/sys/class/infiniband_verbs",
    "/sys/class/nvidia-fs",
    "/sys/class/nvidia-nvlink",
    "/sys/devices/virtual/nvidia",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/iommu_groups",
    "/sys/kernel/security",
    "/sys/module/nvidia",
    "/sys/module/nvidia_drm",
    "/sys/module/nvidia_fs",
    "/sys/module/nvidia_modeset",
    "/sys/module/nvidia_peermem",
    "/sys/module/nvidia_uvm",
];

/// Mounted read-only over themselves.
pub(crate) const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
