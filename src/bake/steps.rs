//! The cached steps: packages → configured tree → the image's tree → disk.
//!
//! A step's key holds every input by name, the code that does it among them, so that [`super::why`] can say what changed.
//! Nothing is loaded from the store unless a step is really done: when all are cached, a build reads a few records.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::json;

use super::closure::{ToolSet, package_fields};
use super::{BakeError, Generation, Locked, Session, sources};
use crate::artifact::RawImage;
use crate::boot;
use crate::digest::Digest;
use crate::image::{self, WriteJob};
use crate::layout::{self, Ids, Layout, LayoutRequest};
use crate::profile::FieldPath;
use crate::rootfs::{self, ComposeContext, Composed, SandboxWork};
use crate::sandbox::{self, CustomiseJob, DebFile, InstallJob, Installed, SandboxError, Script};
use crate::store::{Inputs, StepResult, Store};
use crate::system::{DiskLayout, Fetch, System};
use crate::tree::{Content, Kind, Node, Tree, TreePath};
use crate::units::Bytes;

/// The image's tree and layout, as the store keeps them.
pub struct BakedTree {
    /// The steps that led here, in order.
    pub steps: Vec<Inputs>,
    pub(super) result: StepResult,
    packages: StepResult,
}

/// A written disk.
pub struct BakedDisk {
    /// The steps that the disk takes beyond its tree's.
    pub steps: Vec<Inputs>,
    /// The image.
    pub image: RawImage,
    /// What lies where on it.
    pub layout: Layout,
    /// The generation on it, in the store layout.
    pub generation: Option<Generation>,
    /// Seconds that each phase took when it was done, by its name.
    pub timings: BTreeMap<String, f64>,
}

