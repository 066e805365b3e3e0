//! Refusals: a stable code, a sentence that says what was found, and what to do.
//!
//! The code is the contract. To containerd only a gRPC code and a text survive, so the text is
//! `[lease.missing] sentence; advice` and readers parse the prefix, never the sentence. The table
//! below is the only list; `docs/refusals.md` is generated from it and a test keeps it so.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a refusal maps to a gRPC status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalClass {
    /// PERMISSION_DENIED: what was asked for is not allowed.
    Permission,
    /// FAILED_PRECONDITION: something must be changed first.
    Precondition,
    /// UNAVAILABLE: may pass by itself.
    Unavailable,
    /// INVALID_ARGUMENT.
    Invalid,
    /// NOT_FOUND.
    NotFound,
    /// ALREADY_EXISTS.
    Conflict,
    /// RESOURCE_EXHAUSTED.
    Exhausted,
    /// UNAUTHENTICATED.
    Unauthenticated,
}

impl RefusalClass {
    /// The numeric gRPC status code.
    pub const fn grpc_code(self) -> i32 {
        match self {
            Self::Invalid => 3,
            Self::NotFound => 5,
            Self::Conflict => 6,
            Self::Permission => 7,
            Self::Exhausted => 8,
            Self::Precondition => 9,
            Self::Unavailable => 14,
            Self::Unauthenticated => 16,
        }
    }
}

/// Longest detail that a refusal carries; longer ones are cut.
pub const DETAIL_CHARS_MAX: usize = 400;

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident => $code:literal, $class:ident, $sentence:literal, $advice:literal;)*) => {
        /// Why something was refused. Codes are never renamed or reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum RefusalCode {
            $($(#[$doc])* $variant,)*
        }

        impl RefusalCode {
            /// Every code, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable dotted code.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// Its class.
            pub const fn class(self) -> RefusalClass {
                match self { $(Self::$variant => RefusalClass::$class,)* }
            }

            /// What happened, as a clause without a full stop.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }

            /// What to do about it.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)* }
            }
        }
    };
}

