//! The store layout's own steps: the image's tree → the system's image → the generation that starts it → disk.

use std::path::Path;
use std::time::Instant;

use kiln_guest::generation::{MANIFEST, Manifest, SYSTEM, UKI};
use kiln_guest::switch::Switched;
use serde_json::json;

use super::closure::ToolSet;
use super::steps::{content_size, fact};
use super::{BakeError, BakedTree, Locked, Session};
use crate::boot::generation::{SystemImage, command_line, esp, initrd, title, unified};
use crate::boot::modules;
use crate::digest::Digest;
use crate::format::tar;
use crate::guest;
use crate::image::{self, AddJob, BootFiles, SystemJob};
use crate::layout::{self, Ids};
use crate::rootfs::store;
use crate::store::{Inputs, StepResult};
use crate::system::{DiskLayout, System};
use crate::tree::{Content, Kind, Node, Tree};
use crate::units::Bytes;

/// A generation: the system's image, and the unified kernel image that starts it.
pub struct Generation {
    /// The steps that made it.
    pub steps: Vec<Inputs>,
    /// What the generation's own step keeps.
    pub(super) result: StepResult,
    /// What the step of the system's image keeps.
    pub(super) system: StepResult,
}

impl Generation {
    /// What tells it from others: the inputs of its step.
    pub(super) fn key(&self) -> Digest {
        self.steps.last().map_or(Digest([0; 32]), Inputs::key)
    }
}