impl Session<'_> {
    /// The image's tree: packages configured, the profile applied.
    ///
    /// # Errors
    /// [`BakeError`] of the phase that failed.
    pub fn tree(&self, locked: &Locked) -> Result<BakedTree, BakeError> {
        // What is wrong with them need not wait for the packages.
        sources::check(&locked.profile)?;
        let inputs = packages_inputs(locked);
        let packages = self.store.step(&inputs, &self.waiting("packages"), || self.install(locked))?;
        let tree_inputs = tree_inputs(locked, &packages)?;
        let make = || self.compose(locked, &packages);
        let result = self.store.step(&tree_inputs, &self.waiting("tree"), make)?;
        Ok(BakedTree { steps: vec![inputs, tree_inputs], result, packages })
    }

    /// The disk with that tree on it.
    ///
    /// # Errors
    /// [`BakeError`] of the phase that failed.
    pub fn disk(&self, locked: &Locked, tree: &BakedTree) -> Result<BakedDisk, BakeError> {
        let generation = self.generation_of(locked, tree)?;
        let content = generation.as_ref().map_or(&tree.result, |generation| &generation.result);
        let inputs = disk_inputs_of(locked, content);
        let tools = Self::tools_inputs(locked, ToolSet::Disk);
        let make = || self.write_disk(locked, tree, generation.as_ref());
        let result = self.store.step(&inputs, &self.waiting("disk"), make)?;
        let gone = |why: &str| BakeError::Kept { what: "disk", why: why.to_owned() };
        let blocks = result.output("image").ok_or_else(|| gone("no image"))?;
        let path = self.store.image_path(&blocks).ok_or_else(|| gone("no file"))?;
        let size = Bytes(fs::metadata(&path).map_err(|e| gone(&e.to_string()))?.len());
        let layout = self.kept_layout(content)?;
        let own = generation.iter().flat_map(|generation| [&generation.system, &generation.result]);
        let results = [&tree.packages, &tree.result].into_iter().chain(own).chain([&result]);
        let timings = results.flat_map(timings).collect();
        let mut steps = generation.as_ref().map(|generation| generation.steps.clone()).unwrap_or_default();
        steps.extend([tools, inputs]);
        Ok(BakedDisk { steps, image: RawImage { path, size, blocks }, layout, generation, timings })
    }

    /// The layout of the disk for that tree. In the store layout the system's image is made for it.
    ///
    /// # Errors
    /// When the store's copy is damaged, or a step fails.
    pub fn layout(&self, locked: &Locked, tree: &BakedTree) -> Result<Layout, BakeError> {
        let generation = self.generation_of(locked, tree)?;
        self.kept_layout(generation.as_ref().map_or(&tree.result, |generation| &generation.result))
    }

    fn kept_layout(&self, result: &StepResult) -> Result<Layout, BakeError> {
        let bytes = self.kept(result, "layout")?;
        serde_json::from_slice(&bytes).map_err(|e| BakeError::Kept { what: "layout", why: e.to_string() })
    }

    /// The generation of that tree; `None` in the mutable layout, which has none.
    fn generation_of(&self, locked: &Locked, tree: &BakedTree) -> Result<Option<Generation>, BakeError> {
        match locked.profile.system().disk.layout {
            DiskLayout::Mutable => Ok(None),
            DiskLayout::Store => self.generation(locked, tree).map(Some),
        }
    }

    /// The tree itself.
    ///
    /// # Errors
    /// When the store's copy is damaged.
    pub fn load_tree(&self, tree: &BakedTree) -> Result<Tree, BakeError> {
        self.parse_tree(&tree.result)
    }

    /// What the packages' scripts printed while they were configured.
    ///
    /// # Errors
    /// When the store's copy is damaged.
    pub fn log(&self, tree: &BakedTree) -> Result<String, BakeError> {
        Ok(String::from_utf8_lossy(&self.kept(&tree.packages, "log")?).into_owned())
    }

    pub(super) fn kept(&self, result: &StepResult, name: &'static str) -> Result<Vec<u8>, BakeError> {
        let digest =
            result.output(name).ok_or(BakeError::Kept { what: name, why: "it has no such output".into() })?;
        Ok(self.store.read_blob(&digest)?)
    }

    fn parse_tree(&self, result: &StepResult) -> Result<Tree, BakeError> {
        let wrong = |why: String| BakeError::Kept { what: "tree", why };
        let text = String::from_utf8(self.kept(result, "tree")?).map_err(|e| wrong(e.to_string()))?;
        Tree::parse(&text).map_err(|e| wrong(e.to_string()))
    }

    /// Packages → a tree in which they are configured.
    fn install(&self, locked: &Locked) -> Result<StepResult, BakeError> {
        let packages = &locked.lock.packages;
        let paths = self.realise(locked, packages)?;
        let job = InstallJob {
            packages: paths
                .into_iter()
                .zip(packages)
                .map(|(path, p)| DebFile { path, manual: p.manual })
                .collect(),
            arch: locked.profile.system().arch,
            epoch: locked.epoch(),
            debconf: locked.profile.system().debconf.clone(),
        };
        let scratch = self.store.scratch("packages")?;
        let task = self.watch.task("installing", &format!("{} packages", packages.len()), 0);
        let progress = |p: &sandbox::Progress| task.at(p.done, &format!("{} {}", p.phase, p.what));
        // Programs that make the disk are unpacked meanwhile. Whoever needs them tells what is wrong with them.
        let installed = std::thread::scope(|scope| {
            scope.spawn(|| self.tools(locked, ToolSet::Disk).ok());
            sandbox::install(&job, scratch.path(), &progress)
        });
        let installed = installed.map_err(|e| self.explained(e))?;
        let mut result = self.keep_tree(&installed.tree, &installed)?;
        let log =
            fs::read(&installed.log).map_err(crate::host::fs::FileError::at("can't read", &installed.log))?;
        result.outputs.insert("log".into(), self.store.put_bytes(&log)?);
        for timing in &installed.timings {
            result.facts.insert(format!("seconds {}", timing.phase), json!(timing.seconds));
        }
        Ok(result)
    }

    /// Keeps what a failed script printed, when its sandbox goes away: one log for each script, the last one. Of a full file
    /// system it says how much was free.
    fn explained(&self, error: SandboxError) -> BakeError {
        if error.is_full() {
            let free = self.store.free_space().unwrap_or_default();
            return BakeError::NoSpace { why: error.to_string(), free, store: self.store.root().to_owned() };
        }
        let SandboxError::Script { package, script, status, tail, log } = error else { return error.into() };
        let plain = |c: char| if c.is_ascii_alphanumeric() || ".+-".contains(c) { c } else { '-' };
        let name: String = format!("{package}.{script}.log").chars().map(plain).collect();
        let folder = self.store.root().join("logs");
        let kept = folder.join(name);
        let copied = fs::create_dir_all(&folder).and_then(|()| fs::copy(&log, &kept));
        let log = if copied.is_ok() { kept } else { log };
        SandboxError::Script { package, script, status, tail, log }.into()
    }

    /// Reads the packs of a tree that is about to be used.
    pub(super) fn check_packs(&self, tree: &Tree) -> Result<(), BakeError> {
        self.check_blobs(&tree.packs())
    }

    /// Reads blobs that are about to be used.
    pub(super) fn check_blobs(&self, digests: &[Digest]) -> Result<(), BakeError> {
        match self.store.check_blobs(digests)? {
            0 => Ok(()),
            count => Err(BakeError::Damaged { count }),
        }
    }

    /// Moves a captured tree's pack into the store, and keeps the tree with all packs that it needs.
    fn keep_tree(&self, tree: &Tree, installed: &Installed) -> Result<StepResult, BakeError> {
        if let Some(pack) = &installed.pack {
            self.store.adopt(&pack.path, &pack.digest)?;
        }
        self.keep(tree)
    }

    pub(super) fn keep(&self, tree: &Tree) -> Result<StepResult, BakeError> {
        let mut result = StepResult::default();
        result.outputs.insert("tree".into(), self.store.put_bytes(tree.dump().as_bytes())?);
        for (number, pack) in tree.packs().into_iter().enumerate() {
            result.outputs.insert(format!("pack {number}"), pack);
        }
        result.facts.insert("digest".into(), json!(tree.digest()));
        Ok(result)
    }

    /// A configured tree → the image's tree and layout.
    fn compose(&self, locked: &Locked, packages: &StepResult) -> Result<StepResult, BakeError> {
        let system = locked.profile.system();
        let _task = self.watch.task("composing", "the tree", 0);
        let ids = Ids::of(&system.name);
        let context = self.compose_context(locked, &ids)?;
        let files = sources::Sources { files: &locked.profile.files, store: self.store };
        let base = self.parse_tree(packages)?;
        let Composed { tree, mut written, work, warnings } =
            rootfs::compose(base, self.store, system, &files, &context)?;
        for warning in &warnings {
            self.watch.say("warning", warning);
        }
        let mut tree = self.customise(tree, &work, &written, locked.epoch())?;
        let mutable = system.disk.layout != DiskLayout::Store;
        if mutable {
            let menu = boot::grub_cfg(system, ids.partition("root"))?;
            insert_menu(&mut tree, menu, locked.epoch());
            written.insert(boot::GRUB_CFG_PATH.into());
        }
        let mut result = self.keep(&tree)?;
        if mutable {
            result.outputs.insert("layout".into(), self.keep_layout(system, &tree)?);
        }
        result.outputs.insert("late".into(), self.store.put_bytes(&print_paths(&written))?);
        Ok(result)
    }

    /// Plans the disk that holds `tree`, and keeps the plan.
    pub(super) fn keep_layout(&self, system: &System, tree: &Tree) -> Result<Digest, BakeError> {
        let layout = layout::plan(&LayoutRequest {
            name: &system.name,
            arch: system.arch,
            disk: &system.disk,
            firmware: system.boot.firmware,
            tree,
        })?;
        let layout = serde_json::to_vec(&layout)
            .map_err(|e| BakeError::Kept { what: "layout", why: e.to_string() })?;
        Ok(self.store.put_bytes(&layout)?)
    }

    /// What lies last on the disk, for the profile writes it.
    pub(super) fn late(&self, tree: &StepResult) -> Result<BTreeSet<TreePath>, BakeError> {
        Ok(parse_paths(&self.kept(tree, "late")?))
    }

    fn compose_context(&self, locked: &Locked, ids: &Ids<'_>) -> Result<ComposeContext, BakeError> {
        let system = locked.profile.system();
        let fetched: Vec<(&String, &Fetch)> = system.fetch.iter().filter(|(_, f)| f.enable).collect();
        self.realise_fetched(&fetched.iter().map(|(_, f)| *f).collect::<Vec<_>>())?;
        let content = |sha256: Digest| -> Result<Content, BakeError> {
            let len = self.store.open_blob(&sha256)?.metadata();
            let path = self.store.blob_path(&sha256);
            let len = len.map_err(crate::host::fs::FileError::at("can't read", &path))?.len();
            Ok(Content::Packed { pack: sha256, offset: 0, len, sha256 })
        };
        let fetched = fetched
            .into_iter()
            .map(|(path, f)| Ok((path.clone(), content(f.sha256)?)))
            .collect::<Result<_, BakeError>>()?;
        let extra = system.disk.partitions.iter().filter(|(_, p)| p.enable);
        Ok(ComposeContext {
            epoch: locked.epoch(),
            root_uuid: ids.file_system("root"),
            esp_partuuid: system.has_esp().then(|| ids.partition("esp")),
            partitions: extra.map(|(name, _)| (name.clone(), ids.partition(name))).collect(),
            fetched,
        })
    }

    /// Runs in the tree what only programs can do.
    fn customise(
        &self,
        tree: Tree,
        work: &SandboxWork,
        written: &BTreeSet<TreePath>,
        epoch: i64,
    ) -> Result<Tree, BakeError> {
        if work.is_empty() {
            return Ok(tree);
        }
        self.check_packs(&tree)?;
        let scratch = self.store.scratch("scripts")?;
        let task = self.watch.task("running", "scripts in the tree", 0);
        let progress = |p: &sandbox::Progress| task.at(p.done, &format!("{} {}", p.phase, p.what));
        let job = CustomiseJob { epoch, scripts: scripts(work), wipe: false };
        let installed = sandbox::customise(&tree, self.store, &job, scratch.path(), &progress);
        let installed = installed.map_err(|e| self.explained(e))?;
        if let Some(pack) = &installed.pack {
            self.store.adopt(&pack.path, &pack.digest)?;
        }
        Ok(rootfs::seal(installed.tree, self.store, written, epoch)?)
    }

    /// A tree and its layout → an image in the store.
    fn write_disk(
        &self,
        locked: &Locked,
        baked: &BakedTree,
        generation: Option<&Generation>,
    ) -> Result<StepResult, BakeError> {
        let started = std::time::Instant::now();
        let tools = self.tools(locked, ToolSet::Disk)?;
        let system = locked.profile.system();
        let content = generation.map_or(&baked.result, |generation| &generation.result);
        let boot = || match generation {
            Some(generation) => self.generation_boot(locked, generation),
            None => Ok(image::boot_files(&tools, &system.name, system.arch)?),
        };
        let (tree, boot) = rayon::join(|| self.parse_tree(content), boot);
        let (tree, boot) = (tree?, boot?);
        let late = match generation {
            Some(_) => BTreeSet::new(),
            None => self.late(content)?,
        };
        let layout = self.kept_layout(content)?;
        self.store.ensure_space(Bytes(tree.iter().map(|(_, node)| content_size(node)).sum()))?;
        let _task = self.watch.task("writing", &format!("a disk of {}", layout.size), 0);
        let scratch = self.store.scratch("disk")?;
        let job = WriteJob {
            layout: &layout,
            tree: &tree,
            packs: self.store,
            late: &late,
            boot: &boot,
            epoch: locked.epoch(),
        };
        let target = scratch.path().join("disk.raw");
        // Beside the writing: when a pack turns out to be damaged, what was written is thrown away.
        let (image, checked) = rayon::join(|| image::write(&job, &target), || self.check_packs(&tree));
        checked?;
        let image = image?;
        self.store.adopt_image(&image.path, &image.blocks)?;
        let mut result = StepResult::default();
        result.outputs.insert("image".into(), image.blocks);
        result.facts.insert("seconds disk".into(), json!(started.elapsed().as_secs_f64()));
        Ok(result)
    }
}