refusals! {
    /// no lease came with this container
    LeaseMissing => "lease.missing", Permission, "no lease came with this container", "submit the job with nimbusctl; a container that nobody leased does not start on this node";
    /// the lease is not a token this node can read
    LeaseMalformed => "lease.malformed", Permission, "the lease is not a token this node can read", "do not edit leases; submit the job again";
    /// the lease is longer than a lease may be
    LeaseTooLarge => "lease.too_large", Permission, "the lease is longer than a lease may be", "submit the job again; a lease is at most 4 KiB";
    /// the lease is signed with a key that is not in the key set
    LeaseUnknownKey => "lease.unknown_key", Permission, "the lease is signed with a key that is not in the key set", "check that node and control service share a trust domain, and that the key set reaches the node";
    /// the lease's signature does not verify
    LeaseBadSignature => "lease.bad_signature", Permission, "the lease's signature does not verify", "submit the job again; if it persists, somebody forges leases";
    /// the lease is of a version that this node cannot read
    LeaseVersion => "lease.version", Precondition, "the lease is of a version that this node cannot read", "upgrade the node agent";
    /// the lease has ended
    LeaseExpired => "lease.expired", Permission, "the lease has ended", "submit the job again";
    /// the lease is not valid yet
    LeaseNotYetValid => "lease.not_yet_valid", Permission, "the lease is not valid yet", "check the clocks of node and control service";
    /// the time in which the lease allows a start has passed
    LeaseStartLate => "lease.start_late", Permission, "the time in which the lease allows a start has passed", "submit the job again; if it repeats, look for slow image fetches";
    /// the lease names another node
    LeaseWrongNode => "lease.wrong_node", Permission, "the lease names another node", "start the job on the node that the lease names";
    /// the lease names another image
    LeaseWrongImage => "lease.wrong_image", Permission, "the lease names another image", "submit the image you want to run";
    /// command, environment, directory, user or binds are not those that the lease names
    LeaseWrongProcess => "lease.wrong_process", Permission, "command, environment, directory, user or binds are not those that the lease names", "submit the command you want to run";
    /// the lease names another container
    LeaseWrongContainer => "lease.wrong_container", Permission, "the lease was claimed for another container", "let the node agent claim a lease for this container; leases are not passed on";
    /// the policy maps no org to the containerd or Kubernetes namespace of this container
    ClaimNotMapped => "claim.not_mapped", Permission, "the policy gives containers of this namespace to no org", "add a [[claim]] rule for the namespace to the policy, or submit the job with nimbusctl";
    /// the pod's ticket is not one that control would redeem
    ClaimTicketInvalid => "claim.ticket_invalid", Permission, "the pod's ticket is unknown, used up, expired or not for this node", "create a new one with nimbusctl ticket create";
    /// control did not answer for this container
    ClaimUnavailable => "claim.unavailable", Unavailable, "control did not lease this container in time", "see the node's link to control in nimbus-node status; kubelet tries again by itself";
    /// what the container says of itself cannot be a claim
    ClaimMalformed => "claim.malformed", Invalid, "what the container says of itself is not complete", "it is made by containerd's CRI plugin; see which version and configuration";
    /// the pod's sandbox is not held on this node
    PodSandboxMissing => "pod.sandbox_missing", Precondition, "the pod's sandbox is not running under a lease on this node", "let kubelet make the pod anew";
    /// the container is not of the pod that it names
    PodMismatch => "pod.mismatch", Permission, "the container does not belong to the pod that it names", "a pod's containers are those that kubelet makes in it, of the same org";
    /// the node could not make the container's writable space
    NodeScratchFailed => "node.scratch_failed", Unavailable, "the node could not make the container's writable space", "see the node agent's log: its disk may be full, or mkfs.ext4, losetup or loop devices are missing";
    /// the lease echoes no heartbeat that this boot of the node sent
    LeaseUnknownNonce => "lease.unknown_nonce", Permission, "the lease echoes no heartbeat that this boot of the node sent", "submit the job again; leases of another boot are void";
    /// the lease has been used for another container
    LeaseReplayed => "lease.replayed", Permission, "the lease has been used for another container", "submit the job again; one lease starts one container";
    /// the lease ran out and was not extended
    LeaseEnded => "lease.ended", Permission, "the lease ran out and was not extended", "see why control did not extend it: cancelled, over its run time, or node out of touch";
    /// the lease was revoked
    LeaseRevoked => "lease.revoked", Permission, "the lease was revoked", "see the job's history";
    /// a newer attempt or store generation has taken the lease's place
    LeaseStale => "lease.stale", Permission, "a newer attempt or store generation has taken the lease's place", "submit the job again";
    /// the lease was made under another policy than this node has
    LeaseWrongPolicy => "lease.wrong_policy", Precondition, "the lease was made under another policy than this node has", "submit the job again when the node has the present policy";
    /// the lease asks for something that this node cannot enforce
    LeaseUnsupported => "lease.unsupported", Precondition, "the lease asks for something that this node cannot enforce", "ask for less, or use a node that supports it";
    /// the resources in the lease are zero or beyond this node
    LeaseResources => "lease.resources", Precondition, "the resources in the lease are zero or beyond this node", "ask for resources that a node has";
    /// the node has no valid key set
    KeysMissing => "keys.missing", Precondition, "the node has no valid key set", "check the node's link to control: nimbus-node status";
    /// the key set is not signed by the pinned root, or has expired
    KeysInvalid => "keys.invalid", Precondition, "the key set is not signed by the pinned root, or has expired", "check the control service's root key and the node's pinned copy";
    /// the image has no attestation that the policy asks for
    ImageUnattested => "image.unattested", Permission, "the image has no attestation that the policy asks for", "attest the image: nimbusctl attest, or your build service";
    /// an attestation came, but it is damaged or forged
    ImageBundleInvalid => "image.bundle_invalid", Permission, "an attestation came, but it is damaged or forged", "attest the image again; do not edit bundles";
    /// an attestation came, but it is about another image
    ImageWrongSubject => "image.wrong_subject", Permission, "an attestation came, but it is about another image", "hand over the bundle of this very digest";
    /// an attestation came, but not from a signer that the policy trusts
    ImageUntrustedSigner => "image.untrusted_signer", Permission, "an attestation came, but not from a signer that the policy trusts", "have a signer that the policy names attest the image";
    /// an attestation came, but it is older than the policy allows
    ImageAttestationStale => "image.attestation_stale", Permission, "an attestation came, but it is older than the policy allows", "attest the image again";
    /// an attestation came, but of a kind that the policy does not ask for
    ImageWrongPredicate => "image.wrong_predicate", Permission, "an attestation came, but of a kind that the policy does not ask for", "attest with a predicate type that the policy names";
    /// the policy denies this digest
    ImageDenied => "image.denied", Permission, "the policy denies this digest", "use another image";
    /// the image is not in the node's store
    ImageMissing => "image.missing", Precondition, "the image is not in the node's store", "submit through nimbusctl, which has the node fetch it";
    /// the image could not be fetched
    ImageFetchFailed => "image.fetch_failed", Unavailable, "the image could not be fetched", "try again, and check the registry and the image name";
    /// fetched bytes do not have the digest that was asked for
    ImageDigestMismatch => "image.digest_mismatch", Permission, "fetched bytes do not have the digest that was asked for", "do not trust that registry";
    /// the root filesystem on this node is not the one built from the attested layers
    ImageRootfsMismatch => "image.rootfs_mismatch", Permission, "the root filesystem on this node is not the one built from the attested layers", "remove the image from the node's store and look for tampering";
    /// the image's manifest, index or configuration is not one this node can read
    ImageMalformed => "image.malformed", Permission, "the image's manifest, index or configuration is not one this node can read", "rebuild the image with a current builder";
    /// a layer holds an entry that no honest builder makes
    ImageLayerHostile => "image.layer_hostile", Permission, "a layer holds an entry that no honest builder makes", "do not trust that image";
    /// the image is larger than this node allows
    ImageTooLarge => "image.too_large", Precondition, "the image is larger than this node allows", "use a smaller image or raise the node's limit";
    /// the image is not for this node's platform
    ImagePlatform => "image.platform", Precondition, "the image is not for this node's platform", "use an image for this platform";
    /// the image is still being prepared
    ImagePreparing => "image.preparing", Unavailable, "the image is still being prepared", "try again";
    /// the node has no policy
    PolicyMissing => "policy.missing", Precondition, "the node has no policy", "sign one and apply it: nimbusctl policy sign, nimbusctl policy apply";
    /// the policy document is not one this node can read
    PolicyInvalid => "policy.invalid", Precondition, "the policy document is not one this node can read", "fix the document: nimbusctl policy sign checks it";
    /// the policy is not signed by the pinned policy key
    PolicyBadSignature => "policy.bad_signature", Permission, "the policy is not signed by the pinned policy key", "sign it with the key whose public half is in /etc/nimbus";
    /// the policy has a lower serial than one this node has seen
    PolicyRolledBack => "policy.rolled_back", Permission, "the policy has a lower serial than one this node has seen", "sign it again with a higher serial";
    /// the policy has passed its not_after
    PolicyExpired => "policy.expired", Precondition, "the policy has passed its not_after", "sign it again with a later not_after";
    /// no rule of the policy covers this image
    PolicyNoMatch => "policy.no_match", Permission, "no rule of the policy covers this image", "add a rule for this image name, or use an image that has one";
    /// the verifier could not be started
    VerifyDown => "verify.down", Unavailable, "the verifier could not be started", "check that nimbus-verify is installed beside nimbus-node and can be run";
    /// the verifier ended without an answer
    VerifyFailed => "verify.failed", Unavailable, "the verifier ended without an answer", "see the node agent's log";
    /// the verifier did not answer in time
    VerifyTimeout => "verify.timeout", Unavailable, "the verifier did not answer in time", "hand over fewer or smaller bundles";
    /// more or larger bundles than may be checked
    VerifyTooLarge => "verify.too_large", Permission, "more or larger bundles than may be checked", "hand over only the bundles that the policy asks for";
    /// the container's specification is not one this node can read
    SpecMalformed => "spec.malformed", Permission, "the container's specification is not one this node can read", "use an unmodified containerd client";
    /// the specification has a key twice
    SpecDuplicateKey => "spec.duplicate_key", Permission, "the specification has a key twice", "use an unmodified containerd client";
    /// the specification is longer than one may be
    SpecTooLarge => "spec.too_large", Permission, "the specification is longer than one may be", "use fewer or shorter arguments and variables";
    /// the specification has a field that this version does not know
    SpecUnknownField => "spec.unknown_field", Permission, "the specification has a field that this version does not know", "use a containerd client of a supported version";
    /// the specification carries OCI hooks
    SpecHooksPresent => "spec.hooks_present", Permission, "the specification carries OCI hooks", "remove them: hooks run as root on the host";
    /// the specification shares a namespace with the host or another container
    SpecHostNamespace => "spec.host_namespace", Permission, "the specification shares a namespace with the host or another container", "ask for namespaces of its own";
    /// the specification binds a host path
    SpecBindForbidden => "spec.bind_forbidden", Permission, "the specification binds a host path", "remove the bind; the lease allows none";
    /// the specification has a mount that is not allowed
    SpecMountForbidden => "spec.mount_forbidden", Permission, "the specification has a mount that is not allowed", "keep to the mounts that containerd makes by default";
    /// the specification asks for a capability beyond the lease
    SpecCapabilityForbidden => "spec.capability_forbidden", Permission, "the specification asks for a capability beyond the lease", "run without it";
    /// the specification asks for a seccomp filter with a listener, or for none in so many words
    SpecSeccompForbidden => "spec.seccomp_forbidden", Permission, "the specification asks for a seccomp filter with a listener, or for none in so many words", "leave seccomp to the lease";
    /// the specification sets a kernel parameter that is not allowed
    SpecSysctlForbidden => "spec.sysctl_forbidden", Permission, "the specification sets a kernel parameter that is not allowed", "remove it";
    /// the specification asks for mounts to propagate to the host
    SpecPropagationForbidden => "spec.propagation_forbidden", Permission, "the specification asks for mounts to propagate to the host", "remove the propagation setting";
    /// the specification asks for a privilege that no job gets
    SpecPrivilegeForbidden => "spec.privilege_forbidden", Permission, "the specification asks for a privilege that no job gets", "remove the field that is named";
    /// the user or group id is out of range
    SpecUserForbidden => "spec.user_forbidden", Permission, "the user or group id is out of range", "use numeric ids below 2147483648";
    /// the specification names a root filesystem of its own
    SpecRootfsForbidden => "spec.rootfs_forbidden", Permission, "the specification names a root filesystem of its own", "leave root.path at rootfs";
    /// a checkpoint cannot be started
    SpecCheckpointForbidden => "spec.checkpoint_forbidden", Permission, "a checkpoint cannot be started", "start the job from its image";
    /// runtime options of an unknown kind came
    SpecOptionsForbidden => "spec.options_forbidden", Permission, "runtime options of an unknown kind came", "use the runtime class without options";
    /// output or input would go where no job's may go
    SpecStdioForbidden => "spec.stdio_forbidden", Permission, "output or input would go where no job's may go", "use fifos or files below the node's log root";
    /// terminals are not supported
    SpecTerminalMismatch => "spec.terminal_mismatch", Invalid, "the client and the specification do not agree about a terminal", "ask for a terminal in both or in neither";
    /// the specification asks for more resources than the lease grants
    SpecResourcesForbidden => "spec.resources_forbidden", Permission, "the specification asks for more resources than the lease grants", "ask for them when submitting";
    /// the specification adds a device that the lease does not name
    DeviceNotLeased => "device.not_leased", Permission, "the specification adds a device that the lease does not name", "remove it; devices come from the lease only";
    /// the lease's allow-list names what no job may reach
    EgressForbidden => "egress.forbidden", Permission, "the lease's allow-list names what no job may reach", "leave out loopback, link-local, multicast and metadata addresses";
    /// the node could not make the job's network
    NetworkUnavailable => "network.unavailable", Unavailable, "the node could not make the job's network", "see the node agent's log, and docs/network.md for what a node needs";
    /// the image has a symlink where /dev, /proc or /sys must be a directory
    RootfsHostile => "rootfs.hostile", Permission, "the image has a symlink where /dev, /proc or /sys must be a directory", "do not trust that image";
    /// the node agent does not answer
    NodeAgentDown => "node.agent_down", Unavailable, "the node agent does not answer", "start it: nimbus-node serve";
    /// the node's clock is behind the time of a lease it has verified
    NodeClockBack => "node.clock_back", Precondition, "the node's clock is behind the time of a lease it has verified", "set the clock right, then reset the floor: nimbus-node clock reset";
    /// the node has no identity
    NodeNotJoined => "node.not_joined", Precondition, "the node has no identity", "join it: nimbus-node join";
    /// the node could not make its record durable
    NodeLedgerFailed => "node.ledger_failed", Unavailable, "the node could not make its record durable", "check the disk of the node's data directory";
    /// the node has as many containers as it may have
    NodeBusy => "node.busy", Unavailable, "the node has as many containers as it may have", "try again later";
    /// the node agent failed
    NodeInternal => "node.internal", Unavailable, "the node agent failed", "see the node agent's log";
    /// containerd refused or did not answer
    NodeContainerd => "node.containerd", Unavailable, "containerd refused or did not answer", "see the node agent's and containerd's log";
    /// the node lost the job
    NodeLost => "node.lost", Unavailable, "the node lost the job", "see the node's log; the job is tried again while it has attempts left";
    /// the container could not be made
    RuntimeFailed => "runtime.failed", Unavailable, "the container could not be made", "see the shim's log";
    /// making the container took too long
    RuntimeTimeout => "runtime.timeout", Unavailable, "making the container took too long", "see the shim's log";
    /// a containment that the plan asks for could not be proven
    RuntimeUnproven => "runtime.unproven", Precondition, "a containment that the plan asks for could not be proven", "see the shim's log on that node for what was found";
    /// the job's program could not be started
    RuntimeExec => "runtime.exec_failed", Precondition, "the job's program could not be started", "check command, working directory and user against the image";
    /// the job was cancelled
    JobCancelled => "job.cancelled", Precondition, "the job was cancelled", "submit it again if that was a mistake";
    /// the job ran longer than it may
    JobRuntime => "job.max_runtime", Precondition, "the job ran longer than it may", "raise max_runtime_seconds";
    /// the job has used its attempts
    JobAttempts => "job.attempts", Precondition, "the job has used its attempts", "see its history; submit it again";
    /// there is no such job
    JobNotFound => "job.not_found", NotFound, "there is no such job", "list what there is: nimbusctl list";
    /// the org has as many waiting jobs as it may have
    QuotaQueued => "quota.queued", Exhausted, "the org has as many waiting jobs as it may have", "wait, or ask for a higher quota";
    /// the org has as many running jobs as it may have
    QuotaRunning => "quota.running", Exhausted, "the org has as many running jobs as it may have", "wait until one has ended, or ask for a higher quota: nimbusctl quota get";
    /// the org has as many tickets as it may have
    QuotaTickets => "quota.tickets", Exhausted, "the org has as many tickets as it may have", "let some end: they are forgotten a day later";
    /// there is no such ticket
    TicketNotFound => "ticket.not_found", NotFound, "there is no such ticket", "list what there is: nimbusctl ticket list";
    /// the request is not valid
    RequestInvalid => "request.invalid", Invalid, "the request is not valid", "correct the field that is named";
    /// the request id was used for another request
    RequestConflict => "request.conflict", Conflict, "the request id was used for another request", "use a new request id";
    /// the request is larger than allowed
    RequestTooLarge => "request.too_large", Invalid, "the request is larger than allowed", "send less";
    /// the caller may not do this
    RequestForbidden => "request.forbidden", Permission, "the caller may not do this", "use a certificate that may";
    /// the caller has no valid certificate
    RequestUnauthenticated => "request.unauthenticated", Unauthenticated, "the caller has no valid certificate", "use the certificate that control made, or join again";
    /// the join token is unknown, used or expired
    JoinTokenInvalid => "join.token_invalid", Permission, "the join token is unknown, used or expired", "make a new one: nimbusctl node token";
    /// the control service cannot answer now
    ControlUnavailable => "control.unavailable", Unavailable, "the control service cannot answer now", "try again";
}

