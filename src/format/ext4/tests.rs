//! File systems as e2fsprogs and a reader of another house see them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::format::piece::{Data, Piece};
use crate::tree::{Content, NoPacks, Tree};

const TIME: i64 = 1_795_132_800;

fn ext4(inodes: u64, journal: u64) -> Ext4 {
    let (uuid, hash_seed) = (Uuid::from_u128(1 << 100 | 1), Uuid::from_u128(2));
    Ext4 { uuid, hash_seed, label: "root".into(), inodes, journal: Bytes(journal) }
}

fn tree_of(nodes: impl IntoIterator<Item = (Vec<u8>, Node)>) -> Tree {
    let mut tree = Tree::new();
    nodes.into_iter().for_each(|(path, node)| drop(tree.insert(path, node)));
    tree
}

fn nodes(tree: &Tree) -> impl Iterator<Item = (&[u8], &Node)> {
    let files = |node: &Node| matches!(node.kind, Kind::HardLink(_));
    let own = tree.iter().filter(move |(_, node)| !files(node));
    own.chain(tree.iter().filter(move |(_, node)| files(node))).map(|(path, node)| (path.as_slice(), node))
}

fn bytes(piece: &Piece<'_>) -> Vec<u8> {
    match &piece.data {
        Data::Bytes(bytes) => bytes.clone(),
        Data::File { content, offset, len } => {
            content.read(&NoPacks).unwrap()[*offset as usize..][..*len as usize].to_vec()
        }
    }
}

/// A file with the file system, after its pieces were checked not to overlap.
fn made(fs: &Ext4, size: Bytes, tree: &Tree) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size.0).unwrap();
    let pieces = fs.fill(size, TIME, nodes(tree)).unwrap();
    assert!(pieces.windows(2).all(|pair| pair[0].end() <= pair[1].at));
    for piece in &pieces {
        file.as_file().write_all_at(&bytes(piece), piece.at).unwrap();
    }
    file
}

fn run(program: &str, args: &[&str], file: &Path) -> String {
    let out = Command::new(program).args(args).arg(file).env("TZ", "UTC").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program}: {text}");
    text
}

struct Reader(File);

impl ext4_view::Ext4Read for Reader {
    fn read(&mut self, at: u64, out: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read_exact_at(out, at)?)
    }
}

/// e2fsck finds nothing, and the reader of `ext4-view` finds exactly what the tree holds.
fn check(fs: &Ext4, size: Bytes, tree: &Tree) -> tempfile::NamedTempFile {
    let file = made(fs, size, tree);
    run("e2fsck", &["-fn"], file.path());
    let read = ext4_view::Ext4::load(Box::new(Reader(File::open(file.path()).unwrap()))).unwrap();
    for (path, node) in tree.iter() {
        let full = [b"/", path.as_slice()].concat();
        let place = ext4_view::Path::try_from(full.as_slice()).unwrap();
        let target = match &node.kind {
            Kind::HardLink(target) => tree.get(target).unwrap(),
            _ => node,
        };
        let meta = read.symlink_metadata(place).unwrap();
        assert_eq!((meta.mode(), meta.uid(), meta.gid()), (target.mode as u16, target.uid, target.gid));
        match &target.kind {
            Kind::File(content) => assert!(read.read(place).unwrap() == content.read(&NoPacks).unwrap()),
            Kind::Symlink(to) => assert_eq!(read.read_link(place).unwrap().as_ref(), to.as_slice()),
            Kind::Dir => assert!(meta.is_dir()),
            _ => {}
        }
    }
    file
}

fn file(len: usize) -> Node {
    let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8 ^ (i / 4096) as u8).collect();
    Node::new(Kind::File(Content::bytes(bytes)), 0o644, TIME)
}