/// GRUB's menu, and the folder that holds it when no package brings it.
fn insert_menu(tree: &mut Tree, menu: String, epoch: i64) {
    let node = Node::new(Kind::File(Content::bytes(menu)), 0o644, epoch);
    tree.insert_with_parents(boot::GRUB_CFG_PATH, node);
}

pub(super) fn content_size(node: &Node) -> u64 {
    match &node.kind {
        Kind::File(content) => content.len(),
        _ => 0,
    }
}

/// The work as scripts: locales first, then the profile's own in the order of their names, the initrd last.
fn scripts(work: &SandboxWork) -> Vec<Script> {
    let kiln = |name: &str, command: &str| Script {
        name: name.into(),
        text: format!("#!/bin/sh\nset -e\n{command}\n"),
    };
    let mut scripts = Vec::new();
    if !work.locales.is_empty() {
        scripts.push(kiln("locales", "locale-gen"));
    }
    let own = work.scripts.iter();
    scripts.extend(own.map(|(name, text)| Script {
        name: format!("run.{name}"),
        text: String::from_utf8_lossy(text).into_owned(),
    }));
    if !work.initrd.is_empty() {
        let command = "for dir in /lib/modules/*/; do version=$(basename \"$dir\")\n\
             [ -e \"/boot/vmlinuz-$version\" ] || continue\n\
             if [ -e \"/boot/initrd.img-$version\" ]; then update-initramfs -u -k \"$version\"\n\
             else update-initramfs -c -k \"$version\"; fi; done";
        scripts.push(kiln("initrd", command));
    }
    scripts
}