/// A text is not a refusal code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown refusal code {0:?}")]
pub struct UnknownCode(String);

impl FromStr for RefusalCode {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let found = Self::ALL.iter().find(|code| code.as_str() == text).copied();
        found.ok_or_else(|| UnknownCode(text.chars().take(64).collect()))
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for RefusalCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for RefusalCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One refusal: the code and what was found and expected this time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The stable code.
    pub code: RefusalCode,
    /// What was found and what was expected; may be empty. Control characters are escaped.
    detail: String,
}

impl Refusal {
    /// A refusal without more to say than its code.
    pub const fn new(code: RefusalCode) -> Self {
        Self { code, detail: String::new() }
    }

    /// A refusal that says what was found and expected. The text may come from a tenant: control
    /// characters and ';' are escaped and it is cut at [`DETAIL_CHARS_MAX`].
    pub fn with(code: RefusalCode, detail: impl fmt::Display) -> Self {
        let mut clean = String::new();
        for c in detail.to_string().chars().take(DETAIL_CHARS_MAX) {
            match c {
                ';' => clean.push(','),
                c if c.is_control() => clean.extend(c.escape_default()),
                c => clean.push(c),
            }
        }
        Self { code, detail: clean }
    }

    /// What was found and expected; may be empty.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The sentence with its detail.
    pub fn sentence(&self) -> String {
        if self.detail.is_empty() {
            return self.code.sentence().to_owned();
        }
        format!("{}: {}", self.code.sentence(), self.detail)
    }

