//! What a build leaves in its output folder: the image in each format, and a manifest of it all.
//!
//! Files are complete under their final names or not there. One that is there already and was not touched since Kiln put
//! it there is left as it is; a stamp beside them remembers what was put there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::closure::package_digests;
use super::steps::open_image;
use super::{BakeError, BakedDisk, BakedTree, BuildRequest, Generation, Locked, Session, ToolSet};
use crate::digest::Digest;
use crate::export::{self, Compression};
use crate::host::fs::{FileError, NewFile, copy_sparse, write_atomically};
use crate::layout::Layout;
use crate::store::{Inputs, Root, StepResult};

/// Name of the manifest in the output folder.
const MANIFEST: &str = "manifest.json";
/// Name of the file that remembers what was put into an output folder.
const STAMP: &str = ".kiln-outputs.json";

/// A format of image files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes, a sparse file.
    Raw,
    /// QEMU's format, version 3, compressed with zstd.
    Qcow2,
    /// The generation alone, for `kiln switch` on machines that run an earlier one.
    Generation,
}

impl Format {
    /// The file name's extension.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Generation => "kiln",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            "generation" => Ok(Format::Generation),
            _ => Err(format!("`{text}` is no format: there are raw, qcow2 and generation")),
        }
    }
}

/// An image file in the output folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Its format.
    pub format: Format,
    /// Its name in the folder.
    pub file: String,
    /// Its size in bytes, holes included.
    pub size: u64,
    /// SHA-256 of the file, as `sha256sum` prints it; of a raw disk only when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
}

/// A package of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub arch: String,
    /// SHA-256 of the `.deb`.
    pub sha256: Digest,
}

/// What is known of a build: `manifest.json`. All but `timings` is a function of profile and lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of Kiln that baked.
    pub kiln: String,
    /// The system's name.
    pub name: String,
    /// The system's version.
    pub version: String,
    /// Its architecture.
    pub arch: String,
    /// The time stamped on files, in seconds since 1970.
    pub epoch: i64,
    /// SHA-256 of the lock's text.
    pub lock: Digest,
    /// Identity of the disk: SHA-256 over its size and the SHA-256 of each 512 KiB block.
    pub blocks: Digest,
    /// Size of the disk in bytes.
    pub size: u64,
    /// The files.
    pub images: Vec<ImageFile>,
    /// What lies where on the disk.
    pub layout: Layout,
    /// The packages.
    pub packages: Vec<ManifestPackage>,
    /// Seconds that each phase took when it was last done.
    pub timings: BTreeMap<String, f64>,
}

/// What a build left.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// The output folder.
    pub folder: PathBuf,
    /// The manifest.
    pub manifest: Manifest,
    /// Whether any file in the folder was written.
    pub changed: bool,
}

/// A file as it was when Kiln put it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    content: Digest,
    size: u64,
    inode: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path, content: Digest) -> Option<Stamp> {
        let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        Some(Stamp { content, size: meta.len(), inode: meta.ino(), modified })
    }
}

/// A format's file in the store.
pub(super) struct Made {
    pub(super) path: PathBuf,
    /// What tells its content: the disk's blocks for raw, SHA-256 else.
    content: Digest,
    sha256: Option<Digest>,
    /// The step that made it, and the seconds that it took.
    step: Option<(Inputs, Option<f64>)>,
}

