//! The kernel of a tree and those of its modules that find and mount a root of the store layout.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use crate::tree::{Kind, Packs, Tree};

use super::BootError;

/// Modules that every start takes, as the kernel names them.
const ALWAYS: [&str; 5] = ["ext4", "loop", "dm_verity", "erofs", "overlay"];
/// Drivers of disks and of the buses that they hang on: each is loaded where its device is.
const DRIVERS: [&str; 14] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "nvme",
    "xen_blkfront",
    "ahci",
    "ata_piix",
    "ata_generic",
    "sd_mod",
    "hv_storvsc",
    "vmw_pvscsi",
    "mptspi",
    "pci_hyperv",
    "virtio_mmio",
];

/// The kernel that a tree boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as in `6.12.57+deb13-cloud-amd64`.
    pub release: String,
    /// Its image.
    pub image: Vec<u8>,
    /// Modules in an order in which they can be loaded.
    pub modules: Vec<Module>,
}

/// A module for the initrd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with `_`.
    pub name: String,
    /// Its bytes, not compressed.
    pub bytes: Vec<u8>,
    /// The modules that must be loaded before it.
    pub needs: Vec<String>,
    /// Whether every start takes it.
    pub always: bool,
    /// The devices that it is for, as patterns of their `modalias`.
    pub aliases: Vec<String>,
}

/// Finds the newest kernel of a tree and reads what the initrd takes of it.
///
/// # Errors
/// [`BootError`] when there is none, or it lacks a module that the layout needs.
pub fn kernel(tree: &Tree, packs: &dyn Packs) -> Result<Kernel, BootError> {
    let reader = Reader { tree, packs };
    let link = tree.resolve("vmlinuz").ok_or(BootError::NoKernel)?;
    let path = String::from_utf8_lossy(&link).into_owned();
    let release = path.strip_prefix("boot/vmlinuz-").ok_or(BootError::NoKernel)?.to_owned();
    let folder = format!("usr/lib/modules/{release}");
    let mut aliases = aliases(&reader.text(&format!("{folder}/modules.alias"))?);
    let mut known = Known {
        files: files(&reader.text(&format!("{folder}/modules.dep"))?),
        builtin: reader.text(&format!("{folder}/modules.builtin"))?.lines().map(name_of).collect(),
    };
    // Not every kernel's package has it.
    known.add_soft(&reader.text(&format!("{folder}/modules.softdep")).unwrap_or_default(), &aliases);
    let mut order = Vec::new();
    for name in ALWAYS {
        if !known.add(name, &mut order) {
            return Err(BootError::NoModule { release, name });
        }
    }
    for name in DRIVERS {
        known.add(name, &mut order);
    }
    let module = |name: String| {
        let (path, needs) = &known.files[&name];
        Ok(Module {
            bytes: reader.module(&format!("{folder}/{path}"))?,
            needs: needs.clone(),
            always: ALWAYS.contains(&name.as_str()),
            aliases: aliases.remove(&name).unwrap_or_default(),
            name,
        })
    };
    let modules = order.into_iter().map(module).collect::<Result<_, BootError>>()?;
    Ok(Kernel { release, image: reader.bytes(&path)?, modules })
}

struct Known {
    /// File and needs of each module.
    files: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Known {
    /// Puts a module and what it needs into the order; whether the kernel has it.
    fn add(&self, name: &str, order: &mut Vec<String>) -> bool {
        self.add_below(name, order, &mut Vec::new())
    }

    /// `above` are the modules that need this one. Those that only ask for each other may do so in a circle.
    fn add_below<'a>(&'a self, name: &'a str, order: &mut Vec<String>, above: &mut Vec<&'a str>) -> bool {
        let Some((_, needs)) = self.files.get(name) else { return self.builtin.contains(name) };
        if above.contains(&name) || order.iter().any(|known| known == name) {
            return true;
        }
        above.push(name);
        // depmod(8) writes all that is needed, the nearest first.
        for needed in needs.iter().rev() {
            self.add_below(needed, order, above);
        }
        above.pop();
        order.push(name.to_owned());
        true
    }

