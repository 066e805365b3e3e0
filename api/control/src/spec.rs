//! Checks a submission and fills in what it leaves open. Pure, but for the randomness of ids.
//!
//! Every problem names the field that it is in.

use std::fmt;

use nimbus_api::Digest;
use nimbus_api::egress::{EGRESS_RULES_MAX, EgressRule, EgressRules};
use nimbus_api::lease::SCRATCH_DISK_BYTES_MIN;
use nimbus_api::lease::{SECCOMP_DEFAULT, SECCOMP_PROFILES};
use nimbus_api::proto::control::v1::{Image, JobSpec, Resources, ScratchMedium};

use crate::limits::{
    ATTEMPTS_DEFAULT, ATTEMPTS_MAX, BUNDLE_BYTES_MAX, BUNDLES_MAX, CPU_MILLIS_MAX,
    LEASE_TEXT_BYTES_MAX, LOG_BYTES_MAX, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, NAME_BYTES_MAX,
    PIDS_MAX, RUNTIME_SECONDS_DEFAULT, RUNTIME_SECONDS_MAX, UID_END, WORD_BYTES_MAX, WORDS_MAX,
};

/// Platform of an image that names none.
const PLATFORM_DEFAULT: &str = "linux/amd64";
/// What a job gets that does not say.
pub(crate) const RESOURCES_DEFAULT: Resources = Resources {
    cpu_millis: 1000,
    memory_bytes: 512 << 20,
    pids: 256,
    scratch_bytes: 128 << 20,
    log_bytes: 16 << 20,
    scratch: ScratchMedium::Disk as i32,
};

/// A field that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldProblem {
    /// Path of the field in the request.
    pub(crate) field: &'static str,
    /// What was found and expected.
    pub(crate) problem: String,
    /// It is well-formed but too much.
    pub(crate) too_large: bool,
}

/// A field that is not as it must be.
pub(crate) fn wrong(field: &'static str, problem: impl fmt::Display) -> FieldProblem {
    FieldProblem { field, problem: problem.to_string(), too_large: false }
}

fn too_large(
    field: &'static str,
    found: impl fmt::Display,
    most: impl fmt::Display,
) -> FieldProblem {
    let problem = format!("found {found}, at most {most} are allowed");
    FieldProblem { field, problem, too_large: true }
}

/// Checks a specification and fills in defaults.
pub(crate) fn check(mut spec: JobSpec) -> Result<JobSpec, FieldProblem> {
    let image = spec.image.take().ok_or_else(|| wrong("spec.image", "must be set"))?;
    spec.image = Some(check_image(image)?);
    check_process(&spec)?;
    spec.resources = Some(check_resources(spec.resources.unwrap_or_default())?);
    check_bundles("spec.bundles", &spec.bundles)?;
    spec.egress = check_egress(&spec)?;
    match spec.max_runtime_seconds {
        0 => spec.max_runtime_seconds = RUNTIME_SECONDS_DEFAULT,
        1..=RUNTIME_SECONDS_MAX => {}
        found => return Err(too_large("spec.max_runtime_seconds", found, RUNTIME_SECONDS_MAX)),
    }
    match spec.max_attempts {
        0 => spec.max_attempts = ATTEMPTS_DEFAULT,
        1..=ATTEMPTS_MAX => {}
        found => return Err(too_large("spec.max_attempts", found, ATTEMPTS_MAX)),
    }
    if spec.seccomp_profile.is_empty() {
        SECCOMP_DEFAULT.clone_into(&mut spec.seccomp_profile);
    }
    if !SECCOMP_PROFILES.contains(&spec.seccomp_profile.as_str()) {
        let problem = format!("expected one of {}", SECCOMP_PROFILES.join(", "));
        return Err(wrong("spec.seccomp_profile", problem));
    }
    Ok(spec)
}

