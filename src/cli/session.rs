//! What the verbs that work on a profile share: the profile, where bytes come from, the session of phases.

use std::path::PathBuf;

use super::eval::Overrides;
use super::report::{Failure, Status};
use super::{Context, store};
use crate::bake::{Advance, BakeError, Session, Watch};
use crate::fetch::Mirrors;
use crate::profile::EvalRequest;
use crate::store::{ROOMIER, Store};

/// A profile and where its packages come from.
#[derive(Debug, Clone, clap::Args)]
pub struct ProfileArgs {
    /// The profile: a Nickel, TOML, YAML or JSON file
    #[arg(value_name = "PROFILE")]
    pub profile: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    transport: TransportArgs,
}

/// Where packages come from.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TransportArgs {
    /// Try this mirror first, for all archives or for one, as in debian=http://localhost/debian
    #[arg(long = "mirror", value_name = "[ARCHIVE=]URL")]
    mirrors: Vec<String>,
    /// Fetch nothing: everything must be in the store
    #[arg(long)]
    offline: bool,
    /// Take the lock as it is: one that isn't there, or doesn't answer the profile any more, is an error
    #[arg(long)]
    locked: bool,
}

impl ProfileArgs {
    /// A profile with nothing changed.
    #[must_use]
    pub fn plain(profile: PathBuf) -> ProfileArgs {
        ProfileArgs { profile, overrides: Overrides::default(), transport: TransportArgs::default() }
    }

    /// The profile with its overrides, to be evaluated.
    #[must_use]
    pub fn request(&self, cx: &Context) -> EvalRequest {
        self.overrides.request(&self.profile, cx)
    }

    /// Runs `work` in a session with the store open.
    ///
    /// # Errors
    /// Those of opening the store and of `work`.
    pub fn in_session<T>(
        &self,
        cx: &Context,
        work: impl FnOnce(&Session<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let store: Store = store::open(cx)?;
        let mirrors = Mirrors::of_host(&self.transport.mirrors).map_err(BakeError::from)?;
        let TransportArgs { offline, locked, .. } = self.transport;
        work(&Session { store: &store, mirrors, offline, locked_only: locked, watch: &cx.progress })
    }
}

impl Watch for super::progress::Progress {
    fn say(&self, what: &str, text: &str) {
        super::progress::Progress::say(self, what, text);
    }

    fn task<'a>(&'a self, what: &str, text: &str, total: u64) -> Box<dyn Advance + 'a> {
        Box::new(super::progress::Progress::task(self, what, text, total))
    }
}

impl Advance for super::progress::Task {
    fn at(&self, done: u64, text: &str) {
        super::progress::Task::at(self, done, text);
    }
}

impl From<BakeError> for Failure {
    fn from(error: BakeError) -> Failure {
        let usage = |kind, error: &BakeError| Failure::of(kind, error).status(Status::Usage);
        match error {
            BakeError::Profile(error) => error.into(),
            BakeError::Store(error) => error.into(),
            BakeError::File(error) => error.into(),
            BakeError::Interrupted(error) => error.into(),
            BakeError::Stale { ref path, .. } => {
                let profile = path.with_extension("ncl");
                let failure = usage("lock-stale", &error);
                failure.hint(format!("`kiln lock {}` locks what the profile asks for now", profile.display()))
            }
            BakeError::Unlocked { ref profile, .. } => {
                let hint = format!("`kiln lock {}` makes it; so does the first build", profile.display());
                usage("lock-missing", &error).hint(hint)
            }
            BakeError::NotLocked { .. } => usage("not-locked", &error)
                .hint("`kiln lock PROFILE --update` without a name updates all of them"),
            BakeError::InTheWay { .. } => usage("in-the-way", &error)
                .hint("`-o DIR` names another folder; or move the file away, if it may go"),
            BakeError::NoLock { .. } => {
                usage("lock-missing", &error).hint("`kiln lock PROFILE` makes it, without that option")
            }
            BakeError::FixedLock => usage("lock-fixed", &error)
                .hint("without --offline and --locked, `kiln lock` asks the archives what they have now"),
            BakeError::Lock(_) => usage("lock", &error).hint("mend it, or delete it and run `kiln lock`"),
            BakeError::Resolve(_) => usage("resolve", &error),
            BakeError::Rootfs(_) => usage("rootfs", &error),
            BakeError::Boot(_) => usage("boot", &error),
            BakeError::Layout(_) => usage("layout", &error),
            BakeError::LocalDeb { .. } | BakeError::LocalChanged { .. } => usage("local-deb", &error),
            BakeError::Mirrors(_) => usage("mirrors", &error),
            BakeError::Tools(_) => Failure::of("resolve-tools", &error),
            BakeError::Archive(_) => Failure::of("archive", &error),
            BakeError::Fetch(_) => Failure::of("fetch", &error),
            BakeError::Offline { .. } => Failure::of("offline", &error).hint("run it once without --offline"),
            BakeError::Sandbox(crate::sandbox::SandboxError::Script { .. }) => Failure::of("script", &error)
                .hint("the log tells what it did before; nothing of the image is kept"),
            BakeError::NoSpace { .. } => Failure::of("full", &error).hint(ROOMIER),
            BakeError::Sandbox(_) => {
                Failure::of("sandbox", &error).hint("`kiln doctor` says what this host allows")
            }
            BakeError::NoGeneration => usage("no-generation", &error),
            BakeError::Add(_) => Failure::of("generation", &error),
            BakeError::Publish(_) => usage("publish", &error),
            BakeError::Check(_) => usage("check", &error),
            BakeError::NoMachine(_) => usage("no-machine", &error)
                .hint("`test.platforms` and `test.disks` say on which machines the image is tested"),
            BakeError::Vm(ref vm) => super::run::failure(vm),
            BakeError::ImageChanged { .. } => Failure::of("image-changed", &error),
            BakeError::Image(_) => Failure::of("image", &error),
            BakeError::Export(_) => Failure::of("export", &error),
            BakeError::Damaged { .. } | BakeError::Kept { .. } => Failure::of("store", &error),
        }
    }
}
