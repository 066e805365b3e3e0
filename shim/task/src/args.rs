//! The command line that containerd gives a shim: Go's `flag` syntax.
//!
//! `-name value`, `-name=value`, and both with two dashes; a boolean takes no separate value; the
//! first word that is no flag is the action, and nothing may follow it. Everything unknown is
//! refused, so that a flag with a meaning is never passed over. Pure.

use std::ffi::OsString;
use std::path::PathBuf;

use nimbus_api::id::{ContainerId, ContainerKey, IdError};

/// Names a group to its server.
pub(crate) const GROUP_FLAG: &str = "group";

/// What this process is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// `-v`: say the version.
    Version,
    /// `-info`: describe the runtime.
    Info,
    /// `start`: spawn a server for this container and print its address.
    Start(Identity),
    /// `delete`: clean up after a server that is gone.
    Delete(Identity),
    /// No action: be the server; the listening socket is descriptor 0.
    Serve(Identity),
}

/// For which container of which containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The container.
    pub key: ContainerKey,
    /// containerd's own socket; part of what names ours.
    pub address: String,
    /// The bundle, when it is named; it is the working directory too.
    pub bundle: Option<PathBuf>,
    /// Whether containerd wants debug lines.
    pub debug: bool,
    /// The group whose server this is to be; only our own `start` says so.
    pub group: Option<ContainerId>,
}

/// Why a command line was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    /// Not UTF-8.
    #[error("argument {0:?} is not UTF-8")]
    NotText(OsString),
    /// Not one of the flags of a shim.
    #[error("unknown flag -{0}")]
    Unknown(String),
    /// A flag without its value.
    #[error("flag -{0} needs a value")]
    NoValue(String),
    /// Neither true nor false.
    #[error("flag -{name} is a boolean, found {value:?}")]
    NotBoolean {
        /// The flag.
        name: String,
        /// What was given.
        value: String,
    },
    /// Not `start` or `delete`.
    #[error("unknown action {0:?}")]
    Action(String),
    /// Namespace or id are not names.
    #[error("-{flag} is not a name")]
    Name {
        /// The flag.
        flag: &'static str,
        /// Why.
        #[source]
        source: IdError,
    },
}

#[derive(Default)]
struct Raw {
    namespace: String,
    id: String,
    address: String,
    bundle: String,
    debug: bool,
    info: bool,
    version: bool,
    action: String,
    group: String,
    ignored: String,
}

impl Invocation {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let raw = Raw::parse(args)?;
        if raw.version {
            return Ok(Self::Version);
        }
        if raw.info {
            return Ok(Self::Info);
        }
        if !raw.group.is_empty() && !raw.action.is_empty() {
            return Err(ArgsError::Unknown(GROUP_FLAG.to_owned()));
        }
        let action = match raw.action.as_str() {
            "start" => Self::Start,
            "delete" => Self::Delete,
            "" => Self::Serve,
            _ => return Err(ArgsError::Action(raw.action)),
        };
        Ok(action(raw.identity()?))
    }
}

impl Raw {
    fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut raw = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let arg = arg.into_string().map_err(ArgsError::NotText)?;
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                if !raw.action.is_empty() {
                    return Err(ArgsError::Action(arg));
                }
                raw.action = arg;
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => raw.debug = boolean(name, value.as_deref())?,
                "info" => raw.info = boolean(name, value.as_deref())?,
                "v" => raw.version = boolean(name, value.as_deref())?,
                _ => {
                    let slot = raw.text(name)?;
                    *slot = match value {
                        Some(value) => value,
                        None => next_text(&mut args, name)?,
                    };
                }
            }
        }
        Ok(raw)
    }

    fn text(&mut self, name: &str) -> Result<&mut String, ArgsError> {
        match name {
            "namespace" => Ok(&mut self.namespace),
            "id" => Ok(&mut self.id),
            "address" => Ok(&mut self.address),
            "bundle" => Ok(&mut self.bundle),
            GROUP_FLAG => Ok(&mut self.group),
            // Events go over ttrpc, never through this program; the slot is overwritten at will.
            "publish-binary" => Ok(&mut self.ignored),
            _ => Err(ArgsError::Unknown(name.to_owned())),
        }
    }

    fn identity(self) -> Result<Identity, ArgsError> {
        let name = |flag| move |source| ArgsError::Name { flag, source };
        let key = ContainerKey {
            namespace: self.namespace.parse().map_err(name("namespace"))?,
            id: self.id.parse().map_err(name("id"))?,
        };
        let bundle = Some(self.bundle).filter(|path| !path.is_empty()).map(PathBuf::from);
        let group = Some(self.group).filter(|group| !group.is_empty());
        let group = group.map(|group| group.parse()).transpose().map_err(name(GROUP_FLAG))?;
        Ok(Identity { key, address: self.address, bundle, debug: self.debug, group })
    }
}