    /// Adds what modules ask for without using its symbols (modprobe.d(5), `softdep`): ext4's and EROFS' checksums, where they
    /// are modules. In the initrd nobody answers when the kernel asks for them.
    fn add_soft(&mut self, text: &str, aliases: &BTreeMap<String, Vec<String>>) {
        for line in text.lines() {
            let mut words = line.strip_prefix("softdep ").unwrap_or_default().split_whitespace();
            let Some(name) = words.next().map(name_of) else { continue };
            let wanted = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
            let found: Vec<String> = wanted.filter_map(|word| self.provider(word, aliases)).collect();
            let Some((_, needs)) = self.files.get_mut(&name) else { continue };
            needs.extend(found);
        }
    }

    /// The module of this name, or one that has it as an alias: of several, the one for any processor.
    fn provider(&self, word: &str, aliases: &BTreeMap<String, Vec<String>>) -> Option<String> {
        let name = name_of(word);
        if self.files.contains_key(&name) {
            return Some(name);
        }
        let same = |alias: &String| alias.replace('-', "_") == name;
        let providers = aliases.iter().filter(|(_, of)| of.iter().any(same)).map(|(name, _)| name);
        providers.max_by_key(|name| name.ends_with("_generic")).cloned()
    }
}

/// modules.dep(5): path of each module below its kernel's folder, and the names of what it needs.
fn files(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let line = |line: &str| {
        let (path, needs) = line.split_once(':')?;
        Some((name_of(path), (path.to_owned(), needs.split_whitespace().map(name_of).collect())))
    };
    text.lines().filter_map(line).collect()
}

fn aliases(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some("alias"), Some(pattern), Some(name)) = (words.next(), words.next(), words.next()) {
            aliases.entry(name.replace('-', "_")).or_default().push(pattern.to_owned());
        }
    }
    aliases
}

/// The kernel's name of the module in a file: `kernel/fs/ext4/ext4.ko.xz` holds `ext4`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

struct Reader<'a> {
    tree: &'a Tree,
    packs: &'a dyn Packs,
}

