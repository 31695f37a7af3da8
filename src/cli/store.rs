//! `kiln store`: what the store holds, and whether it is right.

use std::fmt::Write as _;

use super::Context;
use super::report::Failure;
use crate::sandbox;
use crate::store::{Share, Store, StoreError, Usage};

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

/// Opens the store that was named, or the user's own.
///
/// # Errors
/// When it can't be opened.
pub fn open(cx: &Context) -> Result<Store, Failure> {
    let root = cx.store.clone().map_or_else(Store::default_root, Ok)?;
    // What a sandbox of an ordinary user leaves belongs to other ids.
    let remover = |path: &std::path::Path| sandbox::remove_tree(path).map_err(std::io::Error::other);
    Ok(Store::open_with(&root, Box::new(remover))?)
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let kind = match &error {
            StoreError::Full { .. } => "store-full",
            StoreError::Damaged { .. } => "store-damaged",
            StoreError::InUse(_) => "store-in-use",
            _ => "store",
        };
        let failure = Failure::of(kind, &error);
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
    let store = open(cx)?;
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
