//! Results of steps, kept under the digest of what went in.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Store, StoreError, touch};
use crate::digest::{Digest, Hasher};
use crate::host::fs::write_atomically;

/// Everything that a step's result depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// The step's name.
    pub step: Cow<'static, str>,
    /// Version of the code that does it: raised whenever the same inputs would give another result.
    pub version: u32,
    /// The inputs themselves, or their digests, by name.
    pub fields: BTreeMap<String, String>,
}

impl Inputs {
    /// A step without any input yet.
    #[must_use]
    pub fn new(step: &'static str, version: u32) -> Inputs {
        Inputs { step: step.into(), version, fields: BTreeMap::new() }
    }

    /// Adds an input.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl ToString) -> Inputs {
        self.fields.insert(name.into(), value.to_string());
        self
    }

    /// The digest of all of it. Each text is preceded by its length, so that no two different inputs look alike.
    #[must_use]
    pub fn key(&self) -> Digest {
        let mut hasher = Hasher::new();
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        text("kiln step");
        text(&self.step);
        text(&self.version.to_string());
        for (name, value) in &self.fields {
            text(name);
            text(value);
        }
        hasher.finish()
    }
}

/// What a step made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepResult {
    /// Blobs, images and directories by name: all that the result needs, also what an output merely refers to, such
    /// as the packs of a tree, so that a collection keeps them together.
    pub outputs: BTreeMap<String, Digest>,
    /// Small values: sizes, counts, timings.
    pub facts: Map<String, Value>,
}

impl StepResult {
    /// The output of that name.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<Digest> {
        self.outputs.get(name).copied()
    }
}

/// Which of the store's folders an output lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Shelf {
    Blob,
    Image,
    Dir,
}

/// An output as a record holds it: with its size, so that a truncated file is noticed without being read.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Output {
    pub(super) shelf: Shelf,
    pub(super) digest: Digest,
    size: u64,
}

/// A step's result as its file holds it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    inputs: Inputs,
    pub(super) outputs: BTreeMap<String, Output>,
    facts: Map<String, Value>,
}

/// The inputs of a target's last build.
#[derive(Debug, Serialize, Deserialize)]
struct Target {
    target: String,
    inputs: Vec<Inputs>,
}

impl Store {
    /// The recorded result of the step with these inputs, if there is one and all its outputs are there in full size.
    /// A record that can't be read counts as none.
    #[must_use]
    pub fn lookup(&self, inputs: &Inputs) -> Option<StepResult> {
        let key = inputs.key();
        let record = self.record_at(&key)?;
        if record.inputs != *inputs {
            return None;
        }
        for output in record.outputs.values() {
            if self.size_of(output.shelf, &output.digest) != Some(output.size) {
                tracing::debug!("{} is made again: {} is missing or cut", inputs.step, output.digest.short());
                self.drop_wrong_size(output);
                return None;
            }
        }
        touch(&self.record_path(&key));
        for output in record.outputs.values() {
            touch(&self.shelf_path(output.shelf, &output.digest));
        }
        let outputs = record.outputs.into_iter().map(|(name, o)| (name, o.digest)).collect();
        Some(StepResult { outputs, facts: record.facts })
    }

    /// Keeps a step's result. All its outputs must be in the store already.
    ///
    /// # Errors
    /// [`StoreError::Missing`] names an output that isn't there.
    pub fn record(&self, inputs: &Inputs, result: &StepResult) -> Result<(), StoreError> {
        let mut outputs = BTreeMap::new();
        for (name, digest) in &result.outputs {
            let found = [Shelf::Blob, Shelf::Image, Shelf::Dir].into_iter().find_map(|shelf| {
                Some(Output { shelf, digest: *digest, size: self.size_of(shelf, digest)? })
            });
            outputs.insert(name.clone(), found.ok_or(StoreError::Missing(*digest))?);
        }
        let record = Record { inputs: inputs.clone(), outputs, facts: result.facts.clone() };
        self.write_json(&self.record_path(&inputs.key()), &record)
    }

    /// The result of a step: the recorded one, else what `make` makes, recorded. Of several processes that want the
    /// same result one makes it; the others call `waiting` and find it.
    ///
    /// # Errors
    /// Those of `make` and of the store.
    pub fn step<E: From<StoreError>>(
        &self,
        inputs: &Inputs,
        waiting: &dyn Fn(),
        make: impl FnOnce() -> Result<StepResult, E>,
    ) -> Result<StepResult, E> {
        let (step, key) = (&inputs.step, inputs.key().short());
        if let Some(result) = self.lookup(inputs) {
            tracing::debug!("step {step} {key}: cached");
            return Ok(result);
        }
        let _lock = self.lock(inputs, waiting)?;
        if let Some(result) = self.lookup(inputs) {
            tracing::debug!("step {step} {key}: made by another kiln meanwhile");
            return Ok(result);
        }
        tracing::debug!("step {step} {key}: to do");
        let begun = Instant::now();
        let result = make()?;
        self.record(inputs, &result)?;
        tracing::debug!("step {step} {key}: done in {:.2} s", begun.elapsed().as_secs_f64());
        Ok(result)
    }