impl Session<'_> {
    /// The generation of that tree.
    ///
    /// # Errors
    /// [`BakeError`] of the step that failed.
    pub fn generation(&self, locked: &Locked, tree: &BakedTree) -> Result<Generation, BakeError> {
        let inputs = system_inputs(locked, &tree.result);
        let make = || self.write_system(locked, tree);
        let system = self.store.step(&inputs, &self.waiting("system"), make)?;
        let own = self.generation_inputs(locked, &tree.result, &system)?;
        let make = || self.make_generation(locked, tree, &system);
        let result = self.store.step(&own, &self.waiting("generation"), make)?;
        Ok(Generation { steps: vec![inputs, own], result, system })
    }

    /// The inputs of the steps of the store layout, as far as they are known: for telling what changed.
    pub(super) fn generation_steps(
        &self,
        locked: &Locked,
        tree: &StepResult,
    ) -> Result<Vec<Inputs>, BakeError> {
        let inputs = system_inputs(locked, tree);
        let mut steps = vec![inputs.clone()];
        if let Some(system) = self.store.lookup(&inputs) {
            steps.push(self.generation_inputs(locked, tree, &system)?);
        }
        Ok(steps)
    }

    fn generation_inputs(
        &self,
        locked: &Locked,
        tree: &StepResult,
        made: &StepResult,
    ) -> Result<Inputs, BakeError> {
        let system = locked.profile.system();
        let image = system_image(system, made)?;
        let partition = Ids::of(&system.name).partition("root");
        Ok(Inputs::new("generation", 2)
            .with("code", env!("KILN_CODE_SYSTEM"))
            .with("guest", Digest::of(guest::PROGRAM))
            .with("name", &system.name)
            .with("version", &system.version)
            .with("epoch", locked.epoch())
            .with("tree", fact(tree, "digest"))
            .with("system", &image.file)
            .with("command line", command_line(system, &image, partition)?)
            .with("disk", json!(system.disk))
            .with("firmware", json!(system.boot.firmware))
            .with("tools", Session::tools_inputs(locked, ToolSet::Disk).key()))
    }

    /// A tree → the image of the system.
    fn write_system(&self, locked: &Locked, baked: &BakedTree) -> Result<StepResult, BakeError> {
        let started = Instant::now();
        let tree = store::of_image(&self.load_tree(baked)?, locked.profile.system());
        self.store.ensure_space(Bytes(tree.iter().map(|(_, node)| content_size(node)).sum()))?;
        let (packages, rest) = layout::divide(&tree, &self.late(&baked.result)?);
        let base = self.system_base(locked, &packages)?;
        let tools = self.tools(locked, ToolSet::Disk)?;
        let _task = self.watch.task("writing", "the system's image", 0);
        let scratch = self.store.scratch("system")?;
        let path = scratch.path().join("system.erofs");
        let job = self.system_job(locked, &rest, &tools);
        let write = || image::write_system(&job, &self.store.blob_path(&base), &path);
        let read = [rest.packs(), vec![base]].concat();
        let (written, checked) = rayon::join(write, || self.check_blobs(&read));
        checked?;
        let written = written?;
        self.store.adopt(&path, &written.digest)?;
        let mut result = StepResult::default();
        result.outputs.insert("system".into(), written.digest);
        result.facts.insert("roothash".into(), json!(written.roothash.to_string()));
        result.facts.insert("size".into(), json!(written.size.0));
        result.facts.insert("seconds system".into(), json!(started.elapsed().as_secs_f64()));
        Ok(result)
    }

    /// The blob with the part of a system's image that only other packages change. Nothing of it is made again for another file
    /// of the profile, and it has its place on the disk before what changes.
    fn system_base(&self, locked: &Locked, packages: &Tree) -> Result<Digest, BakeError> {
        let inputs = Inputs::new("system base", 1)
            .with("code", env!("KILN_CODE_SYSTEM"))
            .with("name", &locked.profile.system().name)
            .with("epoch", locked.epoch())
            .with("tree", packages.digest())
            .with("tools", Session::tools_inputs(locked, ToolSet::Disk).key());
        let make = || {
            let tools = self.tools(locked, ToolSet::Disk)?;
            let _task = self.watch.task("writing", "the packages' part of the system's image", 0);
            let scratch = self.store.scratch("base")?;
            let path = scratch.path().join("base.erofs");
            let job = self.system_job(locked, packages, &tools);
            let (written, checked) =
                rayon::join(|| image::write_base(&job, &path), || self.check_packs(packages));
            checked?;
            let digest = written?;
            self.store.adopt(&path, &digest)?;
            let mut result = StepResult::default();
            result.outputs.insert("base".into(), digest);
            Ok::<_, BakeError>(result)
        };
        let result = self.store.step(&inputs, &self.waiting("system base"), make)?;
        output(&result, "base")
    }

    fn system_job<'a>(&'a self, locked: &Locked, tree: &'a Tree, tools: &'a Path) -> SystemJob<'a> {
        let uuid = Ids::of(&locked.profile.system().name).file_system("system");
        SystemJob { tree, packs: self.store, uuid, epoch: locked.epoch(), tools }
    }

    /// The system's image → what starts it, and the layout of a disk that holds both.
    fn make_generation(
        &self,
        locked: &Locked,
        baked: &BakedTree,
        made: &StepResult,
    ) -> Result<StepResult, BakeError> {
        let started = Instant::now();
        let system = locked.profile.system();
        let tools = self.tools(locked, ToolSet::Disk)?;
        let _task = self.watch.task("making", "the generation", 0);
        let tree = self.load_tree(baked)?;
        let image = system_image(system, made)?;
        let kernel = modules::kernel(&tree, self.store)?;
        let initrd = initrd(guest::PROGRAM, &kernel.modules, locked.epoch())?;
        let cmdline = command_line(system, &image, Ids::of(&system.name).partition("root"))?;
        let stub = image::uefi_programs(&tools)?.stub;
        let unified = unified(&stub, &title(system, &image), &cmdline, &kernel, &initrd)?;
        let content = store::partition(&tree, system, &image.file, content_of(made)?, locked.epoch());
        let mut result = self.keep(&content)?;
        result.outputs.insert("uki".into(), self.store.put_bytes(&unified)?);
        result.outputs.insert("layout".into(), self.keep_layout(system, &content)?);
        result.facts.insert("seconds generation".into(), json!(started.elapsed().as_secs_f64()));
        Ok(result)
    }

    /// The generation as a file for `kiln switch`; answers the blob that holds it.
    pub(super) fn generation_file(
        &self,
        locked: &Locked,
        generation: &Generation,
    ) -> Result<Digest, BakeError> {
        let _task = self.watch.task("writing", "the generation file", 0);
        let manifest = self.manifest(locked, generation)?;
        let image = content_of(&generation.system)?;
        let unified = self.kept(&generation.result, "uki")?;
        let mut blob = self.store.writer()?;
        let mut archive = tar::Writer::new(&mut blob, self.store);
        for (name, content) in
            [(MANIFEST, Content::bytes(manifest.print())), (UKI, Content::bytes(unified)), (SYSTEM, image)]
        {
            let node = Node::new(Kind::File(content), 0o644, locked.epoch());
            archive.entry(name.as_bytes(), &node).map_err(unwritten)?;
        }
        archive.finish().map_err(unwritten)?;
        Ok(blob.finish()?.0)
    }

    /// Adds a generation to a disk that lies in a file; nothing of the disk changes when that fails.
    ///
    /// # Errors
    /// When a step fails, or the disk is none that the generation fits.
    pub fn add_generation(&self, locked: &Locked, disk: &Path) -> Result<Switched, BakeError> {
        let system = locked.profile.system();
        if system.disk.layout != DiskLayout::Store {
            return Err(BakeError::NoGeneration);
        }
        let generation = self.generation(locked, &self.tree(locked)?)?;
        let file = self.made_generation(locked, &generation)?;
        let tools = self.tools(locked, ToolSet::Disk)?;
        let _task = self.watch.task("adding", &format!("a generation to {}", disk.display()), 0);
        let job = AddJob {
            disk,
            file: &file.path,
            partition: Ids::of(&system.name).partition("root"),
            arch: system.arch,
            keep: system.state.generations as usize,
            epoch: locked.epoch(),
            tools: &tools,
        };
        Ok(image::add(&job)?)
    }

    /// What a generation says of itself.
    pub(super) fn manifest(&self, locked: &Locked, generation: &Generation) -> Result<Manifest, BakeError> {
        let system = locked.profile.system();
        let image = system_image(system, &generation.system)?;
        Ok(Manifest {
            name: system.name.clone(),
            version: system.version.clone(),
            title: title(system, &image),
            arch: system.arch.to_string(),
            roothash: image.roothash,
            system: image.file,
            size: size_of(&generation.system),
        })
    }

    /// What starts a disk with that generation.
    pub(super) fn generation_boot(
        &self,
        locked: &Locked,
        generation: &Generation,
    ) -> Result<BootFiles, BakeError> {
        let system = locked.profile.system();
        let tools = self.tools(locked, ToolSet::Disk)?;
        let unified = self.kept(&generation.result, "uki")?;
        let loader = image::uefi_programs(&tools)?.loader;
        let esp = esp(system, loader, unified)?;
        Ok(image::boot_files_of_store(&tools, &system.name, system.arch, esp)?)
    }
}

