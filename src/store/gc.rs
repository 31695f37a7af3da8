//! Collection: drops what no root needs, the least recently used first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, TryLockError};
use std::io;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::step::Shelf;
use super::usage::{Item, Kind, Share};
use super::{Root, Store, StoreError, check_interrupt, lock};
use crate::digest::Digest;
use crate::host::fs::FileError;
use crate::units::Bytes;

/// What a collection may drop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcOptions {
    /// Drop only as much as is needed to come down to this size; without it, everything that no root needs.
    pub max_size: Option<Bytes>,
    /// Forget the results of all steps as well: only packages and other things that were fetched stay.
    pub forget_steps: bool,
    /// Keep also what was used within this time.
    pub keep: Option<Duration>,
    /// Only say what would be dropped.
    pub dry_run: bool,
}

/// What a collection dropped, or would drop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// By kind: `blobs`, `images`, `dirs`, `steps`, `partial`, `damaged`.
    pub removed: BTreeMap<&'static str, Share>,
    /// All of it together.
    pub freed: Share,
    /// What stays.
    pub kept: Share,
    /// Output folders that are gone, so that they keep nothing any more.
    pub stale_roots: Vec<String>,
    /// By how much the store is still larger than was asked for, because what stays is needed or in recent use.
    pub over: Option<Bytes>,
}

/// What the roots need.
#[derive(Debug, Default)]
struct Marked {
    steps: BTreeSet<Digest>,
    things: BTreeSet<(Shelf, Digest)>,
}

impl Marked {
    fn needs(&self, item: &Item) -> bool {
        match item.kind {
            Kind::Step => self.steps.contains(&item.name),
            Kind::On(shelf) => self.things.contains(&(shelf, item.name)),
            Kind::Partial | Kind::Damaged => false,
        }
    }
}

impl Store {
    /// Drops what no root needs. Nothing is dropped while another process has the store open.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it open; else when something can't be read or removed.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport, StoreError> {
        if options.dry_run {
            return self.collect(options);
        }
        for thread in self.syncing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
        let path = self.root.join("lock");
        let report = match self.in_use.try_lock() {
            Ok(()) => self.collect(options),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(self.root.clone())),
            Err(TryLockError::Error(e)) => Err(FileError::at("can't lock", &path)(e).into()),
        };
        // Changing the kind of a lock may drop it first, also when that fails: take the shared one again.
        lock::wait_shared(&self.in_use, &path)?;
        report
    }

    fn collect(&self, options: &GcOptions) -> Result<GcReport, StoreError> {
        let (stale, live): (Vec<Root>, Vec<Root>) = self.roots()?.into_iter().partition(Root::is_stale);
        let marked = self.mark(&live, options.forget_steps);
        let items = self.items()?;
        let total = items.iter().map(|i| i.size.0).sum();
        let doomed = choose(&items, &marked, total, options);
        let mut report = GcReport {
            stale_roots: stale.iter().map(|r| r.out.display().to_string()).collect(),
            ..GcReport::default()
        };
        for item in &items {
            if doomed.contains(&(item.kind, item.name)) {
                report.removed.entry(plural(item.kind)).or_default().add(item.size);
                report.freed.add(item.size);
            } else {
                report.kept.add(item.size);
            }
        }
        let max = options.max_size.map_or(u64::MAX, |m| m.0);
        report.over = report.kept.size.0.checked_sub(max).filter(|o| *o > 0).map(Bytes);
        if !options.dry_run {
            for root in &stale {
                self.drop_root(&root.out)?;
            }
            self.sweep(&items, &doomed)?;
        }
        Ok(report)
    }

    fn mark(&self, roots: &[Root], forget_steps: bool) -> Marked {
        let mut marked = Marked::default();
        for root in roots {
            for digest in &root.digests {
                marked.things.extend([Shelf::Blob, Shelf::Image, Shelf::Dir].map(|shelf| (shelf, *digest)));
            }
            for key in root.steps.iter().filter(|_| !forget_steps) {
                let Some(record) = self.record_at(key) else { continue };
                marked.steps.insert(*key);
                marked.things.extend(record.outputs.values().map(|o| (o.shelf, o.digest)));
            }
        }
        marked
    }

    /// Removes, records of steps first: a crash in between leaves things without a record, not the other way round.
    fn sweep(&self, items: &[Item], doomed: &BTreeSet<(Kind, Digest)>) -> Result<(), StoreError> {
        let mut items: Vec<&Item> = items.iter().filter(|i| doomed.contains(&(i.kind, i.name))).collect();
        items.sort_by_key(|i| i.kind);
        for item in items {
            check_interrupt()?;
            match item.kind {
                Kind::On(Shelf::Dir) => self.remove_dir(item)?,
                Kind::On(Shelf::Image) => {
                    self.remove_file(&item.path)?;
                    self.remove_file(&self.image_sidecar(&item.name))?;
                }
                _ => self.remove_file(&item.path)?,
            }
        }
        self.packs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        let locks = self.root.join("locks");
        for entry in fs::read_dir(&locks).map_err(FileError::at("can't read", &locks))?.flatten() {
            self.remove_file(&entry.path())?;
        }
        Ok(())
    }

    /// A directory goes to a scratch first, so that a crash leaves none that is half there.
    fn remove_dir(&self, item: &Item) -> Result<(), StoreError> {
        let scratch = self.scratch("gc")?;
        let moved = scratch.path().join("dir");
        fs::rename(&item.path, &moved).map_err(FileError::at("can't remove", &item.path))?;
        self.remove_tree(&moved)?;
        self.remove_file(&self.dir_sidecar(&item.name))
    }

    fn remove_file(&self, path: &std::path::Path) -> Result<(), StoreError> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(FileError::at("can't remove", path)(e).into())
            }
            _ => Ok(()),
        }
    }
}