/// Checks an image and fills in its platform.
pub(crate) fn check_image(mut image: Image) -> Result<Image, FieldProblem> {
    const NAME: &str = "spec.image.name";
    if image.name.len() > NAME_BYTES_MAX {
        return Err(too_large(NAME, image.name.len(), NAME_BYTES_MAX));
    }
    check_image_name(&image.name).map_err(|problem| wrong(NAME, problem))?;
    image.digest.parse::<Digest>().map_err(|error| wrong("spec.image.digest", error))?;
    if image.platform.is_empty() {
        PLATFORM_DEFAULT.clone_into(&mut image.platform);
    }
    let word = |part: &str| {
        !part.is_empty()
            && part.len() <= 32
            && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
    };
    let parts: Vec<_> = image.platform.split('/').collect();
    if !(2..=3).contains(&parts.len()) || !parts.iter().all(|part| word(part)) {
        return Err(wrong(
            "spec.image.platform",
            "expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT",
        ));
    }
    Ok(image)
}

fn check_image_name(name: &str) -> Result<(), &'static str> {
    if let Some(path) = name.strip_prefix("oci:") {
        let clean = path.starts_with('/')
            && path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."))
            && !path.chars().any(char::is_control);
        return if clean { Ok(()) } else { Err("expected oci: and a clean absolute path") };
    }
    let (host, repository) = name.split_once('/').ok_or("expected HOST[:PORT]/REPOSITORY")?;
    let host_byte =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    if host.is_empty() || !host.bytes().all(host_byte) {
        return Err("the host has characters that no host has");
    }
    let part = |part: &str| {
        let byte = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        !part.is_empty() && !part.starts_with(['.', '-']) && part.bytes().all(byte)
    };
    if repository.split('/').all(part) {
        return Ok(());
    }
    Err("expected a repository of lower-case segments, without tag or digest")
}

fn check_words(field: &'static str, words: &[String]) -> Result<(), FieldProblem> {
    if words.len() > WORDS_MAX {
        return Err(too_large(field, words.len(), WORDS_MAX));
    }
    let bytes: usize = words.iter().map(String::len).sum();
    if bytes > WORD_BYTES_MAX {
        return Err(too_large(field, format_args!("{bytes} bytes"), WORD_BYTES_MAX));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(wrong(field, "must not contain NUL"));
    }
    Ok(())
}

/// Checks what is to be run.
pub(crate) fn check_process(spec: &JobSpec) -> Result<(), FieldProblem> {
    match spec.args.first() {
        Some(program) if !program.is_empty() => {}
        Some(_) | None => return Err(wrong("spec.args", "must name a program")),
    }
    check_words("spec.args", &spec.args)?;
    check_words("spec.env", &spec.env)?;
    let is_variable =
        |entry: &String| entry.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    if !spec.env.iter().all(is_variable) {
        return Err(wrong("spec.env", "expected KEY=VALUE"));
    }
    if spec.cwd.len() > NAME_BYTES_MAX {
        return Err(too_large("spec.cwd", spec.cwd.len(), NAME_BYTES_MAX));
    }
    if !spec.cwd.is_empty() && (!spec.cwd.starts_with('/') || spec.cwd.contains('\0')) {
        return Err(wrong("spec.cwd", "expected an absolute path"));
    }
    if spec.uid >= UID_END {
        return Err(too_large("spec.uid", spec.uid, UID_END - 1));
    }
    if spec.gid >= UID_END {
        return Err(too_large("spec.gid", spec.gid, UID_END - 1));
    }
    Ok(())
}