fn sample() -> Tree {
    let mut tree = Tree::new();
    tree.insert("", Node::new(Kind::Dir, 0o755, TIME - 1));
    for (path, len) in
        [("empty", 0), ("one", 1), ("block", 4096), ("deep/er/file", 5000), ("large", 20 << 20)]
    {
        tree.insert_with_parents(path, file(len));
    }
    for n in 0..900 {
        tree.insert_with_parents(format!("many/{n}-{}", "x".repeat(n % 200)), file(n % 3));
    }
    tree.insert("many.link", Node::new(Kind::HardLink(b"one".to_vec()), 0, 0));
    tree.insert("short", Node::new(Kind::Symlink(vec![b's'; 59]), 0o777, 7));
    tree.insert("long", Node::new(Kind::Symlink(b"l/ll/".repeat(819)), 0o777, 2 << 32));
    tree.insert("fifo", Node::new(Kind::Fifo, 0o600, TIME));
    tree.insert("null", Node::new(Kind::CharDev { major: 1, minor: 3 }, 0o666, TIME));
    tree.insert("disk", Node::new(Kind::BlockDev { major: 259, minor: 300 }, 0o660, TIME));
    tree.insert("lost+found", Node::new(Kind::Dir, 0o711, TIME));
    let mut owned = file(10).owned_by(1_000_000, 3_000_000_000);
    owned.mode = 0o4750;
    owned.xattrs = BTreeMap::from([
        (
            b"security.capability".to_vec(),
            vec![1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0],
        ),
        (b"user.origin\n".to_vec(), b"one\ntwo\0three".to_vec()),
        (b"user.large".to_vec(), vec![b'v'; 3000]),
        (b"user.nothing".to_vec(), vec![]),
    ]);
    tree.insert("owned", owned);
    tree
}

#[test]
fn everything_arrives() {
    let (tree, fs) = (sample(), ext4(4096, 16 * MIB));
    let file = check(&fs, Bytes(200 * MIB), &tree);
    let ask = |request: &str| run("debugfs", &["-R", request], file.path());
    let expect = |request: &str, parts: &[&str]| {
        let text = ask(request);
        for part in parts {
            assert!(text.contains(part), "{request}: {part} is missing in\n{text}");
        }
    };
    expect("stat one", &["Links: 2", "mtime: 0x6aff8d80:00000000", "crtime: 0x6aff8d80:00000000"]);
    expect("stat short", &["mtime: 0x00000007:00000000", "Blockcount: 0"]);
    expect("stat long", &["mtime: 0x00000000:00000002", "Size: 4095"]);
    expect("stat null", &["Type: character special", "01:03"]);
    expect("stat disk", &["Type: block special", "259:300"]);
    expect("stat lost+found", &["Inode: 11", "Mode:  0711", "Size: 16384"]);
    expect("stat owned", &["Mode:  04750", "User: 1000000", "Group: -1294967296"]);
    expect(
        "ea_list owned",
        &["security.capability (20)", "user.origin\\n (13)", "user.large (3000)", "user.nothing (0)"],
    );
    let need = Need::of(nodes(&tree));
    let text = run("dumpe2fs", &["-h"], file.path());
    let number = |name: &str| -> u64 {
        text.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().parse().unwrap()
    };
    let used = number("Block count:") - number("Free blocks:");
    assert_eq!(number("Inode count:") - number("Free inodes:"), need.inodes);
    let planned = need.blocks + fs.overhead(Bytes(200 * MIB));
    assert!((used..used + 4).contains(&planned), "{planned} planned, {used} used");
}

/// Times that ext4-view doesn't read: before 1970, and where the lower 32 bits look like that.
#[test]
fn times_of_other_centuries_arrive() {
    let mut tree = Tree::new();
    for (name, time) in [("before", -7), ("later", 1 << 31), ("beyond", i64::MAX)] {
        tree.insert(name, Node::new(Kind::Fifo, 0o600, time));
    }
    let file = made(&ext4(64, 4 * MIB), Bytes(20 * MIB), &tree);
    run("e2fsck", &["-fn"], file.path());
    for (name, shown) in
        [("before", "fffffff9:00000000"), ("later", "80000000:00000001"), ("beyond", "7fffffff:00000003")]
    {
        let text = run("debugfs", &["-R", &format!("stat {name}")], file.path());
        assert!(text.contains(&format!("mtime: 0x{shown}")), "{text}");
    }
}