/// The things to drop: damaged ones always; of the others that no root needs, those used least recently.
fn choose(items: &[Item], marked: &Marked, total: u64, options: &GcOptions) -> BTreeSet<(Kind, Digest)> {
    let since = options.keep.and_then(|keep| SystemTime::now().checked_sub(keep));
    let mut loose: Vec<&Item> = items
        .iter()
        .filter(|i| i.kind == Kind::Damaged || (!marked.needs(i) && since.is_none_or(|since| i.used < since)))
        .collect();
    loose.sort_by_key(|i| (i.kind != Kind::Damaged, i.used, i.kind, i.name));
    let mut size = total;
    let mut doomed = BTreeSet::new();
    for item in loose {
        let fits = options.max_size.is_some_and(|max| size <= max.0);
        if fits && item.kind != Kind::Damaged {
            break;
        }
        size -= item.size.0;
        doomed.insert((item.kind, item.name));
    }
    doomed
}

fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Step => "steps",
        Kind::On(Shelf::Blob) => "blobs",
        Kind::On(Shelf::Image) => "images",
        Kind::On(Shelf::Dir) => "dirs",
        Kind::Partial => "partial",
        Kind::Damaged => "damaged",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::temporary;
    use super::*;
    use crate::store::{Inputs, StepResult};
    use std::fs::File;
    use std::path::Path;

    /// Records a step with one blob, used so many seconds ago; answers the blob.
    fn step(store: &Store, name: &str, age: u64) -> (Inputs, Digest) {
        let inputs = Inputs::new("step", 1).with("name", name);
        let blob = store.put_bytes(name.repeat(2000).as_bytes()).unwrap();
        let outputs = [("out".to_owned(), blob)].into();
        store.record(&inputs, &StepResult { outputs, ..StepResult::default() }).unwrap();
        for path in [store.blob_path(&blob), store.record_path(&inputs.key())] {
            let when = SystemTime::now() - Duration::from_secs(age);
            File::open(path).unwrap().set_modified(when).unwrap();
        }
        (inputs, blob)
    }

    fn root(store: &Store, out: &Path, inputs: &Inputs) {
        let steps = [inputs.key()].into();
        let root = Root { name: "r".into(), out: out.to_owned(), steps, digests: BTreeSet::new() };
        store.add_root(&root).unwrap();
    }

    #[test]
    fn what_a_living_root_needs_stays_and_the_rest_goes() {
        let (folder, store) = temporary();
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        let ((kept, kept_blob), (loose, loose_blob)) = (step(&store, "a", 0), step(&store, "b", 0));
        root(&store, &out, &kept);
        fs::write(store.partial_path(&Digest([1; 32])), "half").unwrap();
        let scratch = store.scratch("dir").unwrap();
        fs::create_dir_all(scratch.path().join("t/x")).unwrap();
        store.adopt_dir(&scratch.path().join("t"), &Digest([2; 32])).unwrap();

        let dry = store.gc(&GcOptions { dry_run: true, ..GcOptions::default() }).unwrap();
        assert!(store.contains(&loose_blob));
        let report = store.gc(&GcOptions::default()).unwrap();
        assert_eq!(report, dry);
        let counts: Vec<_> = report.removed.iter().map(|(k, s)| (*k, s.count)).collect();
        assert_eq!(counts, [("blobs", 1), ("dirs", 1), ("partial", 1), ("steps", 1)]);
        assert!(store.lookup(&kept).is_some() && store.contains(&kept_blob));
        assert!(store.lookup(&loose).is_none() && !store.contains(&loose_blob));
        let usage = store.usage().unwrap();
        assert_eq!(usage.total.count - usage.scratch.count, report.kept.count);

        fs::remove_dir(&out).unwrap();
        let report = store.gc(&GcOptions::default()).unwrap();
        assert_eq!(report.stale_roots, [out.display().to_string()]);
        assert!(!store.contains(&kept_blob) && store.roots().unwrap().is_empty());
    }

    #[test]
    fn an_image_stays_for_as_long_as_there_is_an_overlay_over_it() {
        let (folder, store) = temporary();
        let scratch = store.scratch("disk").unwrap();
        let [kept, loose] = [1, 2].map(|n| {
            let (path, digest) = (scratch.path().join("disk.raw"), Digest([n; 32]));
            fs::write(&path, [n; 4096]).unwrap();
            store.adopt_image(&path, &digest).unwrap();
            digest
        });
        let overlay = folder.path().join("seabios-virtio.qcow2");
        fs::write(&overlay, "").unwrap();
        store.keep_under(&overlay, "web", &store.image_path(&kept).unwrap()).unwrap();
        store.keep_under(&overlay, "web", &folder.path().join("other.raw")).unwrap();
        store.gc(&GcOptions::default()).unwrap();
        assert!(store.image_path(&kept).is_some() && store.image_path(&loose).is_none());
        fs::remove_file(&overlay).unwrap();
        store.gc(&GcOptions::default()).unwrap();
        assert!(store.image_path(&kept).is_none() && store.roots().unwrap().is_empty());
    }

    #[test]
    fn the_least_recently_used_go_first_and_recent_ones_can_be_kept() {
        let (_folder, store) = temporary();
        let blobs = [("old", 3000), ("middle", 2000), ("new", 1000)].map(|(n, age)| step(&store, n, age).1);
        let all = store.gc(&GcOptions { dry_run: true, ..GcOptions::default() }).unwrap().freed.size;
        let max_size = Some(Bytes(all.0 - 1));
        store.gc(&GcOptions { max_size, ..GcOptions::default() }).unwrap();
        assert_eq!(blobs.map(|b| store.contains(&b)), [false, true, true]);
        let keep = Some(Duration::from_secs(1500));
        let report = store.gc(&GcOptions { keep, ..GcOptions::default() }).unwrap();
        assert_eq!(blobs.map(|b| store.contains(&b)), [false, false, true]);
        assert_eq!(report.over, None);
        let report = store.gc(&GcOptions { keep, max_size: Some(Bytes(1)), ..GcOptions::default() }).unwrap();
        assert!(report.over.is_some());
    }

    #[test]
    fn nothing_goes_while_another_one_has_the_store_open() {
        let (_folder, store) = temporary();
        let (_, blob) = step(&store, "x", 0);
        let other = Store::open(store.root()).unwrap();
        let error = store.gc(&GcOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::InUse(_)), "{error}");
        assert!(store.contains(&blob));
        drop(other);
        store.gc(&GcOptions::default()).unwrap();
        assert!(!store.contains(&blob));
    }
}