    /// The code in a text that a refusal was printed into, wherever containerd's clients have put
    /// their own words around it.
    pub fn code_in(text: &str) -> Option<RefusalCode> {
        text.match_indices('[').find_map(|(at, _)| {
            let rest = text.get(at + 1..)?;
            let end = rest.find(']')?;
            rest.get(..end)?.parse().ok()
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}; {}", self.code, self.sentence(), self.code.advice())
    }
}

impl std::error::Error for Refusal {}

impl From<RefusalCode> for Refusal {
    fn from(code: RefusalCode) -> Self {
        Self::new(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_is_unique_dotted_and_reads_back() {
        let mut seen = HashSet::new();
        for code in RefusalCode::ALL {
            let text = code.as_str();
            assert!(seen.insert(text), "{text} twice");
            assert!(text.split('.').count() == 2, "{text}");
            assert!(
                text.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'.' | b'_')),
                "{text}"
            );
            assert_eq!(text.parse(), Ok(*code));
            assert!(!code.sentence().contains(';') && !code.advice().is_empty(), "{text}");
        }
    }

    #[test]
    fn the_code_is_found_in_what_containerd_makes_of_it() {
        let refusal = Refusal::with(RefusalCode::LeaseWrongNode, "found [a], expected [b]");
        let text = format!("failed to create shim task: {refusal}: unknown");
        assert_eq!(Refusal::code_in(&text), Some(RefusalCode::LeaseWrongNode));
        assert_eq!(Refusal::code_in("runc said [no]"), None);
    }

    #[test]
    fn a_tenants_text_cannot_forge_lines_or_advice() {
        let refusal =
            Refusal::with(RefusalCode::ImageMissing, "x\n[lease.missing] ok; \u{1b}[31mred");
        let text = refusal.to_string();
        assert!(!text.chars().any(char::is_control), "{text}");
        assert_eq!(Refusal::code_in(&text), Some(RefusalCode::ImageMissing));
    }
}