fn system_inputs(locked: &Locked, tree: &StepResult) -> Inputs {
    let system = locked.profile.system();
    let mounts: Vec<&str> = system.disk.mounts().collect();
    Inputs::new("system", 2)
        .with("code", env!("KILN_CODE_SYSTEM"))
        .with("name", &system.name)
        .with("epoch", locked.epoch())
        .with("tree", fact(tree, "digest"))
        .with("late", tree.output("late").unwrap_or(Digest([0; 32])))
        .with("mounts", mounts.join(" "))
        .with("tools", Session::tools_inputs(locked, ToolSet::Disk).key())
}

/// The system's image as command lines name it.
fn system_image(system: &System, made: &StepResult) -> Result<SystemImage, BakeError> {
    let roothash = fact(made, "roothash")
        .parse()
        .map_err(|_| BakeError::Kept { what: "system", why: "no root hash".to_owned() })?;
    Ok(SystemImage { file: format!("{}-{}", output(made, "system")?, system.name), roothash })
}

/// The system's image as the content of a file.
fn content_of(made: &StepResult) -> Result<Content, BakeError> {
    let digest = output(made, "system")?;
    Ok(Content::Packed { pack: digest, offset: 0, len: size_of(made), sha256: digest })
}

fn size_of(made: &StepResult) -> u64 {
    made.facts.get("size").and_then(serde_json::Value::as_u64).unwrap_or_default()
}

fn unwritten(e: std::io::Error) -> BakeError {
    BakeError::Kept { what: "generation", why: e.to_string() }
}

fn output(result: &StepResult, name: &'static str) -> Result<Digest, BakeError> {
    result.output(name).ok_or(BakeError::Kept { what: name, why: "it has no such output".into() })
}