impl Session<'_> {
    pub(super) fn output(
        &self,
        locked: &Locked,
        tree: &BakedTree,
        disk: &BakedDisk,
        request: &BuildRequest,
    ) -> Result<Outputs, BakeError> {
        let system = locked.profile.system();
        let folder = folder_of(request, &system.name);
        refuse_foreign(&folder, &system.name, &request.formats)?;
        fs::create_dir_all(&folder).map_err(FileError::at("can't make the folder", &folder))?;
        let _lock = self.store.lock_name(&folder.to_string_lossy(), &self.waiting("output"))?;
        let mut stamps = read_stamps(&folder);
        // A collection keeps what the next build after a small change starts from, and what boots the image.
        let mut steps = [&tree.steps[..], &disk.steps, &[Self::tools_inputs(locked, ToolSet::Vm)]].concat();
        let (mut images, mut timings, mut changed) = (Vec::new(), disk.timings.clone(), false);
        for &format in &request.formats {
            let made = match format {
                Format::Generation => {
                    self.made_generation(locked, disk.generation.as_ref().ok_or(BakeError::NoGeneration)?)?
                }
                Format::Raw | Format::Qcow2 => self.made(disk, format, request.sha256)?,
            };
            if let Some((step, seconds)) = made.step {
                steps.push(step);
                timings.extend(seconds.map(|s| (format.extension().to_owned(), s)));
            }
            let file = format!("{}.{}", system.name, format.extension());
            let target = folder.join(&file);
            if stamps.get(&file).is_none_or(|s| Stamp::of(&target, made.content).as_ref() != Some(s)) {
                place(&made.path, &target)?;
                changed = true;
            }
            stamps.extend(Stamp::of(&target, made.content).map(|s| (file.clone(), s)));
            let size = fs::metadata(&target).map_err(FileError::at("can't read", &target))?.len();
            images.push(ImageFile { format, file, size, sha256: made.sha256 });
        }
        for format in [Format::Raw, Format::Qcow2, Format::Generation]
            .into_iter()
            .filter(|f| !request.formats.contains(f))
        {
            self.drop_stale(
                disk,
                &folder,
                &format!("{}.{}", system.name, format.extension()),
                format,
                &mut stamps,
            );
        }
        write_json(&folder.join(STAMP), &stamps)?;
        let manifest = manifest(locked, disk, images, timings);
        write_json(&folder.join(MANIFEST), &manifest)?;
        self.store.add_root(&Root {
            name: system.name.clone(),
            out: folder.clone(),
            steps: steps.iter().map(Inputs::key).collect(),
            digests: package_digests(locked),
        })?;
        Ok(Outputs { folder, manifest, changed })
    }

    /// Removes another format's file from the output folder when it shows an earlier disk and nobody touched it since: an
    /// old image beside a new one is soon published for it.
    fn drop_stale(
        &self,
        disk: &BakedDisk,
        folder: &Path,
        file: &str,
        format: Format,
        stamps: &mut BTreeMap<String, Stamp>,
    ) {
        let current = match format {
            Format::Raw => Some(disk.image.blocks),
            Format::Qcow2 | Format::Generation => {
                self.store.lookup(&Self::export_inputs(disk, format)).and_then(|known| known.output("file"))
            }
        };
        let Some(stamp) = stamps.get(file).filter(|stamp| Some(stamp.content) != current) else { return };
        let path = folder.join(file);
        if Stamp::of(&path, stamp.content).as_ref() == Some(stamp) && fs::remove_file(&path).is_ok() {
            self.watch.say("removed", &format!("{}, of an earlier disk", path.display()));
        }
        stamps.remove(file);
    }

    fn export_inputs(disk: &BakedDisk, format: Format) -> Inputs {
        match &disk.generation {
            Some(generation) if format == Format::Generation => Self::generation_export_inputs(generation),
            _ => Self::inputs_of(format).with("disk", disk.image.blocks),
        }
    }

    fn generation_export_inputs(generation: &Generation) -> Inputs {
        Self::inputs_of(Format::Generation).with("generation", generation.key())
    }

    fn inputs_of(format: Format) -> Inputs {
        Inputs::new(format.extension(), 1).with("code", env!("KILN_CODE_EXPORT"))
    }

    /// The generation as a file of the store.
    pub(super) fn made_generation(
        &self,
        locked: &Locked,
        generation: &Generation,
    ) -> Result<Made, BakeError> {
        let inputs = Self::generation_export_inputs(generation);
        let make = || {
            let started = Instant::now();
            let mut result = StepResult::default();
            result.outputs.insert("file".into(), self.generation_file(locked, generation)?);
            result.facts.insert("seconds".into(), started.elapsed().as_secs_f64().into());
            Ok::<_, BakeError>(result)
        };
        let result = self.store.step(&inputs, &self.waiting("generation"), make)?;
        let seconds = result.facts.get("seconds").and_then(serde_json::Value::as_f64);
        let blob = result
            .output("file")
            .ok_or(BakeError::Kept { what: "generation", why: "it has no file".into() })?;
        let path = self.store.blob_path(&blob);
        Ok(Made { path, content: blob, sha256: Some(blob), step: Some((inputs, seconds)) })
    }

    /// The disk in one format, as a file of the store. The disk itself needs no step, unless its plain SHA-256 is asked for.
    fn made(&self, disk: &BakedDisk, format: Format, sha256: bool) -> Result<Made, BakeError> {
        let (path, content) = (disk.image.path.clone(), disk.image.blocks);
        if format == Format::Raw && !sha256 {
            return Ok(Made { path, content, sha256: None, step: None });
        }
        let inputs = Self::export_inputs(disk, format);
        let result =
            self.store.step(&inputs, &self.waiting(format.extension()), || self.make(disk, format))?;
        let seconds = result.facts.get("seconds").and_then(serde_json::Value::as_f64);
        let step = Some((inputs, seconds));
        let wrong = |why: &str| BakeError::Kept { what: "image", why: why.to_owned() };
        match format {
            Format::Raw => {
                let sha256 = result.facts.get("sha256").and_then(|v| v.as_str()).and_then(|v| v.parse().ok());
                let sha256 = Some(sha256.ok_or_else(|| wrong("it has no digest"))?);
                Ok(Made { path, content, sha256, step })
            }
            Format::Qcow2 | Format::Generation => {
                let blob = result.output("file").ok_or_else(|| wrong("it has no file"))?;
                Ok(Made { path: self.store.blob_path(&blob), content: blob, sha256: Some(blob), step })
            }
        }
    }

    fn make(&self, disk: &BakedDisk, format: Format) -> Result<StepResult, BakeError> {
        let started = Instant::now();
        let mut result = StepResult::default();
        let raw = open_image(self.store, &disk.image)?;
        match format {
            Format::Raw => {
                let _task = self.watch.task("hashing", &format!("a disk of {}", disk.image.size), 0);
                let sha256 =
                    crate::image::sha256(&raw).map_err(FileError::at("can't read", &disk.image.path))?;
                result.facts.insert("sha256".into(), sha256.to_string().into());
                result.outputs.insert("image".into(), disk.image.blocks);
            }
            Format::Qcow2 | Format::Generation => {
                let _task = self.watch.task("compressing", "qcow2", 0);
                let scratch = self.store.scratch("qcow2")?;
                let path = scratch.path().join("disk.qcow2");
                export::qcow2(&disk.image.path, &path, Compression::default())?;
                let file = File::open(&path).map_err(FileError::at("can't read", &path))?;
                let (digest, _) = Digest::of_reader(file).map_err(FileError::at("can't read", &path))?;
                self.store.adopt(&path, &digest)?;
                result.outputs.insert("file".into(), digest);
            }
        }
        result.facts.insert("seconds".into(), started.elapsed().as_secs_f64().into());
        Ok(result)
    }
}

