//! Why a bake failed: the error of its phase.

use std::path::PathBuf;

use crate::fetch::{FetchError, MirrorsError};
use crate::host::fs::FileError;
use crate::host::interrupt::Interrupted;
use crate::image::ImageError;
use crate::layout::LayoutError;
use crate::lock::{LockError, Unsatisfied};
use crate::profile::ProfileError;
use crate::rootfs::{Near, RootfsError};
use crate::sandbox::SandboxError;
use crate::source::debian::archive::ArchiveError;
use crate::source::debian::deb::DebError;
use crate::source::debian::resolve::ResolveError;
use crate::store::StoreError;
use crate::units::Bytes;

/// Why a bake failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant says which phase; the inner error is documented where it is born
pub enum BakeError {
    /// A generation is asked for in the mutable layout.
    #[error("only the store layout has generations: set `disk.layout = 'store` in the profile")]
    NoGeneration,
    /// A generation that can't be added to a disk.
    #[error(transparent)]
    Add(#[from] crate::image::AddError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Mirrors(#[from] MirrorsError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("the tools: {0}")]
    Tools(#[source] ResolveError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{path} doesn't answer the profile any more: {reasons}", path = path.display())]
    Stale { path: PathBuf, reasons: Unsatisfied },
    #[error("{path} is not there, and --{option} forbids making it", path = path.display())]
    NoLock { path: PathBuf, option: &'static str },
    #[error("only archives know what to update to, and they are not to be asked")]
    FixedLock,
    #[error("{path} is not there: nothing is locked yet", path = path.display())]
    Unlocked { path: PathBuf, profile: PathBuf },
    #[error("`{name}` is none of the locked packages{near}")]
    NotLocked { name: String, near: Near },
    #[error("{file} is in the way: no build of Kiln's put it there", file = file.display())]
    InTheWay { file: PathBuf },
    #[error("{count} files are not in the store, and --offline forbids to fetch them: {first}, …")]
    Offline { count: usize, first: String },
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{path}: {source}", path = path.display())]
    LocalDeb { path: PathBuf, source: DebError },
    #[error("local package {path} is not the locked one: locked is {locked}, found {found}")]
    LocalChanged { path: String, locked: String, found: String },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("{why}: without what was written, {free} are free for the store {store}", store = store.display())]
    NoSpace { why: String, free: Bytes, store: PathBuf },
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Boot(#[from] crate::boot::BootError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Export(#[from] crate::export::ExportError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] crate::publish::resolve::ResolveError),
    #[error(transparent)]
    Check(#[from] crate::check::written::BadCheck),
    #[error(transparent)]
    Vm(#[from] crate::vm::VmError),
    #[error("no machine is left to test on: {0}")]
    NoMachine(String),
    #[error("{path} was changed while it was being tested: its blocks were {before}, and are {after}", path = path.display())]
    ImageChanged { path: PathBuf, before: String, after: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Results in the store that were damaged; they are moved aside.
    #[error("{count} damaged files of the store are made again")]
    Damaged { count: usize },
    /// A result in the store that can't be read back.
    #[error("the store's result `{what}` can't be read: {why}; `kiln store verify` finds damaged ones")]
    Kept { what: &'static str, why: String },
}

impl From<crate::vm::smoke::SmokeError> for BakeError {
    fn from(error: crate::vm::smoke::SmokeError) -> BakeError {
        use crate::vm::smoke::SmokeError;
        match error {
            SmokeError::Vm(error) => error.into(),
            SmokeError::File(error) => error.into(),
            SmokeError::NoMachine(why) => BakeError::NoMachine(why),
        }
    }
}

impl BakeError {
    /// Whether something in the store was damaged, so that a second try makes it again.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            BakeError::Damaged { .. } | BakeError::Store(StoreError::Damaged { .. } | StoreError::Missing(_))
        )
    }
}