impl Reader<'_> {
    fn bytes(&self, path: &str) -> Result<Vec<u8>, BootError> {
        let gone = || BootError::Missing(format!("/{path}"));
        let node = self.tree.resolve(path).and_then(|path| self.tree.get(&path)).ok_or_else(gone)?;
        let Kind::File(content) = &node.kind else { return Err(gone()) };
        content.read(self.packs).map_err(|e| BootError::Unreadable(format!("/{path}"), e.to_string()))
    }

    fn text(&self, path: &str) -> Result<String, BootError> {
        Ok(String::from_utf8_lossy(&self.bytes(path)?).into_owned())
    }

    /// A module, which distributions compress.
    fn module(&self, path: &str) -> Result<Vec<u8>, BootError> {
        let bytes = self.bytes(path)?;
        let mut plain = Vec::new();
        let read = match path.rsplit('.').next() {
            Some("xz") => liblzma::read::XzDecoder::new(bytes.as_slice()).read_to_end(&mut plain),
            Some("zst") => zstd::stream::copy_decode(bytes.as_slice(), &mut plain).map(|()| 0),
            Some("gz") => flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut plain),
            _ => return Ok(bytes),
        };
        read.map_err(|e| BootError::Unreadable(format!("/{path}"), e.to_string()))?;
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Content, NoPacks, Node};

    fn tree(files: &[(&str, &[u8])]) -> Tree {
        let mut tree = Tree::new();
        for (path, bytes) in files {
            tree.insert_with_parents(path, Node::new(Kind::File(Content::bytes(*bytes)), 0o644, 0));
        }
        tree.insert("vmlinuz", Node::new(Kind::Symlink(b"boot/vmlinuz-6.1".to_vec()), 0o777, 0));
        tree
    }

    const DEPENDENCIES: &[u8] = b"kernel/fs/erofs/erofs.ko: kernel/lib/crc.ko kernel/fs/netfs.ko\n\
        kernel/lib/crc.ko:\nkernel/fs/netfs.ko: kernel/lib/crc.ko\nkernel/drivers/block/loop.ko:\n\
        kernel/drivers/md/dm-verity.ko: kernel/drivers/md/dm-mod.ko\nkernel/drivers/md/dm-mod.ko:\n\
        kernel/fs/overlayfs/overlay.ko:\nkernel/drivers/block/virtio_blk.ko:\n";

    fn complete() -> Vec<(&'static str, &'static [u8])> {
        let folder = |name| match name {
            0 => "usr/lib/modules/6.1/modules.dep",
            1 => "usr/lib/modules/6.1/modules.alias",
            _ => "usr/lib/modules/6.1/modules.builtin",
        };
        vec![
            ("boot/vmlinuz-6.1", b"kernel"),
            (folder(0), DEPENDENCIES),
            (folder(1), b"# Aliases\nalias virtio:d00000002v* virtio_blk\nalias fs-erofs erofs\n"),
            (folder(2), b"kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko\n"),
            ("usr/lib/modules/6.1/kernel/fs/erofs/erofs.ko", b"erofs"),
            ("usr/lib/modules/6.1/kernel/lib/crc.ko", b"crc"),
            ("usr/lib/modules/6.1/kernel/fs/netfs.ko", b"netfs"),
            ("usr/lib/modules/6.1/kernel/drivers/block/loop.ko", b"loop"),
            ("usr/lib/modules/6.1/kernel/drivers/md/dm-verity.ko", b"verity"),
            ("usr/lib/modules/6.1/kernel/drivers/md/dm-mod.ko", b"dm"),
            ("usr/lib/modules/6.1/kernel/fs/overlayfs/overlay.ko", b"overlay"),
            ("usr/lib/modules/6.1/kernel/drivers/block/virtio_blk.ko", b"blk"),
        ]
    }

    #[test]
    fn what_is_needed_comes_before_what_needs_it() {
        let kernel = kernel(&tree(&complete()), &NoPacks).unwrap();
        assert_eq!((kernel.release.as_str(), kernel.image.as_slice()), ("6.1", &b"kernel"[..]));
        let names: Vec<&str> = kernel.modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["loop", "dm_mod", "dm_verity", "crc", "netfs", "erofs", "overlay", "virtio_blk"]);
    }

    #[test]
    fn what_is_only_asked_for_comes_too() {
        let mut files = complete();
        let dependencies =
            [DEPENDENCIES, b"kernel/crypto/crc32c_generic.ko:\nkernel/crypto/crc32c-intel.ko:\n"].concat();
        files[1].1 = &dependencies;
        files[2].1 = b"alias crypto-crc32c crc32c_intel\nalias crypto-crc32c crc32c_generic\n";
        files.push((
            "usr/lib/modules/6.1/modules.softdep",
            b"# Soft\nsoftdep crc pre: crypto-crc32c nothing post: loop\nsoftdep crc32c_generic pre: crc\nsoftdep x\n",
        ));
        files.push(("usr/lib/modules/6.1/kernel/crypto/crc32c_generic.ko", b"generic"));
        let kernel = kernel(&tree(&files), &NoPacks).unwrap();
        let names: Vec<&str> = kernel.modules.iter().map(|m| m.name.as_str()).collect();
        let expected = [
            "loop",
            "dm_mod",
            "dm_verity",
            "crc32c_generic",
            "crc",
            "netfs",
            "erofs",
            "overlay",
            "virtio_blk",
        ];
        assert_eq!(names, expected);
        assert!(kernel.modules.iter().any(|m| m.name == "crc" && m.needs == ["crc32c_generic"]));
    }

    #[test]
    fn a_kernel_without_a_file_system_is_refused() {
        let mut files = complete();
        files[1].1 = b"kernel/drivers/block/loop.ko:\nkernel/drivers/md/dm-verity.ko:\n";
        let error = kernel(&tree(&files), &NoPacks).unwrap_err();
        assert_eq!(error, BootError::NoModule { release: "6.1".into(), name: "erofs" });
        assert_eq!(kernel(&Tree::new(), &NoPacks).unwrap_err(), BootError::NoKernel);
    }
}