fn boolean(name: &str, value: Option<&str>) -> Result<bool, ArgsError> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => {
            Err(ArgsError::NotBoolean { name: name.to_owned(), value: other.to_owned() })
        }
    }
}

fn next_text(args: &mut impl Iterator<Item = OsString>, name: &str) -> Result<String, ArgsError> {
    let value = args.next().ok_or_else(|| ArgsError::NoValue(name.to_owned()))?;
    value.into_string().map_err(ArgsError::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> Result<Invocation, ArgsError> {
        Invocation::parse(line.split(' ').filter(|word| !word.is_empty()).map(OsString::from))
    }

    fn identity(debug: bool, bundle: Option<&str>) -> Identity {
        Identity {
            key: ContainerKey { namespace: "nimbus".parse().unwrap(), id: "j1-1".parse().unwrap() },
            address: "/run/c.sock".to_owned(),
            bundle: bundle.map(PathBuf::from),
            debug,
            group: None,
        }
    }

    #[test]
    fn the_command_lines_of_every_containerd_are_understood() {
        let start = "-namespace nimbus -address /run/c.sock -publish-binary /usr/bin/containerd \
                     -id j1-1 start";
        assert_eq!(parse(start), Ok(Invocation::Start(identity(false, None))));
        let delete = "-namespace=nimbus --address=/run/c.sock -publish-binary= -id j1-1 \
                      -bundle /b -debug delete";
        assert_eq!(parse(delete), Ok(Invocation::Delete(identity(true, Some("/b")))));
        let serve = "-namespace nimbus -id j1-1 -address /run/c.sock -debug=false";
        assert_eq!(parse(serve), Ok(Invocation::Serve(identity(false, None))));
        let pod = Identity { group: Some("p1".parse().unwrap()), ..identity(false, None) };
        let serve = "-namespace nimbus -id j1-1 -address /run/c.sock -group p1";
        assert_eq!(parse(serve), Ok(Invocation::Serve(pod)));
        assert_eq!(parse("-v"), Ok(Invocation::Version));
        assert_eq!(parse("-debug -info"), Ok(Invocation::Info));
    }

    #[test]
    fn what_is_unknown_incomplete_or_no_name_is_refused() {
        assert_eq!(parse("-grouping x start"), Err(ArgsError::Unknown("grouping".to_owned())));
        for action in ["start", "delete"] {
            let refused = parse(&format!("-namespace n -id a -group g {action}"));
            assert_eq!(refused, Err(ArgsError::Unknown("group".to_owned())), "only start says it");
        }
        assert!(matches!(
            parse("-namespace n -id a -group a/b"),
            Err(ArgsError::Name { flag: "group", .. })
        ));
        assert_eq!(parse("start -id"), Err(ArgsError::NoValue("id".to_owned())));
        assert_eq!(parse("start delete"), Err(ArgsError::Action("delete".to_owned())));
        assert!(matches!(parse("-namespace n -id a/b start"), Err(ArgsError::Name { .. })));
        assert!(matches!(parse("-id a start"), Err(ArgsError::Name { flag: "namespace", .. })));
        assert!(matches!(parse("-debug=maybe start"), Err(ArgsError::NotBoolean { .. })));
    }

    proptest! {
        #[test]
        fn no_command_line_panics_the_parser(words: Vec<String>) {
            let _unused = Invocation::parse(words.into_iter().map(OsString::from));
        }
    }
}