    /// Remembers the inputs of all steps of a build of `target`, for [`Store::last`].
    ///
    /// # Errors
    /// When they can't be written.
    pub fn remember(&self, target: &str, inputs: &[Inputs]) -> Result<(), StoreError> {
        let value = Target { target: target.to_owned(), inputs: inputs.to_vec() };
        self.write_json(&self.target_path(target), &value)
    }

    /// The inputs of the last build of `target`.
    #[must_use]
    pub fn last(&self, target: &str) -> Option<Vec<Inputs>> {
        let bytes = fs::read(self.target_path(target)).ok()?;
        let value: Target = serde_json::from_slice(&bytes).ok()?;
        (value.target == target).then_some(value.inputs)
    }

    pub(super) fn record_path(&self, key: &Digest) -> PathBuf {
        self.fanned("steps", key)
    }

    fn target_path(&self, target: &str) -> PathBuf {
        self.root.join("targets").join(Digest::of(target.as_bytes()).to_string())
    }

    pub(super) fn record_at(&self, key: &Digest) -> Option<Record> {
        let bytes = fs::read(self.record_path(key)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes a small value so that a reader or a crash sees the old one or the new one.
    pub(super) fn write_json(
        &self,
        path: &std::path::Path,
        value: &impl Serialize,
    ) -> Result<(), StoreError> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(std::io::Error::other)
            .map_err(self.wrong("can't write", path, None))?;
        bytes.push(b'\n');
        // What is there already needs no second sync: a build in which nothing changed writes nothing.
        if fs::read(path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        Ok(write_atomically(path, &bytes)?)
    }

    /// The size that decides whether something is whole; `None` when it isn't there.
    fn size_of(&self, shelf: Shelf, digest: &Digest) -> Option<u64> {
        match shelf {
            Shelf::Blob => fs::metadata(self.blob_path(digest)).ok().filter(|m| m.is_file()).map(|m| m.len()),
            Shelf::Image => self.image_size(digest).map(|size| size.0),
            Shelf::Dir => self.dir(digest).map(|_| 0),
        }
    }

    pub(super) fn shelf_path(&self, shelf: Shelf, digest: &Digest) -> PathBuf {
        match shelf {
            Shelf::Blob => self.blob_path(digest),
            Shelf::Image => self.image_file(digest),
            Shelf::Dir => self.dir_path(digest),
        }
    }

    /// A blob that is there with another size than recorded is damaged.
    fn drop_wrong_size(&self, output: &Output) {
        if output.shelf == Shelf::Blob && self.contains(&output.digest) {
            let found = format!("it should have {} bytes", output.size);
            let error = self.set_aside_path(&output.digest, &self.blob_path(&output.digest), found);
            tracing::warn!("{error}");
        }
    }
}

/// How one input of a step differs between two builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The input's name.
    pub name: String,
    /// Its value then; none when it wasn't an input.
    pub old: Option<String>,
    /// Its value now; none when it is no input any more.
    pub new: Option<String>,
}

/// How a step's inputs differ between two builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepChange {
    /// The step's name.
    pub step: String,
    /// Whether only one of the two builds has the step.
    pub added_or_removed: bool,
    /// The inputs that differ; empty when the step is the same in both.
    pub changes: Vec<Change>,
}

/// Compares the steps of two builds, in the order of the new one; steps that only the old one has come last.
#[must_use]
pub fn changes(old: &[Inputs], new: &[Inputs]) -> Vec<StepChange> {
    let of = |list: &[Inputs], step: &str| list.iter().find(|i| i.step == step).cloned();
    let gone = old.iter().filter(|o| of(new, &o.step).is_none());
    new.iter()
        .map(|n| change(&n.step, of(old, &n.step).as_ref(), Some(n)))
        .chain(gone.map(|o| change(&o.step, Some(o), None)))
        .collect()
}