/// Where the files go.
pub(super) fn folder_of(request: &BuildRequest, name: &str) -> PathBuf {
    request.out.clone().unwrap_or_else(|| Path::new("out").join(name))
}

fn manifest(
    locked: &Locked,
    disk: &BakedDisk,
    images: Vec<ImageFile>,
    timings: BTreeMap<String, f64>,
) -> Manifest {
    let system = locked.profile.system();
    let packages = locked.lock.packages.iter().map(|p| ManifestPackage {
        name: p.name.clone(),
        version: p.version.clone(),
        arch: p.arch.clone(),
        sha256: p.sha256,
    });
    Manifest {
        kiln: env!("CARGO_PKG_VERSION").to_owned(),
        name: system.name.clone(),
        version: system.version.clone(),
        arch: system.arch.to_string(),
        epoch: locked.epoch(),
        lock: Digest::of(locked.lock.print().as_bytes()),
        blocks: disk.image.blocks,
        size: disk.image.size.0,
        images,
        layout: disk.layout.clone(),
        packages: packages.collect(),
        timings,
    }
}

/// Refuses to replace files that no build put there: those of a folder without a manifest of Kiln's.
pub(super) fn refuse_foreign(folder: &Path, name: &str, formats: &[Format]) -> Result<(), BakeError> {
    if is_ours(folder) {
        return Ok(());
    }
    let images = formats.iter().map(|format| format!("{name}.{}", format.extension()));
    let mut files = [MANIFEST.to_owned(), STAMP.to_owned()].into_iter().chain(images);
    match files.find(|file| fs::symlink_metadata(folder.join(file)).is_ok()) {
        Some(file) => Err(BakeError::InTheWay { file: folder.join(file) }),
        None => Ok(()),
    }
}

/// Whether a build left its outputs in the folder. Of later versions' manifests only the beginning need be known.
fn is_ours(folder: &Path) -> bool {
    let manifest = fs::read(folder.join(MANIFEST)).unwrap_or_default();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
    manifest["kiln"].is_string() && manifest["blocks"].is_string() && manifest["images"].is_array()
}

/// Copies a file of the store to the output folder, under a temporary name first. The store's own file must not be
/// linked: a machine that is run from the output would change it.
fn place(from: &Path, target: &Path) -> Result<(), BakeError> {
    let source = File::open(from).map_err(FileError::at("can't read", from))?;
    let copy = NewFile::at(target)?;
    copy_sparse(&source, copy.file()).map_err(FileError::at("can't write", target))?;
    Ok(copy.finish()?)
}

fn read_stamps(folder: &Path) -> BTreeMap<String, Stamp> {
    let bytes = fs::read(folder.join(STAMP)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Writes `value` unless the file says just that already.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), BakeError> {
    let json = serde_json::to_string_pretty(value).map_err(std::io::Error::other);
    let json = json.map_err(FileError::at("can't write", path))? + "\n";
    if fs::read(path).is_ok_and(|old| old == json.as_bytes()) {
        return Ok(());
    }
    Ok(write_atomically(path, json.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_build_left_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let check =
            |formats: &[Format]| refuse_foreign(folder.path(), "web", formats).map_err(|e| e.to_string());
        assert_eq!(check(&[Format::Raw]), Ok(()));
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        fs::write(folder.path().join("web.qcow2"), "mine").unwrap();
        assert_eq!(check(&[Format::Raw]), Ok(()));
        assert!(check(&[Format::Raw, Format::Qcow2]).unwrap_err().contains("web.qcow2 is in the way"));
        fs::write(folder.path().join(MANIFEST), "{\"name\": \"an app\"}").unwrap();
        assert!(check(&[Format::Raw]).unwrap_err().contains("manifest.json is in the way"));
        fs::write(folder.path().join(MANIFEST), "{\"kiln\":\"9\",\"blocks\":\"ab\",\"images\":[]}").unwrap();
        assert_eq!(check(&[Format::Raw, Format::Qcow2]), Ok(()));
    }
}