/// All that mke2fs and dumpe2fs say of the file system as a whole is the same.
#[test]
fn it_is_the_file_system_that_mke2fs_makes() {
    let features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                    large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
    for (mib, inodes, journal) in [(16, 1024, 4), (512, 32_768, 64), (1990, 127_360, 64), (9000, 576_000, 64)]
    {
        let (fs, size) = (ext4(inodes, journal * MIB), Bytes(mib * MIB));
        let ours = made(&fs, size, &Tree::new());
        run("e2fsck", &["-fn"], ours.path());
        let theirs = tempfile::NamedTempFile::new().unwrap();
        theirs.as_file().set_len(size.0).unwrap();
        let extended = format!("hash_seed={},nodiscard,lazy_itable_init=1,root_owner=0:0", fs.hash_seed);
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-F", "-T", "default", "-m", "0", "-e", "remount-ro", "-b", "4096", "-I", "256"]);
        mke2fs.args(["-N", &inodes.to_string(), "-O", features, "-U", &fs.uuid.to_string(), "-L", "root"]);
        mke2fs.args(["-J", &format!("size={journal}"), "-E", &extended]).arg(theirs.path());
        mke2fs.env("MKE2FS_CONFIG", "/dev/null").env("E2FSPROGS_FAKE_TIME", TIME.to_string());
        assert!(mke2fs.status().unwrap().success());
        let said = |file: &Path| {
            let text = run("dumpe2fs", &["-h"], file);
            let differs = ["Lifetime writes", "Checksum:", "Journal checksum"];
            let lines = text.lines().filter(|l| !differs.iter().any(|d| l.starts_with(d)));
            lines.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(said(ours.path()), said(theirs.path()), "{mib} MiB");
    }
}

#[test]
fn copies_of_the_superblock_describe_it_as_well() {
    let file = made(&ext4(16_384, 16 * MIB), Bytes(600 * MIB), &sample());
    // Whoever repairs it by a copy finds all files.
    let repair =
        Command::new("e2fsck").args(["-fy", "-b", "32768", "-B", "4096"]).arg(file.path()).output().unwrap();
    assert_eq!(repair.status.code(), Some(1));
    let text = String::from_utf8_lossy(&repair.stdout);
    assert!(!text.contains("UNREF") && !text.contains("nattached"), "{text}");
    run("e2fsck", &["-fn"], file.path());
}

#[test]
fn copies_of_the_superblock_are_the_same_whatever_is_in_it() {
    let copy = |tree: &Tree| {
        let file = made(&ext4(16_384, 16 * MIB), Bytes(600 * MIB), tree);
        let mut bytes = vec![0; 2 * BLOCK as usize];
        file.as_file().read_exact_at(&mut bytes, BLOCKS_PER_GROUP * BLOCK).unwrap();
        bytes
    };
    let mut more = sample();
    more.insert("more", file(100_000));
    assert_eq!(copy(&sample()), copy(&more));
}

#[test]
fn it_grows_and_shrinks() {
    let (size, tree) = (Bytes(200 * MIB), sample());
    let file = made(&ext4(4096, 16 * MIB), size, &tree);
    for size in ["5G", "300M", "60M"] {
        if size == "5G" {
            file.as_file().set_len(5 << 30).unwrap();
        }
        run("e2fsck", &["-fp"], file.path());
        let out = Command::new("resize2fs").arg(file.path()).arg(size).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        run("e2fsck", &["-fn"], file.path());
    }
}

#[test]
fn what_is_not_possible_is_said() {
    let say = |tree: &Tree, size: u64| {
        let fs = ext4(64, 4 * MIB);
        fs.fill(Bytes(size), TIME, tree.iter().map(|(p, n)| (p.as_slice(), n))).unwrap_err().to_string()
    };
    let one = |path: &str, node: Node| tree_of([(path.as_bytes().to_vec(), node)]);
    let link = |to: &str| Node::new(Kind::HardLink(to.into()), 0, 0);
    let mut many = Tree::new();
    (0..60).for_each(|n| drop(many.insert(format!("{n}"), file(0))));
    let mut acl = file(0);
    acl.xattrs.insert(b"system.posix_acl_access".to_vec(), vec![1]);
    let mut large = file(0);
    large.xattrs.insert(b"user.large".to_vec(), vec![1; 5000]);
    let below = tree_of([(b"a".to_vec(), file(0)), (b"a/b".to_vec(), file(0))]);
    let texts = [
        say(&one("large", file(17 << 20)), 20 * MIB),
        say(&many, 20 * MIB),
        say(&Tree::new(), 64 << 40),
        say(&Tree::new(), MIB / 4),
        say(&Tree::new(), 0),
        say(&one("above/file", file(0)), 20 * MIB),
        say(&below, 20 * MIB),
        say(&one(&"n".repeat(256), file(0)), 20 * MIB),
        say(&one("link", link("nothing")), 20 * MIB),
        say(&one("link", link("lost+found")), 20 * MIB),
        say(&one("lost+found", file(0)), 20 * MIB),
        say(&one("to", Node::new(Kind::Symlink(vec![b'x'; 4096]), 0, 0)), 20 * MIB),
        say(&one("dev", Node::new(Kind::CharDev { major: 5000, minor: 0 }, 0, 0)), 20 * MIB),
        say(&one("acl", acl), 20 * MIB),
        say(&one("attributes", large), 20 * MIB),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn the_bytes_are_pinned() {
    let (tree, fs) = (sample(), ext4(4096, 16 * MIB));
    let mut hasher = crate::digest::Hasher::new();
    for piece in fs.fill(Bytes(200 * MIB), TIME, nodes(&tree)).unwrap() {
        hasher.update(&piece.at.to_le_bytes());
        hasher.update(&bytes(&piece));
    }
    insta::assert_snapshot!(hasher.finish().short());
}

#[test]
fn a_file_in_many_pieces_is_found() {
    // A file of 700 MiB passes the copies of the superblock in groups 1, 3 and 5; nothing of it has to be written.
    let content = Content::Packed {
        pack: crate::digest::Digest([0; 32]),
        offset: 0,
        len: 700 << 20,
        sha256: crate::digest::Digest([0; 32]),
    };
    let tree = tree_of([(b"large".to_vec(), Node::new(Kind::File(content), 0o644, TIME))]);
    let fs = ext4(4096, 16 * MIB);
    let out = tempfile::NamedTempFile::new().unwrap();
    out.as_file().set_len(1 << 30).unwrap();
    for piece in fs.fill(Bytes(1 << 30), TIME, nodes(&tree)).unwrap() {
        if let Data::Bytes(bytes) = piece.data {
            out.as_file().write_all_at(&bytes, piece.at).unwrap();
        }
    }
    run("e2fsck", &["-fn"], out.path());
    let text = run("debugfs", &["-R", "ex large"], out.path());
    assert!(text.lines().count() > 6, "{text}");
    assert!(File::open(out.path()).is_ok());
}

/// What mke2fs 1.47.2 reports as `Overhead clusters`, which leaves out lost+found.
#[test]
fn overhead_is_what_mke2fs_reports() {
    let sizes = [(512, 32_768, 64, 18_635)];
    for (mib, inodes, journal, clusters) in sizes {
        let overhead = ext4(inodes, journal * MIB).overhead(Bytes(mib * MIB));
        assert!((clusters..clusters + 4).contains(&overhead), "{mib} MiB: {overhead}, not {clusters}");
    }
}

#[test]
fn copies_of_the_superblock_lie_in_few_groups() {
    let groups: Vec<u64> = (0..130).filter(|&group| has_superblock(group)).collect();
    assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
}

#[test]
fn what_nodes_need_is_counted() {
    let mut tree = tree_of([(Vec::new(), Node::new(Kind::Dir, 0o755, 0))]);
    let need = |tree: &Tree| Need::of(tree.iter().map(|(p, n)| (p.as_slice(), n)));
    assert_eq!(need(&tree), Need { blocks: 5, inodes: 11 });
    tree.insert("file", Node::new(Kind::File(Content::bytes(vec![1; 4097])), 0o644, 0));
    tree.insert("hard", Node::new(Kind::HardLink(b"file".to_vec()), 0, 0));
    tree.insert("short", Node::new(Kind::Symlink(vec![b'x'; 59]), 0o777, 0));
    tree.insert("slow", Node::new(Kind::Symlink(vec![b'x'; 60]), 0o777, 0));
    assert_eq!(need(&tree), Need { blocks: 8, inodes: 14 });
    for i in 0..100 {
        tree.insert(format!("{i:0>250}"), Node::new(Kind::Fifo, 0o644, 0));
    }
    // 15 entries of 260 bytes a block; and one block for the extents of more than four.
    assert_eq!(need(&tree), Need { blocks: 15, inodes: 114 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_tree_arrives(
        names in proptest::collection::btree_map("[a-c]{1,2}(/[a-z\u{e4}]{1,90}){0,3}", (0u8..6, 0usize..20_000, any::<(u32, u32)>(), 0u32..0o10000), 0..40),
        xattr in proptest::collection::vec(any::<u8>(), 1..300),
    ) {
        let mut tree = tree_of([(Vec::new(), Node::new(Kind::Dir, 0o755, TIME))]);
        for (path, (kind, len, (uid, gid), mode)) in &names {
            let mut above = crate::tree::parent(path.as_bytes());
            let mut free = tree.get(path).is_none();
            while !above.is_empty() {
                free &= tree.get(above).is_none_or(|node| node.kind == Kind::Dir);
                above = crate::tree::parent(above);
            }
            if !free {
                continue;
            }
            let mut node = file(*len).owned_by(*uid, *gid);
            node.mode = *mode;
            match kind {
                0 => node.kind = Kind::Dir,
                1 => node.kind = Kind::Symlink(b"x/".repeat(len % 2000 + 1)),
                2 => drop(node.xattrs.insert(b"user.some".to_vec(), xattr.clone())),
                _ => {}
            }
            tree.insert_with_parents(path, node);
        }
        let need = Need::of(nodes(&tree));
        let size = Bytes(64 * MIB);
        check(&ext4(Ext4::inodes_for(size, need), 4 * MIB), size, &tree);
    }
}
