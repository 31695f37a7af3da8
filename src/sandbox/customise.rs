//! The inner side of [`super::customise`]: a tree becomes files, scripts change them, and they become a tree again.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::capture::Capture;
use super::error::{Doing, Failure, Inner};
use super::extract::{DirMeta, Root, Writer};
use super::install::{Clock, Outputs, hand_over, now};
use super::scripts::Runner;
use super::wire::{Outcome, Teller};
use super::{CustomiseJob, DUMP, ROOT, mounts, wipe};
use crate::digest::Digest;
use crate::host::sys;
use crate::source::debian::deb::{Entry, EntryKind};
use crate::tree::{Content, Kind, Node, Packs, Tree};

/// The packs that were inherited as open files.
struct Inherited(HashMap<Digest, Arc<std::fs::File>>);

impl Packs for Inherited {
    fn open(&self, pack: &Digest) -> io::Result<Arc<std::fs::File>> {
        self.0.get(pack).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

/// Reads a file's content piece by piece.
struct Reader<'a> {
    content: &'a Content,
    file: Option<Arc<std::fs::File>>,
    at: u64,
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.content.len() - self.at;
        let n = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match (self.content, &self.file) {
            (Content::Bytes(bytes), _) => {
                buffer[..n].copy_from_slice(&bytes[self.at as usize..self.at as usize + n])
            }
            (Content::Packed { offset, .. }, Some(file)) => {
                file.read_exact_at(&mut buffer[..n], offset + self.at)?
            }
            (Content::Packed { .. }, None) => return Err(io::ErrorKind::NotFound.into()),
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Changes the tree whose dump lies in `scratch`.
pub(super) fn run(
    job: &CustomiseJob,
    scratch: &Path,
    packs: &[(Digest, i32)],
    teller: &Teller,
) -> Inner<Outcome> {
    let mut clock = Clock::new();
    let text = std::fs::read_to_string(scratch.join(DUMP)).doing("reading the tree")?;
    let tree = Tree::parse(&text)
        .map_err(|e| Failure::Failed { doing: "reading the tree".into(), why: e.to_string() })?;
    drop(text);
    let mut open = HashMap::new();
    for (digest, number) in packs {
        let file = sys::take_inherited(*number)
            .ok_or(io::Error::from(io::ErrorKind::NotFound))
            .doing("opening a pack")?;
        open.insert(*digest, Arc::new(file));
    }
    let outputs = Outputs::open(scratch)?;
    let runner = Runner::new(outputs.log.try_clone().doing("opening the log")?, job.epoch);
    let host = scratch.join(ROOT);
    let bytes: u64 = tree.iter().map(|(_, node)| size(node)).sum();
    let in_memory = mounts::prepare(&host, bytes + bytes / 4 + (256 << 20))?;
    materialise(&tree, &Inherited(open), &Root::open(&host).doing("opening the scratch tree")?, job.epoch)?;
    clock.lap("materialise");
    let started = now();
    mounts::enter(&host)?;
    let total = job.scripts.len() as u64;
    for (done, script) in job.scripts.iter().enumerate() {
        teller.progress("run", done as u64, total, &script.name);
        run_script(&runner, script)?;
    }
    if job.wipe {
        wipe::wipe()?;
    }
    clock.lap("run");
    let known = known_contents(&tree);
    let capture = Capture { epoch: job.epoch, worked: started..=now() + 1, known: &known };
    hand_over(&capture, in_memory, outputs, &mut clock)
}

fn run_script(runner: &Runner, script: &super::Script) -> Inner<()> {
    let failed = |status, tail| {
        let name = format!("the script `{}`", script.name);
        Err(Failure::Script { package: "the profile".to_owned(), script: name, status, tail })
    };
    // To the kernel it is the script that isn't there (execve(2)).
    if let Some(program) = interpreter(&script.text).filter(|program| !Path::new(program).exists()) {
        // One that ends in a carriage return is another than it seems to be.
        return failed(format!("its interpreter {program:?} is not in the image"), Vec::new());
    }
    let path = "/tmp/kiln-script";
    std::fs::write(path, &script.text).doing("writing a script")?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .doing("writing a script")?;
    let ran = runner.run(runner.command(path), &mut |_| {})?;
    let _ = std::fs::remove_file(path);
    if ran.status.success() {
        return Ok(());
    }
    failed(ran.status(), ran.tail)
}

/// The program that the first line of a script names.
fn interpreter(text: &str) -> Option<&str> {
    let blank = [' ', '\t'];
    let line = text.split('\n').next()?.strip_prefix("#!")?;
    line.trim_start_matches(blank).split(blank).next()
}

/// What a node takes in memory.
fn size(node: &Node) -> u64 {
    match &node.kind {
        Kind::File(content) => content.len().next_multiple_of(4096) + 1024,
        _ => 1024,
    }
}

/// Every content of a tree, to be found again by digest.
fn known_contents(tree: &Tree) -> HashMap<(Digest, u64), Content> {
    let content = |node: &Node| match &node.kind {
        Kind::File(content) => Some(((content.sha256(), content.len()), content.clone())),
        _ => None,
    };
    tree.iter().filter_map(|(_, node)| content(node)).collect()
}

/// Writes a tree to disk. Scripts see the epoch as its directories' time, which they have in the image.
fn materialise(tree: &Tree, packs: &dyn Packs, root: &Root, epoch: i64) -> Inner<()> {
    let mut writer = Writer::new(root, true);
    for (path, _) in tree.iter().filter(|(_, n)| n.kind == Kind::Dir) {
        writer.dir(path).doing_at("making", path)?;
    }
    for (path, node) in tree.iter() {
        let (kind, content) = match &node.kind {
            Kind::Dir => continue,
            Kind::HardLink(_) => continue,
            Kind::File(content) => (EntryKind::File(content.len()), Some(content)),
            Kind::Symlink(target) => (EntryKind::Symlink(target.clone()), None),
            Kind::CharDev { major, minor } => (EntryKind::CharDev(*major, *minor), None),
            Kind::BlockDev { major, minor } => (EntryKind::BlockDev(*major, *minor), None),
            Kind::Fifo => (EntryKind::Fifo, None),
        };
        let entry = entry(path, node, kind);
        match content {
            None => writer.entry(path, &entry, &mut io::empty(), false),
            Some(content) => {
                reader(content, packs).and_then(|mut r| writer.entry(path, &entry, &mut r, false))
            }
        }
        .doing_at("writing", path)?;
    }
    for (path, node) in tree.iter() {
        if let Kind::HardLink(target) = &node.kind {
            let entry = entry(path, node, EntryKind::HardLink(target.clone()));
            writer.entry(path, &entry, &mut io::empty(), false).doing_at("writing", path)?;
        }
    }
    for (path, node) in tree.iter().rev() {
        for (name, value) in &node.xattrs {
            root.set_xattr(path, name, value).doing_at("setting an attribute of", path)?;
        }
        if node.kind == Kind::Dir {
            let meta = DirMeta { mode: node.mode, owner: Some((node.uid, node.gid)), mtime: Some(epoch) };
            root.finish_dir(path, meta).doing_at("setting the mode of", path)?;
        }
    }
    Ok(())
}

fn entry(path: &[u8], node: &Node, kind: EntryKind) -> Entry {
    let (mode, uid, gid, mtime) = (node.mode, node.uid, node.gid, node.mtime);
    Entry { path: path.to_vec(), kind, mode, uid, gid, user: String::new(), group: String::new(), mtime }
}

fn reader<'a>(content: &'a Content, packs: &dyn Packs) -> io::Result<Reader<'a>> {
    let file = match content {
        Content::Bytes(_) => None,
        Content::Packed { pack, .. } => Some(packs.open(pack)?),
    };
    Ok(Reader { content, file, at: 0 })
}
