//! `kiln store`: what the store holds, and whether it is right.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::Context;
use super::report::{Failure, Status};
use crate::sandbox;
use crate::store::{Remover, Share, Store, StoreError, Usage};

/// Arguments of `kiln store`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Read everything and compare it with its digest; what is damaged is moved away and made or fetched again later
    Verify,
    /// List the outputs that `kiln gc` keeps everything for
    Roots,
}

/// Opens the store that was named, or the user's own; makes it when it isn't there.
///
/// # Errors
/// When it can't be opened.
pub fn open(cx: &Context) -> Result<Store, Failure> {
    Ok(Store::open_with(&root(cx)?, remover())?)
}

/// Opens the store that was named, or the user's own, when it is there.
///
/// # Errors
/// When it isn't, or can't be opened.
pub fn open_existing(cx: &Context) -> Result<Store, StoreError> {
    Store::open_existing(&root(cx)?, remover())
}

/// Says that there is no store yet, for verbs that have nothing to do then.
///
/// # Errors
/// When standard output can't be written to.
pub fn absent(root: &Path, cx: &Context) -> Result<(), Failure> {
    let value = serde_json::json!({ "root": root, "absent": true });
    cx.print(&value, || format!("there is no store at {} yet: the first build makes it\n", root.display()))
}

/// Where the store lies.
///
/// # Errors
/// When nothing says so.
pub fn root(cx: &Context) -> Result<PathBuf, StoreError> {
    cx.store.clone().map_or_else(Store::default_root, Ok)
}

/// What a sandbox of an ordinary user leaves belongs to other ids.
fn remover() -> Remover {
    Box::new(|path| sandbox::remove_tree(path).map_err(std::io::Error::other))
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let kind = match &error {
            StoreError::Full { .. } => "store-full",
            StoreError::Damaged { .. } => "store-damaged",
            StoreError::InUse(_) => "store-in-use",
            StoreError::Absent(_) | StoreError::Stranger { .. } => "no-store",
            _ => "store",
        };
        let failure = match &error {
            StoreError::Absent(_) | StoreError::Stranger { .. } | StoreError::NoHome => {
                Failure::of(kind, &error).status(Status::Usage)
            }
            _ => Failure::of(kind, &error),
        };
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// Prints what the store holds, verifies it, or lists its roots.
///
/// # Errors
/// When the store can't be read, or something in it was damaged.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let store = match open_existing(cx) {
        Err(StoreError::Absent(root)) => return absent(&root, cx),
        store => store?,
    };
    match args.what {
        None => {
            let usage = store.usage()?;
            let value = serde_json::json!({ "root": store.root(), "usage": usage });
            cx.print(&value, || format!("{}\n{}", store.root().display(), table(&usage)))
        }
        Some(What::Verify) => verify(&store, cx),
        Some(What::Roots) => roots(&store, cx),
    }
}

fn table(usage: &Usage) -> String {
    let mut out = String::new();
    let mut line = |name: &str, share: Share, of: &str| {
        let _ = writeln!(out, "{name:>9}  {:>7}  {:>10}  {of}", share.count, share.size.to_string());
    };
    line("blobs", usage.blobs, "packages, indexes, trees and their files");
    line("images", usage.images, "raw disks (holes not counted)");
    line("dirs", usage.dirs, "unpacked tools");
    line("steps", usage.steps, "recorded results");
    for (name, share, of) in [
        ("partial", usage.partial, "downloads to be resumed"),
        ("damaged", usage.damaged, "moved away; `kiln gc` removes them"),
        ("scratch", usage.scratch, "in use now"),
    ] {
        if share.count > 0 {
            line(name, share, of);
        }
    }
    line("together", usage.total, "");
    let stale = if usage.stale_roots > 0 {
        format!(" ({} of them gone: `kiln gc` frees what only they needed)", usage.stale_roots)
    } else {
        String::new()
    };
    let outputs = if usage.roots == 1 { "output folder" } else { "output folders" };
    let _ = writeln!(out, "{} {outputs} built from it{stale}; {} free on its disk", usage.roots, usage.free);
    out
}

fn verify(store: &Store, cx: &Context) -> Result<(), Failure> {
    let total = store.usage()?;
    let total = total.blobs.size.0 + total.images.size.0;
    let task = cx.progress.task("verify", "reading everything", total);
    let report = store.verify_all(&crate::image::block_digest, &|done, _| task.at(done.0, ""))?;
    drop(task);
    cx.print(&report, || {
        let mut out = format!("{} blobs and images ({}) are right\n", report.right.count, report.right.size);
        for digest in &report.damaged {
            let _ = writeln!(out, "damaged, moved away: {digest}");
        }
        out
    })?;
    match report.damaged.len() {
        0 => Ok(()),
        n => Err(Failure::new("store-damaged", format!("{n} of the store's blobs and images were damaged"))
            .hint("the next build fetches or makes them again")),
    }
}

fn roots(store: &Store, cx: &Context) -> Result<(), Failure> {
    let roots = store.roots()?;
    cx.print(&roots, || {
        let line = |root: &crate::store::Root| {
            let gone = if root.is_stale() { "  (gone)" } else { "" };
            format!("{:<16} {}{gone}\n", root.name, root.out.display())
        };
        roots.iter().map(line).collect()
    })
}