pub(super) fn packages_inputs(locked: &Locked) -> Inputs {
    let system = locked.profile.system();
    let inputs = Inputs::new("packages", 1)
        .with("code", env!("KILN_CODE_PACKAGES"))
        .with("arch", system.arch)
        .with("epoch", locked.epoch());
    let inputs = leaves(inputs, "", &mut vec!["debconf".to_owned()], &json!(system.debconf));
    package_fields(inputs, &locked.lock.packages)
}

pub(super) fn tree_inputs(locked: &Locked, packages: &StepResult) -> Result<Inputs, BakeError> {
    let mut inputs = Inputs::new("tree", 1)
        .with("code", env!("KILN_CODE_TREE"))
        .with("epoch", locked.epoch())
        .with("packages", fact(packages, "digest"));
    if let serde_json::Value::Object(fields) = &locked.profile.evaluated.json {
        // What is tested of an image is no part of it, nor is where it goes.
        let shapes = |field: &str| !matches!(field, "test" | "publish");
        for (field, value) in fields.iter().filter(|(field, _)| shapes(field)) {
            inputs = leaves(inputs, "profile ", &mut vec![field.clone()], value);
        }
    }
    for (name, digest) in sources::digests(&locked.profile)? {
        inputs = inputs.with(format!("file {name}"), digest);
    }
    Ok(inputs)
}

