//! What can be wrong with a system once the packages' tree is known.

use std::fmt;
use std::io;

use crate::rootfs::near::Near;

/// Why no image tree can be made. Every message begins with the profile's field that is at fault.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A path can't be written.
    #[error("{field}: {path} can't be written: {why}")]
    Path {
        /// The profile's field.
        field: String,
        /// The path, absolute.
        path: String,
        /// What is in the way.
        why: PathError,
    },
    /// An account or group is not as it should be.
    #[error("{field}: {why}")]
    Account {
        /// The profile's field.
        field: String,
        /// What is wrong.
        why: AccountError,
    },
    /// A systemd unit is not as it should be.
    #[error("units.\"{unit}\": {why}")]
    Unit {
        /// The unit's name.
        unit: String,
        /// What is wrong.
        why: UnitError,
    },
    /// A package is missing that a field needs.
    #[error("{field} needs {what}, which the packages' tree doesn't have: add packages.{package} = {{}}")]
    NeedsPackage {
        /// The profile's field.
        field: String,
        /// The program or file that is missing.
        what: String,
        /// The package that brings it.
        package: &'static str,
    },
    /// A value has the wrong form.
    #[error("{field} = {value:?} is wrong: {why}")]
    Value {
        /// The profile's field.
        field: String,
        /// What it holds.
        value: String,
        /// What is expected.
        why: String,
    },
    /// Two fields contradict each other.
    #[error("{first} and {second} contradict each other: {why}")]
    Contradiction {
        /// One field.
        first: String,
        /// The other field.
        second: String,
        /// In which way.
        why: String,
    },
    /// A `source` beside the profile can't be read.
    #[error("{field}: the source {name:?} can't be read: {error}")]
    Source {
        /// The profile's field.
        field: String,
        /// Name of the source, relative to the profile.
        name: String,
        /// Why not.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the packages' tree can't be read or understood.
    #[error("/{path} of the packages' tree can't be used: {error}")]
    Base {
        /// Its path.
        path: String,
        /// Why not.
        error: io::Error,
    },
}

impl RootfsError {
    /// A value of the wrong form.
    pub(super) fn value(
        field: impl Into<String>,
        value: impl Into<String>,
        why: impl Into<String>,
    ) -> RootfsError {
        RootfsError::Value { field: field.into(), value: value.into(), why: why.into() }
    }

    /// Something wrong with an account or group.
    pub(super) fn account(field: impl Into<String>, why: AccountError) -> RootfsError {
        RootfsError::Account { field: field.into(), why }
    }

    /// Something wrong with a unit.
    pub(super) fn unit(unit: impl Into<String>, why: UnitError) -> RootfsError {
        RootfsError::Unit { unit: unit.into(), why }
    }
}

/// Why a path can't be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It doesn't begin with a slash.
    #[error("it must be absolute, as in /etc/motd")]
    NotAbsolute,
    /// It has `..` or `.` parts, a NUL byte, or is the root itself.
    #[error("it must name a file plainly: no . or .. part, no trailing slash, no NUL byte")]
    NotPlain,
    /// Something above it is no directory.
    #[error("/{0} is {1}, not a directory")]
    ParentIsNotDirectory(String, &'static str),
    /// It is a directory already.
    #[error("it is a directory, with {0} entries below it")]
    IsDirectory(usize),
    /// It is no directory, but should be one.
    #[error("it is {0}, not a directory")]
    IsNotDirectory(&'static str),
    /// Symbolic links lead in a circle.
    #[error("symbolic links on the way lead in a circle")]
    Loop,
    /// It lies where a file system is mounted at boot that begins empty.
    #[error(
        "at boot an empty file system covers /{0}; let systemd make it: a line in /etc/tmpfiles.d/NAME.conf"
    )]
    Volatile(&'static str),
    /// Another field writes the same path.
    #[error("{0} writes it as well")]
    AlsoBy(String),
    /// The accounts' files are not written whole.
    #[error("Kiln edits it from `users` and `groups`; declare accounts there")]
    Accounts,
    /// The menu is written from other fields.
    #[error("Kiln writes the boot menu, from `boot` and `kernel`")]
    BootMenu,
    /// More than the file system can name.
    #[error("a part of it has {0} bytes; a file system takes at most 255")]
    TooLong(usize),
}