fn check_resources(mut found: Resources) -> Result<Resources, FieldProblem> {
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    let or_small = |value: u32, default: u32| if value == 0 { default } else { value };
    let default = RESOURCES_DEFAULT;
    found.cpu_millis = or_small(found.cpu_millis, default.cpu_millis);
    found.memory_bytes = or(found.memory_bytes, default.memory_bytes);
    found.pids = or_small(found.pids, default.pids);
    found.scratch_bytes = or(found.scratch_bytes, default.scratch_bytes);
    found.log_bytes = or(found.log_bytes, default.log_bytes);
    let disk = match ScratchMedium::try_from(found.scratch) {
        Ok(ScratchMedium::Unspecified | ScratchMedium::Disk) => true,
        Ok(ScratchMedium::Memory) => false,
        Err(unknown) => return Err(wrong("spec.resources.scratch", unknown.to_string())),
    };
    if disk {
        found.scratch = ScratchMedium::Disk.into();
        if found.scratch_bytes < SCRATCH_DISK_BYTES_MIN {
            let least = SCRATCH_DISK_BYTES_MIN;
            let problem = format!("found {}, expected at least {least}", found.scratch_bytes);
            return Err(wrong("spec.resources.scratch_bytes", problem));
        }
    }
    if found.memory_bytes < MEMORY_BYTES_MIN {
        let problem = format!("found {}, expected at least {MEMORY_BYTES_MIN}", found.memory_bytes);
        return Err(wrong("spec.resources.memory_bytes", problem));
    }
    let most: [(&'static str, u64, u64); 5] = [
        ("spec.resources.cpu_millis", found.cpu_millis.into(), CPU_MILLIS_MAX.into()),
        ("spec.resources.memory_bytes", found.memory_bytes, MEMORY_BYTES_MAX),
        ("spec.resources.pids", found.pids.into(), PIDS_MAX.into()),
        ("spec.resources.scratch_bytes", found.scratch_bytes, MEMORY_BYTES_MAX),
        ("spec.resources.log_bytes", found.log_bytes, LOG_BYTES_MAX),
    ];
    match most.into_iter().find(|(_, value, max)| value > max) {
        Some((field, value, max)) => Err(too_large(field, value, max)),
        None => Ok(found),
    }
}

/// Bounds the bundles of a job or ticket.
pub(crate) fn check_bundles(field: &'static str, bundles: &[Vec<u8>]) -> Result<(), FieldProblem> {
    if bundles.len() > BUNDLES_MAX {
        return Err(too_large(field, bundles.len(), BUNDLES_MAX));
    }
    let bytes: usize = bundles.iter().map(Vec::len).sum();
    if bytes > BUNDLE_BYTES_MAX {
        return Err(too_large(field, format_args!("{bytes} bytes"), BUNDLE_BYTES_MAX));
    }
    if bundles.iter().any(Vec::is_empty) {
        return Err(wrong(field, "must not contain an empty bundle"));
    }
    Ok(())
}

/// The allow-list as it will be signed.
fn check_egress(spec: &JobSpec) -> Result<Vec<String>, FieldProblem> {
    const FIELD: &str = "spec.egress";
    if spec.egress.len() > EGRESS_RULES_MAX {
        return Err(too_large(FIELD, spec.egress.len(), EGRESS_RULES_MAX));
    }
    let Some(rules) = egress(&spec.egress).map_err(|problem| wrong(FIELD, problem))? else {
        return Ok(Vec::new());
    };
    if let Some((rule, why)) = rules.as_slice().iter().find_map(|r| Some((r, r.forbidden()?))) {
        return Err(wrong(FIELD, format_args!("{rule} is {why}, which no job may reach")));
    }
    let rules: Vec<_> = rules.as_slice().iter().map(EgressRule::to_string).collect();
    let name = spec.image.as_ref().map_or(0, |image| image.name.len());
    let bytes = name + rules.iter().map(String::len).sum::<usize>();
    if bytes > LEASE_TEXT_BYTES_MAX {
        let found = format!("{bytes} bytes with the image's name");
        return Err(too_large(FIELD, found, LEASE_TEXT_BYTES_MAX));
    }
    Ok(rules)
}

/// The allow-list of a job's words; none when there are none.
pub(crate) fn egress(words: &[String]) -> Result<Option<EgressRules>, String> {
    if words.is_empty() {
        return Ok(None);
    }
    let rule = |word: &String| word.parse().map_err(|error| format!("{word:?}: {error}"));
    let rules = words.iter().map(rule).collect::<Result<Vec<EgressRule>, String>>()?;
    EgressRules::sorted(rules).map(Some).map_err(|error| error.to_string())
}

/// A new id: a letter and the 32 hex digits of a UUID that sorts by time.
pub(crate) fn new_id(kind: char) -> String {
    format!("{kind}{}", uuid::Uuid::now_v7().simple())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn good() -> JobSpec {
        JobSpec {
            image: Some(Image {
                name: "127.0.0.1:5000/demo/hello".to_owned(),
                digest: Digest::of(b"x").to_string(),
                platform: String::new(),
            }),
            args: vec!["/bin/true".to_owned()],
            ..JobSpec::default()
        }
    }

    #[test]
    fn what_is_left_open_is_filled_in() {
        let spec = check(good()).unwrap();
        assert_eq!(spec.resources, Some(RESOURCES_DEFAULT));
        assert_eq!(spec.image.unwrap().platform, "linux/amd64");
        assert_eq!((spec.max_attempts, spec.max_runtime_seconds), (3, 3600));
        assert_eq!(spec.seccomp_profile, "default");
    }

    type Case = (&'static str, Box<dyn Fn(&mut JobSpec)>);

    #[test]
    fn each_bad_field_is_named() {
        let image =
            |spec: &mut JobSpec, change: fn(&mut Image)| change(spec.image.as_mut().unwrap());
        let cases: Vec<Case> = vec![
            ("spec.image", Box::new(|s| s.image = None)),
            ("spec.image.name", Box::new(move |s| image(s, |i| i.name = "a/b:tag".to_owned()))),
            ("spec.image.name", Box::new(move |s| image(s, |i| i.name = "busybox".to_owned()))),
            ("spec.image.name", Box::new(move |s| image(s, |i| i.name = "oci:/a/../b".to_owned()))),
            (
                "spec.image.digest",
                Box::new(move |s| image(s, |i| i.digest = "sha256:1".to_owned())),
            ),
            ("spec.image.platform", Box::new(move |s| image(s, |i| i.platform = "x".to_owned()))),
            ("spec.args", Box::new(|s| s.args.clear())),
            ("spec.args", Box::new(|s| s.args.push("\0".to_owned()))),
            ("spec.args", Box::new(|s| s.args.push("a".repeat(WORD_BYTES_MAX)))),
            ("spec.env", Box::new(|s| s.env.push("=x".to_owned()))),
            ("spec.env", Box::new(|s| s.env = vec!["A=b".to_owned(); WORDS_MAX + 1])),
            ("spec.cwd", Box::new(|s| s.cwd = "tmp".to_owned())),
            ("spec.uid", Box::new(|s| s.uid = u32::MAX)),
            ("spec.gid", Box::new(|s| s.gid = UID_END)),
            ("spec.bundles", Box::new(|s| s.bundles = vec![vec![0]; BUNDLES_MAX + 1])),
            ("spec.bundles", Box::new(|s| s.bundles = vec![vec![0; BUNDLE_BYTES_MAX + 1]])),
            ("spec.bundles", Box::new(|s| s.bundles = vec![vec![]])),
            ("spec.egress", Box::new(|s| s.egress = vec!["192.0.2.1:1/tcp".to_owned(); 17])),
            ("spec.max_attempts", Box::new(|s| s.max_attempts = 11)),
            ("spec.seccomp_profile", Box::new(|s| s.seccomp_profile = "unconfined".to_owned())),
            ("spec.max_runtime_seconds", Box::new(|s| s.max_runtime_seconds = u32::MAX)),
            (
                "spec.resources.memory_bytes",
                Box::new(|s| {
                    s.resources = Some(Resources { memory_bytes: 1, ..Resources::default() });
                }),
            ),
            (
                "spec.resources.log_bytes",
                Box::new(|s| {
                    s.resources = Some(Resources { log_bytes: u64::MAX, ..Resources::default() });
                }),
            ),
        ];
        for (field, change) in cases {
            let mut spec = good();
            change(&mut spec);
            assert_eq!(check(spec).unwrap_err().field, field);
        }
    }

    #[test]
    fn an_allow_list_is_put_in_the_order_in_which_it_is_signed() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let mut spec = good();
        spec.egress =
            words(&["[2001:DB8::]:53/udp", "192.0.2.7:443/tcp", "192.0.2.7/32:443-443/tcp"]);
        let signed = ["192.0.2.7/32:443/tcp", "[2001:db8::/128]:53/udp"];
        assert_eq!(check(spec).unwrap().egress, signed);
        assert_eq!(check(good()).unwrap().egress, [""; 0]);
        for bad in ["example.org:443/tcp", "192.0.2.1/24:443/tcp", "169.254.169.254:80/tcp", ""] {
            let mut spec = good();
            spec.egress = words(&["192.0.2.7:443/tcp", bad]);
            let problem = check(spec).unwrap_err();
            assert_eq!((problem.field, problem.too_large), ("spec.egress", false), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_accepted_name_has_a_tag_a_digest_or_a_way_up(name in "\\PC{0,40}") {
            if check_image_name(&name).is_ok() {
                prop_assert!(!name.contains('@') && !name.split('/').any(|part| part == ".."));
            }
        }
    }
}