/// Adds each value below `path` as an input of its own, so that a change can be told by its field.
fn leaves(mut inputs: Inputs, what: &str, path: &mut Vec<String>, value: &serde_json::Value) -> Inputs {
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                path.push(name.clone());
                inputs = leaves(inputs, what, path, value);
                path.pop();
            }
            inputs
        }
        value => inputs.with(format!("{what}{}", FieldPath(path.clone())), shown(value)),
    }
}

/// A value as it stands in a key: itself while it is short, else its digest.
fn shown(value: &serde_json::Value) -> String {
    let text = value.to_string();
    if text.len() <= 200 { text } else { Digest::of(text.as_bytes()).to_string() }
}

/// The inputs of the disk that holds what a tree's step made, or a generation's.
pub(super) fn disk_inputs_of(locked: &Locked, content: &StepResult) -> Inputs {
    let output = |name: &str| content.output(name).map(|d| d.to_string()).unwrap_or_default();
    let system = locked.profile.system();
    let inputs = Inputs::new("disk", 1)
        .with("code", env!("KILN_CODE_DISK"))
        .with("name", &system.name)
        .with("epoch", locked.epoch())
        .with("tree", fact(content, "digest"))
        .with("layout", output("layout"))
        .with("tools", Session::tools_inputs(locked, ToolSet::Disk).key());
    match system.disk.layout {
        DiskLayout::Mutable => inputs.with("late", output("late")),
        DiskLayout::Store => inputs.with("uki", output("uki")).with("boot", json!(system.boot)),
    }
}