fn change(step: &str, old: Option<&Inputs>, new: Option<&Inputs>) -> StepChange {
    let fields = |inputs: Option<&Inputs>| -> BTreeMap<String, String> {
        let Some(inputs) = inputs else { return BTreeMap::new() };
        let version = ("version of the step".to_owned(), inputs.version.to_string());
        inputs.fields.clone().into_iter().chain([version]).collect()
    };
    let (before, after) = (fields(old), fields(new));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changes = names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| Change {
            name: name.clone(),
            old: before.get(name).cloned(),
            new: after.get(name).cloned(),
        })
        .collect();
    StepChange { step: step.to_owned(), added_or_removed: old.is_none() != new.is_none(), changes }
}

#[cfg(test)]
mod tests {
    use super::super::tests::temporary;
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn result(outputs: &[(&str, Digest)]) -> StepResult {
        let outputs = outputs.iter().map(|(n, d)| ((*n).to_owned(), *d)).collect();
        let facts = serde_json::json!({ "files": 7 }).as_object().unwrap().clone();
        StepResult { outputs, facts }
    }

    #[test]
    fn a_result_is_found_by_equal_inputs_only_while_its_outputs_are_whole() {
        let (_folder, store) = temporary();
        let inputs = Inputs::new("compose", 1).with("system", "x");
        let made = result(&[("tree", store.put_bytes(b"tree").unwrap())]);
        assert_eq!(store.lookup(&inputs), None);
        store.record(&inputs, &made).unwrap();
        assert_eq!(store.lookup(&inputs), Some(made.clone()));
        assert_eq!(store.lookup(&inputs.clone().with("system", "y")), None);
        assert_eq!(store.lookup(&Inputs { version: 2, ..inputs.clone() }), None);
        let blob = store.blob_path(&made.outputs["tree"]);
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&blob, "tr").unwrap();
        assert_eq!(store.lookup(&inputs), None);
        assert!(!store.contains(&made.outputs["tree"]), "a cut blob stayed under its name");
        store.put_bytes(b"tree").unwrap();
        assert_eq!(store.lookup(&inputs), Some(made));
        fs::write(store.record_path(&inputs.key()), "{\"inputs\":").unwrap();
        assert_eq!(store.lookup(&inputs), None);
    }

    #[test]
    fn an_output_must_be_there_to_be_recorded() {
        let (_folder, store) = temporary();
        let error = store.record(&Inputs::new("s", 1), &result(&[("x", Digest([7; 32]))])).unwrap_err();
        assert!(matches!(error, StoreError::Missing(d) if d == Digest([7; 32])));
    }

    #[test]
    fn a_step_is_made_once_by_several_threads() {
        let (_folder, store) = temporary();
        let inputs = Inputs::new("slow", 1);
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let result = store.step(&inputs, &|| {}, || {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        Ok::<_, StoreError>(result(&[("out", store.put_bytes(b"out")?)]))
                    });
                    assert_eq!(result.unwrap().output("out"), Some(Digest::of(b"out")));
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn the_last_build_is_remembered_and_compared() {
        let (_folder, store) = temporary();
        assert_eq!(store.last("server"), None);
        let old = [Inputs::new("a", 1).with("x", "1").with("y", "1"), Inputs::new("gone", 1)];
        store.remember("server", &old).unwrap();
        assert_eq!(store.last("server").as_deref(), Some(&old[..]));
        let new = [Inputs::new("a", 2).with("x", "2").with("z", "1"), Inputs::new("same", 1)];
        let changes = changes(&old, &new);
        let names = |i: usize| changes[i].changes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
        assert_eq!(changes.iter().map(|c| c.step.as_str()).collect::<Vec<_>>(), ["a", "same", "gone"]);
        assert_eq!(names(0), ["version of the step", "x", "y", "z"]);
        assert_eq!(changes[0].changes[1].old.as_deref(), Some("1"));
        assert_eq!(changes[0].changes[2].new, None);
        assert!(!changes[0].added_or_removed && changes[1].added_or_removed && changes[2].added_or_removed);
        assert!(super::changes(&old, &old).iter().all(|c| c.changes.is_empty()));
    }

    fn any_inputs() -> impl Strategy<Value = Inputs> {
        let fields = proptest::collection::btree_map("[a-c]{0,3}", "[a-c]{0,3}", 0..3);
        (prop_oneof![Just("a"), Just("ab")], 0u32..3, fields).prop_map(|(step, version, fields)| Inputs {
            step: step.into(),
            version,
            fields,
        })
    }

    proptest! {
        #[test]
        fn keys_are_equal_exactly_when_inputs_are(a in any_inputs(), b in any_inputs()) {
            prop_assert_eq!(a.key() == b.key(), a == b);
            let json = serde_json::to_string(&a).unwrap();
            prop_assert_eq!(serde_json::from_str::<Inputs>(&json).unwrap(), a);
        }
    }
}