/// What is wrong with an account or a group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The name has a form that Debian's tools refuse.
    #[error(
        "{0:?} is no valid name: lower-case letters, digits, `_`, `-` and `.`, beginning with a letter or `_`, at most 32"
    )]
    BadName(String),
    /// The number is somebody else's.
    #[error("{kind} {id} is asked for, but belongs to {holder}, {origin}; choose another number")]
    IdTaken {
        /// `uid` or `gid`.
        kind: &'static str,
        /// The number.
        id: u32,
        /// Who has it.
        holder: String,
        /// Where that one comes from.
        origin: &'static str,
    },
    /// The name exists with another number.
    #[error(
        "it exists with {kind} {has}, {origin}, but {kind} {wants} is asked for; leave the number out or use {has}"
    )]
    OtherId {
        /// `uid` or `gid`.
        kind: &'static str,
        /// The number that it has.
        has: u32,
        /// The number asked for.
        wants: u32,
        /// Where the one in the tree comes from.
        origin: &'static str,
    },
    /// No number is given and no package made the account.
    #[error("no package makes it, so it needs a fixed {kind}: set {kind} (1000 and above for people){near}")]
    NeedsId {
        /// `uid` or `gid`.
        kind: &'static str,
        /// Similar names.
        near: Near,
    },
    /// A group that doesn't exist.
    #[error("there is no group {name:?}{near}; declare it in `groups`, or add the package that makes it")]
    NoGroup {
        /// The name.
        name: String,
        /// Similar names.
        near: Near,
    },
    /// A user that doesn't exist.
    #[error("there is no user {name:?}{near}; declare it in `users`, or add the package that makes it")]
    NoUser {
        /// The name.
        name: String,
        /// Similar names.
        near: Near,
    },
    /// A field of passwd(5) can't hold this.
    #[error("{what} can't hold {value:?}: a colon, a line break and control characters are not allowed")]
    BadField {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A login shell that isn't there.
    #[error("the shell {0} isn't in the tree; add the package that brings it")]
    NoShell(String),
    /// Keys need a home to lie in.
    #[error("ssh_keys need a home directory, but {0} doesn't exist; set create_home = true")]
    NoHome(String),
    /// The password is not a hash.
    #[error(
        "hashed_password must be a crypt(5) hash, as `mkpasswd` prints it ($y$…, $6$…); never put a plain password in a profile"
    )]
    NotHashed,
    /// A public key of the wrong form.
    #[error(
        "the key {0:?} is no line of authorized_keys (sshd(8)): a type, as in ssh-ed25519, and its base64 text"
    )]
    BadKey(String),
}

/// What is wrong with a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The name has no valid form.
    #[error("it is no unit name: expected NAME.service, NAME.timer, NAME@INSTANCE.service, …")]
    BadName,
    /// No such unit.
    #[error("no package brings it and it has no text{0}")]
    Unknown(Near),
    /// It can't be enabled, for it doesn't say where.
    #[error(
        "it can't be enabled: it has no [Install] section and nothing in the tree starts it; add a drop-in with [Install] WantedBy=multi-user.target"
    )]
    NoInstall,
    /// It can't be enabled, being masked by its package.
    #[error("it can't be enabled: its package masks it ({0} leads to /dev/null)")]
    Masked(String),
    /// Own text and masked.
    #[error("it has a text of its own and is masked; leave one of them out")]
    TextAndMasked,
    /// A template without instance.
    #[error("it is a template without DefaultInstance=: enable an instance of it, as in {0}")]
    NeedsInstance(String),
    /// A line that systemd would not understand.
    #[error("{place}, line {line}: {why}")]
    Syntax {
        /// `text`, or `drop_ins.NAME`.
        place: String,
        /// Number of the line, from 1.
        line: usize,
        /// What is expected.
        why: &'static str,
    },
    /// A specifier that has no value in an image.
    #[error("its [Install] section uses %{0}, which has no fixed value in an image")]
    Specifier(char),
    /// A timer without service.
    #[error("it starts {0}, which doesn't exist")]
    NoTarget(String),
    /// Another unit has the name that it wants to have as well.
    #[error("its Alias={alias} is taken: {target} has that name already; disable one of them")]
    AliasTaken {
        /// The name.
        alias: String,
        /// What has it.
        target: String,
    },
    /// Links of [Install] can't be made.
    #[error("its [Install] section names {0:?}, which is no unit name that fits")]
    BadInstall(String),
}

/// Text for `kind` of what is in the way.
pub(super) fn what_is(kind: &crate::tree::Kind) -> &'static str {
    use crate::tree::Kind;
    match kind {
        Kind::Dir => "a directory",
        Kind::File(_) | Kind::HardLink(_) => "a file",
        Kind::Symlink(_) => "a symbolic link",
        Kind::CharDev { .. } | Kind::BlockDev { .. } => "a device",
        Kind::Fifo => "a named pipe",
    }
}

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => Ok(()),
            [one] => write!(f, "; is {one} meant?"),
            many => write!(f, "; is one of {} meant?", many.join(", ")),
        }
    }
}