pub(super) fn fact(result: &StepResult, name: &str) -> String {
    result.facts.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
}

fn timings(result: &StepResult) -> Vec<(String, f64)> {
    let seconds =
        result.facts.iter().filter_map(|(name, v)| Some((name.strip_prefix("seconds ")?, v.as_f64()?)));
    seconds.map(|(name, v)| (name.to_owned(), v)).collect()
}

/// Paths with a zero byte behind each.
fn print_paths(paths: &BTreeSet<TreePath>) -> Vec<u8> {
    paths.iter().flat_map(|path| path.iter().copied().chain([0])).collect()
}

fn parse_paths(bytes: &[u8]) -> BTreeSet<TreePath> {
    bytes.split(|&b| b == 0).filter(|p| !p.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Opens a store's image for reading.
pub(super) fn open_image(store: &Store, image: &RawImage) -> Result<fs::File, BakeError> {
    let path = store.image_path(&image.blocks).unwrap_or_else(|| image.path.clone());
    fs::File::open(&path).map_err(|e| BakeError::Kept { what: "disk", why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_of_a_record_is_an_input_of_its_own() {
        let value = json!({ "/etc/motd": { "text": "hi", "mode": "0644" }, "none": {}, "list": [1, 2] });
        let inputs = leaves(Inputs::new("tree", 1), "profile ", &mut vec!["files".to_owned()], &value);
        let fields: Vec<String> = inputs.fields.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        assert_eq!(
            fields,
            [
                "profile files.\"/etc/motd\".mode: \"0644\"",
                "profile files.\"/etc/motd\".text: \"hi\"",
                "profile files.list: [1,2]",
                "profile files.none: {}"
            ]
        );
    }

    #[test]
    fn paths_read_back() {
        let paths: BTreeSet<TreePath> = [b"a b\n".to_vec(), b"etc/x".to_vec()].into();
        assert_eq!(parse_paths(&print_paths(&paths)), paths);
    }

    #[test]
    fn the_initrd_is_made_after_the_profiles_scripts() {
        let work = SandboxWork {
            locales: ["de_DE.UTF-8 UTF-8".to_owned()].into(),
            initrd: ["a module is denied".to_owned()].into(),
            scripts: [("b".to_owned(), b"#!/bin/sh\n".to_vec())].into(),
        };
        let names: Vec<String> = scripts(&work).into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["locales", "run.b", "initrd"]);
    }
}
