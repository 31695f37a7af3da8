//! A tools tree and a root tree, made once and kept below the target folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use kiln::arch::Arch;
use kiln::artifact::RawImage;
use kiln::digest::Digest;
use kiln::image::{TOOL_PACKAGES, WriteJob, boot_files};
use kiln::layout::{Ids, Layout, LayoutRequest, plan};
use kiln::system::{Disk, Firmware, System};
use kiln::tree::{Content, Kind, Node, Packs, Tree, TreePath};
use kiln::units::{Bytes, MIB};

/// The time of everything here: 2026-11-20.
pub const EPOCH: i64 = 1_795_132_800;
/// The name from which the identities derive.
const NAME: &str = "server";
const ROOT_PACKAGES: &str = "apt,systemd-sysv,udev,dbus,linux-image-cloud-amd64,initramfs-tools,openssh-server,\
                             cloud-init,netbase,ifupdown,iproute2,ca-certificates,e2fsprogs,zstd";

/// What the tests share.
pub struct Fixture {
    /// The tools tree.
    pub tools: PathBuf,
    /// A small server with GRUB's configuration.
    pub tree: Tree,
    folder: PathBuf,
    pack: Arc<File>,
}

impl Packs for Fixture {
    fn open(&self, _: &Digest) -> io::Result<Arc<File>> {
        Ok(self.pack.clone())
    }
}

impl Fixture {
    /// The one fixture of this run.
    pub fn get() -> &'static Fixture {
        static FIXTURE: OnceLock<Fixture> = OnceLock::new();
        FIXTURE.get_or_init(|| Fixture::make().expect("a fixture"))
    }

    fn make() -> io::Result<Fixture> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("disk");
        fs::create_dir_all(&folder)?;
        let tools = bootstrap(&folder.join("tools"), "extract", &TOOL_PACKAGES.join(","))?;
        let root = bootstrap(&folder.join("root"), "essential", ROOT_PACKAGES)?;
        let pack = tempfile::tempfile_in(&folder)?;
        let mut tree = capture(&root, &pack)?;
        let mut system = System { name: NAME.into(), ..System::default() };
        system.boot.consoles = vec!["tty0".into(), "ttyS0,115200n8".into()];
        let config = kiln::boot::grub_cfg(&system, Ids::of(NAME).partition("root")).expect("a configuration");
        let config = Node::new(Kind::File(Content::bytes(config)), 0o644, EPOCH);
        tree.insert_with_parents(kiln::boot::GRUB_CFG_PATH, config);
        tree.insert("etc/machine-id", Node::new(Kind::File(Content::bytes("uninitialized\n")), 0o444, EPOCH));
        Ok(Fixture { tools, tree, folder, pack: Arc::new(pack) })
    }
}

/// Makes a tree with mmdebstrap unless it is there; the mirror is KILN_MIRROR or that of the host.
///
/// Each test is a process of its own: the first one makes it, the others wait for its lock. What a killed run left
/// is made anew.
fn bootstrap(target: &Path, variant: &str, packages: &str) -> io::Result<PathBuf> {
    let lock = File::create(target.with_extension("lock"))?;
    lock.lock()?;
    if !target.exists() {
        let unfinished = target.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        let mirror =
            std::env::var("KILN_MIRROR").ok().or_else(host_mirror).expect("KILN_MIRROR or apt sources");
        let status = Command::new("mmdebstrap")
            .args(["--quiet", &format!("--variant={variant}"), &format!("--include={packages}")])
            .args(["--aptopt=APT::Install-Recommends \"false\"", "trixie"])
            .arg(&unfinished)
            .arg(format!("deb {mirror} trixie main"))
            .status()?;
        assert!(status.success(), "mmdebstrap failed");
        fs::rename(&unfinished, target)?;
    }
    Ok(target.to_owned())
}

/// The first archive of the host's apt sources.
fn host_mirror() -> Option<String> {
    let sources = fs::read_dir("/etc/apt/sources.list.d").ok()?;
    let texts = sources.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let uris = texts.flat_map(|text| {
        let uris =
            text.lines().filter_map(|line| line.strip_prefix("URIs:")).map(|uri| uri.trim().to_owned());
        uris.collect::<Vec<_>>()
    });
    uris.into_iter().find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
}

/// Reads a folder of the host as a tree whose files' bytes go into one pack.
fn capture(root: &Path, pack: &File) -> io::Result<Tree> {
    let mut out = BufWriter::new(pack);
    let (mut tree, mut links, mut offset) = (Tree::new(), BTreeMap::new(), 0);
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(root).map_err(io::Error::other)?.as_os_str().as_bytes().to_vec();
        let kind = if meta.is_dir() {
            let mut below: Vec<PathBuf> =
                fs::read_dir(&path)?.map(|e| Ok(e?.path())).collect::<io::Result<_>>()?;
            below.sort_by(|a, b| b.cmp(a));
            if !["proc", "sys", "dev", "run"].iter().any(|dir| name == dir.as_bytes()) {
                todo.append(&mut below);
            }
            Kind::Dir
        } else if meta.is_symlink() {
            Kind::Symlink(fs::read_link(&path)?.as_os_str().as_bytes().to_vec())
        } else if meta.file_type().is_fifo() {
            Kind::Fifo
        } else if let Some(target) = links.get(&meta.ino()) {
            Kind::HardLink(TreePath::clone(target))
        } else {
            if meta.nlink() > 1 {
                links.insert(meta.ino(), name.clone());
            }
            let bytes = fs::read(&path)?;
            out.write_all(&bytes)?;
            let content = Content::Packed {
                pack: Digest([0; 32]),
                offset,
                len: bytes.len() as u64,
                sha256: Digest::of(&bytes),
            };
            offset += bytes.len() as u64;
            Kind::File(content)
        };
        let node =
            Node::new(kind, meta.mode() & 0o7777, meta.mtime().min(EPOCH)).owned_by(meta.uid(), meta.gid());
        tree.insert(&name, node);
    }
    out.flush()?;
    Ok(tree)
}

/// The layout of a server's disk with this tree.
pub fn layout_of(tree: &Tree) -> Layout {
    let (free, esp_size) = (Bytes(128 * MIB), Bytes(64 * MIB));
    let disk = Disk { free, esp_size, label: "root".into(), grow: true, ..Disk::default() };
    layout_with(tree, &disk)
}

/// The layout of this tree on that disk.
pub fn layout_with(tree: &Tree, disk: &Disk) -> Layout {
    plan(&LayoutRequest { name: NAME, arch: Arch::Amd64, disk, firmware: Firmware::Both, tree })
        .expect("a layout")
}

/// Writes an image into the fixture's folder.
pub fn write(
    fixture: &Fixture,
    tree: &Tree,
    layout: &Layout,
    late: &BTreeSet<TreePath>,
    name: &str,
) -> RawImage {
    let boot = boot_files(&fixture.tools, NAME, Arch::Amd64).expect("boot files");
    let job = WriteJob { layout, tree, packs: fixture, late, boot: &boot, epoch: EPOCH };
    kiln::image::write(&job, &fixture.folder.join(name)).expect("an image")
}
